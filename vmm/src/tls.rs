//! The three files with which a host proves who it is: `ca.pem`, `host.pem` and `host.key` in one folder, as
//! `ferry certs host` makes them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use migration::wire::tls::{Credentials, TlsError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The CA's certificate: whom to trust.
pub const CA: &str = "ca.pem";
/// The host's certificate.
pub const CERTIFICATE: &str = "host.pem";
/// The key to it.
pub const KEY: &str = "host.key";
/// No file of the kind is that long; all three of them fit a request.
const LONGEST: u64 = 16 << 10;

/// Why they are of no use.
#[derive(Debug, Error)]
pub enum TlsFilesError {
    /// One cannot be read.
    #[error("cannot read {}; `ferry certs host` makes a folder with {CA}, {CERTIFICATE} and {KEY} in it", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read the key.
    #[error("{} can be read by others (mode {mode:o}), so it proves nothing: chmod 600 it, or make a new one", .path.display())]
    Open {
        /// The key.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The contents are wrong.
    #[error("the files in {} are of no use", .dir.display())]
    Contents {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: TlsError,
    },
}

/// The contents of the files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate of the CA, as PEM.
    pub ca: String,
    /// The host's certificate, as PEM.
    pub certificate: String,
    /// The host's key, as PEM.
    pub key: String,
}

/// The key is nobody's business.
impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFiles").finish_non_exhaustive()
    }
}

impl TlsFiles {
    /// Reads a folder.
    ///
    /// # Errors
    /// See [`TlsFilesError`].
    pub fn read(dir: &Path) -> Result<Self, TlsFilesError> {
        Ok(Self {
            ca: read(&dir.join(CA), false)?,
            certificate: read(&dir.join(CERTIFICATE), false)?,
            key: read(&dir.join(KEY), true)?,
        })
    }

    /// What they say.
    ///
    /// # Errors
    /// They say nothing that makes sense.
    pub fn credentials(&self) -> Result<Credentials, TlsError> {
        Credentials::from_pem(
            self.ca.as_bytes(),
            self.certificate.as_bytes(),
            self.key.as_bytes(),
        )
    }
}

/// What a folder says. A certificate that nobody will take is complained of on standard error, and no more: the guest
/// is worth more than its moves, and a new one may come.
///
/// # Errors
/// See [`TlsFilesError`].
pub fn load(dir: &Path) -> Result<Credentials, TlsFilesError> {
    let credentials = TlsFiles::read(dir)?.credentials();
    let credentials = credentials.map_err(|source| TlsFilesError::Contents {
        dir: dir.to_owned(),
        source,
    })?;
    if let Some(doubt) = credentials.doubt() {
        let certificate = dir.join(CERTIFICATE);
        crate::log::complain(&format!(
            "warning: nobody will take {}: {doubt}",
            certificate.display()
        ));
    }
    Ok(credentials)
}

fn read(path: &Path, secret: bool) -> Result<String, TlsFilesError> {
    let failed = |source| TlsFilesError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if secret && mode & 0o077 != 0 {
        return Err(TlsFilesError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    let length = file.take(LONGEST + 1).read_to_string(&mut text);
    match length.map_err(failed)? {
        length if length as u64 > LONGEST => Err(failed(io::ErrorKind::FileTooLarge.into())),
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::certs::{Authority, Wish};

    #[test]
    fn a_folder_is_read_and_what_is_wrong_with_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let say = |error: TlsFilesError| crate::cli::error::chain(&error);
        let missing = say(load(dir.path()).unwrap_err());
        assert!(
            missing.contains("ca.pem") && missing.contains("ferry certs host"),
            "{missing}"
        );

        let ca = Authority::new(30).unwrap();
        let made = ca.issue(&Wish::host("a.example", &[], 30)).unwrap();
        let other = ca.issue(&Wish::host("b.example", &[], 30)).unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        write(CA, &ca.certificate.pem, 0o644);
        write(CERTIFICATE, &made.pem, 0o644);
        write(KEY, &made.key, 0o640);
        let open = say(load(dir.path()).unwrap_err());
        assert!(
            open.contains("mode 640") && open.contains("chmod 600"),
            "{open}"
        );
        write(KEY, &made.key, 0o600);
        let credentials = load(dir.path()).unwrap();
        assert_eq!(credentials.doubt(), None);
        assert!(!format!("{:?}", TlsFiles::read(dir.path()).unwrap()).contains("PRIVATE"));

        write(KEY, &other.key, 0o600);
        let mixed = load(dir.path()).unwrap().demand_any_of(&[]).unwrap_err();
        assert!(
            mixed.to_string().contains("do not belong together"),
            "{mixed}"
        );
        write(CERTIFICATE, "nothing", 0o644);
        let empty = say(load(dir.path()).unwrap_err());
        assert!(
            empty.contains("the host's certificate cannot be used"),
            "{empty}"
        );
        write(KEY, &"x".repeat(20_000), 0o600);
        assert!(load(dir.path()).is_err());
    }
}
