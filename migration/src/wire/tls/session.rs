//! A TLS session of either side over buffers of ours: rustls' "unbuffered" connections. Those with buffers take what
//! came 4 KiB at a time, and copy between allocations whose addresses stand in one relation for the whole of a move;
//! where that is one at which a processor copies slowly, all of the move is slow (docs/performance.md).

use std::fmt;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{CommonState, Error};

/// A session, and whether the peer has said goodbye in it.
pub(super) struct Session {
    side: Side,
    ended: bool,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Keys are nobody's business.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl From<UnbufferedClientConnection> for Session {
    fn from(connection: UnbufferedClientConnection) -> Self {
        Self {
            side: Side::Client(connection),
            ended: false,
        }
    }
}

impl From<UnbufferedServerConnection> for Session {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self {
            side: Side::Server(connection),
            ended: false,
        }
    }
}

/// What there is to be written as soon as the session is ready for it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish<'a> {
    Nothing,
    /// Records of this.
    Content(&'a [u8]),
    /// The last record.
    Goodbye,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something was done; there may be more to do.
    More,
    /// The peer said goodbye.
    Ended,
    /// Nothing is left to do without more bytes.
    Idle,
    /// The wish is fulfilled.
    Written,
}

impl Session {
    /// What both sides have.
    pub(super) fn common(&self) -> &CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Whether this end is the client: a move's source.
    pub(super) fn is_client(&self) -> bool {
        matches!(self.side, Side::Client(_))
    }

    /// Whether the peer has said goodbye, so that nothing is missing of what it sent.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Goes on by one step: gives the content of a record of `incoming` to `deliver`, all of it at once, or puts what
    /// the peer is to get into `outgoing`. Says how many of the bytes are done with, and whether there may be more to
    /// do.
    ///
    /// # Errors
    /// The session is broken. One more step, over the same bytes, makes the alert that tells the peer why.
    pub(super) fn step(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
        deliver: impl FnMut(&[u8]),
    ) -> (usize, Result<bool, Error>) {
        let (done, step) = self.advance(incoming, outgoing, Wish::Nothing, deliver);
        (done, step.map(|step| step != Step::Idle))
    }

    /// Fulfils a wish, behind the steps that `incoming` asks for before that. Says how many of its bytes are done with.
    ///
    /// It is shown all that has come although this end writes: it has counted the bytes of a message that is not whole,
    /// and panics over fewer.
    ///
    /// # Errors
    /// The session is broken, or not ready.
    pub(super) fn write(
        &mut self,
        wish: Wish<'_>,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
        mut deliver: impl FnMut(&[u8]),
    ) -> (usize, Result<(), Error>) {
        let mut done = 0;
        loop {
            let (count, step) = self.advance(&mut incoming[done..], outgoing, wish, &mut deliver);
            done += count;
            match step {
                Ok(Step::Written) => return (done, Ok(())),
                Ok(Step::More | Step::Ended) => {}
                Ok(Step::Idle) => {
                    return (done, Err(Error::General("not ready to write".into())));
                }
                Err(error) => return (done, Err(error)),
            }
        }
    }

    fn advance(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
        wish: Wish<'_>,
        deliver: impl FnMut(&[u8]),
    ) -> (usize, Result<Step, Error>) {
        let (done, step) = match &mut self.side {
            Side::Client(c) => obey(c.process_tls_records(incoming), outgoing, wish, deliver),
            Side::Server(c) => obey(c.process_tls_records(incoming), outgoing, wish, deliver),
        };
        self.ended |= matches!(step, Ok(Step::Ended));
        (done, step)
    }
}

/// Does what the state of a session asks for.
fn obey<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Outgoing,
    wish: Wish<'_>,
    mut deliver: impl FnMut(&[u8]),
) -> (usize, Result<Step, Error>) {
    let mut done = status.discard;
    let step = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                deliver(record.payload);
                done += record.discard;
            }
            Ok(Step::More)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            outgoing.put(|room| match data.encode(room) {
                Ok(count) => Ok(count),
                Err(EncodeError::InsufficientSize(wanted)) => Err(Ok(wanted)),
                Err(error) => Err(Err(Error::General(error.to_string()))),
            })?;
            Ok(Step::More)
        }
        ConnectionState::TransmitTlsData(data) => {
            // It is in `outgoing`, ahead of all that follows.
            data.done();
            Ok(Step::More)
        }
        ConnectionState::PeerClosed => Ok(Step::Ended),
        ConnectionState::WriteTraffic(traffic) => write(traffic, outgoing, wish),
        ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Step::Idle),
        // Early data is never agreed to.
        _ => Err(Error::General("unknown state".into())),
    });
    (done, step)
}

fn write<Data>(
    mut traffic: WriteTraffic<'_, Data>,
    outgoing: &mut Outgoing,
    wish: Wish<'_>,
) -> Result<Step, Error> {
    let written = |result| match result {
        Ok(count) => Ok(count),
        Err(EncryptError::InsufficientSize(wanted)) => Err(Ok(wanted)),
        Err(EncryptError::EncryptExhausted) => Err(Err(Error::EncryptError)),
    };
    match wish {
        Wish::Nothing => return Ok(Step::Idle),
        Wish::Content(content) => outgoing.put(|room| written(traffic.encrypt(content, room)))?,
        Wish::Goodbye => outgoing.put(|room| written(traffic.queue_close_notify(room)))?,
    }
    Ok(Step::Written)
}

/// Records for the peer that the stream below has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// What is to go next.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// So many bytes of it are gone.
    pub(super) fn gone(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Has `write` put bytes behind the others, in as much room as it wants.
    fn put(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Result<InsufficientSizeError, Error>>,
    ) -> Result<(), Error> {
        loop {
            match write(&mut self.bytes[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(());
                }
                Err(Ok(wanted)) => self.bytes.resize(self.end + wanted.required_size, 0),
                Err(Err(error)) => return Err(error),
            }
        }
    }
}
