//! A guest's serial port on sockets, across a move: who listens on both ends hears every byte, once.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use integration_tests::ferry::{Ferry, Netns};

use super::lab::STEP;
use super::speaker;

/// Enough to have heard it speak.
const SOME: usize = 200;

/// A client of a serial port.
struct Client {
    heard: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Client {
    fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let listening = thread::spawn({
            let heard = heard.clone();
            move || {
                let mut bytes = [0; 4096];
                loop {
                    match stream.read(&mut bytes) {
                        Ok(0) => return,
                        Ok(count) => heard.lock().unwrap().extend(&bytes[..count]),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted),
                    }
                }
            }
        });
        Self { heard, listening }
    }

    /// Waits until it has heard more than so many bytes.
    fn wait(&self, bytes: usize, ferry: &Ferry) {
        let began = Instant::now();
        while self.heard.lock().unwrap().len() <= bytes {
            let late = began.elapsed() > STEP;
            assert!(!late, "the guest is silent: {}", ferry.messages().tail());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that was said until the other end was gone.
    fn all(self) -> Vec<u8> {
        self.listening.join().unwrap();
        Arc::try_unwrap(self.heard).unwrap().into_inner().unwrap()
    }
}

#[test]
fn what_a_guest_says_goes_on_at_the_destination_byte_for_byte() {
    let host = Netns::new("serial").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    let flag = |path: &Path| format!("socket={}", path.display());
    let mut source = speaker::start(&host, folder.path(), &["--serial", &flag(&here)]);
    source.wait_control(STEP).unwrap();
    // What it has said already is kept for the first who comes.
    let listener = Client::connect(&here);
    let target = "tcp:127.0.0.1:4700";
    let waiting = ["--serial", &flag(&there)];
    let mut destination = Ferry::receive(Some(&host), target, &waiting).unwrap();
    let next_listener = Client::connect(&there);
    listener.wait(SOME, &source);

    source.migrate(target, &[]).unwrap().completed().unwrap();
    assert_eq!(source.wait_end(STEP).unwrap().code(), Some(0));
    next_listener.wait(SOME, &destination);
    destination.act("stop").unwrap();
    assert_eq!(destination.wait_end(STEP).unwrap().code(), Some(0));

    // The guest may have gone in the midst of a number.
    let (before, after) = (listener.all(), next_listener.all());
    println!("{} bytes here, {} there", before.len(), after.len());
    let all = [before, after].concat();
    let numbers = all.chunks_exact(4);
    for (wanted, number) in (0..).zip(numbers) {
        let number = u32::from_le_bytes(number.try_into().unwrap());
        assert_eq!(number, wanted);
    }
}
