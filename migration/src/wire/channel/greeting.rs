//! How a connection begins: the handshake of one that is encrypted, then both preambles.

use std::io;
use std::time::Instant;

use super::{Channel, ChannelError, TURNED_AWAY};
use crate::wire::iov::Out;
use crate::wire::preamble::{self, PREAMBLE};
use crate::wire::transport::Identity;

impl Channel {
    /// Who the peer has proved to be, where the transport asks for that; known once both have greeted each other.
    pub fn identity(&self) -> Option<&Identity> {
        self.transport.identity()
    }

    /// Makes sure who the peer is, where the transport asks for that.
    fn shake_hands(&mut self) -> Result<(), ChannelError> {
        let deadline = self.deadline();
        let error = loop {
            match self.transport.handshake() {
                Ok(None) => break None,
                Ok(Some(what)) => self.wait(what, Some(deadline), true)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        match error {
            None => {
                if let Some(identity) = self.transport.identity()
                    && !self.peer.contains(&identity.name)
                {
                    self.peer = format!("{} ({})", self.peer, identity.name);
                }
                Ok(())
            }
            Some(error) => {
                let error = self.io("shake hands with", error);
                self.part(Instant::now() + TURNED_AWAY, true);
                Err(error)
            }
        }
    }

    /// Makes sure who the peer is, and exchanges preambles.
    ///
    /// # Errors
    /// The peer is not Ferry, of another version, silent or gone, or not who it should be.
    pub fn greet(&mut self) -> Result<u16, ChannelError> {
        self.shake_hands()?;
        self.begin()?;
        self.hear_beginning()
    }

    /// Says the preamble, to whom nobody answers.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn begin(&mut self) -> Result<(), ChannelError> {
        let ours = preamble::ours();
        self.write_all(&mut [Out::bytes(&ours)], false)
    }

    /// Hears the other end's preamble.
    ///
    /// # Errors
    /// As [`greet`](Self::greet).
    pub fn hear_beginning(&mut self) -> Result<u16, ChannelError> {
        let deadline = self.deadline();
        while self.end - self.start < PREAMBLE {
            // A peer that trickles its bytes does not get more time for it.
            let more = self.receive_some(PREAMBLE, deadline);
            preamble::check_magic(&self.buffer[self.start..self.end], &self.peer)?;
            more?;
        }
        let mut theirs = [0; PREAMBLE];
        theirs.copy_from_slice(&self.buffer[self.start..self.start + PREAMBLE]);
        self.start += PREAMBLE;
        self.version = preamble::agree(theirs, &self.peer)?;
        Ok(self.version)
    }
}
