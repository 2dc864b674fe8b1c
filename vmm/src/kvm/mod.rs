//! Everything that talks to /dev/kvm: what it can do, the dirty log, and the state of vCPUs and of the VM.
//!
//! The only home of raw ioctls. The rest of the VMM sees plain values.

pub mod cpuid;
pub mod dirty;
pub mod mitigations;
pub mod msr;
pub mod probe;
mod raw;
pub mod ring;
pub mod standstill;
pub mod tiny;
pub mod vcpu_state;
pub mod vm_state;

use std::io;

use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

use crate::layout;

/// Why KVM cannot be used here.
#[derive(Debug, Error)]
pub enum KvmError {
    /// /dev/kvm could not be opened.
    #[error("cannot open /dev/kvm: {}", open_hint(.0))]
    Open(#[source] kvm_ioctls::Error),
    /// Something else has its name.
    #[error(
        "/dev/kvm is not KVM's device: make it anew (`mknod /dev/kvm c 10 232`), or pass the host's into this container"
    )]
    NotKvm,
    /// The kernel speaks another KVM API.
    #[error(
        "/dev/kvm speaks API version {0}, ferry needs 12: this is not a KVM of Linux 2.6.22 or newer"
    )]
    ApiVersion(i32),
    /// A capability without which nothing works is missing.
    #[error("this KVM lacks {0}, without which ferry cannot run a guest")]
    Missing(&'static str),
    /// Dirty rings were asked for.
    #[error(
        "this KVM has no dirty ring (Linux has it from 5.11 on): start with --dirty-tracking bitmap"
    )]
    NoRing,
    /// Dirty rings were asked for that are too large.
    #[error(
        "a dirty ring of {wanted} entries is more than this KVM has: take --dirty-tracking ring,entries={offered} or fewer"
    )]
    RingTooLarge {
        /// How many entries were asked for.
        wanted: u32,
        /// How many this KVM has.
        offered: u32,
    },
    /// An ioctl failed.
    #[error("KVM: {act}")]
    Ioctl {
        /// What was asked for.
        act: &'static str,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
}

/// What to do about a /dev/kvm that does not open.
fn open_hint(error: &kvm_ioctls::Error) -> &'static str {
    match error.errno() {
        libc::ENOENT => {
            "it does not exist; load the module kvm_intel or kvm_amd, and allow virtualization in the firmware (or nested virtualization on the host)"
        }
        libc::EACCES | libc::EPERM => {
            "no permission; join the group that owns it (often `kvm`) or run as root"
        }
        libc::EBUSY => "another hypervisor holds the processor's virtualization; stop it",
        _ => "it cannot be used",
    }
}

/// Makes the error of an ioctl.
fn ioctl(act: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { act, source }
}

/// Opens /dev/kvm and checks that it has what every guest of Ferry needs.
///
/// # Errors
/// It cannot be opened, or something indispensable is missing.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(KvmError::Open)?;
    let version = kvm.get_api_version();
    if version < 0 {
        return Err(KvmError::NotKvm);
    }
    if version != 12 {
        return Err(KvmError::ApiVersion(version));
    }
    for (cap, name) in [
        (Cap::Irqchip, "the in-kernel interrupt controllers"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::UserMemory, "user memory regions"),
        (Cap::ExtCpuid, "KVM_GET_SUPPORTED_CPUID"),
        (Cap::Pit2, "the in-kernel PIT"),
        (Cap::AdjustClock, "KVM_GET_CLOCK"),
        (Cap::ImmediateExit, "immediate_exit"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Missing(name));
        }
    }
    Ok(kvm)
}

/// Makes a VM without anything in it.
///
/// # Errors
/// An ioctl failed.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(ioctl("create a VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP_START)
        .map_err(ioctl("set the identity map address"))?;
    let tss = usize::try_from(layout::KVM_TSS_START).unwrap_or(usize::MAX);
    vm.set_tss_address(tss)
        .map_err(ioctl("set the TSS address"))?;
    Ok(vm)
}

/// Takes the performance counters from a VM: AMD's have no bit of CPUID, and a guest without them would find some that
/// do not travel. Before its first vCPU. A KVM that cannot (Linux before 5.18) leaves them, and one that has none has
/// none to take.
///
/// # Errors
/// An ioctl failed.
pub fn take_counters(kvm: &Kvm, vm: &VmFd) -> Result<(), KvmError> {
    let can = kvm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if can & KVM_PMU_CAP_DISABLE.cast_signed() == 0 {
        return Ok(());
    }
    enable_capability(
        vm,
        KVM_CAP_PMU_CAPABILITY,
        KVM_PMU_CAP_DISABLE.into(),
        "take the performance counters from a VM",
    )
}

/// Gives a VM a capability that has one argument.
fn enable_capability(
    vm: &VmFd,
    cap: u32,
    argument: u64,
    act: &'static str,
) -> Result<(), KvmError> {
    let cap = kvm_enable_cap {
        cap,
        args: [argument, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(ioctl(act))
}

/// Gives a VM its interrupt controllers and its timer: after its memory, since every change of a memory slot
/// takes KVM 4 to 8 ms once they are there; before its first vCPU.
///
/// The PIT is there although hardware-reduced Linux never programs it: PVH guests and boot loaders may.
///
/// # Errors
/// An ioctl failed.
pub fn create_interrupt_controllers(vm: &VmFd) -> Result<(), KvmError> {
    vm.create_irq_chip()
        .map_err(ioctl("create the interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(ioctl("create the PIT"))
}

impl From<KvmError> for io::Error {
    fn from(error: KvmError) -> Self {
        io::Error::other(error)
    }
}
