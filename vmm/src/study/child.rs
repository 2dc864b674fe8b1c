//! Child processes that end with us, whatever way we end.

#![allow(
    unsafe_code,
    reason = "PR_SET_PDEATHSIG and inherited descriptors have to be arranged between fork and exec"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Starts a command that the kernel kills when we are gone.
///
/// The kernel looks at the *thread* that forked, not at the process; so the fork is made by a thread that
/// lives as long as the process does, whoever calls.
///
/// The descriptors of `inherited` are open in the child, by the same numbers, and closed here.
///
/// # Errors
/// The program could not be started.
pub fn spawn_bound(mut command: Command, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let before_exec = move || {
        for fd in &inherited {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: the closure runs in the forked child before exec and makes two kinds of async-signal-safe system
    // calls (fcntl, prctl); it takes no lock, allocates nothing and writes no memory of the parent.
    unsafe {
        command.pre_exec(before_exec);
    }
    let (answer, answered) = mpsc::channel();
    spawner()
        .send(Job { command, answer })
        .map_err(|_| io::Error::other("the thread that starts processes has ended"))?;
    answered
        .recv()
        .map_err(|_| io::Error::other("the thread that starts processes has ended"))?
}

struct Job {
    command: Command,
    answer: mpsc::Sender<io::Result<Child>>,
}

/// The thread that forks; made on first use, and it never ends.
fn spawner() -> mpsc::Sender<Job> {
    use std::sync::OnceLock;
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, jobs) = mpsc::channel::<Job>();
            thread::spawn(move || {
                for mut job in jobs {
                    // Nobody listening means the caller is gone, and with it the wish for the child.
                    if let Err(mpsc::SendError(Ok(mut child))) =
                        job.answer.send(job.command.spawn())
                    {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                }
            });
            sender
        })
        .clone()
}
