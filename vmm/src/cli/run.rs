//! `ferry run`: boots a guest.

use std::path::PathBuf;

use super::disk::DiskFlag;
use super::error::Failure;
use super::net::NetFlag;
use super::serial::{self, SerialFlag};
use super::{exit, file, log, receive, sandbox};
use crate::config::{
    BalloonConfig, ConfigError, DirtyTracking, GuestConfig, KernelConfig, MAX_CPUS, MemoryConfig,
};
use crate::kvm::cpuid::baseline::Baseline;
use crate::layout::Transport;
use crate::sandbox::Mode;

/// Boot a guest and stay with it until it ends or has moved away
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  A stock kernel, on this terminal:
    ferry run /boot/vmlinuz --initramfs /boot/initrd.img --memory 1G --cpus 2
  With a network, ready to be moved:
    ferry run vmlinuz --initramfs initramfs.cpio --net tap=tap0 --control /tmp/guest.sock
  With a disk that every host it may move to can reach:
    ferry run vmlinuz --initramfs initrd.img --disk /shared/guest.img --control /tmp/guest.sock
  With a balloon: what is free in the guest is the host's, and is not sent when the guest is moved:
    ferry run vmlinuz --initramfs initrd.img --memory 4G --balloon on --control /tmp/guest.sock
  The built-in test guest, writing 100,000 pages a second to 256 MiB; it needs no image:
    ferry run --pulse 'ws=16:256 rate=100000' --memory 1G --control /tmp/pulse.sock
  As a file says (kernel = \"/boot/vmlinuz\", net = [\"tap=tap0\"], ...), with more memory:
    ferry run --config /etc/ferry/web.toml --memory 2G

Exit status: 0 powered off, stopped or moved away, 1 error, 2 usage, 10 the guest reset itself,
11 the guest crashed.")]
pub struct Args {
    /// The kernel: a distribution's vmlinuz (bzImage), or an ELF vmlinux with a PVH entry
    #[arg(required_unless_present = "pulse", conflicts_with = "pulse")]
    kernel: Option<PathBuf>,

    /// Run the built-in bare test guest instead of a kernel, with these parameters
    #[arg(long, value_name = "PARAMETERS", num_args = 0..=1, default_missing_value = "")]
    pulse: Option<String>,

    /// The first file system (initrd)
    #[arg(long, short, value_name = "FILE", conflicts_with = "pulse")]
    initramfs: Option<PathBuf>,

    /// The kernel command line, in place of `console=ttyS0 panic=-1 reboot=acpi` (and `pci=off` with --virtio
    /// mmio)
    #[arg(long, value_name = "TEXT", conflicts_with = "pulse")]
    cmdline: Option<String>,

    /// Added to the kernel command line
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,

    /// Guest memory: 512M, 4G; a multiple of 2M. With ,backing=memfd it can be handed to another ferry on this host as
    /// it is (`ferry migrate … unix:PATH`), but has no huge pages. With ,hugepages=on it is taken from the huge pages
    /// of 2 MiB that the host has set aside (vm.nr_hugepages), all at once
    #[arg(
        long,
        short,
        value_name = "SIZE",
        default_value = "512M",
        allow_hyphen_values = true
    )]
    memory: MemoryConfig,

    /// vCPUs, 1 to 16 [default: 1; with --pulse as many as its cpus=N says]
    #[arg(long, short, value_name = "N", value_parser = parse_cpus, allow_hyphen_values = true)]
    cpus: Option<u8>,

    /// The CPU that the guest sees: host, all that this one has; or an x86-64 level that several hosts share (of one
    /// vendor), v1, v2 (SSE4.2), v3 (AVX2) or v4 (AVX-512), so that it can be moved among them
    #[arg(long, value_name = "LEVEL", default_value = "host")]
    cpu: Baseline,

    /// A network device on tap=NAME (exists), create=NAME (made here, gone afterwards) or fd=N (passed open; fd=N:N…
    /// one of several queues), optionally with ,queues=N (1 to 8, on a tap of several queues), ,mac=52:54:00:12:34:56
    /// and ,mtu=N. May be given several times
    #[arg(long, value_name = "TAP")]
    net: Vec<NetFlag>,

    /// A disk: a raw file or a block device, optionally with ,ro (read-only), ,direct=on (past the host's page cache)
    /// and ,queues=N (1 to 8). May be given several times. It is locked while the guest may run here
    #[arg(long, value_name = "PATH")]
    disk: Vec<DiskFlag>,

    /// A balloon, by which the guest gives memory back to the host: what it reports as free, all the time (but for
    /// ,reporting=off), and what it has put into the balloon, nothing at first (on) or SIZE; `ferry balloon` sets
    /// another size. With ,deflate-on-oom=on a guest that is out of memory may take from it by itself
    #[arg(
        long,
        value_name = "on|SIZE",
        num_args = 0..=1,
        default_missing_value = "on"
    )]
    balloon: Option<BalloonConfig>,

    /// How the guest comes to its network devices, disks and the like: pci, a bus, and an interrupt message for each
    /// queue (MSI-X); or mmio, registers and one interrupt line each, for kernels without PCI: nothing has to be
    /// searched for at boot, but each interrupt costs the guest more
    #[arg(long, value_name = "HOW", default_value = "pci")]
    virtio: Transport,

    #[arg(long, value_name = "WHERE", default_value = "stdio", help = serial::HELP)]
    serial: SerialFlag,

    /// How written pages are found while the guest is moved: bitmap, by one bit for each page of memory; ring, by a
    /// list a vCPU, which costs less the fewer pages are written, of 65536 entries (or as many as KVM has) or, with
    /// ring,entries=N, fewer
    #[arg(long, value_name = "HOW", default_value = "bitmap")]
    dirty_tracking: DirtyTracking,

    /// Listen on this Unix socket for `ferry status`, `ferry migrate` and the like
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// The folder with this host's certificate, key and CA (`ferry certs host`), for moves that are asked for with a
    /// bare --tls; it is read now
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,

    #[arg(long, value_name = "HOW", default_value = "kill", help = sandbox::HELP)]
    sandbox: Mode,

    #[command(flatten)]
    pub(super) log: log::Flags,

    #[command(flatten)]
    _file: file::Flag,
}

