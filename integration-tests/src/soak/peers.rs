//! What the ferry under test can do, and how long its ends wait for each other.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::fault::Able;
use crate::ferry::Hosts;
use crate::{Error, programs};

/// How long an end waits for a silent peer, unless told otherwise.
const USUAL: Duration = Duration::from_secs(5);
/// The name in the certificate.
const HOST: &str = "soak";

/// How the two ends of moves are started.
#[derive(Debug, Clone)]
pub struct Peers {
    /// Options of both, with the shortened timeout, if there are such.
    words: Vec<String>,
    timeout: Duration,
    able: Able,
    /// What both prove themselves with over TLS: they are one host.
    hosts: Arc<Hosts>,
}

impl Peers {
    /// Asks the ferry under test. `timeout` is after what a peer is dead, in milliseconds.
    ///
    /// # Errors
    /// It is not built, or does not say, or makes no certificates.
    pub fn of(timeout_ms: u32) -> Result<Self, Error> {
        let help = |act: &str| {
            let ferry = programs::ferry()?;
            let output = Command::new(&ferry).args([act, "--help"]).output();
            let output = output.map_err(|e| Error::file("run", &ferry, e))?;
            Ok::<_, Error>(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (migrate, receive) = (help("migrate")?, help("receive")?);
        let shortened = [&migrate, &receive]
            .iter()
            .all(|text| text.contains("--peer-timeout"));
        Ok(Self {
            words: if shortened {
                vec![format!("--peer-timeout={timeout_ms}ms")]
            } else {
                Vec::new()
            },
            timeout: if shortened {
                Duration::from_millis(timeout_ms.into())
            } else {
                USUAL
            },
            able: Able {
                verify: migrate.contains("--verify"),
            },
            hosts: Arc::new(Hosts::new(&[(HOST, "127.0.0.1")])?),
        })
    }

    /// What it can do.
    pub fn able(&self) -> Able {
        self.able
    }

    /// After what a silent peer is dead.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Longer than either end waits for the other.
    pub(super) fn beyond(&self) -> Duration {
        self.timeout * 2
    }

    /// Longer than anything takes until both ends have come to rest: they may wait for each other in turn.
    pub(super) fn patience(&self) -> Duration {
        self.timeout * 6 + Duration::from_secs(10)
    }

    /// Words for either `ferry receive` or `ferry migrate`.
    pub fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// The same, and those for TLS if it is over that.
    pub(super) fn words_over(&self, tls: bool) -> Vec<String> {
        let mut words = self.words.clone();
        if tls {
            words.extend(["--tls".into(), self.hosts.folder(HOST)]);
        }
        words
    }
}
