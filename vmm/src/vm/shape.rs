//! What a VM is made of, before there is one: from the command line on the source, from the peer's
//! description on the destination.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use migration::guest::{Description, GuestError};
use migration::pages::MemoryLayout;
use migration::state::{Kind, VmState};

use self::cpu_model::CpuModel;
use self::device_list::DeviceList;
use crate::config::MAX_CPUS;
use crate::kvm::cpuid::{self, baseline::Baseline};
use crate::kvm::vcpu_state::{self, VcpuCaps};
use crate::kvm::{mitigations, msr};
use crate::layout::Transport;

mod cpu_model;
mod device_list;

pub use self::cpu_model::CPU_VERSION;
pub use self::device_list::{CardShape, DEVICES_VERSION, DiskShape, SlotKind};

/// What a VM is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where its memory lies.
    pub layout: MemoryLayout,
    /// How many vCPUs it has, 1 to [`MAX_CPUS`].
    pub vcpus: u8,
    /// The CPU that it was asked to be.
    pub baseline: Baseline,
    /// The CPUID of its vCPUs, less what differs between them.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC in kHz, once it is known.
    pub tsc_khz: Option<u32>,
    /// The MSRs of its vCPUs that travel; empty until they are known, or where the source did not tell.
    pub msrs: Vec<u32>,
    /// What its vCPUs read in IA32_ARCH_CAPABILITIES, once it is known and where the source told.
    pub arch_capabilities: Option<u64>,
    /// Whether it has its host's performance counters, whose counts do not travel.
    pub counters: bool,
    /// What sits in slot 0, 1, …
    pub slots: Vec<SlotKind>,
    /// What they are behind.
    pub transport: Transport,
    /// The interrupt line of each, if they have lines: its guest was told when it booted.
    pub lines: Vec<u32>,
    /// Whether it has the heartbeat port of the bare test guest.
    pub heartbeat: bool,
}

impl Shape {
    /// The description that the destination has to agree to.
    ///
    /// # Errors
    /// Something cannot be encoded.
    pub fn describe(&self) -> Result<Description, GuestError> {
        let encode = |e| GuestError::new("describe the guest", e);
        let mut sections = VmState::default();
        let cpu = CpuModel {
            cpuid: self.cpuid.clone(),
            tsc_khz: self.tsc_khz,
            baseline: self.baseline,
            msrs: self.msrs.clone(),
            arch_capabilities: self.arch_capabilities,
            counters: self.counters,
        };
        let devices = DeviceList::new(self.heartbeat, &self.slots, &self.lines, self.transport);
        sections
            .put(Kind::CPU_MODEL, 0, CPU_VERSION, &cpu)
            .map_err(encode)?;
        sections
            .put(Kind::DEVICE_LIST, 0, DEVICES_VERSION, &devices)
            .map_err(encode)?;
        Ok(Description {
            layout: self.layout.clone(),
            vcpus: u32::from(self.vcpus),
            sections,
        })
    }

    /// The shape that a peer describes, checked against what this host's KVM can do.
    ///
    /// # Errors
    /// Why this host cannot run that guest.
    pub fn from_description(description: &Description, kvm: &Kvm) -> Result<Self, GuestError> {
        let shape = Self::parse(description)?;
        check_cpuid(&shape.cpuid, kvm)?;
        Ok(shape)
    }

    /// The shape that a peer describes, as far as it can be checked without KVM.
    ///
    /// # Errors
    /// What cannot be.
    pub fn parse(description: &Description) -> Result<Self, GuestError> {
        let bad = |e| GuestError::new("read the guest's description", e);
        let cpu = CpuModel::read(&description.sections).map_err(bad)?;
        let devices = DeviceList::read(&description.sections).map_err(bad)?;
        let vcpus = u8::try_from(description.vcpus)
            .ok()
            .filter(|n| (1..=MAX_CPUS).contains(n))
            .ok_or_else(|| {
                GuestError::bare(format!(
                    "the guest has {} vCPUs; this ferry runs 1 to {MAX_CPUS}",
                    description.vcpus
                ))
            })?;
        cpu.check()?;
        Ok(Self {
            layout: description.layout.clone(),
            vcpus,
            cpuid: cpu.cpuid,
            tsc_khz: cpu.tsc_khz,
            baseline: cpu.baseline,
            msrs: cpu.msrs,
            arch_capabilities: cpu.arch_capabilities,
            counters: cpu.counters,
            slots: devices.slots()?,
            heartbeat: devices.heartbeat,
            transport: devices.transport,
            lines: devices.lines()?,
        })
    }

