//! A source that measures the link before it moves a guest here: its bytes are taken as those of pages would be, into
//! memory that nobody has touched yet, and forgotten.
#![allow(unsafe_code, reason = "madvise of a mapping of its own")]

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::sysinfo::sysinfo;
use vm_memory::{MmapRegion, VolatileMemory};

use super::ReceiveError;
use super::receiver::Means;
use super::streams::Joining;
use crate::clock::boot_id;
use crate::confined::{self, Role};
use crate::guest::GuestError;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Frame, MAX_FILLER, SessionId};
use crate::wire::iov::In;

/// The first version of the protocol that has probes.
pub(super) const SINCE: u16 = 2;
/// How long a source may measure: several times what ours takes.
const LONGEST: Duration = Duration::from_secs(4);
/// Memory for the bytes of all streams together, whatever is sent: more than a processor's cache keeps of it. With 64 MiB the
/// pages that are given back and taken again are still in a large one.
const MEMORY: u64 = 256 << 20;
/// Of the memory that this host has free no larger part is used.
const PART: u64 = 8;
/// Huge pages are of that size, and there should be some.
const LEAST: usize = 4 << 20;

/// Lets a source measure the link. What is given says that this went well, or what did not.
pub(super) fn answer<H>(
    means: &mut Means<'_, H>,
    session: SessionId,
    streams: u16,
    channel: &mut Channel,
) -> ReceiveError {
    match listen(means, session, streams, channel) {
        Ok(()) => ReceiveError::Probed {
            peer: channel.peer().to_owned(),
        },
        Err(error) => error,
    }
}

fn listen<H>(
    means: &mut Means<'_, H>,
    session: SessionId,
    streams: u16,
    channel: &mut Channel,
) -> Result<(), ReceiveError> {
    let most = match means.accept {
        Some(_) => means.options.streams,
        None => 1,
    };
    let streams = streams.min(most).max(1);
    channel.send(&Frame::Accept {
        boot: boot_id().unwrap_or_default(),
        streams,
    })?;
    let mut others = match &mut means.accept {
        None => Vec::new(),
        Some(accept) => Joining {
            accept: &mut **accept,
            session,
            identity: channel.identity().cloned(),
            streams,
            timeout: channel.patience(),
            cancel: channel.cancel_token(),
        }
        .channels()?,
    };
    let alarm = means.alarm;
    let free = sysinfo().map_or(0, |info| info.ram_unused());
    let memory = usize::try_from((free / PART).min(MEMORY)).unwrap_or(LEAST);
    let share = (memory / usize::from(streams)).max(LEAST);
    let (told, ends) = mpsc::channel();
    thread::scope(|scope| {
        let first = std::iter::once((true, channel));
        let others = others.iter_mut().map(|channel| (false, channel));
        for (first, channel) in first.chain(others) {
            channel.listen_to(&alarm.token);
            let told = told.clone();
            let spawned =
                thread::Builder::new()
                    .name("probe".into())
                    .spawn_scoped(scope, move || {
                        confined::started(Role::Stream);
                        let ended = swallow(channel, share);
                        if first || ended.is_err() {
                            let _ = told.send(ended);
                        }
                    });
            if let Err(error) = spawned {
                alarm.ring();
                return Err(GuestError::new("start the thread of a stream", error).into());
            }
        }
        drop(told);
        // The source ends it by closing its first stream; else the first that goes wrong, or the time.
        let deadline = Instant::now() + LONGEST;
        let ended = loop {
            match ends.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Err(ReceiveError::Channel(ChannelError::Alarm))) => {}
                Ok(ended) => break ended,
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    break Err(GuestError::bare(format!(
                        "the link may be measured for {:.0} s, and these are over",
                        LONGEST.as_secs_f64()
                    ))
                    .into());
                }
            }
        };
        alarm.ring();
        ended
    })
}

/// Takes what comes on a stream until it ends.
fn swallow(channel: &mut Channel, memory: usize) -> Result<(), ReceiveError> {
    let mut sink = Sink::new(memory)?;
    loop {
        match channel.receive() {
            Ok(Frame::Filler { bytes }) => {
                let place = sink.place(bytes)?;
                channel.receive_data(&mut [place])?;
            }
            Ok(Frame::Ping(number)) => channel.send(&Frame::Pong(number))?,
            Ok(frame) => {
                return Err(ReceiveError::Unexpected {
                    peer: channel.peer().to_owned(),
                    frame: frame.name(),
                    expected: "FILLER or PING in a probe",
                });
            }
            // Who does not want to know any more may go at any time.
            Err(ChannelError::Closed { .. } | ChannelError::Io { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Memory as a new guest's is: nobody has touched it.
struct Sink {
    region: MmapRegion<()>,
    /// So much of it is touched.
    used: usize,
}

impl Sink {
    fn new(bytes: usize) -> Result<Self, GuestError> {
        let region = MmapRegion::new(bytes)
            .map_err(|error| GuestError::new(format!("map {bytes} bytes for a probe"), error))?;
        let sink = Self { region, used: 0 };
        // As guest memory is; without huge pages it is only slower.
        let _ = sink.advise(libc::MADV_HUGEPAGE);
        Ok(sink)
    }

    /// Room for so many bytes, at most [`MAX_FILLER`].
    fn place(&mut self, bytes: u32) -> Result<In<'_>, GuestError> {
        let bytes = usize::try_from(bytes.min(MAX_FILLER)).unwrap_or(0);
        if self.used + bytes > self.region.size() {
            self.advise(libc::MADV_DONTNEED)
                .map_err(|error| GuestError::new("give back the memory of a probe", error))?;
            self.used = 0;
        }
        let slice = self.region.get_slice(self.used, bytes);
        let slice = slice.map_err(|error| GuestError::new("find memory for a probe", error))?;
        self.used += bytes;
        Ok(In::guest(&slice))
    }

    fn advise(&self, advice: libc::c_int) -> std::io::Result<()> {
        // SAFETY: the range is exactly this region's mapping, private and anonymous, which lives as long as the
        // reference. MADV_HUGEPAGE changes no contents; MADV_DONTNEED makes them zeros, and nobody refers to them: the
        // only pieces of it are those that `place` gives, which borrow this exclusively.
        let done =
            unsafe { libc::madvise(self.region.as_ptr().cast(), self.region.size(), advice) };
        match done {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_never_more_than_there_is() {
        let mut sink = Sink::new(LEAST).unwrap();
        for _ in 0..20 {
            let mut place = sink.place(MAX_FILLER).unwrap();
            assert_eq!(place.fill(&vec![7; 2 << 20]), 1 << 20);
            assert!(sink.used <= LEAST);
        }
        assert_eq!(sink.place(u32::MAX).unwrap().len(), 1 << 20);
        // What was given back is zeros again.
        sink.advise(libc::MADV_DONTNEED).unwrap();
        let slice = sink.region.get_slice(0, 8).unwrap();
        let mut bytes = [1u8; 8];
        slice.copy_to(&mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
}
