//! A CA of a test, and hosts with certificates of it, made as an operator makes them: by `ferry certs`.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::{Error, programs};

/// Folders for `--tls`, by the names of hosts. Gone when dropped.
#[derive(Debug)]
pub struct Hosts(TempDir);

impl Hosts {
    /// Makes the CA, and a certificate for each host and the address that it also has.
    ///
    /// # Errors
    /// `ferry certs` does not make one.
    pub fn new(hosts: &[(&str, &str)]) -> Result<Self, Error> {
        let folder = tempfile::Builder::new()
            .prefix("ferry-certs-")
            .tempdir()
            .map_err(|e| Error::file("make", "(temporary folder)".as_ref(), e))?;
        let made = Self(folder);
        let ca = made.path().display().to_string();
        certs(&["ca", &ca])?;
        for (name, address) in hosts {
            certs(&["host", &ca, name, "--san", address])?;
        }
        Ok(made)
    }

    /// The CA's own folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder of a host.
    pub fn folder(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }
}

fn certs(args: &[&str]) -> Result<(), Error> {
    let ferry = programs::ferry()?;
    let mut command = Command::new(&ferry);
    let output = command.arg("certs").args(args).output();
    let output = output.map_err(|e| Error::file("run", &ferry, e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    // What an operator compares and writes down.
    if output.status.success() && said.contains("SHA-256") && said.contains("valid until") {
        return Ok(());
    }
    Err(Error::Unexpected(format!(
        "ferry certs {args:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    )))
}
