//! What this machine can do at best, measured in the same run as the moves: absolute figures are the
//! machine's, shares of these limits are the programs'.

mod compute;
mod memory;
pub mod populate;
pub mod tcp;

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;

use serde::Serialize;

use super::{Link, Place};
use crate::Error;
use memory::Buffer;
use tcp::By;

/// Bytes over which loopback is measured.
const BYTES: usize = 1 << 30;

/// Bytes a second of all measurements of one limit.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Limit {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// All, in order.
    pub all: Vec<f64>,
}

/// Limits by name. `tcp_WHERE_STREAMS_HOW_CONGESTION`: loopback TCP into `touched` memory or `fresh` huge
/// pages, by so many streams; `populate_N`, `memcpy_N`: by N threads; `zero_scan`; `link_RATE`: plain TCP on a
/// shaped link. All in bytes a second.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Limits(BTreeMap<String, Limit>);

impl Limits {
    /// The limit of that name.
    pub fn get(&self, name: &str) -> Option<&Limit> {
        self.0.get(name)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Limit)> {
        self.0.iter().map(|(name, limit)| (name.as_str(), limit))
    }

    fn note(&mut self, name: String, bytes_per_s: f64) {
        let limit = self.0.entry(name).or_default();
        limit.all.push(bytes_per_s);
        let mut sorted = limit.all.clone();
        sorted.sort_by(f64::total_cmp);
        limit.median = sorted[sorted.len() / 2];
        (limit.min, limit.max) = (sorted[0], sorted[sorted.len() - 1]);
    }

    /// The most that so many streams were seen to carry into fresh huge pages: the median of the best way.
    pub fn best_fresh_tcp(&self, streams: u64) -> Option<f64> {
        let prefix = format!("tcp_fresh_{}_", streams.clamp(1, 2));
        let of_it = self.iter().filter(|(name, _)| name.starts_with(&prefix));
        of_it.map(|(_, limit)| limit.median).max_by(f64::total_cmp)
    }

    /// Measures everything that needs no shaped link, once.
    ///
    /// # Errors
    /// There is not enough memory, or no loopback.
    pub fn measure(&mut self) -> Result<(), Error> {
        self.measure_memory()
            .and_then(|()| self.measure_loopback())
            .map_err(|e| Error::file("measure", "the machine's limits".as_ref(), e))
    }

    fn measure_memory(&mut self) -> io::Result<()> {
        let bytes = BYTES as u64;
        populate::rate(2 * bytes, 2)?;
        for threads in [1, 2] {
            self.note(
                format!("populate_{threads}"),
                populate::rate(bytes, threads)?.0,
            );
        }
        let (mut from, mut to) = (Buffer::fresh(BYTES / 2)?, Buffer::fresh(BYTES / 2)?);
        from.populate(2)?;
        to.populate(2)?;
        for threads in [1, 2] {
            let rate = compute::copy(from.bytes(), to.bytes_mut(), threads);
            self.note(format!("memcpy_{threads}"), rate);
        }
        self.note("zero_scan".to_owned(), compute::zero_scan(from.bytes()));
        Ok(())
    }

    fn measure_loopback(&mut self) -> io::Result<()> {
        let mut from = Buffer::fresh(BYTES)?;
        from.populate(2)?;
        from.bytes_mut().fill(0x5a);
        let mut touched = Buffer::fresh(BYTES)?;
        touched.populate(2)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let dial = || TcpStream::connect(address);
        let system = tcp::default_congestion(&dial()?)?;
        listener.accept()?;
        let mut controls = vec!["cubic"];
        if system != "cubic" {
            controls.push(&system);
        }
        for control in controls {
            for streams in [1, 2] {
                for by in [By::Write, By::Vmsplice] {
                    let connect = || tcp::connect(&listener, streams, Some(control), dial);
                    let name = |place| format!("tcp_{place}_{streams}_{}_{control}", by.name());
                    let rate = tcp::rate(connect()?, &from, &mut touched, by)?;
                    self.note(name("touched"), rate);
                    populate::rate(2 * BYTES as u64, 2)?;
                    let mut fresh = Buffer::fresh(BYTES)?;
                    let rate = tcp::rate(connect()?, &from, &mut fresh, by)?;
                    self.note(name("fresh"), rate);
                }
            }
        }
        Ok(())
    }

    /// Measures what one plain TCP stream carries over a shaped link.
    ///
    /// # Errors
    /// There is no connection.
    pub fn measure_link(&mut self, link: Link, place: &Place) -> Result<(), Error> {
        let failed = |e| Error::file("measure", "a shaped link".as_ref(), e);
        let listener = place.listen()?;
        let address = listener.local_addr().map_err(failed)?;
        let dial = || TcpStream::connect(address);
        let streams = place.at_source(|| tcp::connect(&listener, 1, None, dial))?;
        // About two seconds' worth.
        let bytes = if link.name() == "1gbit" {
            BYTES / 4
        } else {
            2 * BYTES
        };
        let mut from = Buffer::fresh(bytes).map_err(failed)?;
        let mut to = Buffer::fresh(bytes).map_err(failed)?;
        let rate = from
            .populate(2)
            .and_then(|()| to.populate(2))
            .and_then(|()| {
                streams.and_then(|streams| tcp::rate(streams, &from, &mut to, By::Write))
            })
            .map_err(failed)?;
        self.note(format!("link_{}", link.name()), rate);
        Ok(())
    }
}
