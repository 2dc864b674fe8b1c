//! Where the two programs of a move run: on this host over loopback, or in two network namespaces with a
//! shaped link between them.

use std::net::TcpListener;

use super::scenario::Link;
use crate::Error;
use crate::ferry::{Netns, World};
use vmm::units::{Rate, UnitError};

/// The two ends of a link. What was made for it goes when it is dropped.
#[derive(Debug)]
pub struct Place {
    world: Option<World>,
}

impl Place {
    /// Makes the link.
    ///
    /// # Errors
    /// `ip` or `tc` fails: most likely we are not root.
    pub fn new(link: Link) -> Result<Self, Error> {
        let Link::Shaped(rate) = link else {
            return Ok(Self { world: None });
        };
        let rate = rate.parse();
        let rate: Rate = rate.map_err(|e: UnitError| Error::Unexpected(e.to_string()))?;
        let world = World::new(0)?;
        world.a.shape(World::LINK, rate)?;
        world.b.shape(World::LINK, rate)?;
        Ok(Self { world: Some(world) })
    }

    /// Where the source runs.
    pub fn source(&self) -> Option<&Netns> {
        self.world.as_ref().map(|world| &world.a)
    }

    /// Where the destination runs.
    pub fn destination(&self) -> Option<&Netns> {
        self.world.as_ref().map(|world| &world.b)
    }

    /// Whether this is a link beyond loopback, which Ferry wants to be told.
    pub fn is_shaped(&self) -> bool {
        self.world.is_some()
    }

    /// The destination's address on the link.
    pub fn address(&self) -> &'static str {
        if self.is_shaped() {
            World::B
        } else {
            "127.0.0.1"
        }
    }

    /// A listener on the destination's side, at any free port.
    ///
    /// # Errors
    /// There is none.
    pub fn listen(&self) -> Result<TcpListener, Error> {
        let bind = || TcpListener::bind((self.address(), 0));
        let listener = match self.destination() {
            Some(netns) => netns.within(bind)?,
            None => bind(),
        };
        listener.map_err(|e| Error::file("listen on", self.address().as_ref(), e))
    }

    /// A port on the destination's side that was free a moment ago.
    ///
    /// # Errors
    /// There is none.
    pub fn free_port(&self) -> Result<u16, Error> {
        let listener = self.listen()?;
        let address = listener.local_addr();
        let address = address.map_err(|e| Error::file("ask", "listener".as_ref(), e))?;
        Ok(address.port())
    }

    /// Does something on the source's side of the network.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn at_source<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match self.source() {
            Some(netns) => Ok(netns.within(work)?),
            None => Ok(work()),
        }
    }
}
