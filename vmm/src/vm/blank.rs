//! A VM that exists in full (memory, vCPUs, threads, wired devices) but has no state yet.
//!
//! It gets its state from a kernel's entry point ([`BlankVm::boot`]) or from the source of a move
//! ([`BlankGuest::load`]); both go the same way from here on.

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use migration::guest::{BlankGuest, GuestError, GuestRam};
use migration::state::{Kind, VmState};
use std::io::Write;
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

use super::devices::{DeviceParts, Devices};
use super::log::LogChoice;
use super::shape::Shape;
use super::slot::Backend;
use super::work::History;
use super::{Core, PausedVm, STATE_VERSION};
use crate::boot;
use crate::kvm::dirty::VmLog;
use crate::kvm::mitigations::MSR_IA32_ARCH_CAPABILITIES;
use crate::kvm::standstill::{Standstill, wall_ns};
use crate::kvm::vcpu_state::{VcpuCaps, VcpuState};
use crate::kvm::vm_state::{self, VmCommonState};
use crate::kvm::{self, cpuid, msr};
use crate::memory::{self, Backing};
use crate::vcpu::{EventSender, Throttle, VcpuHandle};

/// A VM without state.
pub struct BlankVm {
    core: Core,
    parts: DeviceParts,
    /// See [`BlankVm::rewound`].
    rewound: bool,
    /// Its memory is not another process's of this host, so its disks may have been written elsewhere.
    from_afar: bool,
}

/// What a VM on this host is made with, besides its shape.
pub struct Making {
    /// What its memory is made of.
    pub backing: Backing,
    /// Where the serial port writes.
    pub serial_out: Box<dyn Write + Send>,
    /// Signalled when the serial port has room for input again.
    pub serial_room: EventFd,
    /// What the devices in the slots work with; as many, and of the kinds, as the shape says.
    pub backends: Vec<Backend>,
    /// Where vCPUs say what happened.
    pub events: EventSender,
    /// How written pages are found.
    pub log: LogChoice,
}

fn kvm_error(act: &'static str) -> impl FnOnce(kvm::KvmError) -> GuestError {
    move |error| GuestError::new(act, error)
}

impl BlankVm {
    /// Makes the VM.
    ///
    /// # Errors
    /// KVM or the host refuses a part of it.
    pub fn new(kvm: &Kvm, mut shape: Shape, making: Making) -> Result<Self, GuestError> {
        let from_afar = !matches!(making.backing, Backing::Files(_));
        let vm = Arc::new(kvm::create_vm(kvm).map_err(kvm_error("make a VM"))?);
        making
            .log
            .prepare(kvm, &vm)
            .map_err(kvm_error("make a VM"))?;
        let ram = memory::map(&shape.layout, making.backing)
            .map_err(|e| GuestError::new("cannot make a VM", e))?;
        memory::register(&vm, &ram, false).map_err(|e| {
            let bytes = shape.layout.bytes();
            GuestError::new(format!("give KVM {bytes} bytes of guest memory"), e)
        })?;
        // Before there are interrupt controllers: with them every slot takes KVM milliseconds.
        let registers = memory::show_registers(kvm, &vm, making.backends.len(), shape.transport)
            .map_err(|e| GuestError::new("show the guest its devices' registers", e))?;
        kvm::create_interrupt_controllers(&vm).map_err(kvm_error("make a VM"))?;
        if !shape.counters {
            kvm::take_counters(kvm, &vm).map_err(kvm_error("make a VM"))?;
        }
        let (fds, caps) = create_vcpus(kvm, &vm, &mut shape)?;
        let log = making.log.make(&vm, &ram, &shape.layout, &fds)?;
        let vcpus = start_vcpus(fds, &caps, &making.events, &log)?;
        let throttle = Throttle::new(&vcpus);
        let parts = DeviceParts::wire(
            &vm,
            &shape,
            making.serial_out,
            making.serial_room,
            making.backends.into_iter().zip(registers.iter().cloned()),
        )?;
        let description = shape.describe()?;
        let core = Core {
            throttle,
            vcpus,
            log,
            vm,
            ram,
            shape,
            description,
            events: making.events,
            history: History::default(),
            _registers: registers,
        };
        Ok(Self {
            core,
            parts,
            rewound: false,
            from_afar,
        })
    }

    /// The state that comes may be old: the guest's time goes on where it was saved, and the time since then is not
    /// added to it.
    pub fn rewound(self) -> Self {
        Self {
            rewound: true,
            ..self
        }
    }

    /// Its shape, the TSC frequency now known.
    pub fn shape(&self) -> &Shape {
        &self.core.shape
    }

    /// Gives the first vCPU a kernel's entry point; the others wait for INIT and SIPI, as after power-on.
    ///
    /// # Errors
    /// A device or a register is refused.
    pub fn boot(self, entry: &boot::Entry) -> Result<PausedVm, GuestError> {
        let Self { core, parts, .. } = self;
        let devices = parts.assemble(&core.ram, None)?;
        if let Some(first) = core.vcpus.first() {
            let mut state = first
                .begin_save()
                .recv()
                .map_err(|_| GuestError::bare("read vCPU 0: its thread has ended"))??
                .state;
            entry.apply(&mut state.regs, &mut state.sregs);
            prepare_boot_state(&mut state);
            first.load(state, None)?;
        }
        Ok(PausedVm::new(core, devices))
    }
}

impl PausedVm {
    fn new(core: Core, devices: Devices) -> Self {
        if let Some(buses) = devices.buses() {
            for vcpu in &core.vcpus {
                vcpu.attach(buses.clone());
            }
        }
        Self { core, devices }
    }
}

impl BlankGuest for BlankVm {
    type Paused = PausedVm;

    fn ram(&self) -> &GuestRam {
        &self.core.ram
    }

