//! One host with all the Ferrys of a test, and a guest that is handed from one to the next and is whole after each
//! turn.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use guest_images::verify::Summary;
use integration_tests::ferry::{Ferry, Migration, Netns, PulseGuest, Relay};

/// Longer than anything takes here.
pub const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 5;
/// It writes its whole working set anew in less than a second.
pub const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:64 rate=20000 pattern=sweep",
    cpus: 1,
    mib: 128,
};

/// The host and whoever has the guest now.
pub struct Lab {
    pub host: Netns,
    pub guest: Ferry,
    last: Summary,
    port: u16,
}

impl Lab {
    /// Boots the guest.
    pub fn new() -> Self {
        let host = Netns::new("lab").unwrap();
        let guest = GUEST.boot(Some(&host)).unwrap();
        guest.fill(SEED, &[GUEST.fillable()]).unwrap();
        let last = guest.check_pulse().unwrap();
        Self {
            host,
            guest,
            last,
            port: 4700,
        }
    }

    /// A receiver that gives up when the first attempt fails, and its address.
    pub fn receiver(&mut self) -> (Ferry, SocketAddr) {
        self.port += 1;
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let ferry = Ferry::receive(Some(&self.host), &format!("tcp:{address}"), &[]).unwrap();
        (ferry, address)
    }

    /// The guest is whole and runs on where it is, as if nothing had been.
    pub fn unharmed(&mut self) {
        assert_eq!(self.guest.state().unwrap(), "running");
        self.guest.wait_beats(50).unwrap();
        let now = self.guest.check_pulse().unwrap();
        now.follows(&self.last).unwrap();
        self.guest.check_fill(SEED, &[GUEST.fillable()]).unwrap();
        self.last = now;
    }

    /// The guest has arrived at `receiver`, which has it from then on.
    pub fn arrived(&mut self, receiver: Ferry, moved: Migration) {
        moved.completed().unwrap();
        let mut source = std::mem::replace(&mut self.guest, receiver);
        assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
        self.unharmed();
    }

    /// A move undisturbed, to a new receiver.
    pub fn moves_on(&mut self) {
        let (receiver, address) = self.receiver();
        let moved = self.guest.migrate(&format!("tcp:{address}"), &[]).unwrap();
        self.arrived(receiver, moved);
    }
}

/// Moves a guest through a relay, and does `meanwhile` when it has come to the relay's spot.
pub fn goes_through<T: Send>(
    guest: &Ferry,
    relay: &Relay,
    args: &[&str],
    meanwhile: impl FnOnce() -> T,
) -> (Migration, T) {
    thread::scope(|scope| {
        let moving = scope.spawn(|| guest.migrate(&relay.target(), args));
        if let Err(error) = relay.wait_reached(STEP) {
            panic!("{error}: {:?}", moving.join().unwrap());
        }
        let done = meanwhile();
        (moving.join().unwrap().unwrap(), done)
    })
}
