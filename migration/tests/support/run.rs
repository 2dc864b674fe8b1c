//! A whole move between two fake guests, with whatever lies between the two sockets.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migration::cancel::CancelToken;
use migration::destination::{Accept, ReceiveError, ReceiveOptions, receive};
use migration::event::Event;
use migration::options::Options;
use migration::source::{After, Moved, migrate};
use migration::wire::frame::Hello;
use migration::wire::{Connected, Transport};

use super::{FakeHost, Running, World};

/// What a source of this guest says first.
pub fn hello(world: &World) -> Hello {
    Hello {
        session: [7; 16],
        boot: [8; 16],
        streams: 1,
        by_descriptor: false,
        verify: false,
        page_size: 4096,
        description: world.description(),
    }
}

/// What the receiving thread ends with.
pub type Receiving = JoinHandle<Result<Running, ReceiveError>>;

/// Timeouts short enough that a test of silence is quick, and long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub fn options() -> Options {
    Options {
        peer_timeout: PATIENCE,
        ..Options::default()
    }
}

/// Starts a receiver.
pub fn receiving(world: &Arc<World>, socket: impl Transport + 'static) -> Receiving {
    receiving_with(world, socket, &CancelToken::new().unwrap(), PATIENCE)
}

pub fn receiving_with(
    world: &Arc<World>,
    socket: impl Transport + 'static,
    cancel: &CancelToken,
    peer_timeout: Duration,
) -> Receiving {
    receiving_over(world, Box::new(socket), None, cancel, peer_timeout)
}

/// Further streams come in at a listener.
pub struct Further(pub TcpListener);

impl Accept for Further {
    fn accept(
        &mut self,
        deadline: Instant,
        cancel: &CancelToken,
    ) -> std::io::Result<Option<(Box<dyn Transport>, String)>> {
        self.0.set_nonblocking(true)?;
        while Instant::now() < deadline && !cancel.is_cancelled() {
            match self.0.accept() {
                Ok((socket, _)) => return Ok(Some((Box::new(socket), "a stream".into()))),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Starts a receiver at a port of the loopback address, for a move over several streams.
pub fn receiving_streams(world: &Arc<World>) -> (String, Receiving) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let world = Arc::clone(world);
    let receiving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let cancel = CancelToken::new().unwrap();
        let further = Some(Box::new(Further(listener)) as _);
        let receiving = receiving_over(&world, Box::new(socket), further, &cancel, PATIENCE);
        receiving.join().unwrap()
    });
    (address, receiving)
}

/// Receives one guest over a transport.
pub fn receiving_over(
    world: &Arc<World>,
    transport: Box<dyn Transport>,
    mut further: Option<Box<dyn Accept + Send>>,
    cancel: &CancelToken,
    peer_timeout: Duration,
) -> Receiving {
    let mut host = FakeHost(Arc::clone(world));
    let cancel = cancel.clone();
    let options = ReceiveOptions {
        peer_timeout,
        ..ReceiveOptions::default()
    };
    std::thread::spawn(move || {
        let received = receive(
            &mut host,
            transport,
            "the source",
            further
                .as_mut()
                .map(|further| &mut **further as &mut dyn Accept),
            &options,
            &cancel,
            &mut |_| {},
        )?;
        let pulse = received.guest.pulse();
        std::thread::spawn(move || received.finish.run(pulse));
        Ok(received.guest)
    })
}

/// A pair of connected TCP sockets over loopback.
pub fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

/// Moves a guest over a socket pair.
pub fn travel(
    world: &Arc<World>,
    guest: Running,
    options: &Options,
) -> (Moved<Running>, Result<Running, ReceiveError>) {
    let (a, b) = UnixStream::pair().unwrap();
    let receiving = receiving(world, b);
    let cancel = CancelToken::new().unwrap();
    let moved = migrate(
        guest,
        &Connected::new(a, "pair"),
        options,
        &cancel,
        &mut |_| {},
    );
    (moved, receiving.join().unwrap())
}

/// Moves a guest over a socket, telling `events`.
pub fn send(
    guest: Running,
    socket: impl Transport + 'static,
    options: &Options,
    cancel: &CancelToken,
    events: &mut dyn FnMut(Event),
) -> Moved<Running> {
    migrate(
        guest,
        &Connected::new(socket, "pair"),
        options,
        cancel,
        events,
    )
}

/// The guest, which must have been given back running, whole, and at full speed.
pub fn back(world: &World, after: After<Running>) -> Running {
    let After::Running(guest) = after else {
        panic!("the guest is not running at the source");
    };
    assert_eq!(world.running(), 1);
    assert!(!guest.log_is_on());
    assert_eq!(guest.throttle_now(), 0);
    guest
}

/// Stops a guest and compares all of its memory.
pub fn verify(world: &World, mut guest: Running) {
    let body = guest.halt().unwrap();
    let wrong = world.wrong_pages(&body.ram);
    assert!(wrong.is_empty(), "{} wrong pages: {wrong:?}", wrong.len());
}
