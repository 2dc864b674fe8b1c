//! The process with a guest, confined: what a guest that breaks out of KVM or of a device, or a peer that breaks into
//! the engine, finds there.
//!
//! 1. Everything that has a path or needs a right is opened by the main thread, before there is another one.
//! 2. [`Sandbox::confine`]: no capability is kept, no program can give one back, and the file system, TCP ports and the
//!    signals of other processes are out of reach (Landlock). Threads started from here on inherit that.
//! 3. Each thread enters the filter of its kind ([`enter`]) before it does anything else; the main thread when all is
//!    set up, before it serves. What a filter does not list kills the process.
//!
//! Threads share their memory, so a thread that is taken over could have another one act for it: what all together
//! may do is what is promised against that, and it names no file, no new program and no other process. The filters of
//! each kind are what a mistake in one of them cannot do at once.
//!
//! Commands that only talk to such a process (`ferry status`, `ferry migrate`) are not confined.

pub mod calls;
mod capabilities;
mod filter;
mod ioctls;
mod paths;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use migration::confined::{self, Role};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use filter::Filters;

pub use calls::Kind;
pub use capabilities::CapabilityError;
pub use paths::{Reach, available as landlock_abi, rights as landlock_rights};

/// What happens at a system call that the table does not list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It kills the process, by SIGSYS.
    #[default]
    Kill,
    /// It is made, and the kernel's log names it.
    Log,
    /// There is no sandbox at all.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kill" => Ok(Self::Kill),
            "log" => Ok(Self::Log),
            "off" => Ok(Self::Off),
            _ => Err("take kill, log or off".into()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

/// What is in force in a process, as `ferry status` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// What a forbidden system call does; `off` for no sandbox.
    pub system_calls: Mode,
    /// The Landlock ABI whose rights are taken away; 0 for none.
    pub landlock_abi: u32,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Root's powers stay.
    #[error("cannot confine this process; --sandbox off runs without that")]
    Capabilities(#[from] CapabilityError),
    /// The kernel has Landlock and refuses its use.
    #[error("cannot confine this process by Landlock; --sandbox off runs without that")]
    Landlock(#[from] landlock::RulesetError),
    /// The filters cannot be made or set.
    #[error(
        "cannot filter system calls (the kernel needs CONFIG_SECCOMP_FILTER); --sandbox off runs without that"
    )]
    Filters(#[source] io::Error),
    /// What the engine reads in /proc is not there.
    #[error("cannot open the files of /proc that a move needs; is /proc mounted?")]
    Proc(#[source] io::Error),
    /// A process is confined once.
    #[error("this process is confined already")]
    Twice,
}

/// The filters of all kinds, compiled; None where there is no sandbox.
static FILTERS: OnceLock<HashMap<Kind, Filters>> = OnceLock::new();
/// The main thread has its filter, so threads that start from now on have that at least.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// A process that has given up what it can; its threads have yet to [`enter`].
#[derive(Debug)]
#[must_use = "the main thread has to enter its filter, too"]
pub struct Sandbox {
    in_force: InForce,
}

impl Sandbox {
    /// Gives up everything but `reach`, in this thread and those that it starts from now on. It has to be the only one.
    ///
    /// # Errors
    /// See [`SandboxError`]; the process has lost some of its rights then, and should end.
    pub fn confine(mode: Mode, reach: &Reach) -> Result<Self, SandboxError> {
        let mut in_force = InForce {
            system_calls: mode,
            landlock_abi: 0,
        };
        if mode == Mode::Off {
            return Ok(Self { in_force });
        }
        confined::open_files().map_err(SandboxError::Proc)?;
        let compile = |kind| Ok((kind, Filters::of(kind, mode)?));
        let compiled: Result<HashMap<_, _>, seccompiler::Error> =
            Kind::ALL.into_iter().map(compile).collect();
        let filters = compiled.map_err(|e| SandboxError::Filters(io::Error::other(e)))?;
        capabilities::give_up()?;
        in_force.landlock_abi = paths::confine(reach)?;
        tell_panics_briefly();
        confined::at_start(|role| {
            enter(match role {
                Role::Stream => Kind::Stream,
                Role::Verify => Kind::Verify,
                Role::Dial => Kind::Dial,
                Role::Resolve => Kind::Resolve,
                Role::Settle => Kind::Settle,
            });
        });
        FILTERS.set(filters).map_err(|_| SandboxError::Twice)?;
        Ok(Self { in_force })
    }

    /// The main thread's part, when all is set up.
    ///
    /// # Errors
    /// The kernel refuses the filter.
    pub fn close(self) -> Result<InForce, SandboxError> {
        if let Some(filters) = FILTERS.get().and_then(|all| all.get(&Kind::Main)) {
            filters.apply().map_err(SandboxError::Filters)?;
            CLOSED.store(true, Ordering::Release);
        }
        Ok(self.in_force)
    }
}

/// Puts the filter of its kind on the calling thread; nothing where there is no sandbox. To be called before the thread
/// does anything else.
///
/// A thread that cannot be confined ends the process while that is being set up. Later it is confined as the one
/// that started it is, and a guest that runs is worth more.
pub fn enter(kind: Kind) {
    let Some(filters) = FILTERS.get().and_then(|all| all.get(&kind)) else {
        return;
    };
    if let Err(error) = filters.apply() {
        if CLOSED.load(Ordering::Acquire) {
            tracing::warn!("a {kind:?} thread has no filter of its own: {error}");
        } else {
            crate::log::complain(&format!(
                "cannot filter the system calls of a {kind:?} thread: {error}; --sandbox off runs without that"
            ));
            std::process::exit(i32::from(crate::cli::exit::ERROR));
        }
    }
}

/// A backtrace would open the program's file, which is forbidden by now: a panic that a thread survives must not kill
/// the process for that.
fn tell_panics_briefly() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        crate::log::complain(&format!("thread {} {panic}", thread.name().unwrap_or("?")));
    }));
}

/// Whether this host's kernel can filter system calls, and kill for them.
pub fn has_filters() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").is_ok_and(|actions| {
        actions
            .split_whitespace()
            .any(|action| action == "kill_process")
    })
}

#[cfg(test)]
mod tests;
