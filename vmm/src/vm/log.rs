//! Which dirty log a VM has.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use migration::guest::{GuestError, GuestRam};
use migration::pages::MemoryLayout;

use crate::config::DirtyTracking;
use crate::kvm::KvmError;
use crate::kvm::dirty::{KvmDirtyLog, VmLog};
use crate::kvm::ring::log::{LOOK, RingLog};
use crate::kvm::ring::offer;

/// How the pages that a VM's vCPUs write are found; decided before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogChoice {
    /// By KVM's bitmap.
    Bitmap,
    /// By a ring a vCPU.
    Ring {
        /// Its entries, as [`offer::entries`] gives them.
        entries: u32,
    },
}

impl LogChoice {
    /// What a person asked for, on this host.
    ///
    /// # Errors
    /// This KVM has not got it.
    pub fn of(wanted: DirtyTracking, kvm: &Kvm) -> Result<Self, KvmError> {
        match wanted {
            DirtyTracking::Bitmap => Ok(Self::Bitmap),
            DirtyTracking::Ring { entries } => Ok(Self::Ring {
                entries: offer::entries(kvm, entries)?,
            }),
        }
    }

    /// Tells KVM, before the VM has its first vCPU.
    ///
    /// # Errors
    /// KVM's refusal.
    pub(super) fn prepare(self, kvm: &Kvm, vm: &VmFd) -> Result<(), KvmError> {
        match self {
            Self::Bitmap => Ok(()),
            Self::Ring { entries } => offer::enable(kvm, vm, entries),
        }
    }

    /// Makes the log, once the VM has its memory and its vCPUs.
    ///
    /// # Errors
    /// A ring cannot be mapped.
    pub(super) fn make(
        self,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
        layout: &MemoryLayout,
        vcpus: &[VcpuFd],
    ) -> Result<Arc<dyn VmLog>, GuestError> {
        let (vm, ram, layout) = (vm.clone(), ram.clone(), layout.clone());
        Ok(match self {
            Self::Bitmap => Arc::new(KvmDirtyLog::new(vm, ram, layout)),
            Self::Ring { entries } => {
                Arc::new(RingLog::new(vm, ram, layout, vcpus, entries, LOOK)?)
            }
        })
    }
}