    /// The frequency that a vCPU's TSC has to be scaled to here; None where it is that already, within the 250 ppm by
    /// which two crystals of one nominal frequency may differ.
    ///
    /// # Errors
    /// It is another, and this host cannot scale it.
    pub fn scale_tsc(
        &self,
        host_khz: Option<u32>,
        can_scale: bool,
    ) -> Result<Option<u32>, GuestError> {
        match (self.tsc_khz, host_khz) {
            (Some(guest), Some(host)) if !vcpu_state::tsc_close(guest, host) => {
                if can_scale {
                    return Ok(Some(guest));
                }
                Err(GuestError::bare(format!(
                    "the guest's TSC runs at {guest} kHz, this host's at {host} kHz, and KVM here cannot scale it: choose a host of the same TSC frequency (within 250 ppm)"
                )))
            }
            _ => Ok(None),
        }
    }

    /// Has the MSRs travel that the guest has had from its start.
    ///
    /// # Errors
    /// This host lacks some.
    pub fn settle_msrs(&mut self, caps: &mut VcpuCaps) -> Result<(), GuestError> {
        if !self.msrs.is_empty() {
            caps.keep(&self.msrs).map_err(|missing| {
                let names: Vec<_> = missing.iter().map(|&msr| msr::name(msr)).collect();
                GuestError::bare(format!(
                    "this host's KVM lacks MSRs that the guest has: {}; choose a host with a CPU and a kernel like the source's, or start guests that are to come here with a baseline (--cpu v2)",
                    names.join(", ")
                ))
            })?;
        }
        self.msrs = caps.msrs().to_vec();
        Ok(())
    }

    /// Compares what the guest was told of its processor's mitigations with what a vCPU reads `here`; a new guest is
    /// told that.
    ///
    /// # Errors
    /// The guest was told more than is so here.
    pub fn settle_mitigations(&mut self, here: Option<u64>) -> Result<(), GuestError> {
        match (self.arch_capabilities, here) {
            (Some(told), Some(here)) => {
                if let Some(why) = mitigations::refusal(told, here) {
                    return Err(GuestError::bare(why));
                }
            }
            // Of a guest with counters, a former ferry did not say what it was told.
            (None, here) if !self.counters => self.arch_capabilities = here,
            _ => {}
        }
        Ok(())
    }
}

/// Whether this host offers every CPU feature that the guest was given.
fn check_cpuid(guest: &[kvm_cpuid_entry2], kvm: &Kvm) -> Result<(), GuestError> {
    let host = cpuid::supported(kvm).map_err(|e| GuestError::new("look at this host's CPU", e))?;
    match cpuid::refusal(guest, &host) {
        None => Ok(()),
        Some(why) => Err(GuestError::bare(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(tsc_khz: Option<u32>) -> Shape {
        Shape {
            layout: crate::layout::memory_layout(16 << 20).unwrap(),
            vcpus: 1,
            baseline: Baseline::V2,
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz,
            msrs: vec![0x10, 0x6e0],
            arch_capabilities: None,
            counters: false,
            slots: vec![SlotKind::Rng],
            transport: Transport::Mmio,
            lines: vec![16],
            heartbeat: false,
        }
    }

    #[test]
    fn a_tsc_of_another_frequency_is_scaled_or_refused() {
        let guest = shape(Some(2_000_000));
        // As fast, within 250 ppm on both sides, or not known.
        for host in [Some(2_000_000), Some(2_000_500), Some(1_999_501), None] {
            for can_scale in [true, false] {
                assert_eq!(guest.scale_tsc(host, can_scale).unwrap(), None, "{host:?}");
            }
        }
        assert_eq!(shape(None).scale_tsc(Some(1), false).unwrap(), None);
        for host in [2_000_501, 1_999_499, 2_600_000] {
            assert_eq!(guest.scale_tsc(Some(host), true).unwrap(), Some(2_000_000));
            let text = guest.scale_tsc(Some(host), false).unwrap_err().to_string();
            let figures = format!("runs at 2000000 kHz, this host's at {host} kHz");
            assert!(
                text.contains(&figures) && text.contains("250 ppm"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_guest_keeps_what_it_was_told_of_mitigations() {
        let mut guest = shape(None);
        guest.settle_mitigations(Some(0x21)).unwrap();
        assert_eq!(guest.arch_capabilities, Some(0x21));
        // A host that has more does not tell it.
        guest.settle_mitigations(Some(0x121)).unwrap();
        assert_eq!(guest.arch_capabilities, Some(0x21));
        let text = guest.settle_mitigations(Some(1)).unwrap_err().to_string();
        assert!(text.contains("told of MDS_NO"), "{text}");
        let mut former = Shape {
            counters: true,
            ..shape(None)
        };
        former.settle_mitigations(Some(1)).unwrap();
        assert_eq!(former.arch_capabilities, None);
    }
}
