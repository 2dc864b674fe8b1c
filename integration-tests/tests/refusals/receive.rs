//! `ferry receive` that cannot wait for a guest, or cannot take the one that comes.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use integration_tests::ferry::{Ferry, Netns, PulseGuest};
use tempfile::TempDir;

use super::support::{STEP, beating, ferry, ferry_in, refuses, text, ticks_on};

const USAGE: i32 = 2;
const ERROR: i32 = 1;

#[test]
fn places_where_nobody_can_listen() {
    let netns = Netns::new("listen").unwrap();
    let listen = |target: &str, more: &[&str]| {
        let first = ["receive", "--listen", target];
        ferry_in(&netns, &[&first, more].concat())
    };
    let _taken = netns
        .within(|| TcpListener::bind("127.0.0.1:4700"))
        .unwrap()
        .unwrap();
    refuses(
        listen("tcp:127.0.0.1:4700", &[]),
        ERROR,
        &[
            "cannot listen on tcp:127.0.0.1:4700",
            "a free port",
            "in use",
        ],
    );
    let remedy = "take an address of this host";
    for target in ["tcp:192.0.2.1:4700", "tcp:no-such-host.invalid:4700"] {
        let command = listen(target, &["--insecure-plaintext"]);
        refuses(command, ERROR, &["cannot listen on", target, remedy]);
        let command = listen(target, &[]);
        refuses(command, USAGE, &["not encrypted", "--insecure-plaintext"]);
    }
    for (args, part) in [
        (["--listen", "127.0.0.1:4700"], "tcp:HOST:PORT"),
        (["--listen", "tcp:127.0.0.1:x"], "tcp:HOST:PORT"),
        (["--listen", ""], "tcp:HOST:PORT"),
        (["--net", "tap0"], "for example 0=tap=tap0"),
        (["--net", "8=tap=tap0"], "at most 8, counted from 0"),
        (["--net", "0=tap=tap0,queues=2"], "come with the guest"),
        (["--max-memory", "1M"], "a multiple of 2M from 16M"),
        (
            ["--prefault", "3M"],
            "a multiple of 2M up to --max-memory, which is 8G",
        ),
        (["--prefault", "9G"], "up to --max-memory, which is 8G"),
    ] {
        let mut all = vec!["receive"];
        if args[0] != "--listen" {
            all.extend(["--listen", "tcp:127.0.0.1:4701"]);
        }
        all.extend(args);
        refuses(ferry(&all), USAGE, &[part]);
    }
}

#[test]
fn memory_that_this_host_does_not_have_is_not_made_ready() {
    let both = [
        "receive",
        "--listen",
        "tcp:127.0.0.1:4703",
        "--hugepages",
        "--prefault",
        "2M",
    ];
    refuses(ferry(&both), USAGE, &["--prefault", "--hugepages"]);
    let much = ["--max-memory", "8T", "--prefault", "8T"];
    let wait = ["receive", "--listen", "tcp:127.0.0.1:4702"];
    let said = ["cannot have 8T of memory ready", "a smaller --prefault"];
    refuses(ferry(&[&wait[..], &much].concat()), ERROR, &said);
}

#[test]
fn unix_sockets_of_others_are_left_alone_and_stale_ones_are_replaced() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| text(&folder.path().join(name)).to_owned();
    fs::write(path("file"), "somebody's").unwrap();
    let _other = UnixListener::bind(path("other")).unwrap();
    for (name, part) in [
        ("file", "exists and is not a socket"),
        ("other", "is in use by another process"),
        ("no/socket", "a folder that exists"),
        (&"x".repeat(120), "at most 107"),
    ] {
        let target = format!("unix:{}", path(name));
        let command = ferry(&["receive", "--listen", &target]);
        refuses(command, ERROR, &["cannot listen for a guest", part]);
    }
    drop(UnixListener::bind(path("stale")).unwrap());
    let target = format!("unix:{}", path("stale"));
    let receiver = Ferry::receive(None, &target, &[]).unwrap();
    let guest = PulseGuest {
        words: "beat=1",
        cpus: 1,
        mib: 64,
    };
    let guest = guest.boot_in_memfd(&[]).unwrap();
    guest.migrate(&target, &[]).unwrap().completed().unwrap();
    ticks_on(&receiver);
}

