//! All state of one vCPU, and the order in which KVM wants it read and written.

use std::time::{Duration, Instant};

use kvm_bindings::{
    Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::KvmError;
use super::msr::{self, MSR_IA32_TSC};
use super::standstill::{Standstill, tsc_cycles};

/// The state of one vCPU as it travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// Running, halted, waiting for INIT or SIPI.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, APIC base.
    pub sregs: kvm_sregs,
    /// FPU, SSE, AVX …: the XSAVE area in its standard format, as 32-bit words.
    pub xsave: Vec<u32>,
    /// XCR0.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// Frequency of the guest's TSC in kHz; `None` where KVM does not tell.
    pub tsc_khz: Option<u32>,
    /// MSRs, IA32_TSC first and IA32_TSC_DEADLINE last.
    pub msrs: Vec<kvm_msr_entry>,
    /// Pending exceptions, interrupts, NMIs.
    pub events: kvm_vcpu_events,
}

/// A part of a vCPU's state that could not be read or written.
#[derive(Debug, Error)]
pub enum VcpuStateError {
    /// An ioctl failed.
    #[error("{act} of vCPU {index}")]
    Ioctl {
        /// Which part, and whether it was read or written.
        act: &'static str,
        /// The vCPU.
        index: u8,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// KVM stopped at an MSR.
    #[error("{act} MSR {msr:#x} of vCPU {index}: KVM refuses it{}", .value.map(|v| format!(" with value {v:#x}")).unwrap_or_default())]
    Msr {
        /// `get` or `set`.
        act: &'static str,
        /// Its number.
        msr: u32,
        /// The vCPU.
        index: u8,
        /// The value that was to be set.
        value: Option<u64>,
    },
    /// The XSAVE area does not fit this host.
    #[error("vCPU {index}: an XSAVE area of {found} bytes arrived, this host's KVM has {expected}")]
    XsaveSize {
        /// The vCPU.
        index: u8,
        /// Bytes that arrived.
        found: usize,
        /// Bytes of KVM_CAP_XSAVE2 here.
        expected: usize,
    },
    /// The TSC runs at another frequency and cannot be scaled.
    #[error(
        "vCPU {index}: the guest's TSC runs at {guest} kHz, this host's at {host} kHz, and KVM here cannot scale it: move to a host of the same TSC frequency"
    )]
    TscFrequency {
        /// The vCPU.
        index: u8,
        /// The guest's frequency.
        guest: u32,
        /// The host's.
        host: u32,
    },
    /// Too many entries.
    #[error("vCPU {index}: {count} MSRs are more than KVM takes in one call")]
    TooManyMsrs {
        /// The vCPU.
        index: u8,
        /// How many.
        count: usize,
    },
}

/// What this host's KVM can do for vCPU state.
#[derive(Debug, Clone)]
pub struct VcpuCaps {
    /// Bytes of the XSAVE area: KVM_CAP_XSAVE2, at least the 4096 of the fixed structure.
    xsave_bytes: usize,
    tsc_control: bool,
    /// MSRs that a vCPU here has; see [`msr::list`].
    msrs: Vec<u32>,
}

impl VcpuCaps {
    /// Asks KVM, and tries each MSR on `probe`, a vCPU whose CPUID (`cpuid`) is set: since Linux 6.13 some MSRs exist
    /// only after CPUID says so.
    ///
    /// # Errors
    /// The MSR list cannot be had.
    pub fn of(
        kvm: &Kvm,
        vm: &VmFd,
        probe: &VcpuFd,
        cpuid: &[kvm_cpuid_entry2],
    ) -> Result<Self, KvmError> {
        let xsave2 = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            xsave_bytes: xsave2.max(size_of::<kvm_xsave>()),
            tsc_control: kvm.check_extension(Cap::TscControl),
            msrs: msr::list(kvm, probe, cpuid)?,
        })
    }

    /// The MSRs that travel, in their order.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }

    /// Has no other MSRs travel than those of a guest that came from elsewhere: what this host has beyond them, the
    /// guest's next host need not have.
    ///
    /// # Errors
    /// Those of the guest's that are not here.
    pub fn keep(&mut self, msrs: &[u32]) -> Result<(), Vec<u32>> {
        let missing: Vec<u32> = (msrs.iter().copied())
            .filter(|msr| !self.msrs.contains(msr))
            .collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        self.msrs.retain(|msr| msrs.contains(msr));
        Ok(())
    }
}

