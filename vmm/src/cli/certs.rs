//! `ferry certs`: a small CA, and certificates for hosts.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use migration::wire::tls::peer_name;
use tempfile::NamedTempFile;
use thiserror::Error;

use super::error::Failure;
use super::exit;
use crate::certs::{Authority, CertsError, Made, Wish, day};
use crate::tls;

const CA_KEY: &str = "ca.key";
/// Made, it may be read by all.
const PUBLIC: u32 = 0o644;
/// Made, it may be read by its owner.
const SECRET: u32 = 0o600;

/// Make the certificates with which hosts know each other, for --tls
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Once, on a machine that is looked after:
    ferry certs ca ferry-ca
  For each host, by the name or the address that others move guests to:
    ferry certs host ferry-ca alpha.example.org --san 10.0.0.1
    ferry certs host ferry-ca beta.example.org --san 10.0.0.2
  Its folder to each host, and to no other:
    ssh root@alpha.example.org mkdir -p /etc/ferry/tls
    scp -p ferry-ca/alpha.example.org/* root@alpha.example.org:/etc/ferry/tls
  Then, on beta and on alpha:
    ferry receive --listen tcp:10.0.0.2:7000 --tls /etc/ferry/tls
    ferry migrate --control /tmp/a.sock tcp:10.0.0.2:7000 --tls /etc/ferry/tls

There is no revocation: a host whose key was stolen ends with its certificate, or with the CA. A
certificate that is made anew (--force) is used by the next `ferry migrate --tls DIR` and by the
next `ferry receive`.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a CA: DIR/ca.pem, which hosts get, and DIR/ca.key, which nobody gets
    Ca {
        /// The folder, made if it is not there
        dir: PathBuf,

        /// How long it is valid
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,

        /// Replace one that is there: certificates of the old one are worth nothing any more
        #[arg(long)]
        force: bool,
    },
    /// Make a folder for a host: DIR/NAME with ca.pem, host.pem and host.key
    Host {
        /// The folder of the CA
        dir: PathBuf,

        /// The host's name, or its address
        name: String,

        /// Another name or address that it has; may be given several times
        #[arg(long, value_name = "NAME")]
        san: Vec<String>,

        /// How long it is valid, but no longer than the CA
        #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,

        /// Replace what is there
        #[arg(long)]
        force: bool,
    },
}

/// Why nothing was made.
#[derive(Debug, Error)]
enum MakeError {
    #[error("{} is there already; --force replaces it", .0.display())]
    Exists(PathBuf),
    #[error("cannot write {}; take a folder that you may write to", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}; `ferry certs ca` makes it", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Certs(#[from] CertsError),
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let said = match self.what {
            What::Ca { dir, days, force } => make_ca(&dir, days, force),
            What::Host {
                dir,
                name,
                san,
                days,
                force,
            } => {
                for name in san.iter().chain([&name]) {
                    peer_name(name).map_err(Failure::usage)?;
                }
                make_host(&dir, &Wish::host(&name, &san, days), force)
            }
        };
        let said = said.map_err(Failure::error)?;
        let _ = io::stdout().write_all(said.as_bytes());
        Ok(exit::OK)
    }
}

fn make_ca(dir: &Path, days: u32, force: bool) -> Result<String, MakeError> {
    let (pem, key) = (dir.join(tls::CA), dir.join(CA_KEY));
    refuse_to_replace(&[&pem, &key], force)?;
    let Made {
        pem: certificate,
        key: secret,
        fingerprint,
        until,
    } = Authority::new(days)?.certificate;
    make_folder(dir)?;
    // The key first: a certificate without one looks finished and is not.
    write(&key, &secret, SECRET, force)?;
    write(&pem, &certificate, PUBLIC, force)?;
    Ok(format!(
        "{}  the CA's certificate, valid until {}\n  SHA-256 {fingerprint}\n\
         {}  its key; it stays here, and nobody else gets it\n\
         Next, for each host: ferry certs host {} NAME\n",
        pem.display(),
        day(until),
        key.display(),
        dir.display()
    ))
}

fn make_host(dir: &Path, wish: &Wish, force: bool) -> Result<String, MakeError> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|source| MakeError::Read { path, source })
    };
    let ca = Authority::of(&read(tls::CA)?, &read(CA_KEY)?)?;
    let name = wish.names.first().map_or("", String::as_str);
    let folder = dir.join(name);
    let [trusted, pem, key] = [tls::CA, tls::CERTIFICATE, tls::KEY].map(|name| folder.join(name));
    refuse_to_replace(&[&trusted, &pem, &key], force)?;
    let made = ca.issue(wish)?;
    make_folder(&folder)?;
    write(&key, &made.key, SECRET, force)?;
    write(&pem, &made.pem, PUBLIC, force)?;
    write(&trusted, &ca.certificate.pem, PUBLIC, force)?;
    let early = match made.until < wish.until {
        true => ", as the CA is",
        false => "",
    };
    Ok(format!(
        "{}  the certificate of {}, valid until {}{early}\n  SHA-256 {}\n\
         {}  its key, for that host alone\n\
         {}  whom it trusts\n\
         Next: ssh root@{name} mkdir -p /etc/ferry/tls\n\
         \x20     scp -p {}/* root@{name}:/etc/ferry/tls, and there --tls /etc/ferry/tls\n",
        pem.display(),
        wish.names.join(", "),
        day(made.until),
        made.fingerprint,
        key.display(),
        trusted.display(),
        folder.display()
    ))
}

/// Asked before anything is made, so that nothing is left half done.
fn refuse_to_replace(paths: &[&Path], force: bool) -> Result<(), MakeError> {
    let there = paths.iter().find(|path| path.symlink_metadata().is_ok());
    match there {
        Some(path) if !force => Err(MakeError::Exists(path.to_path_buf())),
        _ => Ok(()),
    }
}

fn make_folder(dir: &Path) -> Result<(), MakeError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| MakeError::Write {
        path: dir.to_owned(),
        source,
    })
}

/// Writes a file whole or not at all. It is never readable by more than `mode` says.
fn write(path: &Path, text: &str, mode: u32, force: bool) -> Result<(), MakeError> {
    let failed = |source| MakeError::Write {
        path: path.to_owned(),
        source,
    };
    let dir = path.parent().unwrap_or(Path::new("."));
    // Made with mode 0600.
    let mut file = NamedTempFile::new_in(dir).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))
        .map_err(failed)?;
    let kept = match force {
        true => file.persist(path),
        // Whoever was quicker keeps what he has made.
        false => file.persist_noclobber(path),
    };
    kept.map(drop).map_err(|error| failed(error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_ca_and_a_host_are_made_once_with_their_keys_closed() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("ca");
        let wish = Wish::host("a.example", &["10.0.0.1".into()], 30);
        let early = make_host(&dir, &wish, false).unwrap_err().to_string();
        assert!(early.contains("ferry certs ca"), "{early}");

        let said = make_ca(&dir, 3650, false).unwrap();
        assert!(
            said.contains("SHA-256") && said.contains("valid until 20"),
            "{said}"
        );
        assert_eq!((mode(&dir), mode(&dir.join(CA_KEY))), (0o700, 0o600));
        let before = fs::read(dir.join(CA_KEY)).unwrap();
        let again = make_ca(&dir, 3650, false).unwrap_err().to_string();
        assert!(again.contains("--force"), "{again}");
        assert_eq!(fs::read(dir.join(CA_KEY)).unwrap(), before);

        let said = make_host(&dir, &wish, false).unwrap();
        assert!(said.contains("a.example, 10.0.0.1"), "{said}");
        let host = dir.join("a.example");
        assert_eq!(
            (mode(&host.join(tls::KEY)), mode(&host.join(tls::CA))),
            (0o600, 0o644)
        );
        assert_eq!(tls::load(&host).unwrap().doubt(), None);
        let before = fs::read(host.join(tls::KEY)).unwrap();
        assert!(make_host(&dir, &wish, false).is_err());
        assert_eq!(fs::read(host.join(tls::KEY)).unwrap(), before);
        make_host(&dir, &wish, true).unwrap();
        assert_ne!(fs::read(host.join(tls::KEY)).unwrap(), before);

        make_ca(&dir, 3650, true).unwrap();
        // The folder has the old CA in it, and that vouches for it still.
        assert_eq!(tls::load(&host).unwrap().doubt(), None);
        fs::copy(dir.join(tls::CA), host.join(tls::CA)).unwrap();
        let doubt = tls::load(&host).unwrap().doubt().unwrap();
        assert!(doubt.contains("not of the CA"), "{doubt}");
    }
}
