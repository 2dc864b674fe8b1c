//! A host with a working `/dev/kvm` on any machine: QEMU's TCG emulates an AMD processor with SVM and
//! nested paging, and Debian's kernel in it brings its own kvm-amd.
//!
//! ```text
//!   this machine          QEMU, one process, no privileges          in it
//!   ------------          ---------------------------------         ------------------------------
//!   runner  <== frames == virtio-serial port "nested.control" ====> init (process 1) -> commands
//!   /         == pokes === virtio-serial port "nested.poke" ------>  (thrown away)
//!   /         -- 9p, read-only ----------------------------------->  / (writes go to memory)
//!   a folder  -- 9p, read-write ---------------------------------->  the same path
//!   console tail <------- ttyS0 -----------------------------------  kernel messages
//! ```
//!
//! Programs and libraries are those of this machine, under the same paths, so a command runs inside as it
//! would outside. One boot serves many commands, one after another; what a command leaves running is ended.
//! When the runner goes away, so does QEMU; nothing is left on disk but the cached kernel.

mod errand;
mod frames;
mod host;
mod initramfs;
pub mod inside;
mod kernel;
mod place;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, programs};

pub use errand::{Errand, default_summary, write_summary};
pub use frames::{Command, Ended, Ready};
pub use host::{Host, Options, Stream};
use place::enter_once;
pub use place::{Place, command_like_ours, enter_with, inside, run_or_enter};

/// Name of the virtio-serial port between runner and init.
const CONTROL_PORT: &str = "nested.control";
/// Name of the virtio-serial port that is written to for the interrupts it makes, see [`POKE_PERIOD`].
const POKE_PORT: &str = "nested.poke";
/// How often the runner pokes the machine. QEMU 7.2 loses interrupts of the emulated processor: the local APIC holds
/// the timer's vector, the processor's thread is never told. Any interrupt after it mends that. Where there is none, as
/// when the guest inside waits for its device in a loop without an exit (virtio-net's control queue), the whole machine
/// stood still for ever, the host's timer being what was lost. So it costs one period instead.
const POKE_PERIOD: Duration = Duration::from_millis(50);
/// 9p tag of the outer machine's root.
const ROOT_TAG: &str = "outer-root";
/// 9p tag of the folder that is shared for writing.
const SHARE_TAG: &str = "outer-share";

/// The folder that keeps kernels between runs: `target/nested-host` of this workspace, or one in the user's
/// cache where the program was carried elsewhere.
pub fn default_cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    programs::target().map_or_else(
        || home().join(".cache/nested-host"),
        |target| target.join("nested-host"),
    )
}

/// Puts the newest kernel into the cache, and QEMU of Debian's backports beside the build, where they are not. Returns
/// why there is no such QEMU: then the installed one serves, which is slower if it is older.
///
/// # Errors
/// No kernel can be had (apt or dpkg are not there, or fail), or no QEMU at all.
pub fn fetch(cache: &Path) -> Result<Option<Error>, Error> {
    kernel::Kernel::newest(cache)?;
    let (_, instead) = crate::qemu::Package::find()?;
    Ok(instead)
}
