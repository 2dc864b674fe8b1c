//! What Ferry's whole-VM tests stand on.
//!
//! [`nested`] is a host with a real `/dev/kvm` on machines whose own KVM cannot run Linux; [`ferry`] starts
//! and watches `ferry` processes, lays networks for them and looks into their guests from outside. [`fuzzing`] is what
//! hostile bytes must not do.

pub mod bench;
pub mod bench_net;
pub mod boots;
pub mod databases;
mod error;
pub mod ferry;
pub mod figures;
pub mod fuzzing;
pub mod guests;
pub mod nested;
pub mod programs;
pub mod qemu;
pub mod soak;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use error::Error;

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Locks. A panic elsewhere does not make these values worse.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A test that needs Linux guests: runs straight on this machine's KVM if that runs Linux, else in a nested
/// host. To be used at the top level of a file in `tests/`, or of a module there.
#[macro_export]
macro_rules! linux_test {
    ($(#[$meta:meta])* fn $name:ident() $body:block) => {
        $(#[$meta])*
        #[test]
        fn $name() {
            $crate::nested::run_or_enter(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    };
}
