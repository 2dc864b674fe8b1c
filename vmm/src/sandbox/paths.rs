//! What the process may still reach by a path, an address or a signal: Landlock
//! (Documentation/userspace-api/landlock.rst).
//!
//! Everything that it needs is open before. What remains is listed in [`Reach`]; all else is refused by the kernel
//! with EACCES, whatever a filter of system calls lets pass. Older kernels know fewer rights: what this one knows is in
//! force, and said by `ferry status`.
#![allow(
    unsafe_code,
    reason = "asking for the ABI, which the library keeps to itself"
)]

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest ABI whose rights are asked for: with it the programs that people run are refused the same on all kernels
/// that have it.
const NEWEST: ABI = ABI::V7;

/// What getaddrinfo(3) reads, resolver(5) and nsswitch.conf(5). As they are when the process is confined: a file put in
/// their place later is another one.
const RESOLVER: &[&str] = &[
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
];

/// What stays within reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Sockets that are removed at the end, which is a right on their folders.
    pub removes: Vec<PathBuf>,
    /// Whether the guest may be moved away: names are looked up, and TCP connections made, to any port.
    pub connects: bool,
}

/// Refuses all but `reach`, to the calling thread and those that it starts. Gives the ABI whose rights are in force, 0
/// for a kernel without Landlock.
///
/// # Errors
/// The kernel refuses what it says it has.
pub fn confine(reach: &Reach) -> Result<u32, RulesetError> {
    let mut net: BitFlags<AccessNet> = AccessNet::BindTcp.into();
    if !reach.connects {
        // A right that is handled and that no rule gives back is refused.
        net |= AccessNet::ConnectTcp;
    }
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(net)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let resolver = RESOLVER.iter().filter(|_| reach.connects);
    for path in resolver {
        ruleset = allow(ruleset, Path::new(path), AccessFs::ReadFile)?;
    }
    for socket in &reach.removes {
        let folder = match socket.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        ruleset = allow(ruleset, folder, AccessFs::RemoveFile)?;
    }
    let status = ruleset.restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => {
            (effective_abi as u32).min(NEWEST as u32)
        }
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    })
}

/// A path that is not there needs no rule.
fn allow(
    ruleset: landlock::RulesetCreated,
    path: &Path,
    right: AccessFs,
) -> Result<landlock::RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, right)),
        Err(_) => Ok(ruleset),
    }
}

/// The ABI that this kernel has; 0 for none.
pub fn available() -> u32 {
    let flags: libc::c_uint = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag the call takes no ruleset (a null pointer and no bytes), makes nothing, and answers with a
    // number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            flags,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

/// What an ABI takes from a process that is confined, for people.
pub fn rights(abi: u32) -> String {
    let since = [
        (1, "files"),
        (4, "TCP ports"),
        (5, "ioctls of devices"),
        (6, "signals and abstract sockets of others"),
    ];
    let mut have = since.iter().filter(|(first, _)| abi >= *first);
    let Some((_, first)) = have.next() else {
        return "nothing".to_owned();
    };
    have.fold((*first).to_owned(), |text, (_, right)| {
        format!("{text}, {right}")
    })
}
