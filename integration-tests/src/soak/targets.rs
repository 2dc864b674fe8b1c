//! The processes of a move, for faults that send signals.

use std::process::Child;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal as Sent, kill};
use nix::unistd::Pid;

use super::fault::{Act, Signal, Span, Whom};
use crate::ferry::Ferry;
use crate::lock;

/// The processes of one move, by id, for a fault that sends signals. A process is not reaped while this sends.
#[derive(Default)]
pub(super) struct Targets {
    client: AtomicI32,
    timers: Mutex<Vec<JoinHandle<()>>>,
}

impl Targets {
    /// Who `ferry migrate` is, once it is started.
    pub fn set_client(&self, client: &Child) {
        self.client.store(id(client.id()), Ordering::Release);
    }

    /// What sends the fault's signal.
    pub fn signal(
        self: &Arc<Self>,
        act: Act,
        source: &Ferry,
        destination: &Ferry,
        beyond: Duration,
    ) -> Box<dyn Fn() + Send + Sync> {
        let Act::Signal { to, signal, .. } = act else {
            return Box::new(|| ());
        };
        let (source, destination) = (id(source.pid()), id(destination.pid()));
        let targets = Arc::clone(self);
        Box::new(move || {
            let pid = match to {
                Whom::Source => source,
                Whom::Destination => destination,
                Whom::Client => targets.client.load(Ordering::Acquire),
            };
            if pid == 0 {
                return;
            }
            let pid = Pid::from_raw(pid);
            match signal {
                Signal::Kill => drop(kill(pid, Sent::SIGKILL)),
                Signal::Freeze => drop(kill(pid, Sent::SIGSTOP)),
                Signal::Stop(span) => {
                    let _ = kill(pid, Sent::SIGSTOP);
                    let time = match span {
                        Span::Ms(ms) => Duration::from_millis(ms.into()),
                        Span::BeyondTimeout => beyond,
                    };
                    targets.keep(thread::spawn(move || {
                        thread::sleep(time);
                        let _ = kill(pid, Sent::SIGCONT);
                    }));
                }
            }
        })
    }

    fn keep(&self, timer: JoinHandle<()>) {
        let mut timers = lock(&self.timers);
        timers.push(timer);
    }

    /// Waits until nothing is to be sent any more.
    pub fn join(&self) {
        let mut timers = lock(&self.timers);
        for timer in timers.drain(..) {
            let _ = timer.join();
        }
    }
}

fn id(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(0)
}
