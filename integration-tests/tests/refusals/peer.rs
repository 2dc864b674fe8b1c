//! The other end of a move, played frame by frame: how Ferry's peers can be wrong, and what a real one says.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use integration_tests::ferry::{Ferry, Netns};
use migration::pages::PAGE_SIZE;
use migration::state::VmState;
use migration::wire::codec::{self, HEADER, Header};
use migration::wire::frame::{Frame, Hello};
use migration::wire::preamble::{self, PREAMBLE};

use super::support::STEP;

/// A connection whose other end is Ferry.
pub struct Peer(TcpStream);

impl Peer {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(STEP)).unwrap();
        Self(stream)
    }

    /// Connects to a port of the namespace's own host.
    pub fn connect(netns: &Netns, port: u16) -> Self {
        let connect = || TcpStream::connect(("127.0.0.1", port));
        Self::new(netns.within(connect).unwrap().unwrap())
    }

    /// Sends bytes; the other end may have hung up already.
    pub fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// Sends no more, and listens until the other end has nothing more to say: a socket that is closed with bytes
    /// unread takes back what it has sent.
    pub fn hang_up(mut self) {
        let _ = self.0.shutdown(Shutdown::Write);
        let _ = io::copy(&mut self.0, &mut io::sink());
    }

    /// Reads the other end's preamble.
    pub fn preamble(&mut self) -> io::Result<()> {
        let mut bytes = [0; PREAMBLE];
        self.0.read_exact(&mut bytes)?;
        assert_eq!(bytes, preamble::ours());
        Ok(())
    }

    /// The next frame; what follows PAGES is skipped.
    pub fn hear(&mut self) -> io::Result<Frame> {
        let mut bytes = [0; HEADER];
        self.0.read_exact(&mut bytes)?;
        let header = Header::parse(bytes).unwrap();
        let [.., a, b, c, d] = bytes;
        let mut body = vec![0; u32::from_le_bytes([a, b, c, d]).try_into().unwrap()];
        self.0.read_exact(&mut body)?;
        let frame = codec::parse(header, &body).unwrap();
        if let Frame::Pages { runs, .. } = &frame {
            let pages: u64 = runs.iter().map(|run| u64::from(run.pages)).sum();
            let mut data = (&self.0).take(pages * PAGE_SIZE);
            assert_eq!(io::copy(&mut data, &mut io::sink())?, pages * PAGE_SIZE);
        }
        Ok(frame)
    }

    /// The reason that the other end gives for not going on; `None` if it hangs up without one.
    pub fn reason(&mut self) -> Option<String> {
        self.preamble().ok()?;
        loop {
            if let Frame::Refuse(text) | Frame::Failed(text) | Frame::Abort(text) =
                self.hear().ok()?
            {
                return Some(text);
            }
        }
    }
}

/// Frames as bytes.
pub fn frames(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        codec::encode(frame, &mut bytes).unwrap();
    }
    bytes
}

/// The same behind a preamble.
pub fn ferry_says(said: &[Frame]) -> Vec<u8> {
    [&preamble::ours()[..], &frames(said)].concat()
}

/// What a source says of its guest.
pub struct Captured {
    pub hello: Hello,
    pub state: VmState,
}

/// Lets a guest be moved to us, and says no when all of it has come.
pub fn capture(netns: &Netns, guest: &Ferry, port: u16) -> Captured {
    let listener = netns
        .within(|| TcpListener::bind(("127.0.0.1", port)))
        .unwrap()
        .unwrap();
    let destination = thread::spawn(move || {
        let mut peer = Peer::new(listener.accept().unwrap().0);
        peer.say(&preamble::ours());
        peer.preamble().unwrap();
        let Frame::Hello(hello) = peer.hear().unwrap() else {
            panic!("no HELLO");
        };
        let boot = [0; 16];
        peer.say(&frames(&[Frame::Accept { boot, streams: 1 }]));
        let state = loop {
            match peer.hear().unwrap() {
                Frame::Ping(number) => peer.say(&frames(&[Frame::Pong(number)])),
                Frame::State(state) => break state,
                _ => {}
            }
        };
        peer.say(&frames(&[Frame::Failed("only looking".to_owned())]));
        let hello = *hello;
        Captured { hello, state }
    });
    let moved = guest
        .migrate(&format!("tcp:127.0.0.1:{port}"), &[])
        .unwrap();
    let captured = destination.join().unwrap();
    assert_eq!(moved.status, 1, "{}", moved.stderr);
    assert!(moved.stderr.contains("only looking"), "{}", moved.stderr);
    captured
}
