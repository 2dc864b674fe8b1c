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

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE};

    use super::*;

    /// A clock that KVM told together with the time of day and the host's TSC, as it does from Linux 5.16 on.
    fn told_with_the_time_of_day() -> kvm_clock_data {
        kvm_clock_data {
            clock: 7_000_000_000,
            flags: KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
            realtime: 1_700_000_000_000_000_000,
            host_tsc: 123_456_789,
            ..Default::default()
        }
    }

    #[test]
    fn the_clock_goes_on_by_the_standstill_and_by_nothing_that_kvm_would_add() {
        let alone = kvm_clock_data {
            clock: 7_000_000_000,
            ..Default::default()
        };
        for saved in [alone, told_with_the_time_of_day()] {
            let expected = kvm_clock_data {
                clock: 7_250_000_001,
                ..Default::default()
            };
            let standstill = Duration::from_nanos(250_000_001);
            assert_eq!(clock_to_set(&saved, standstill), expected);
        }
    }

    #[test]
    fn a_guest_that_did_not_stand_still_finds_its_clock_as_it_was() {
        let set = clock_to_set(&told_with_the_time_of_day(), Duration::ZERO);
        assert_eq!((set.clock, set.flags, set.realtime), (7_000_000_000, 0, 0));
    }

    /// The clock comes from another host: whatever it is, it is no overflow here.
    #[test]
    fn a_clock_at_its_end_goes_round() {
        let saved = kvm_clock_data {
            clock: u64::MAX,
            ..Default::default()
        };
        assert_eq!(clock_to_set(&saved, Duration::from_nanos(3)).clock, 2);
    }
}
