//! Which pages were written since somebody last asked.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::guest::GuestError;
use crate::pages::PageSet;

/// How written pages are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracking {
    /// One bit a page, read as a whole.
    #[default]
    Bitmap,
    /// A list a vCPU of the pages that it has written.
    Ring,
}

/// The log of pages written since the last [`take`](DirtyLog::take), by the guest or by the VMM itself.
///
/// The order that loses nothing is: `take`, then for every page to be sent `rearm`, then read the page.
/// A write before `rearm` is in what is read afterwards; a write after it is in the next `take`.
/// Pages that are skipped (zero, untouched) are re-armed too, or every `take` lists them again.
pub trait DirtyLog: Send + Sync {
    /// Starts the log. Everything counts as written: the first `take` names every page, also on a second
    /// attempt after a failed move.
    ///
    /// # Errors
    /// The log could not be started; nothing was changed.
    fn start(&self) -> Result<(), GuestError>;

    /// Adds the pages written since the last `take` to `into`.
    ///
    /// # Errors
    /// The log could not be read; treat every page as written.
    fn take(&self, into: &mut PageSet) -> Result<(), GuestError>;

    /// Adds the pages that are marked as written now to `into`, and takes nothing: the next `take` names them as
    /// if nobody had looked. Pages of the last `take` that are not re-armed yet may be among them. `false` where
    /// the log cannot be read without taking.
    ///
    /// # Errors
    /// The log could not be read.
    fn peek(&self, into: &mut PageSet) -> Result<bool, GuestError>;

    /// Makes writes to the pages of `set` within `range` visible again. To be called just before their
    /// bytes are read. `range` starts at a multiple of 64 and ends at one, or at the last page.
    /// What was written to them between the last `take` and this need not be in the next one: it is in those bytes.
    ///
    /// # Errors
    /// The pages could not be re-armed; they must not be sent.
    fn rearm(&self, set: &PageSet, range: Range<u64>) -> Result<(), GuestError>;

    /// Stops the log. Never called between the stop of the vCPUs and their resume.
    ///
    /// # Errors
    /// The log could not be stopped; the guest is slower than it need be, nothing is lost.
    fn stop(&self) -> Result<(), GuestError>;

    /// How it finds pages.
    fn tracking(&self) -> Tracking {
        Tracking::Bitmap
    }

    /// How many pages each vCPU has logged since the log was started. A page counts once until it is taken or re-armed,
    /// for the vCPU that was the first to write it; one that is written again after that counts again. Numbers only
    /// grow until the next start. `None` where the log cannot tell who writes.
    fn written_by_vcpu(&self) -> Option<Vec<u64>> {
        None
    }
}
