//! Whether a move may still come in: the receiving thread and the main loop, which may be about to end the process,
//! settle that in one place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration::cancel::CancelToken;

/// What every incoming move passes before a word is said to its source; shut by whoever ends the process.
///
/// What the receiving thread tells the main loop is heard later, and the loop ends before the process does: a source
/// that came in between would hand its guest to a process that takes it along. Under the lock one of the two is first.
/// If that is the move, whoever shuts the gate gets its token, to cancel it and to wait for its end; if it is the end,
/// the move does not begin, and the guest stays where it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// For good.
    shut: bool,
    /// Ends the move that is in; only one is at a time.
    coming: Option<CancelToken>,
}

impl Gate {
    /// A move begins, unless the gate is shut.
    #[must_use]
    pub fn enter(&self, cancel: &CancelToken) -> bool {
        let mut inside = self.lock();
        if !inside.shut {
            inside.coming = Some(cancel.clone());
        }
        !inside.shut
    }

    /// It has ended without a guest. To be said before the main loop is told, which must not wait for it once more.
    pub fn leave(&self) {
        self.lock().coming = None;
    }

    /// No move begins from here on. Gives what ends the one that is in, or has brought a guest.
    pub fn shut(&self) -> Option<CancelToken> {
        let mut inside = self.lock();
        inside.shut = true;
        inside.coming.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        // Whole at any moment, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::console::{Console, Opened, Signals};
    use crate::control;
    use crate::machine::End;
    use crate::machine::supervisor::{FromThread, Supervisor};

    /// A process that waits for a guest.
    fn waiting() -> Supervisor {
        let signals = Signals::block().unwrap();
        let console = Console::start(Opened::None).unwrap();
        let (_, calls) = control::calls().unwrap();
        Supervisor::new(signals, console, calls, None).unwrap()
    }

    fn unused(supervisor: &Supervisor) -> Option<bool> {
        match supervisor.end {
            None => None,
            Some(Ok(End::Unused { receiving })) => Some(receiving),
            Some(ref other) => panic!("{other:?}"),
        }
    }

    const NO_GUEST: FromThread = FromThread::NotArrived {
        give_up: None,
        failed: true,
    };

    #[test]
    fn nothing_comes_in_any_more_once_a_stop_has_decided_the_end() {
        let mut supervisor = waiting();
        supervisor.stop();
        assert_eq!(unused(&supervisor), Some(false));
        assert!(!supervisor.gate.enter(&CancelToken::new().unwrap()));
    }

    #[test]
    fn a_move_that_a_stop_has_not_heard_of_is_cancelled_and_waited_for() {
        let mut supervisor = waiting();
        let (gate, cancel) = (supervisor.gate.clone(), CancelToken::new().unwrap());
        assert!(gate.enter(&cancel));
        supervisor.stop();
        assert!(cancel.is_cancelled());
        assert_eq!(unused(&supervisor), None);
        supervisor.heard(FromThread::Receiving(cancel));
        assert_eq!(unused(&supervisor), None);
        gate.leave();
        supervisor.heard(NO_GUEST);
        assert_eq!(unused(&supervisor), Some(true));
        // Nor may the next source.
        assert!(!gate.enter(&CancelToken::new().unwrap()));
    }

    #[test]
    fn the_end_of_a_move_is_not_taken_for_that_of_the_next() {
        let mut supervisor = waiting();
        let gate = supervisor.gate.clone();
        let [first, second] = [(); 2].map(|()| CancelToken::new().unwrap());
        assert!(gate.enter(&first));
        supervisor.heard(FromThread::Receiving(first.clone()));
        gate.leave();
        assert!(gate.enter(&second));
        supervisor.stop();
        assert!(second.is_cancelled());
        assert!(!first.is_cancelled());
        supervisor.heard(NO_GUEST);
        assert_eq!(unused(&supervisor), None);
        supervisor.heard(FromThread::Receiving(second));
        gate.leave();
        supervisor.heard(NO_GUEST);
        assert_eq!(unused(&supervisor), Some(true));
    }

    #[test]
    fn the_end_of_a_move_that_is_over_is_heard_of_though_nothing_is_in() {
        let mut supervisor = waiting();
        let (gate, cancel) = (supervisor.gate.clone(), CancelToken::new().unwrap());
        assert!(gate.enter(&cancel));
        supervisor.heard(FromThread::Receiving(cancel));
        gate.leave();
        supervisor.stop();
        assert_eq!(unused(&supervisor), None);
        supervisor.heard(NO_GUEST);
        assert_eq!(unused(&supervisor), Some(true));
    }

    /// A guest is taken here, or the process goes at once; never both.
    #[test]
    fn of_a_stop_and_a_move_at_once_one_is_first() {
        for _ in 0..50 {
            let mut supervisor = waiting();
            let gate = supervisor.gate.clone();
            let begin = Arc::new(Barrier::new(2));
            let other = Arc::clone(&begin);
            let source = std::thread::spawn(move || {
                let cancel = CancelToken::new().unwrap();
                other.wait();
                gate.enter(&cancel) && cancel.commit().is_ok()
            });
            begin.wait();
            supervisor.stop();
            let goes = supervisor.end.is_some();
            assert!(!(source.join().unwrap() && goes));
        }
    }
}
