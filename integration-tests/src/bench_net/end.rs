//! An end of a flow: it can be flown to, and it can begin one.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use guest_images::traffic::{self, Carried, Kind};
use serde_json::Value;

use crate::Error;
use crate::ferry::Netns;

/// Port of the agent's control service.
const CONTROL: u16 = 9;
/// What a guest may take to answer, beside the time that it was asked to take.
const ANSWER: Duration = Duration::from_secs(30);

/// Where it is.
#[derive(Debug, Clone)]
pub enum Who<'a> {
    /// This process, in that namespace.
    Here(&'a Netns),
    /// The agent of a guest, asked from that namespace.
    Guest(&'a Netns),
}

/// An end.
#[derive(Debug, Clone)]
pub struct End<'a> {
    /// Who does what is to be done there.
    pub who: Who<'a>,
    /// Its address.
    pub address: Ipv4Addr,
}

impl End<'_> {
    /// Serves there for as long as this process lives; a guest's agent does so by itself.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn serve(&self) -> Result<(), Error> {
        let Who::Here(netns) = self.who else {
            return Ok(());
        };
        let address = (self.address, traffic::PORT).into();
        let listener = netns
            .within(|| traffic::listen(address))?
            .map_err(|e| Error::file("listen on", address.to_string().as_ref(), e))?;
        // A thread in the namespace: sockets of datagrams are made by whoever serves the flow.
        let name = netns.name().to_owned();
        thread::spawn(move || {
            let path = format!("/run/netns/{name}");
            let entered = std::fs::File::open(path)
                .map(|file| nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET));
            if matches!(entered, Ok(Ok(()))) {
                traffic::serve(&listener);
            }
        });
        Ok(())
    }

    /// Makes a flow from here to `to`.
    ///
    /// # Errors
    /// It breaks, or nobody answers.
    pub fn flow(&self, kind: Kind, to: &End<'_>, time: Duration) -> Result<Carried, Error> {
        let failed = |e| {
            let what = format!("{} from {} to {}", kind.name(), self.address, to.address);
            Error::file("carry", what.as_ref(), e)
        };
        let target = IpAddr::V4(to.address);
        match self.who {
            Who::Here(netns) => netns
                .within(|| traffic::run(kind, target, time))?
                .map_err(failed),
            Who::Guest(netns) => {
                let words = format!("traffic {} {target} {}", kind.name(), time.as_millis());
                let answer = netns
                    .within(|| ask(self.address, &words, time + ANSWER))?
                    .map_err(failed)?;
                let number = |name: &str| answer[name].as_u64();
                match (number("bytes"), number("micros")) {
                    (Some(bytes), Some(micros)) => Ok(Carried { bytes, micros }),
                    _ => Err(failed(std::io::Error::other(answer.to_string()))),
                }
            }
        }
    }

    /// Waits until a flow to it works.
    ///
    /// # Errors
    /// None does.
    pub fn wait_for(&self, from: &End<'_>, limit: Duration) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            match from.flow(Kind::TcpRr, self, Duration::from_millis(1)) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > limit => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

fn ask(address: Ipv4Addr, words: &str, limit: Duration) -> std::io::Result<Value> {
    let to = (address, CONTROL).into();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(format!("{words}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
