//! Why a machine could not be started or cannot go on.

use migration::guest::GuestError;
use thiserror::Error;

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::console::ConsoleError;
use crate::control::ControlError;
use crate::control::socket::SocketError;
use crate::kvm::KvmError;
use crate::kvm::cpuid::baseline::Baseline;
use crate::kvm::probe::ProbeError;
use crate::sandbox::SandboxError;
use crate::tls::TlsFilesError;

/// A machine's end in error.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// How guests are executed could not be measured.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// Linux would hang here.
    #[error(
        "cannot start Linux kernel {kernel}: this host's KVM emulates guest code instruction by instruction ({instructions_per_s} a second), and a Linux kernel hangs silently in it; bare guests run (`ferry run --pulse`), Linux needs a host with hardware or nested virtualization (`ferry check`)"
    )]
    Emulated {
        /// The kernel's path.
        kernel: String,
        /// What was measured.
        instructions_per_s: u64,
    },
    /// The kernel could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The console could not be opened.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The control socket could not be opened.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The socket for sources does not listen.
    #[error("cannot listen for a guest")]
    Listen(#[from] SocketError),
    /// The host cannot prove who it is.
    #[error(transparent)]
    Tls(#[from] TlsFilesError),
    /// What was asked for and what was passed do not fit each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The VM could not be made, started or driven.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The pieces of the process could not be made.
    #[error("cannot {act}")]
    Host {
        /// What was tried.
        act: String,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The host is below the level that was asked for.
    #[error(
        "this host's CPU lacks {missing}, which --cpu {wanted} needs: take --cpu {best}, or a host with a newer CPU"
    )]
    Cpu {
        /// The level.
        wanted: Baseline,
        /// The features, by name.
        missing: String,
        /// What this host has.
        best: Baseline,
    },
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// KVM cannot go on.
    #[error("the guest has crashed: {0}")]
    Crashed(String),
}

impl MachineError {
    /// An error of the host in doing something.
    pub fn host(act: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let act = act.into();
        move |source| MachineError::Host { act, source }
    }
}
