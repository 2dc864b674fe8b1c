//! `--sandbox` of run and receive.

/// Its help.
pub(super) const HELP: &str = "What happens on a system call that the calling thread's list does not allow: kill ends the \
process (SIGSYS); log allows it, and the kernel's log names it; off switches all of the sandbox off, with capabilities and \
access to files kept";
