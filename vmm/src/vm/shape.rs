//! What a VM is made of, before there is one: from the command line on the source, from the peer's
//! description on the destination.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use migration::guest::{Description, GuestError};
use migration::pages::MemoryLayout;
use migration::state::{Kind, VmState};
use serde::{Deserialize, Serialize};

use crate::config::MAX_CPUS;
use crate::kvm::{cpuid, vcpu_state};
use crate::layout::VIRTIO_SLOTS;

/// Version of both description sections.
pub const VERSION: u32 = 1;
/// More CPUID entries than KVM itself takes are not looked at.
const MAX_CPUID_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;
/// virtio device type of a network card (virtio 1.2, 5.1).
const TYPE_NET: u32 = 1;
/// virtio device type of an entropy source (virtio 1.2, 5.4).
const TYPE_RNG: u32 = 4;

/// What sits in a virtio slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// virtio-net.
    Net,
    /// virtio-rng.
    Rng,
}

impl SlotKind {
    /// The device type of the virtio specification.
    fn device_type(self) -> u32 {
        match self {
            SlotKind::Net => TYPE_NET,
            SlotKind::Rng => TYPE_RNG,
        }
    }

    /// How many queues it has: receive, transmit and control; one.
    pub fn queues(self) -> u32 {
        match self {
            SlotKind::Net => 3,
            SlotKind::Rng => 1,
        }
    }
}

/// What a VM is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Where its memory lies.
    pub layout: MemoryLayout,
    /// How many vCPUs it has, 1 to [`MAX_CPUS`].
    pub vcpus: u8,
    /// The CPUID of its vCPUs, less what differs between them.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC in kHz, once it is known.
    pub tsc_khz: Option<u32>,
    /// What sits in slot 0, 1, …
    pub slots: Vec<SlotKind>,
    /// Whether it has the heartbeat port of the bare test guest.
    pub heartbeat: bool,
}

/// The CPU model as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct CpuModel {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
}

/// The device list as it travels.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceList {
    heartbeat: bool,
    /// virtio device types, slot by slot.
    slots: Vec<u32>,
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
        };
        let devices = DeviceList {
            heartbeat: self.heartbeat,
            slots: self.slots.iter().map(|s| s.device_type()).collect(),
        };
        sections
            .put(Kind::CPU_MODEL, 0, VERSION, &cpu)
            .map_err(encode)?;
        sections
            .put(Kind::DEVICE_LIST, 0, VERSION, &devices)
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
        let cpu: CpuModel = description
            .sections
            .get(Kind::CPU_MODEL, 0, VERSION)
            .map_err(bad)?;
        let devices: DeviceList = description
            .sections
            .get(Kind::DEVICE_LIST, 0, VERSION)
            .map_err(bad)?;
        let vcpus = u8::try_from(description.vcpus)
            .ok()
            .filter(|n| (1..=MAX_CPUS).contains(n))
            .ok_or_else(|| {
                GuestError::bare(format!(
                    "the guest has {} vCPUs; this ferry runs 1 to {MAX_CPUS}",
                    description.vcpus
                ))
            })?;
        check_entries(&cpu.cpuid)?;
        Ok(Self {
            layout: description.layout.clone(),
            vcpus,
            cpuid: cpu.cpuid,
            tsc_khz: cpu.tsc_khz,
            slots: slots(&devices.slots)?,
            heartbeat: devices.heartbeat,
        })
    }

    /// Whether a vCPU made here has the guest's TSC frequency, or can be given it.
    ///
    /// # Errors
    /// It has not, and cannot.
    pub fn check_tsc(&self, host_khz: Option<u32>, can_scale: bool) -> Result<(), GuestError> {
        match (self.tsc_khz, host_khz) {
            (Some(guest), Some(host)) if !can_scale && !vcpu_state::tsc_close(guest, host) => {
                Err(GuestError::bare(format!(
                    "the guest's TSC runs at {guest} kHz, this host's at {host} kHz, and KVM here cannot scale it: choose a host of the same TSC frequency"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn check_entries(guest: &[kvm_cpuid_entry2]) -> Result<(), GuestError> {
    if guest.is_empty() || guest.len() > MAX_CPUID_ENTRIES {
        return Err(GuestError::bare(format!(
            "the guest's CPU model has {} CPUID entries; 1 to {MAX_CPUID_ENTRIES} are accepted",
            guest.len()
        )));
    }
    Ok(())
}

/// Whether this host offers every CPU feature that the guest was given.
fn check_cpuid(guest: &[kvm_cpuid_entry2], kvm: &Kvm) -> Result<(), GuestError> {
    let host = cpuid::supported(kvm).map_err(|e| GuestError::new("look at this host's CPU", e))?;
    let missing = cpuid::missing(guest, &host);
    if missing.is_empty() {
        return Ok(());
    }
    Err(GuestError::bare(format!(
        "this host's CPU lacks what the guest was started with ({}): choose a host with a newer CPU, or start the guest on the older one",
        missing.join(", ")
    )))
}

/// The slots of a device list that arrived.
fn slots(types: &[u32]) -> Result<Vec<SlotKind>, GuestError> {
    if types.len() > VIRTIO_SLOTS as usize {
        return Err(GuestError::bare(format!(
            "the guest has {} virtio devices; this ferry has {VIRTIO_SLOTS} slots",
            types.len()
        )));
    }
    types
        .iter()
        .enumerate()
        .map(|(slot, &id)| match id {
            TYPE_NET => Ok(SlotKind::Net),
            TYPE_RNG => Ok(SlotKind::Rng),
            other => Err(GuestError::bare(format!(
                "the guest has a virtio device of type {other} in slot {slot}, which this ferry does not know: use the same or a newer ferry here"
            ))),
        })
        .collect()
}
