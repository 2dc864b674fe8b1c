//! `--sandbox` of run and receive.

/// Its help.
pub(super) const HELP: &str = "What a system call does that is none of the calling thread's business, and whether the \
process gives up its capabilities, the file system and what else it does not need: kill, it ends the process (SIGSYS); \
log, it is made and the kernel's log names it; off, no sandbox at all";