/// Whether it is one of those that make sense is the configuration's question.
fn parse_cpus(text: &str) -> Result<u8, String> {
    text.parse()
        .map_err(|_| format!("take a whole number from 1 to {MAX_CPUS}"))
}

impl Args {
    /// The flags as checked values.
    pub fn config(self) -> Result<GuestConfig, ConfigError> {
        let kernel = match (self.kernel, self.pulse) {
            (Some(path), _) => KernelConfig::File(path),
            // clap has made sure that there is one of the two.
            (None, parameters) => KernelConfig::Pulse(parameters.unwrap_or_default()),
        };
        let mut config = GuestConfig {
            kernel,
            initramfs: self.initramfs,
            cmdline: self.cmdline,
            append: self.append,
            memory: self.memory,
            dirty_tracking: self.dirty_tracking,
            cpus: self.cpus.unwrap_or(1),
            cpu: self.cpu,
            nets: self.net.into_iter().map(|NetFlag(net)| net).collect(),
            disks: self.disk.into_iter().map(|DiskFlag(disk)| disk).collect(),
            balloon: self.balloon,
            transport: self.virtio,
            serial: self.serial.0,
            control: self.control,
            tls: self.tls,
            sandbox: self.sandbox,
        };
        if self.cpus.is_none() {
            config.cpus = config.cpus_of_pulse()?.unwrap_or(config.cpus);
        }
        config.checked()
    }

    pub(super) fn run(self) -> Result<u8, Failure> {
        let config = self.config().map_err(Failure::usage)?;
        let end = crate::machine::run(config).map_err(Failure::error)?;
        receive::tell(&end);
        Ok(exit::of_end(&end))
    }
}
