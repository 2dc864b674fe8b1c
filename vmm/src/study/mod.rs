//! `ferry study`: a declared sweep of real moves, kept, summed up and drawn.
//!
//! A file ([`spec`]) names dimensions; their product is a list of [`case`]s. Each case is a real move of a bare guest,
//! `pulse`, between two `ferry` processes that the study starts ([`host`]) at the ends of a link that it makes
//! ([`place`]); [`trial`] is one such move from boot to verification. What came of it is a record in a file of its own
//! ([`store`]), so that an interrupted study goes on where it was. [`summary`] and [`sheet`] say what all of them come
//! to; [`page`](crate::page) draws it.

pub mod case;
pub mod child;
pub mod host;
pub mod netns;
pub mod place;
pub mod sheet;
pub mod spec;
pub mod store;
pub mod summary;
pub mod trial;
