//! `ferry migrate` to where no receiving Ferry is, or one that goes wrong: the guest stays and notices nothing.

use std::io::Read;
use std::net::{Shutdown, TcpListener};
use std::thread;

use integration_tests::ferry::{Ferry, Netns};
use migration::wire::frame::Frame;

use super::peer::{Peer, ferry_says};
use super::support::{beating, ticks_on};

const PORT: u16 = 4700;

/// What a peer does when it has said its piece.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Listen,
}

/// Moves a guest towards `target` and sees to it that the move is refused, in one line, and the guest runs on.
fn refused(guest: &Ferry, target: &str, args: &[&str], parts: &[&str]) {
    let moved = guest.migrate(target, args).unwrap();
    let lines: Vec<_> = moved.stderr.lines().collect();
    let ours: Vec<_> = lines.iter().filter(|l| l.starts_with("ferry: ")).collect();
    let [line] = ours[..] else {
        panic!("{target}: {lines:?}");
    };
    println!("{line}");
    assert_eq!(moved.status, 1, "{line}");
    assert!(line.starts_with("ferry: not moved"), "{line}");
    assert!(line.contains(", the guest runs here: "), "{line}");
    for part in parts {
        assert!(line.contains(part), "{target}: {line}");
    }
    assert_eq!(moved.report["outcome"], "failed");
    assert!(moved.stdout.contains("Failed: the guest runs here."));
    ticks_on(guest);
}

/// A peer for one connection, that says these bytes.
fn peer(netns: &Netns, said: Vec<u8>, then: Then) -> thread::JoinHandle<()> {
    let listener = netns
        .within(|| TcpListener::bind(("127.0.0.1", PORT)))
        .unwrap()
        .unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut speaker = Peer::new(stream.try_clone().unwrap());
        speaker.say(&said);
        if then == Then::Close {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Until Ferry hangs up.
        while let Ok(1..) = stream.read(&mut [0; 4096]) {}
    })
}

#[test]
fn nobody_to_move_to() {
    let netns = Netns::new("nobody").unwrap();
    let guest = beating(Some(&netns), &[]);
    let beyond = ["--insecure-plaintext"];
    refused(
        &guest,
        "tcp:127.0.0.1:4700",
        &[],
        &[
            "cannot connect",
            "start `ferry receive` there first",
            "refused",
        ],
    );
    refused(
        &guest,
        "tcp:192.0.2.1:4700",
        &beyond,
        &["cannot connect", "check the address", "unreachable"],
    );
    refused(
        &guest,
        "tcp:no-such-host.invalid:4700",
        &beyond,
        &["cannot find no-such-host.invalid", "check the name"],
    );
    refused(
        &guest,
        "unix:/nowhere/ferry.sock",
        &[],
        &["cannot connect", "start `ferry receive` there first"],
    );
}

#[test]
fn peers_that_are_not_ferry() {
    let netns = Netns::new("strangers").unwrap();
    let guest = beating(Some(&netns), &[]);
    let target = format!("tcp:127.0.0.1:{PORT}");
    let noise: Vec<u8> = (0..200u8).map(|n| n.wrapping_mul(151) ^ 0x5a).collect();
    let http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    for (said, then, parts) in [
        (
            noise,
            Then::Listen,
            ["is not Ferry", "check address and port"],
        ),
        (
            http,
            Then::Close,
            ["is not Ferry", "\"HTTP/1.1 400 Bad Request"],
        ),
        (
            vec![],
            Then::Listen,
            ["sent nothing for 5.0 s", "check that end"],
        ),
        (vec![], Then::Close, ["tcp:127.0.0.1:4700 ", "print"]),
    ] {
        let peer = peer(&netns, said, then);
        refused(&guest, &target, &[], &parts);
        peer.join().unwrap();
    }
}

#[test]
fn ferries_that_go_wrong() {
    let netns = Netns::new("wrong").unwrap();
    let guest = beating(Some(&netns), &[]);
    let target = format!("tcp:127.0.0.1:{PORT}");
    let accept = Frame::Accept {
        boot: [0; 16],
        streams: 1,
    };
    let pongs = || (0..3).map(Frame::Pong);
    let agreed = |more: &[Frame]| {
        let said: Vec<_> = std::iter::once(accept.clone()).chain(pongs()).collect();
        ferry_says(&[&said, more].concat())
    };
    let raw = |bytes: &[u8]| [&ferry_says(&[])[..], bytes].concat();
    let mut other_version = ferry_says(&[]);
    other_version[8..12].copy_from_slice(&[9, 0, 8, 0]);
    let evil = "no\x1b[2J room\nat all".to_owned();
    for (said, parts) in [
        (
            other_version,
            ["speaks versions 8 to 9", "closer to each other"],
        ),
        // The kind, 2 reserved bytes, the length.
        (
            raw(&[2, 0, 0, 0, 255, 255, 255, 255]),
            ["body of 4294967295 bytes", "the same ferry"],
        ),
        (
            raw(&[36, 0, 0, 0, 0, 0, 0, 64]),
            ["body of 1073741824 bytes", "the same ferry"],
        ),
        (
            raw(&[99, 0, 0, 0, 0, 0, 0, 0]),
            ["unknown frame kind 99", "the same ferry"],
        ),
        (
            ferry_says(&[Frame::Ready]),
            ["sent READY", "waiting for ACCEPT"],
        ),
        (
            ferry_says(&[Frame::Refuse(evil)]),
            ["refuses the guest", "no [2J room at all"],
        ),
        (
            ferry_says(&[accept.clone(), Frame::Pong(7)]),
            ["sent PONG", "waiting for"],
        ),
        (
            agreed(&[Frame::Failed("out of memory".to_owned())]),
            ["failed", "out of memory"],
        ),
        (agreed(&[Frame::Ready]), ["sent READY", "waiting for"]),
    ] {
        let peer = peer(&netns, said, Then::Listen);
        refused(&guest, &target, &[], &parts);
        peer.join().unwrap();
    }
}
