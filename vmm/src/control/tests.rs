//! The server against real and hostile clients, with a main thread that answers by rote.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::cancel::{CancelToken, Cancelled};

use super::client::{Client, ClientError};
use super::*;
use crate::config::Target;

/// A server with its socket, and a main thread that keeps what it was asked.
struct Vm {
    server: Option<ControlServer>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    main: Option<JoinHandle<Vec<Command>>>,
    quit: Sender<()>,
}

impl Vm {
    fn start(mut answer: impl FnMut(&Command) -> Option<Reply> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let (sender, receiver) = calls().unwrap();
        let server = ControlServer::start(&socket, sender).unwrap();
        let (quit, quitting) = channel::<()>();
        let main = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while quitting.try_recv().is_err() {
                for call in receiver.take() {
                    seen.push(call.command.clone());
                    if let Some(reply) = answer(&call.command) {
                        call.answer(reply);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        Self {
            server: Some(server),
            socket,
            _folder: folder,
            main: Some(main),
            quit,
        }
    }

    /// A VM that does everything.
    fn willing() -> Self {
        Self::start(|command| {
            Some(match command {
                Command::Status => Reply::Status(Box::default()),
                _ => Reply::Done,
            })
        })
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Everything that comes back for these bytes, with the sending side shut after them.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        // A server that refuses early may close before all is sent.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn status_of(&self, bytes: &[u8]) -> u16 {
        let answer = self.raw(bytes);
        let code = answer.split(' ').nth(1).unwrap_or("0");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let code = code.parse().unwrap();
        if code >= 400 {
            let body: serde_json::Value = serde_json::from_str(body).expect(&answer);
            assert!(body["error"].is_string(), "{answer}");
        }
        code
    }

    fn end(mut self) -> Vec<Command> {
        self.quit.send(()).unwrap();
        self.main.take().unwrap().join().unwrap()
    }
}

fn put(path: &str, body: &str) -> Vec<u8> {
    request("PUT", path, body)
}

fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

#[test]
fn every_order_reaches_the_main_thread() {
    let vm = Vm::willing();
    let client = vm.client();
    assert_eq!(client.status().unwrap(), Status::default());
    client.pause().unwrap();
    client.resume(false).unwrap();
    client.resume(true).unwrap();
    client.cancel().unwrap();
    client.stop().unwrap();
    let request = BalloonRequest { target_bytes: 4096 };
    client.balloon(request).unwrap();
    let orders = [
        Command::Status,
        Command::Pause,
        Command::Resume { force: false },
        Command::Resume { force: true },
        Command::Cancel,
        Command::Stop,
        Command::Balloon(request),
    ];
    assert_eq!(vm.end(), orders);
}

#[test]
fn what_the_vm_refuses_is_told_in_its_words() {
    let vm = Vm::start(|command| match command {
        Command::Cancel => Some(Reply::Refused("no move is under way".to_owned())),
        Command::Pause => Some(Reply::Failed("vCPU 3 does not stop".to_owned())),
        _ => None,
    });
    let told = |result: Result<(), ClientError>| match result {
        Err(ClientError::Refused { status, text }) => (status, text),
        other => panic!("{other:?}"),
    };
    let client = vm.client();
    assert_eq!(
        told(client.cancel()),
        (409, "no move is under way".to_owned())
    );
    assert_eq!(
        told(client.pause()),
        (500, "vCPU 3 does not stop".to_owned())
    );
    // Dropped without an answer, as by a main thread that ends.
    let (status, text) = told(client.stop());
    assert_eq!(status, 500);
    assert!(text.contains("ended before"), "{text}");
}

#[test]
fn only_requests_that_mean_something_are_passed_on() {
    let vm = Vm::willing();
    let long_header = format!("GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(9000));
    let fields = "A: b\r\n".repeat(40);
    let many_fields = format!("GET /v1/status HTTP/1.1\r\n{fields}\r\n");
    let table: &[(&[u8], u16)] = &[
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 200),
        (
            b"GET http://localhost/v1/status?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
            200,
        ),
        (b"GET /v1/openapi.json HTTP/1.0\r\n\r\n", 200),
        (
            b"GET /v1/status HTTP/1.1\r\n\r\nGET /v1/status HTTP/1.1\r\n\r\n",
            200,
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /v1/status/ HTTP/1.1\r\n\r\n", 404),
        (b"DELETE /v1/status HTTP/1.1\r\n\r\n", 405),
        (b"GET /v1/stop HTTP/1.1\r\n\r\n", 405),
        (
            b"PUT /v1/pause HTTP/1.1\r\nContent-Length: 65537\r\n\r\n",
            413,
        ),
        (
            b"PUT /v1/pause HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
            400,
        ),
        (b"PUT /v1/pause HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /v1/pause HTTP/1.1\r\nContent-Length: +0\r\n\r\n", 400),
        (
            b"PUT /v1/pause HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            400,
        ),
        (
            b"PUT /v1/pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\x00\x00\x00\x00", 400),
        (b"GET /v1/status HTTP/9.9\r\n\r\n", 400),
        (long_header.as_bytes(), 431),
        (many_fields.as_bytes(), 431),
        (&put("/v1/pause", "[]"), 400),
        (&put("/v1/pause", "{\"x\":1}"), 400),
        (&put("/v1/balloon", ""), 400),
        (&put("/v1/balloon", "{\"target_bytes\":-1}"), 400),
        (&put("/v1/balloon", "{\"target_bytes\":1,\"x\":1}"), 400),
        (&put("/v1/resume", "{\"force\":1}"), 400),
        (&put("/v1/resume", "{\"forse\":true}"), 400),
        (&put("/v1/resume", "\u{0}"), 400),
        (&request("POST", "/v1/migrate", ""), 400),
        (&request("POST", "/v1/migrate", "{}"), 400),
        (
            &request("POST", "/v1/migrate", "{\"target\":\"here\"}"),
            400,
        ),
        (
            &request("POST", "/v1/migrate", "{\"target\":\"tcp:10.0.0.1:1\"}"),
            400,
        ),
        (&request("POST", "/v1/migrate", &"[".repeat(60_000)), 400),
    ];
    for (bytes, status) in table {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
        assert_eq!(vm.status_of(bytes), *status, "{text}");
    }
    assert!(
        vm.raw(b"GET /v1/stop HTTP/1.1\r\n\r\n")
            .contains("\r\nAllow: PUT\r\n")
    );
    let seen = vm.end();
    assert_eq!(seen, vec![Command::Status; 3]);
}

#[test]
fn a_request_cut_anywhere_does_nothing() {
    let vm = Vm::willing();
    let whole = put("/v1/resume", "{\"force\":true}");
    for length in 0..whole.len() {
        let answer = vm.raw(&whole[..length]);
        assert_eq!(answer, "", "cut after {length}");
    }
    assert_eq!(vm.status_of(&whole), 200);
    assert_eq!(vm.end(), [Command::Resume { force: true }]);
}

#[test]
fn a_request_may_come_a_byte_at_a_time() {
    let vm = Vm::willing();
    let mut stream = UnixStream::connect(&vm.socket).unwrap();
    for byte in put("/v1/resume", "{\"force\":true}") {
        stream.write_all(&[byte]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(vm.end(), [Command::Resume { force: true }]);
}

#[test]
fn noise_is_never_a_command() {
    let vm = Vm::willing();
    // xorshift64: the same noise in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let good = put("/v1/stop", "");
    for round in 0..300 {
        let mut bytes = good.clone();
        if round % 2 == 0 {
            bytes = (0..next() % 600)
                .map(|_| u8::try_from(next() & 0xff).unwrap())
                .collect();
        } else {
            // One wrong byte in the request line, which then means something else or nothing.
            let place = usize::try_from(next() % 12).unwrap();
            bytes[place] = bytes[place].wrapping_add(u8::try_from(next() % 255 + 1).unwrap());
        }
        let answer = vm.raw(&bytes);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{bytes:?}\n{answer}");
    }
    assert_eq!(vm.end(), []);
}

#[test]
fn the_client_may_wait_to_be_told_to_go_on() {
    let vm = Vm::willing();
    let mut stream = UnixStream::connect(&vm.socket).unwrap();
    stream
        .write_all(b"PUT /v1/pause HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn connections_beyond_the_limit_are_told_to_come_again() {
    let vm = Vm::willing();
    let idle: Vec<_> = (0..16)
        .map(|_| UnixStream::connect(&vm.socket).unwrap())
        .collect();
    assert_eq!(vm.status_of(b"GET /v1/status HTTP/1.1\r\n\r\n"), 503);
    drop(idle);
    // Their places become free as their threads notice.
    let free = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        vm.client().status().is_ok()
    });
    assert!(free);
}

fn happening(index: u32) -> MoveEvent {
    MoveEvent::Happened(Happening::RoundStarted { index, pages: 7 })
}

fn report() -> migration::report::Report {
    let text = include_str!("tests/report.json");
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_move_is_told_line_by_line_up_to_the_report() {
    let vm = Vm::start(|_| {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for index in 0..3 {
                sender.send(happening(index)).unwrap();
            }
            sender.send(MoveEvent::from(report())).unwrap();
        });
        Some(Reply::Moving(receiver))
    });
    let request = MigrateRequest {
        downtime_ms: Some(50),
        ..MigrateRequest::to(Target::Unix("/there".into()))
    };
    let moving = vm.client().migrate(&request).unwrap();
    let events: Vec<_> = moving.map(Result::unwrap).collect();
    let expected = [
        happening(0),
        happening(1),
        happening(2),
        MoveEvent::from(report()),
    ];
    assert_eq!(events, expected);
    let raw = vm.raw(&request_of(&request));
    assert!(
        raw.contains("application/x-ndjson") && raw.ends_with("\r\n0\r\n\r\n"),
        "{raw}"
    );
    assert_eq!(vm.end(), vec![Command::Migrate(request); 2]);
}

fn request_of(body: &MigrateRequest) -> Vec<u8> {
    request("POST", "/v1/migrate", &serde_json::to_string(body).unwrap())
}

#[test]
fn a_client_that_goes_away_does_not_end_the_move() {
    let (done, finished) = channel();
    let vm = Vm::start(move |_| {
        let (sender, receiver) = channel();
        let done = done.clone();
        std::thread::spawn(move || {
            // Until the server has noticed that the client is gone, and a bit further.
            let mut unheard = 0;
            while unheard < 3 {
                unheard += u32::from(sender.send(happening(0)).is_err());
                std::thread::sleep(Duration::from_millis(1));
            }
            done.send(()).unwrap();
        });
        Some(Reply::Moving(receiver))
    });
    let request = MigrateRequest::to(Target::Unix("/there".into()));
    let mut moving = vm.client().migrate(&request).unwrap();
    assert!(moving.next().unwrap().is_ok());
    drop(moving);
    finished.recv_timeout(Duration::from_secs(30)).unwrap();
}

/// What is measured for somebody ends when he goes, in the middle of a window; not when he has no more to ask.
#[test]
fn a_client_that_goes_away_ends_what_is_measured_for_it() {
    let (began, measuring) = channel();
    let vm = Vm::start(move |command| {
        let cancel = CancelToken::new().unwrap();
        let (rates, windows) = channel();
        let (predictions, figures) = channel();
        began.send((cancel.clone(), rates, predictions)).unwrap();
        Some(match command {
            Command::DirtyRate(_) => Reply::Measuring(windows, cancel),
            _ => Reply::Predicting(figures, cancel),
        })
    });
    for (path, body) in [
        ("/v1/dirty-rate", ""),
        ("/v1/predict", "{\"move\":{\"target\":\"unix:/there\"}}"),
    ] {
        let mut client = UnixStream::connect(&vm.socket).unwrap();
        client.write_all(&request("POST", path, body)).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let patience = Duration::from_secs(20);
        let (cancel, _rates, _predictions) = measuring.recv_timeout(patience).unwrap();
        assert_eq!(cancel.sleep(Duration::from_millis(500)), Ok(()));
        drop(client);
        assert_eq!(cancel.sleep(patience), Err(Cancelled));
    }
}

/// Stopped by Ctrl-Z for longer than the server waits for anybody, say. What it misses is where the rounds were.
#[test]
fn a_client_that_does_not_read_for_long_hears_the_end() {
    let progress = |pages_done| {
        MoveEvent::Happened(Happening::Progress {
            index: 0,
            pages_done,
            pages: 100_000,
            wire_bytes: 0,
        })
    };
    let vm = Vm::start(move |_| {
        let (sender, receiver) = channel();
        for done in 0..20_000 {
            sender.send(progress(done)).unwrap();
        }
        sender.send(happening(1)).unwrap();
        sender.send(MoveEvent::from(report())).unwrap();
        Some(Reply::Moving(receiver))
    });
    let request = MigrateRequest::to(Target::Unix("/there".into()));
    let moving = vm.client().migrate(&request).unwrap();
    std::thread::sleep(Duration::from_secs(7));
    let told: Vec<_> = moving.map(Result::unwrap).collect();
    assert!(told.len() < 20_000, "{}", told.len());
    let end = [happening(1), MoveEvent::from(report())];
    assert_eq!(told[told.len() - 2..], end);
}

#[test]
fn a_move_without_a_report_is_an_end_and_a_cut_is_an_error() {
    let vm = Vm::start(|_| Some(Reply::Moving(channel().1)));
    let request = MigrateRequest::to(Target::Unix("/there".into()));
    assert_eq!(vm.client().migrate(&request).unwrap().count(), 0);

    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cut.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"event\"")
            .unwrap();
    });
    let mut moving = Client::new(&socket).migrate(&request).unwrap();
    assert!(matches!(
        moving.next(),
        Some(Err(ClientError::Broken { .. }))
    ));
    server.join().unwrap();
}

#[test]
fn finish_waits_for_the_answer_and_takes_no_more() {
    let mut vm = Vm::start(|_| {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for index in 0..50 {
                let _ = sender.send(happening(index));
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = sender.send(MoveEvent::from(report()));
        });
        Some(Reply::Moving(receiver))
    });
    let request = MigrateRequest::to(Target::Unix("/there".into()));
    let mut moving = vm.client().migrate(&request).unwrap();
    assert!(moving.next().unwrap().is_ok());
    let reader = std::thread::spawn(move || moving.map(Result::unwrap).last().unwrap());
    vm.server.take().unwrap().finish(Duration::from_secs(60));
    assert!(!vm.socket.exists());
    assert!(matches!(
        vm.client().stop(),
        Err(ClientError::Connect { .. })
    ));
    assert_eq!(reader.join().unwrap(), MoveEvent::from(report()));
}

