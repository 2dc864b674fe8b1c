//! Processes with a guest have nothing left that they do not need: seen from outside, in every thread, at rest and
//! after moves there and back.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use devices::virtio::net::Tap;
use integration_tests::ferry::{Ferry, Netns, PulseGuest, User};
use nix::errno::Errno;

const STEP: Duration = Duration::from_secs(60);
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:32 rate=5000",
    cpus: 2,
    mib: 128,
};

/// What /proc has of a thread (proc_pid_status(5)).
struct Status(String);

impl Status {
    /// None if the thread has ended.
    fn read(task: &Path) -> Option<Self> {
        match fs::read_to_string(task.join("status")) {
            Ok(text) => Some(Self(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => None,
            Err(error) => panic!("{}: {error}", task.display()),
        }
    }

    fn of(&self, name: &str) -> &str {
        let value = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("no {name} in {}", self.0))
            .trim()
    }
}

/// Every thread of a process is `uid`'s, has no capability, can gain none, and has a filter. Gives their names.
fn check_confined(ferry: &Ferry, uid: u32) -> Vec<String> {
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", ferry.pid())).unwrap() {
        let path = task.unwrap().path();
        let began = Instant::now();
        // A thread that has yet to run its first instruction has nothing of its own, and one may end before it is
        // looked at.
        let status = loop {
            match Status::read(&path) {
                Some(status) if status.of("Seccomp") != "2" => {
                    assert!(
                        began.elapsed() < STEP,
                        "{} has no filter",
                        status.of("Name")
                    );
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => break other,
            }
        };
        let Some(status) = status else {
            continue;
        };
        let name = status.of("Name");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status.of(set).trim_start_matches('0'), "", "{name}: {set}");
        }
        assert_eq!(status.of("NoNewPrivs"), "1", "{name}");
        let uids = status.of("Uid");
        assert!(
            uids.split_whitespace().all(|id| id == uid.to_string()),
            "{name}: {uids}"
        );
        names.push(name.to_owned());
    }
    let told = &ferry.status().unwrap()["sandbox"];
    assert_eq!(told["system_calls"], "kill", "{told}");
    assert!(told["landlock_abi"].as_u64().unwrap() > 0, "{told}");
    println!(
        "{} threads of process {}: {}",
        names.len(),
        ferry.pid(),
        names.join(", ")
    );
    names
}

/// A tap, open as whoever starts an ordinary user's Ferry passes it; and the number that it will have.
fn passed_tap(netns: &Netns, name: &str) -> (OwnedFd, String) {
    let tap = netns.within(|| Tap::open(name, 1)).unwrap().unwrap();
    let fd = tap.as_fd().try_clone_to_owned().unwrap();
    let number = fd.as_raw_fd().to_string();
    (fd, number)
}

#[test]
fn roots_powers_are_given_up() {
    let guest = GUEST.boot(None).unwrap();
    let names = check_confined(&guest, 0);
    for thread in ["ferry", "control", "vcpu-0", "vcpu-1", "console-out"] {
        assert!(names.iter().any(|name| name == thread), "{names:?}");
    }
    let target = "tcp:127.0.0.1:4731";
    let receiver = Ferry::receive(None, target, &[]).unwrap();
    check_confined(&receiver, 0);
    guest.migrate(target, &[]).unwrap().completed().unwrap();
    receiver.wait_beats(50).unwrap();
    check_confined(&receiver, 0);
}

#[test]
fn an_ordinary_user_runs_and_moves_a_guest_there_and_back() {
    const UID: u32 = 64123;
    let user = User::new(UID).unwrap();
    let netns = Netns::new("user").unwrap();
    for tap in ["tap0", "tap1"] {
        netns.add_tap(tap, None).unwrap();
    }
    let (tap, number) = passed_tap(&netns, "tap0");
    let (net, cpus, memory) = (
        format!("fd={number}"),
        GUEST.cpus.to_string(),
        format!("{}M", GUEST.mib),
    );
    let run = [
        "run",
        "--pulse",
        GUEST.words,
        "--cpus",
        &cpus,
        "--memory",
        &memory,
        "--net",
        &net,
    ];
    let mut here = Ferry::start_as(&user, &netns, &run, vec![tap]).unwrap();
    here.wait_console("pulse's READY", STEP, |line| line.contains("pulse: READY"))
        .unwrap();
    here.wait_control(STEP).unwrap();
    here.wait_beats(50).unwrap();
    let mut last = here.check_pulse().unwrap();
    for (tap, target) in [
        ("tap1", "tcp:127.0.0.1:4732"),
        ("tap0", "tcp:127.0.0.1:4733"),
    ] {
        let (tap, number) = passed_tap(&netns, tap);
        let net = format!("0=fd={number}");
        let receive = ["receive", "--listen", target, "--once", "--net", &net];
        let mut there = Ferry::start_as(&user, &netns, &receive, vec![tap]).unwrap();
        there.wait_control(STEP).unwrap();
        check_confined(&here, UID);
        check_confined(&there, UID);
        here.migrate(target, &["--streams", "2"])
            .unwrap()
            .completed()
            .unwrap();
        assert_eq!(here.wait_end(STEP).unwrap().code(), Some(0));
        there.wait_beats(50).unwrap();
        let now = there.check_pulse().unwrap();
        now.follows(&last).unwrap();
        let names = check_confined(&there, UID);
        assert!(names.iter().any(|name| name == "virtio-0"), "{names:?}");
        (here, last) = (there, now);
    }
}