/// Bytes of the fixed part of the XSAVE structure; what is beyond is its flexible tail.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / 4;

/// Reads the state of a stopped vCPU whose last exit is completed.
///
/// MP_STATE comes first: reading it makes KVM act on pending INIT and SIPI, which changes registers. The local APIC
/// comes behind the MSRs: a TSC deadline that passes between the two is then in both, one interrupt too many, and else
/// in neither, and a guest without a tick would wait for ever. EVENTS come last: reading anything else may queue one.
///
/// The TSC goes on while the guest stands still, so it is read once more by itself, with the time when that was.
///
/// # Errors
/// A part cannot be read; nothing has changed.
pub fn save(vcpu: &VcpuFd, index: u8, caps: &VcpuCaps) -> Result<Saved, VcpuStateError> {
    let get = |act| move |source| VcpuStateError::Ioctl { act, index, source };
    let mp_state = vcpu.get_mp_state().map_err(get("get the run state"))?;
    let regs = vcpu.get_regs().map_err(get("get the registers"))?;
    let sregs = vcpu.get_sregs().map_err(get("get the segments"))?;
    let xsave = xsave::get(vcpu, caps.xsave_bytes).map_err(get("get the FPU state"))?;
    let xcrs = vcpu.get_xcrs().map_err(get("get XCR0"))?;
    let debugregs = vcpu
        .get_debug_regs()
        .map_err(get("get the debug registers"))?;
    let tsc_khz = vcpu.get_tsc_khz().ok();
    let mut msrs = msr::get(vcpu, index, &caps.msrs)?;
    let tsc = msr::get(vcpu, index, &[MSR_IA32_TSC])?;
    let tsc_read = Instant::now();
    for entry in msrs.iter_mut().filter(|m| m.index == MSR_IA32_TSC) {
        entry.data = tsc.first().map_or(entry.data, |now| now.data);
    }
    let lapic = vcpu.get_lapic().map_err(get("get the local APIC"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(get("get the pending events"))?;
    let state = VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        tsc_khz,
        msrs,
        events,
    };
    Ok(Saved { state, tsc_read })
}

/// A vCPU's state as it was read.
#[derive(Debug)]
pub struct Saved {
    /// The state.
    pub state: VcpuState,
    /// When its TSC was read.
    tsc_read: Instant,
}

impl Saved {
    /// The state with the TSC as it is at `then`, when the VM's own clock was read: one standstill is reckoned from
    /// there.
    pub fn at(mut self, then: Instant) -> VcpuState {
        let later = then.saturating_duration_since(self.tsc_read);
        let cycles = tsc_cycles(later, self.state.tsc_khz);
        advance_tsc(&mut self.state.msrs, cycles);
        self.state
    }
}

fn advance_tsc(msrs: &mut [kvm_msr_entry], cycles: u64) {
    for entry in msrs.iter_mut().filter(|m| m.index == MSR_IA32_TSC) {
        entry.data = entry.data.wrapping_add(cycles);
    }
}

/// Writes the state into a vCPU whose CPUID is set and that has never run.
///
/// The order is KVM's: REGS drop pending exceptions, so EVENTS are last; the local APIC needs the APIC base of SREGS,
/// and has to be there before the MSR of its TSC deadline. The time that the guest stood still is added to IA32_TSC
/// (and so to the deadline's distance), up to the moment when that is written.
///
/// # Errors
/// A part is refused; the vCPU is unusable then.
pub fn restore(
    vcpu: &VcpuFd,
    index: u8,
    caps: &VcpuCaps,
    state: &VcpuState,
    standstill: Option<Standstill>,
) -> Result<(), VcpuStateError> {
    let VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        tsc_khz,
        msrs,
        events,
    } = state;
    let set = |act| move |source| VcpuStateError::Ioctl { act, index, source };
    if xsave.len() * 4 > caps.xsave_bytes || xsave.len() < XSAVE_WORDS {
        return Err(VcpuStateError::XsaveSize {
            index,
            found: xsave.len() * 4,
            expected: caps.xsave_bytes,
        });
    }
    vcpu.set_mp_state(*mp_state)
        .map_err(set("set the run state"))?;
    vcpu.set_regs(regs).map_err(set("set the registers"))?;
    vcpu.set_sregs(sregs).map_err(set("set the segments"))?;
    xsave::set(vcpu, caps.xsave_bytes, xsave).map_err(set("set the FPU state"))?;
    // A processor without XSAVE has no XCR0: none is told, and none can be set.
    if xcrs.nr_xcrs > 0 {
        vcpu.set_xcrs(xcrs).map_err(set("set XCR0"))?;
    }
    vcpu.set_debug_regs(debugregs)
        .map_err(set("set the debug registers"))?;
    vcpu.set_lapic(lapic).map_err(set("set the local APIC"))?;
    set_tsc_khz(vcpu, index, caps, *tsc_khz)?;
    let mut msrs = msrs.clone();
    let stood_still = standstill.map_or(Duration::ZERO, |standstill| standstill.so_far());
    // All vCPUs get the first one's: within a second of what it expects, KVM takes a TSC for an attempt at that.
    advance_tsc(&mut msrs, tsc_cycles(stood_still, *tsc_khz));
    msr::set(vcpu, index, &msrs)?;
    vcpu.set_vcpu_events(events)
        .map_err(set("set the pending events"))
}

