//! `ferry run`: a guest from its kernel.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use devices::virtio::balloon::Levels;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;
use migration::guest::{BlankGuest, PausedGuest};

use super::activation::Manager;
use super::paths::Paths;
use super::status::CardInfo;
use super::supervisor::Supervisor;
use super::{End, MachineError, disk, tap};
use crate::boot::{self, Initrd, Kernel};
use crate::config::{GuestConfig, KernelConfig, MemoryBacking, display_mac};
use crate::console::Signals;
use crate::kvm::cpuid::baseline::{self, Baseline};
use crate::kvm::{self, cpuid, probe};
use crate::layout::{self, Transport};
use crate::memory::{Backing, Filled};
use crate::sandbox::Sandbox;
use crate::tls;
use crate::vm::{Backend, BlankVm, CardShape, LogChoice, Making, RunningVm, Shape};

/// Starts a guest and stays with it until it ends, leaves, or is stopped.
///
/// # Errors
/// What is missing or wrong, before the guest has run; or how it crashed.
pub fn run(config: GuestConfig) -> Result<End, MachineError> {
    let signals = Signals::block().map_err(MachineError::host("block signals"))?;
    let manager = Manager::connect();
    let kvm = kvm::open()?;
    let log = LogChoice::of(config.dirty_tracking, &kvm)?;
    let tls = config.tls.as_deref().map(tls::load).transpose()?;
    let kernel = open_kernel(&config.kernel, &kvm)?;
    let initramfs = config.initramfs.as_deref().map(Initrd::open).transpose()?;
    let paths = Paths::open(config.control.as_deref(), &config.serial)?;
    let backends = backends(&config)?;
    let sandbox = Sandbox::confine(config.sandbox, &paths.reach())?;
    let mut supervisor = paths.supervisor(signals)?;
    supervisor.tls = tls;
    let (vm, cards) = start(
        &config,
        &kvm,
        (&kernel, initramfs),
        log,
        backends,
        &supervisor,
    )?;
    supervisor.adopt(vm, cards);
    supervisor.sandbox = Some(sandbox.close()?);
    manager.ready("the guest runs");
    supervisor.serve()
}

/// Opens the kernel, and refuses one that would hang on this host.
fn open_kernel(kernel: &KernelConfig, kvm: &Kvm) -> Result<Kernel, MachineError> {
    let path = match kernel {
        KernelConfig::Pulse(_) => return Ok(Kernel::from_bytes("pulse", guest_images::PULSE)?),
        KernelConfig::File(path) => path,
    };
    let kernel = Kernel::open(path)?;
    if kernel.is_linux() {
        let execution = probe::measure_with(kvm)?;
        if !execution.native {
            return Err(MachineError::Emulated {
                kernel: path.display().to_string(),
                instructions_per_s: execution.instructions_per_s,
            });
        }
    }
    Ok(kernel)
}

/// Makes the VM, loads the kernel and lets it run.
fn start(
    config: &GuestConfig,
    kvm: &Kvm,
    (kernel, initramfs): (&Kernel, Option<Initrd>),
    log: LogChoice,
    (backends, cards): (Vec<Backend>, Vec<CardInfo>),
    supervisor: &Supervisor,
) -> Result<(RunningVm, Vec<CardInfo>), MachineError> {
    let shape = Shape {
        layout: layout::memory_layout(config.memory.bytes)
            .map_err(|e| migration::guest::GuestError::new("lay out guest memory", e))?,
        vcpus: config.cpus,
        baseline: config.cpu,
        cpuid: cpu(config.cpu, kvm)?,
        tsc_khz: None,
        msrs: Vec::new(),
        arch_capabilities: None,
        counters: false,
        slots: backends.iter().map(Backend::kind).collect(),
        transport: config.transport,
        lines: match config.transport {
            Transport::Mmio => (0u32..)
                .zip(&backends)
                .map(|(slot, _)| layout::slot_gsi(slot))
                .collect(),
            Transport::Pci => Vec::new(),
        },
        heartbeat: is_pulse(config),
    };
    let making = Making {
        backing: match config.memory.backing {
            MemoryBacking::Anonymous => Backing::Anonymous,
            MemoryBacking::HugePages => Backing::HugePages,
            MemoryBacking::Memfd => Backing::Memfd,
        },
        serial_out: Box::new(supervisor.console().output()),
        serial_room: supervisor.serial_room()?,
        backends,
        events: supervisor.event_sender()?,
        log,
    };
    let vm = BlankVm::new(kvm, shape, making)?;
    let machine = boot::Machine {
        vcpus: config.cpus,
        virtio_slots: (0u32..)
            .zip(&vm.shape().slots)
            .map(|(slot, _)| slot)
            .collect(),
        transport: config.transport,
        serial: true,
        pvpanic: true,
    };
    let entry = boot::load_open(
        vm.ram(),
        &vm.shape().layout,
        kernel,
        initramfs,
        &cmdline(config, vm.shape()),
        &machine,
    )?;
    let vm = vm.boot(&entry)?.resume().map_err(|failed| failed.error)?;
    Ok((vm, cards))
}

/// The CPUID of a guest that is to be like `wanted`.
fn cpu(wanted: Baseline, kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let host = cpuid::supported(kvm)?;
    baseline::apply(wanted, &host).map_err(|missing| MachineError::Cpu {
        wanted,
        missing: missing.join(", "),
        best: baseline::best(&host).unwrap_or(Baseline::Host),
    })
}

fn is_pulse(config: &GuestConfig) -> bool {
    matches!(config.kernel, KernelConfig::Pulse(_))
}

/// The command line; the bare test guest is also told what it cannot find out by itself.
fn cmdline(config: &GuestConfig, shape: &Shape) -> String {
    let mut line = config.kernel_cmdline();
    if is_pulse(config) {
        line.push_str(&format!(" cpus={}", shape.vcpus));
        if let Some(khz) = shape.tsc_khz {
            line.push_str(&format!(" tsc_khz={khz}"));
        }
    }
    line
}

/// Opens the backends of the slots: the network cards, the disks, an entropy source for everyone but the bare guest,
/// which drives no virtio, and a balloon where one is wanted.
fn backends(config: &GuestConfig) -> Result<(Vec<Backend>, Vec<CardInfo>), MachineError> {
    let mut backends = Vec::new();
    let mut cards = Vec::new();
    for net in &config.nets {
        let tap = tap::open(net)?;
        let mac = net.mac.unwrap_or_else(random_mac);
        cards.push(CardInfo {
            tap: tap.name().to_owned(),
            mac: Some(display_mac(mac)),
        });
        let shape = CardShape {
            pairs: net.pairs(),
            mtu: net.mtu,
        };
        backends.push(Backend::Net { tap, shape, mac });
    }
    for (number, disk) in (0..).zip(&config.disks) {
        backends.push(disk::backend(number, disk)?);
    }
    if !is_pulse(config) {
        backends.push(Backend::Rng);
    }
    if let Some(balloon) = config.balloon {
        let levels = Arc::new(Levels::default());
        // That it is not too large is checked.
        levels.want(balloon.bytes);
        backends.push(Backend::Balloon {
            levels,
            reporting: balloon.reporting,
            deflate_on_oom: balloon.deflate_on_oom,
            filled: Filled::default(),
        });
    }
    Ok((backends, cards))
}

/// A MAC address for a card that was given none: locally administered, unicast (IEEE 802, 8.4).
fn random_mac() -> [u8; 6] {
    // The standard library seeds this from the kernel's random numbers; it need not be unpredictable.
    let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    [0x02, a, b, c, d, e]
}