#[test]
fn finish_does_not_wait_for_those_who_ask_nothing() {
    let mut vm = Vm::willing();
    let _idle = UnixStream::connect(&vm.socket).unwrap();
    vm.server.take().unwrap().finish(Duration::from_secs(3600));
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_the_server() {
    let mut vm = Vm::willing();
    let mode = std::fs::metadata(&vm.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (sender, _receiver) = calls().unwrap();
    let second = ControlServer::start(&vm.socket, sender.clone());
    assert!(matches!(second, Err(ControlError::Socket(_))));
    assert!(vm.client().status().is_ok());
    drop(vm.server.take());
    assert!(!vm.socket.exists());

    // A socket left behind by a process that was killed is taken over; a file is not.
    drop(UnixListener::bind(&vm.socket).unwrap());
    assert!(vm.socket.exists());
    drop(ControlServer::start(&vm.socket, sender.clone()).unwrap());
    std::fs::write(&vm.socket, "precious").unwrap();
    assert!(ControlServer::start(&vm.socket, sender.clone()).is_err());
    assert_eq!(std::fs::read(&vm.socket).unwrap(), b"precious");
    let long = vm.socket.with_file_name("x".repeat(200));
    assert!(ControlServer::start(&long, sender).is_err());
}

#[test]
fn a_server_that_is_not_ferry_is_named_as_such() {
    let answers: &[&[u8]] = &[
        b"220 mail ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz",
        b"",
    ];
    for answer in answers {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("other.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let bytes = answer.to_vec();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&bytes);
        });
        let result = Client::new(&socket).status();
        let text = String::from_utf8_lossy(answer);
        assert!(
            matches!(
                result,
                Err(ClientError::Foreign { .. } | ClientError::Broken { .. })
            ),
            "{text}: {result:?}"
        );
        server.join().unwrap();
    }
}
