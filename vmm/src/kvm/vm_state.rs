//! The state of a VM that belongs to no vCPU: interrupt controllers, timer, clock.

use std::time::Duration;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::standstill::{Standstill, wall_ns};
use super::{KvmError, ioctl};

/// The state of the VM as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmCommonState {
    /// PIC pair and IOAPIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// The PIT.
    pub pit: kvm_pit_state2,
    /// kvmclock.
    pub clock: kvm_clock_data,
    /// Wall time when it was saved, nanoseconds since 1970: with it the destination knows how long the guest
    /// stood still, also where KVM does not tell.
    pub wall_ns: u64,
}

/// The interrupt controllers, in the order in which they are saved.
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// The chips of a VM that was never saved.
pub fn blank_chips() -> Vec<kvm_irqchip> {
    let chip = |chip_id| kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    CHIPS.into_iter().map(chip).collect()
}

/// Reads the state; vCPUs and devices are stopped. The clock comes last, as late as possible.
///
/// # Errors
/// An ioctl failed; nothing has changed.
pub fn save(vm: &VmFd) -> Result<VmCommonState, KvmError> {
    let mut irqchips = blank_chips();
    for chip in &mut irqchips {
        vm.get_irqchip(chip)
            .map_err(ioctl("get an interrupt controller's state"))?;
    }
    let pit = vm.get_pit2().map_err(ioctl("get the PIT's state"))?;
    let clock = vm.get_clock().map_err(ioctl("get the clock"))?;
    Ok(VmCommonState {
        irqchips,
        pit,
        clock,
        wall_ns: wall_ns(),
    })
}

impl VmCommonState {
    /// What is wrong with a state that arrived, if anything.
    ///
    /// # Errors
    /// The chips are not the three that a VM has.
    pub fn check(&self) -> Result<(), String> {
        let chips: Vec<u32> = self.irqchips.iter().map(|c| c.chip_id).collect();
        if chips != CHIPS {
            return Err(format!(
                "interrupt controllers {chips:?} arrived, {CHIPS:?} are expected"
            ));
        }
        Ok(())
    }
}

/// Writes the state; no vCPU has run. `standstill` is added to the guest's clock where KVM does not do so
/// itself, so that the guest's time goes on through the move.
///
/// # Errors
/// An ioctl failed; the VM is unusable then.
pub fn restore(vm: &VmFd, state: &VmCommonState, standstill: &Standstill) -> Result<(), KvmError> {
    for chip in &state.irqchips {
        vm.set_irqchip(chip)
            .map_err(ioctl("set an interrupt controller's state"))?;
    }
    vm.set_pit2(&state.pit)
        .map_err(ioctl("set the PIT's state"))?;
    vm.set_clock(&clock_to_set(&state.clock, standstill.so_far()))
        .map_err(ioctl("set the clock"))
}

/// The argument of KVM_SET_CLOCK. We always advance the clock ourselves, by the standstill that the TSC got too, only
/// that it is a moment later now: KVM_CLOCK_REALTIME would add a slightly different one, and the two clocks of the
/// guest would disagree.
fn clock_to_set(saved: &kvm_clock_data, standstill: Duration) -> kvm_clock_data {
    let advance = u64::try_from(standstill.as_nanos()).unwrap_or(0);
    kvm_clock_data {
        clock: saved.clock.wrapping_add(advance),
        flags: 0,
        ..Default::default()
    }
}
