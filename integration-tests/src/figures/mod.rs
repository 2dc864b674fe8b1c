//! `make figures`: published measurements of live migration beside what Ferry does here, and what it predicts where
//! this machine is too small. Written to docs/figures.md, with its plots.
//!
//! - [`gigabits`]: Hyper-V over 1 and 10 Gbit/s (2011);
//! - [`fold`]: vMotion over 10 and 40 Gbit/s, a guest that writes faster than the slower link carries (vSphere 6.0);
//! - [`crowd`]: 150 guests from one host to another (ESXi 5.5).
//!
//! Moves are made by `ferry study`, those of many guests by [`crowd`] itself; predictions are those of `ferry predict`.

pub mod crowd;
pub mod fold;
pub mod gigabits;
pub mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use migration::options::{Options, ThrottlePolicy};
use migration::predict::{LinkModel, Memory, Part, Prediction, Question, Writes, predict};
use vmm::study::spec::Spec;
use vmm::study::store::{Record, Store};

use crate::{Error, programs};

/// What of a link's nominal speed TCP carries behind Ethernet, IP and its own headers: 1448 of 1538 bytes.
pub const GOODPUT: f64 = 1448.0 / 1538.0;
/// The same of a link that htb shapes here, which counts Ethernet's header and not what stands around it on a wire.
pub const SHAPED: f64 = 1448.0 / 1514.0;
/// The round-trip time that predictions reckon with, in one room.
const ROUND_TRIP: Duration = Duration::from_micros(200);

/// Bytes a second of a link of so many Gbit/s.
pub fn link(gbits: f64) -> LinkModel {
    let bytes = gbits * 125e6 * GOODPUT;
    // Far below 2^53.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = bytes as u64;
    LinkModel::of(bytes, ROUND_TRIP)
}

/// A guest whose memory is all content.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Its memory in MiB.
    pub mib: u64,
    /// What it writes to, anywhere in it, in MiB.
    pub working_set_mib: u64,
    /// Bytes a second that it writes.
    pub bytes_per_s: f64,
    /// The share of its time that it is busy with that, above 0 and at most 1.
    pub busy: f64,
}

impl Load {
    /// What its move is expected to cost under a policy, with at most 300 ms of downtime.
    pub fn predicted(&self, link: LinkModel, throttle: ThrottlePolicy) -> Prediction {
        let pages = self.working_set_mib << 8;
        let writes = match self.bytes_per_s > 0.0 {
            true => vec![Part::random(pages, self.bytes_per_s / 4096.0)],
            false => Vec::new(),
        };
        let options = Options {
            throttle,
            ..Options::default()
        };
        let memory = Memory::full(self.mib << 20);
        predict(&Question {
            busy: self.busy,
            ..Question::new(memory, Writes::known(writes), link, options)
        })
    }
}

/// Makes the moves of a sweep, as `ferry study` does; those made before are not made again.
///
/// # Errors
/// `ferry study` fails.
pub fn study(name: &str, sweep: &str) -> Result<Vec<Record>, Error> {
    let folder = folder()?;
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, sweep).map_err(|e| Error::file("write", &file, e))?;
    let out = folder.join(name);
    let status = Command::new(programs::ferry()?)
        .arg("study")
        .arg(&file)
        .arg("--out")
        .arg(&out)
        .status()
        .map_err(|e| Error::file("run", "ferry".as_ref(), e))?;
    if !status.success() {
        return Err(Error::Unexpected(format!("ferry study: {status}")));
    }
    let spec = Spec::read(&file).map_err(|e| Error::Unexpected(crate::chain(&e)))?;
    let store = Store::open(&out).map_err(|e| Error::Unexpected(crate::chain(&e)))?;
    Ok(spec.cases().filter_map(|case| store.get(case)).collect())
}

/// Where moves are kept.
///
/// # Errors
/// It cannot be made.
pub fn folder() -> Result<PathBuf, Error> {
    let target = programs::target().unwrap_or_else(|| "target".into());
    let folder = target.join("figures");
    fs::create_dir_all(&folder).map_err(|e| Error::file("make", &folder, e))?;
    Ok(folder)
}

/// Writes a file of the documentation.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::file("make", folder, e))?;
    }
    fs::write(path, text).map_err(|e| Error::file("write", path, e))
}