    /// vCPUs first, then the interrupt controllers, which may pass a pending line on to a local APIC; the
    /// clock; then the devices, of which one may raise its line again. Nothing runs before all is in.
    fn load(self, state: &VmState, saved_by: Instant) -> Result<PausedVm, GuestError> {
        let read = |e| GuestError::new("read the guest's state", e);
        let common: VmCommonState = state.get(Kind::VM, 0, STATE_VERSION).map_err(read)?;
        common
            .check()
            .map_err(|e| GuestError::new("read the guest's state", e))?;
        let Self {
            core,
            parts,
            rewound,
            from_afar,
        } = self;
        // Of a rewound guest only what the load takes: both of its clocks go on from one instant.
        let standstill = match rewound {
            true => Standstill::since(wall_ns(), Instant::now()),
            false => Standstill::since(common.wall_ns, saved_by),
        };
        for (index, vcpu) in (0u32..).zip(&core.vcpus) {
            let vcpu_state: VcpuState =
                state.get(Kind::VCPU, index, STATE_VERSION).map_err(read)?;
            vcpu.load(vcpu_state, Some(standstill))?;
        }
        vm_state::restore(&core.vm, &common, &standstill)
            .map_err(kvm_error("restore the interrupt controllers and the clock"))?;
        let devices = parts.assemble(&core.ram, Some(state))?;
        if from_afar {
            devices.disks().forget();
        }
        Ok(PausedVm::new(core, devices))
    }
}

/// Makes the vCPUs with their CPUID.
fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    shape: &mut Shape,
) -> Result<(Vec<VcpuFd>, VcpuCaps), GuestError> {
    let mut fds: Vec<VcpuFd> = Vec::new();
    for index in 0..shape.vcpus {
        let make = |source| GuestError::new(format!("make vCPU {index}"), source);
        let fd = vm.create_vcpu(u64::from(index)).map_err(make)?;
        let cpuid = cpuid::for_vcpu(&shape.cpuid, index, shape.vcpus)
            .map_err(|e| GuestError::new(format!("give vCPU {index} its CPUID"), e))?;
        fd.set_cpuid2(&cpuid)
            .map_err(|e| GuestError::new(format!("give vCPU {index} its CPUID"), e))?;
        fds.push(fd);
    }
    let Some(first) = fds.first() else {
        return Err(GuestError::bare("a VM needs at least one vCPU"));
    };
    let mut caps = VcpuCaps::of(kvm, vm, first, &shape.cpuid)
        .map_err(kvm_error("look at what vCPUs can do"))?;
    shape.settle_msrs(&mut caps)?;
    let read: Vec<_> = (caps.msrs().iter().copied())
        .filter(|&msr| msr == MSR_IA32_ARCH_CAPABILITIES)
        .collect();
    let here = msr::get(first, 0, &read)
        .map_err(|e| GuestError::new("look at what vCPUs are told of mitigations", e))?;
    shape.settle_mitigations(here.first().map(|entry| entry.data))?;
    let host_khz = first.get_tsc_khz().ok();
    // Now, not when the state comes: then the guest would have been moved for nothing.
    if let Some(khz) = shape.scale_tsc(host_khz, kvm.check_extension(Cap::TscControl))? {
        for fd in &fds {
            fd.set_tsc_khz(khz).map_err(|e| {
                GuestError::new(format!("scale the TSC to the guest's {khz} kHz; choose a host of that TSC frequency"), e)
            })?;
        }
    }
    shape.tsc_khz = shape.tsc_khz.or(host_khz);
    Ok((fds, caps))
}

/// Starts the threads of vCPUs.
fn start_vcpus(
    fds: Vec<VcpuFd>,
    caps: &VcpuCaps,
    events: &EventSender,
    log: &Arc<dyn VmLog>,
) -> Result<Vec<VcpuHandle>, GuestError> {
    (0u8..)
        .zip(fds)
        .map(|(index, fd)| {
            let start = |source| GuestError::new(format!("start vCPU {index}'s thread"), source);
            let events = events.try_clone().map_err(start)?;
            VcpuHandle::spawn(fd, index, caps.clone(), events, log.clone()).map_err(start)
        })
        .collect()
}

/// IA32_MTRR_DEF_TYPE, and in it: MTRRs enabled, default type write-back (Intel SDM vol. 3, 12.11.2.1).
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// IA32_MISC_ENABLE, and in it: fast string operations, as firmware leaves it.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// Where the local APIC's LINT0 and LINT1 are in its register page (Intel SDM vol. 3, 11.4.1).
const LINTS: [(usize, u8); 2] = [
    // LINT0: external interrupts (delivery mode 7), as the PIC is wired.
    (0x350, 7),
    // LINT1: NMI (delivery mode 4).
    (0x360, 4),
];

/// What firmware would have left in the first vCPU: memory is cacheable, the PIC reaches the local APIC. No MSR but
/// those is written back: a TSC that is written is, since Linux 6.7, the vCPU's own, some microseconds behind the
/// others' from then on (KVM's `user_set_tsc`), and the guest's clock would not be stable.
fn prepare_boot_state(state: &mut VcpuState) {
    let changed = [MTRR_DEF_TYPE, MISC_ENABLE];
    state.msrs.retain_mut(|entry| {
        let value = changed.iter().find(|(msr, _)| *msr == entry.index);
        entry.data |= value.map_or(0, |(_, value)| *value);
        value.is_some()
    });
    for (offset, mode) in LINTS {
        // Bits 10..8 of the register, in its second byte; the mask bit is 16, in its third.
        if let Some([_, second, third, _]) = state.lapic.regs.get_mut(offset..offset + 4) {
            *second = (*second & !7u8.cast_signed()) | mode.cast_signed();
            *third &= !1;
        }
    }
}