/// Brings the TSC to the guest's frequency. A difference of up to 250 ppm is left alone, as QEMU does: that
/// is what two crystals of one nominal frequency differ by.
fn set_tsc_khz(
    vcpu: &VcpuFd,
    index: u8,
    caps: &VcpuCaps,
    guest: Option<u32>,
) -> Result<(), VcpuStateError> {
    let (Some(guest), Ok(host)) = (guest, vcpu.get_tsc_khz()) else {
        return Ok(());
    };
    if tsc_close(guest, host) {
        return Ok(());
    }
    let refused = VcpuStateError::TscFrequency { index, guest, host };
    if !caps.tsc_control {
        return Err(refused);
    }
    vcpu.set_tsc_khz(guest).map_err(|_| refused)
}

/// Whether two TSC frequencies are within 250 ppm of each other.
pub fn tsc_close(guest: u32, host: u32) -> bool {
    u64::from(guest.abs_diff(host)) * 1_000_000 <= u64::from(host) * 250
}

mod xsave {
    //! The XSAVE area as a plain vector of words.
    #![allow(
        unsafe_code,
        reason = "KVM_GET_XSAVE2 writes as many bytes as the capability says, past the fixed structure"
    )]

    use super::*;

    /// A zeroed area of `bytes` bytes.
    fn area(bytes: usize) -> Result<Xsave, kvm_ioctls::Error> {
        let tail = (bytes - size_of::<kvm_xsave>()).div_ceil(4);
        Xsave::new(tail).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))
    }

    /// Reads the area, of the size that KVM_CAP_XSAVE2 tells.
    pub fn get(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u32>, kvm_ioctls::Error> {
        if bytes == size_of::<kvm_xsave>() {
            // All that a KVM before Linux 5.17 has, and all that is needed without AMX.
            return Ok(vcpu.get_xsave()?.region.to_vec());
        }
        let mut area = area(bytes)?;
        // SAFETY: KVM writes KVM_CAP_XSAVE2 bytes, and the area was made with that many (at least the fixed
        // structure and its flexible tail).
        unsafe { vcpu.get_xsave2(&mut area)? };
        let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
        words.extend_from_slice(area.as_slice());
        Ok(words)
    }

    /// Writes the area; `words` is not longer than `bytes`, which the caller has checked.
    pub fn set(vcpu: &VcpuFd, bytes: usize, words: &[u32]) -> Result<(), kvm_ioctls::Error> {
        let mut area = area(bytes)?;
        let (fixed, tail) = words.split_at(XSAVE_WORDS.min(words.len()));
        for (to, from) in area.as_mut_slice().iter_mut().zip(tail) {
            *to = *from;
        }
        // SAFETY: only words of the fixed region are replaced; the length of the tail is not touched.
        let region = unsafe { &mut area.as_mut_fam_struct().xsave.region };
        for (to, from) in region.iter_mut().zip(fixed) {
            *to = *from;
        }
        // SAFETY: KVM reads KVM_CAP_XSAVE2 bytes, and the area was made with that many.
        unsafe { vcpu.set_xsave2(&area) }
    }
}

#[cfg(test)]
mod tests;
