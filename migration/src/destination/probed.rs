//! A source that measures the link before it moves a guest here: its bytes are taken as those of pages would be, into
//! memory as the guest's would be, untouched or touched beforehand, and forgotten.
#![allow(unsafe_code, reason = "madvise of a mapping of its own")]

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::ReceiveError;
use super::receiver::Means;
use super::streams::Joining;
use crate::clock::boot_id;
use crate::confined::{self, Role};
use crate::guest::{GuestError, Host};
use crate::placement::{Bound, Processors};
use crate::probe::memory;
use crate::wire::channel::{Channel, ChannelError};
use crate::wire::frame::{Frame, MAX_FILLER, SessionId};
use crate::wire::iov::In;

/// The first version of the protocol that has probes.
pub(super) const SINCE: u16 = 2;
/// How long a source may measure: three times what ours takes, which on a busy host is late.
const LONGEST: Duration = Duration::from_secs(10);
/// So much of what has been touched for the next guest is written at most, since it has to be made zero again.
const READY: usize = 1 << 30;
/// Huge pages are of that size, and there should be some.
const LEAST: usize = 4 << 20;

/// Lets a source measure the link. What is given says that this went well, or what did not.
pub(super) fn answer<H: Host>(
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

fn listen<H: Host>(
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
    let ready = means.host.ready(READY);
    let memory = match ready {
        Some(ready) => ready.size().min(READY),
        None => memory(),
    };
    let share = (memory / usize::from(streams)).max(LEAST);
    // As a move does it. Asked before any thread is bound.
    let processors = Processors::shared(streams);
    let (told, ends) = mpsc::channel();
    thread::scope(|scope| {
        let first = std::iter::once((true, channel));
        let others = others.iter_mut().map(|channel| (false, channel));
        for (index, (first, channel)) in first.chain(others).enumerate() {
            channel.listen_to(&alarm.token);
            let told = told.clone();
            let mut bound = Bound::new(processors.clone());
            let spawned =
                thread::Builder::new()
                    .name("probe".into())
                    .spawn_scoped(scope, move || {
                        confined::started(Role::Stream);
                        // A stream for which nothing is left there has memory of its own.
                        let ready = ready.and_then(|all| all.get_slice(index * share, share).ok());
                        let ended = match ready {
                            Some(memory) => swallow(channel, &mut bound, Sink::touched(memory)),
                            None => into_fresh(channel, &mut bound, share),
                        };
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

/// Takes what comes on a stream into memory of its own.
fn into_fresh(channel: &mut Channel, bound: &mut Bound, bytes: usize) -> Result<(), ReceiveError> {
    let region = MmapRegion::new(bytes)
        .map_err(|error| GuestError::new(format!("map {bytes} bytes for a probe"), error))?;
    swallow(channel, bound, Sink::fresh(&region))
}

/// Takes what comes on a stream until it ends.
fn swallow(
    channel: &mut Channel,
    bound: &mut Bound,
    mut sink: Sink<'_>,
) -> Result<(), ReceiveError> {
    loop {
        match channel.receive() {
            Ok(Frame::Filler { bytes }) => {
                bound.follow(|| channel.shared_processor());
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

/// Memory as a new guest's is, of one stream alone.
struct Sink<'a> {
    memory: VolatileSlice<'a>,
    /// Nobody has touched it, so it is given back when it is full: what is written again is not as slow.
    fresh: bool,
    /// So much of it is written.
    used: usize,
}

impl<'a> Sink<'a> {
    /// Private anonymous memory of this stream's own.
    fn fresh(region: &'a MmapRegion) -> Self {
        let sink = Self {
            memory: region.as_volatile_slice(),
            fresh: true,
            used: 0,
        };
        // As guest memory is; without huge pages it is only slower.
        let _ = sink.advise(libc::MADV_HUGEPAGE);
        sink
    }

    /// Memory that is there already.
    fn touched(memory: VolatileSlice<'a>) -> Self {
        Self {
            memory,
            fresh: false,
            used: 0,
        }
    }

    /// Room for so many bytes, at most [`MAX_FILLER`].
    fn place(&mut self, bytes: u32) -> Result<In<'_>, GuestError> {
        let bytes = usize::try_from(bytes.min(MAX_FILLER)).unwrap_or(0);
        if self.used + bytes > self.memory.len() {
            if self.fresh {
                self.advise(libc::MADV_DONTNEED)
                    .map_err(|error| GuestError::new("give back the memory of a probe", error))?;
            }
            self.used = 0;
        }
        let slice = self.memory.subslice(self.used, bytes);
        let slice = slice.map_err(|error| GuestError::new("find memory for a probe", error))?;
        self.used += bytes;
        Ok(In::guest(&slice))
    }

    fn advise(&self, advice: libc::c_int) -> std::io::Result<()> {
        // SAFETY: the range is exactly the slice's, all of a mapping that is private and anonymous (this is called for
        // fresh memory alone) and lives as long as the slice. MADV_HUGEPAGE changes no contents; MADV_DONTNEED makes
        // them zeros, and nobody refers to them: the only pieces of it are those that `place` gives, which borrow this
        // exclusively.
        let done = unsafe {
            libc::madvise(
                self.memory.ptr_guard_mut().as_ptr().cast(),
                self.memory.len(),
                advice,
            )
        };
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
        let region = MmapRegion::new(LEAST).unwrap();
        for fresh in [true, false] {
            let mut sink = match fresh {
                true => Sink::fresh(&region),
                false => Sink::touched(region.as_volatile_slice()),
            };
            for _ in 0..20 {
                let mut place = sink.place(MAX_FILLER).unwrap();
                assert_eq!(place.fill(&vec![7; 2 << 20]), 1 << 20);
                assert!(sink.used <= LEAST);
            }
            assert_eq!(sink.place(u32::MAX).unwrap().len(), 1 << 20);
        }
        // What was given back is zeros again.
        let sink = Sink::fresh(&region);
        sink.advise(libc::MADV_DONTNEED).unwrap();
        let mut bytes = [1u8; 8];
        sink.memory.subslice(0, 8).unwrap().copy_to(&mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
}
