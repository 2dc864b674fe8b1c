//! The QEMU that the bench moves guests with and that nested hosts run in: of Debian's backports where that was had,
//! else the installed one.

mod package;
mod sources;

pub use package::Package;
