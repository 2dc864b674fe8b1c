//! A guest to be started.

use std::path::PathBuf;

use super::net::check_taps;
use super::{
    BalloonConfig, ConfigError, DirtyTracking, DiskConfig, MAX_NETS, MemoryConfig, NetConfig,
    SerialConfig, check_memory, disk,
};
use crate::boot::DEFAULT_CMDLINE;
use crate::kvm::cpuid::baseline::Baseline;
use crate::layout::{LOW_RAM_END, VIRTIO_SLOTS};
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
    /// The kernel command line; None means [`DEFAULT_CMDLINE`].
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
        let base = match (&self.cmdline, &self.kernel) {
            (Some(line), _) => line.as_str(),
            (None, KernelConfig::Pulse(parameters)) => parameters.as_str(),
            (None, KernelConfig::File(_)) => DEFAULT_CMDLINE,
        };
        match &self.append {
            Some(more) if base.is_empty() => more.clone(),
            Some(more) => format!("{base} {more}"),
            None => base.to_owned(),
        }
    }
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
