//! What a person sees of a move and of a VM: lines, a bar, and tables that fit 80 columns.
//!
//! Tables are made as text by functions of their values, so that tests can read them; colour is a matter of
//! [`Style`], and only a terminal gets any.

mod dirty_rate;
mod number;
mod prediction;
mod progress;
mod report;
mod rounds;
mod status;
mod study;
mod style;
mod text;

pub use dirty_rate::{rate_line, rhythm_line};
pub use number::{bytes, count, millis, rate};
pub use prediction::prediction_table;
pub use progress::{MoveView, Notes, round_line};
pub use report::report_table;
pub use status::status_table;
pub use study::{study_line, study_table};
pub use style::{Colour, Style};
pub use text::{hang, plain};
