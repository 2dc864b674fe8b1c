//! Does this KVM run guest code on the processor, or does it emulate instruction by instruction?
//!
//! A guest of a dozen bytes counts down; how fast tells. A stock Linux kernel on an emulating KVM does not
//! fail, it hangs silently in its decompressor, so this is asked before one is started.

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::{KvmError, tiny};
use crate::memory;
use migration::pages::{MemoryLayout, REGION_ALIGN, Region};

/// How guest code is executed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestExecution {
    /// On the processor (or on a nested hypervisor's), not by KVM's instruction emulator.
    pub native: bool,
    /// Instructions a second in a tight loop.
    pub instructions_per_s: u64,
}

/// Why it could not be measured.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM is not usable.
    #[error("measure how guest code is executed")]
    Kvm(#[from] KvmError),
    /// The tiny guest could not be made.
    #[error("measure how guest code is executed: {act}")]
    Make {
        /// What failed.
        act: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The tiny guest did not end as expected.
    #[error("measure how guest code is executed: the test guest ended with {0} instead of a halt")]
    Exit(String),
}

/// Above this it is native. KVM's emulator does 2 to 3 million instructions a second; a processor thousands
/// of millions, and one emulated by QEMU's TCG still over a hundred million.
const NATIVE: u64 = 20_000_000;
/// Where the guest's code lies.
const CODE_START: u64 = 0x1000;
/// Turns of a run that decides: 7 microseconds on a processor, 14 ms in KVM's emulator.
const FEW_TURNS: u32 = 16 << 10;
/// Turns of the run that tells a processor's speed: some milliseconds.
const MANY_TURNS: u32 = 4 << 20;
/// So many runs are tried before guest code is said to be emulated.
const TRIES: u32 = 10;
/// Instructions in one turn of the loop.
const PER_TURN: u64 = 2;
/// 32-bit code: `1: dec ecx; jnz 1b; hlt`.
const CODE: [u8; 4] = [0x49, 0x75, 0xfd, 0xf4];

fn make<E>(act: &'static str) -> impl FnOnce(E) -> ProbeError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| ProbeError::Make {
        act,
        source: source.into(),
    }
}

/// Measures for some milliseconds.
///
/// # Errors
/// KVM cannot be used, or does not run even this.
pub fn measure() -> Result<GuestExecution, ProbeError> {
    let kvm = super::open()?;
    measure_with(&kvm)
}

/// As [`measure`], with a KVM that is open.
///
/// # Errors
/// As [`measure`].
pub fn measure_with(kvm: &Kvm) -> Result<GuestExecution, ProbeError> {
    let vm = kvm.create_vm().map_err(make("create a VM"))?;
    let layout = MemoryLayout::new(vec![Region {
        gpa: 0,
        bytes: REGION_ALIGN,
    }])
    .map_err(make("lay out memory"))?;
    let ram = memory::map(&layout, memory::Backing::Anonymous).map_err(make("map memory"))?;
    memory::register(&vm, &ram, false).map_err(make("register memory"))?;
    ram.write_slice(&CODE, GuestAddress(CODE_START))
        .map_err(make("write its code"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(make("create a vCPU"))?;
    tiny::enter_protected_mode(&vcpu).map_err(make("set its registers"))?;

    // The best of several runs: the first carries the cost of first entries, and a busy host interrupts any.
    let mut best = 0;
    for _ in 0..TRIES {
        best = best.max(rate(&mut vcpu, FEW_TURNS)?);
        if best >= NATIVE {
            // Entering and leaving still counts in that; a longer run tells the speed.
            best = best.max(rate(&mut vcpu, MANY_TURNS)?);
            break;
        }
    }
    Ok(GuestExecution {
        native: best >= NATIVE,
        instructions_per_s: best,
    })
}

/// Instructions a second, over that many turns of the loop.
fn rate(vcpu: &mut VcpuFd, turns: u32) -> Result<u64, ProbeError> {
    let elapsed = count_down(vcpu, turns)?;
    let instructions = u128::from(turns) * u128::from(PER_TURN) * 1_000_000_000;
    Ok(u64::try_from(instructions / elapsed.as_nanos().max(1)).unwrap_or(u64::MAX))
}

/// Runs the loop that many times, and tells how long it took.
fn count_down(vcpu: &mut VcpuFd, turns: u32) -> Result<Duration, ProbeError> {
    let regs = kvm_regs {
        rip: CODE_START,
        rcx: u64::from(turns),
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(make("set its registers"))?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(start.elapsed()),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(ProbeError::Exit(format!("{other:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(make("run it")(error)),
        }
    }
}