/// Taps are opened at once: a process that is confined opens nothing later, and whoever gave a wrong one is still
/// there.
#[test]
fn taps_that_cannot_be_had() {
    let netns = Netns::new("taken").unwrap();
    netns.add_tap("tap0", None).unwrap();
    let holder = beating(Some(&netns), &["--net", "tap=tap0"]);
    for (net, parts) in [
        (
            "0=tap=tap0",
            [
                "tap tap0 is in use by another process",
                "give each guest a tap of its own",
            ],
        ),
        ("0=tap=tap1", ["no interface tap1", "ip tuntap add tap1"]),
    ] {
        let receive = ["receive", "--listen", "tcp:127.0.0.1:4700", "--net", net];
        refuses(ferry_in(&netns, &receive), ERROR, &parts);
    }
    ticks_on(&holder);
}

/// A tap stays with its receiver, whatever comes of a first guest.
#[test]
fn a_tap_serves_a_second_guest_when_the_first_was_refused() {
    let netns = Netns::new("again").unwrap();
    for tap in ["tap0", "tap1", "tap2", "tap3"] {
        netns.add_tap(tap, None).unwrap();
    }
    let target = "tcp:127.0.0.1:4700";
    let args = ["receive", "--listen", target, "--net", "0=tap=tap3"];
    let mut receiver = Ferry::start(Some(&netns), &args).unwrap();
    receiver.wait_control(STEP).unwrap();
    let two = beating(Some(&netns), &["--net", "tap=tap0", "--net", "tap=tap1"]);
    let moved = two.migrate(target, &[]).unwrap();
    assert_eq!(moved.status, 1, "{}", moved.stderr);
    assert!(
        moved.stderr.contains("card 1 has no tap here"),
        "{}",
        moved.stderr
    );
    ticks_on(&two);
    let one = beating(Some(&netns), &["--net", "tap=tap2"]);
    one.migrate(target, &[]).unwrap().completed().unwrap();
    ticks_on(&receiver);
}

/// A guest's card needs a tap with as many queues and no shorter frames; and what was opened for more serves a guest
/// with fewer.
#[test]
fn a_tap_with_too_little_for_the_card_is_refused_before_the_guest_comes() {
    let netns = Netns::new("queues").unwrap();
    netns.add_tap("single", None).unwrap();
    for tap in ["here", "there", "after"] {
        netns.add_multi_queue_tap(tap, None).unwrap();
    }
    for tap in ["here", "single"] {
        netns.ip(&format!("link set {tap} mtu 9000")).unwrap();
    }
    let source = beating(Some(&netns), &["--net", "tap=here,queues=2,mtu=9000"]);
    let receive = |tap: &str, port: u16| {
        let (target, net) = (format!("tcp:127.0.0.1:{port}"), format!("0=tap={tap}"));
        let args = ["receive", "--listen", &target, "--net", &net];
        let mut receiver = Ferry::start(Some(&netns), &args).unwrap();
        receiver.wait_control(STEP).unwrap();
        (receiver, target)
    };
    let refused = |tap: &str, port: u16, part: &str| {
        let (_receiver, target) = receive(tap, port);
        let moved = source.migrate(&target, &[]).unwrap();
        assert_eq!(moved.status, 1, "{}", moved.stderr);
        assert!(moved.stderr.contains(part), "{}", moved.stderr);
        ticks_on(&source);
    };
    refused(
        "single",
        4700,
        "tap single has 1 of the 2 queues of the card",
    );
    refused(
        "there",
        4701,
        "tap there has an MTU of 1500, the card of 9000",
    );
    netns.ip("link set there mtu 9000").unwrap();
    let (there, target) = receive("there", 4702);
    source.migrate(&target, &[]).unwrap().completed().unwrap();
    ticks_on(&there);
    let (after, target) = receive("after", 4703);
    let one = beating(Some(&netns), &["--net", "tap=single"]);
    one.migrate(&target, &[]).unwrap().completed().unwrap();
    ticks_on(&after);
}
