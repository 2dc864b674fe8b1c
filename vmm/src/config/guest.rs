//! A guest to be started.

use std::path::PathBuf;

use super::net::check_taps;
use super::{
    BalloonConfig, ConfigError, DirtyTracking, DiskConfig, MAX_NETS, MemoryConfig, NetConfig,
    SerialConfig, check_memory, disk,
};
use crate::boot::{DEFAULT_CMDLINE, NO_PCI};
use crate::kvm::cpuid::baseline::Baseline;
use crate::layout::{LOW_RAM_END, Transport, VIRTIO_SLOTS};
use crate::sandbox::Mode;

/// The most vCPUs a guest has.
pub const MAX_CPUS: u8 = 16;
/// The least memory for a Linux kernel with an initramfs: 128 MiB.
pub const MIN_LINUX_MEMORY: u64 = 128 << 20;
/// The least memory for the bare test guest: 16 MiB.
pub const MIN_PULSE_MEMORY: u64 = 16 << 20;
/// The longest kernel command line: what the x86-64 Linux kernel keeps of it (COMMAND_LINE_SIZE), with its
/// closing zero.
pub const MAX_CMDLINE: usize = 2048;

/// What the guest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelConfig {
    /// A kernel image: bzImage, or ELF with a PVH entry.
    File(PathBuf),
    /// The embedded bare test guest, with its parameters.
    Pulse(String),
}

impl KernelConfig {
    /// The least memory it takes, in bytes.
    pub fn least_memory(&self) -> u64 {
        match self {
            KernelConfig::File(_) => MIN_LINUX_MEMORY,
            KernelConfig::Pulse(_) => MIN_PULSE_MEMORY,
        }
    }
}

/// A guest to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestConfig {
    /// What it runs.
    pub kernel: KernelConfig,
    /// Its first file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel command line; None means [`DEFAULT_CMDLINE`], and [`NO_PCI`] behind it where the guest has no PCI.
    pub cmdline: Option<String>,
    /// Added to the kernel command line, after a blank.
    pub append: Option<String>,
    /// Its memory.
    pub memory: MemoryConfig,
    /// How its written pages are found while it is moved.
    pub dirty_tracking: DirtyTracking,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// The CPU that they are.
    pub cpu: Baseline,
    /// Network devices; the index is the slot.
    pub nets: Vec<NetConfig>,
    /// Disks, in the slots behind those.
    pub disks: Vec<DiskConfig>,
    /// A balloon, in the last slot.
    pub balloon: Option<BalloonConfig>,
    /// How the guest comes to all of these.
    pub transport: Transport,
    /// The serial port.
    pub serial: SerialConfig,
    /// Where to listen for commands.
    pub control: Option<PathBuf>,
    /// The folder with the host's certificate, for moves over TLS.
    pub tls: Option<PathBuf>,
    /// How the process is confined.
    pub sandbox: Mode,
}

impl GuestConfig {
    /// Checks every value, and those that must fit each other.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn checked(self) -> Result<Self, ConfigError> {
        let least = self.kernel.least_memory();
        check_memory(self.memory.bytes, least)?;
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.nets.len() > MAX_NETS {
            return Err(ConfigError::Nets(self.nets.len()));
        }
        check_taps(self.nets.iter().map(|net| &net.tap))?;
        disk::check_disks(&self.disks)?;
        if let Some(balloon) = self.balloon {
            balloon.check(self.memory.bytes)?;
            let others = self.nets.len() + self.disks.len();
            if others + 2 > VIRTIO_SLOTS as usize {
                return Err(ConfigError::Slots(others));
            }
        }
        self.nets.iter().try_for_each(NetConfig::check)?;
        let line = self.kernel_cmdline();
        if line.len() >= MAX_CMDLINE || line.contains('\0') {
            return Err(ConfigError::Cmdline(line.len()));
        }
        let linux = matches!(self.kernel, KernelConfig::File(_));
        if linux && self.transport == Transport::Pci && switches_pci_off(&line) {
            return Err(ConfigError::PciOff);
        }
        if let KernelConfig::Pulse(_) = self.kernel {
            check_pulse(&line, self.cpus, self.memory.bytes)?;
        }
        Ok(self)
    }

    /// The vCPUs that the bare test guest's own parameters ask for; None where they leave it open, or for another
    /// guest.
    ///
    /// # Errors
    /// It is a number that no guest has, or none.
    pub fn cpus_of_pulse(&self) -> Result<Option<u8>, ConfigError> {
        let KernelConfig::Pulse(_) = self.kernel else {
            return Ok(None);
        };
        let asked = guest_images::config::cpus_asked_for(&self.kernel_cmdline())?;
        Ok(asked.map(|cpus| u8::try_from(cpus).unwrap_or(u8::MAX)))
    }

    /// The whole command line that the kernel gets.
    pub fn kernel_cmdline(&self) -> String {
        let words = match (&self.cmdline, &self.kernel, self.transport) {
            (Some(line), ..) => [line, ""],
            (None, KernelConfig::Pulse(parameters), _) => [parameters, ""],
            (None, KernelConfig::File(_), Transport::Mmio) => [DEFAULT_CMDLINE, NO_PCI],
            (None, KernelConfig::File(_), Transport::Pci) => [DEFAULT_CMDLINE, ""],
        };
        let words = words.into_iter().chain(self.append.as_deref());
        let words: Vec<_> = words.filter(|words| !words.is_empty()).collect();
        words.join(" ")
    }
}

/// Whether a Linux kernel with this command line has no PCI: `pci=` takes a list.
fn switches_pci_off(line: &str) -> bool {
    let lists = line
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("pci="));
    lists
        .flat_map(|list| list.split(','))
        .any(|word| word == "off")
}

/// Asks for what the bare test guest would refuse, and then hang: it has no other way to say no than its console.
fn check_pulse(line: &str, cpus: u8, memory: u64) -> Result<(), ConfigError> {
    if let Some(words) = guest_images::config::cpus_asked_for(line)?
        && words != u32::from(cpus)
    {
        return Err(ConfigError::PulseCpus { words, cpus });
    }
    let config: guest_images::config::Config = format!("{line} cpus={cpus}").parse()?;
    let memory_mib = memory.min(LOW_RAM_END) >> 20;
    for (vcpu, config) in config.vcpus.iter().enumerate() {
        let end_mib = config
            .ws
            .map_or(0, |ws| u64::from(ws.base_mib) + u64::from(ws.mib));
        if end_mib > memory_mib {
            return Err(ConfigError::PulseWorkingSet {
                vcpu,
                end_mib,
                memory_mib,
            });
        }
    }
    Ok(())
}
