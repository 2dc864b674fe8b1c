//! Receivers as services: one after the other on one socket, each with one guest; and the units and the script that
//! start them. There is no systemd here: the test passes sockets and hears news as it would.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::ferry::{Ferry, PulseGuest};
use integration_tests::programs;
use tempfile::TempDir;
use vmm::study::child::spawn_bound;

const STEP: Duration = Duration::from_secs(60);
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:16 rate=5000",
    cpus: 1,
    mib: 64,
};

/// The place where a service says how it is.
struct News {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: TempDir,
}

impl News {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(STEP)).unwrap();
        Self {
            socket,
            path,
            _folder: folder,
        }
    }

    /// The next.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).expect("news in time");
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    /// Whether there is none now.
    fn is_quiet(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let quiet = self.socket.recv(&mut [0; 64]).is_err();
        self.socket.set_nonblocking(false).unwrap();
        quiet
    }
}

/// The path of a file of the package.
fn dist(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../vmm/dist").join(name).canonicalize().unwrap()
}

fn metrics(ferry: &Ferry) -> String {
    let mut stream = UnixStream::connect(ferry.control()).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    answer
}

#[test]
fn each_move_of_many_streams_gets_a_process_of_its_own_from_one_socket() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", socket.local_addr().unwrap());
    let start = |news: &News| {
        let passed = socket.try_clone().unwrap().into();
        let mut ferry = Ferry::activated(passed, &news.path, &[]).unwrap();
        assert_eq!(news.next(), "STATUS=waiting for a guest");
        ferry.wait_control(STEP).unwrap();
        ferry
    };
    let guests = [GUEST.boot(None).unwrap(), GUEST.boot(None).unwrap()];
    let mut receivers = Vec::new();
    for guest in &guests {
        let news = News::new();
        let receiver = start(&news);
        // Whoever only knocks, or measures the link, is no guest: the socket stays this receiver's.
        drop(TcpStream::connect(socket.local_addr().unwrap()).unwrap());
        assert_eq!(news.next(), "STATUS=waiting for a guest");
        assert_eq!(receiver.state().unwrap(), "waiting");
        assert!(news.is_quiet());

        let moved = guest.migrate(&address, &["--streams", "4"]).unwrap();
        let ready = news.next();
        assert!(
            ready.starts_with(
                "READY=1\nSTATUS=receiving a guest of 64 MiB and 1 vCPU(s) from 127.0.0.1:"
            ),
            "{ready}"
        );
        let moved = moved.completed().unwrap();
        assert_eq!(moved.report["streams"], 4);
        assert_eq!(news.next(), "STATUS=the guest runs here");
        receiver.wait_beats(20).unwrap();
        receivers.push(receiver);
    }
    // Both go on beside each other, and nobody but the test has the socket any more.
    for receiver in &receivers {
        receiver.wait_beats(20).unwrap();
        let page = metrics(receiver);
        for line in [
            "ferry_guest_state{state=\"running\"} 1\n",
            "ferry_guest_memory_bytes 67108864\n",
            "ferry_moves_total{direction=\"in\",outcome=\"completed\"} 1\n",
            "ferry_moves_total{direction=\"in\",outcome=\"failed\"} 1\n",
            "ferry_last_move_duration_seconds{direction=\"in\"} ",
            "ferry_vmm_resident_memory_bytes ",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }
    let at = socket.local_addr().unwrap();
    drop(socket);
    // Programs that other tests start right now have it as well, until they are in place of this one's copy.
    let began = Instant::now();
    while TcpStream::connect(at).is_ok() {
        assert!(began.elapsed() < STEP, "somebody still listens");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_move_that_fails_once_it_has_begun_ends_its_receiver() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", socket.local_addr().unwrap());
    let news = News::new();
    let passed = socket.try_clone().unwrap().into();
    let mut receiver = Ferry::activated(passed, &news.path, &[]).unwrap();
    receiver.wait_control(STEP).unwrap();
    let guest = GUEST.boot(None).unwrap();
    let slow = ["--bandwidth", "10Mbit"];
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| guest.migrate(&address, &slow).unwrap());
        assert_eq!(news.next(), "STATUS=waiting for a guest");
        assert!(news.next().starts_with("READY=1\n"));
        assert!(guest.command("cancel", &[]).unwrap().status.success());
        assert_eq!(moving.join().unwrap().status, 3);
    });
    // Another may wait on the socket by now, so this one must not go on waiting.
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
    guest.wait_beats(20).unwrap();
    let page = metrics(&guest);
    assert!(
        page.contains("ferry_moves_total{direction=\"out\",outcome=\"cancelled\"} 1\n"),
        "{page}"
    );
    assert!(page.contains("\nferry_last_move_wire_bytes "), "{page}");
}

#[test]
fn systemd_passes_its_socket_and_the_guest_comes() {
    let folder = tempfile::tempdir().unwrap();
    let (control, port) = (folder.path().join("c.sock"), free_port());
    let address = format!("127.0.0.1:{port}");
    let mut activator = Command::new("systemd-socket-activate");
    activator
        .args(["--listen", &address])
        .arg(programs::ferry().unwrap())
        .args([
            "receive",
            "--listen",
            "systemd",
            "--serial",
            "none",
            "--control",
        ])
        .arg(&control)
        .stdin(Stdio::null());
    let activated = spawn_bound(activator, Vec::new());
    let mut activated = activated.expect("systemd-socket-activate, of Debian's package systemd");
    let guest = GUEST.boot(None).unwrap();
    let start = Instant::now();
    // The activator listens a moment after its start.
    while guest
        .migrate(&format!("tcp:{address}"), &[])
        .unwrap()
        .status
        != 0
    {
        assert!(start.elapsed() < STEP, "no move went through");
        std::thread::sleep(Duration::from_millis(200));
    }
    let stop = Command::new(programs::ferry().unwrap())
        .args(["stop", "--control"])
        .arg(&control)
        .status();
    assert!(stop.unwrap().success());
    assert_eq!(activated.wait().unwrap().code(), Some(0));
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn without_configuration_or_socket_it_says_so_and_ends() {
    let receive = |args: &[&str]| {
        let mut command = Command::new(programs::ferry().unwrap());
        let command = command
            .arg("receive")
            .args(["--listen", "systemd"])
            .args(args);
        let output = command.env_remove("LISTEN_FDS").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    let (status, said) = receive(&["--config", "/nonexistent/receive.toml"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.starts_with("ferry: cannot read the configuration /nonexistent/receive.toml: "),
        "{said}"
    );
    let (status, said) = receive(&["--serial", "none"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("none was passed (LISTEN_FDS)"), "{said}");

    // A socket that the network can reach, and nothing to encrypt with.
    let socket = TcpListener::bind("0.0.0.0:0").unwrap();
    let news = News::new();
    let mut ferry = Ferry::activated(socket.into(), &news.path, &[]).unwrap();
    assert_eq!(ferry.wait_end(STEP).unwrap().code(), Some(1));
    let said = ferry.messages().tail();
    assert!(said.contains("the connection is not encrypted"), "{said}");
}

#[test]
fn the_configuration_of_the_package_is_one() {
    let said = |file: &Path| {
        let mut command = Command::new(programs::ferry().unwrap());
        let command = command.args(["receive", "--listen", "systemd", "--config"]);
        String::from_utf8(command.arg(file).output().unwrap().stderr).unwrap()
    };
    // Its keys are fine; that there is no such folder is what is found next.
    let next = "cannot read /etc/ferry/tls/ca.pem";
    let file = dist("receive.toml");
    assert!(said(&file).contains(next), "{}", said(&file));
    // What is commented out is right, too.
    let text = fs::read_to_string(&file).unwrap();
    let line = |line: &str| match line.strip_prefix('#') {
        Some(key) if key.contains(" = [") => format!("{key}\n"),
        _ => format!("{line}\n"),
    };
    let all: String = text.lines().map(line).collect();
    assert!(
        all.contains("\npeer = [") && all.contains("\nnet = ["),
        "{all}"
    );
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.toml");
    fs::write(&whole, all).unwrap();
    assert!(said(&whole).contains(next), "{}", said(&whole));
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let folder = tempfile::tempdir().unwrap();
    let names = [
        "ferry-receive.socket",
        "ferry-receive.service",
        "ferry-receive@.service",
    ];
    for name in names {
        let text = fs::read_to_string(dist(name)).unwrap();
        // The programs are not installed here.
        let text = text
            .replace(
                "/usr/bin/ferry",
                programs::ferry().unwrap().to_str().unwrap(),
            )
            .replace(
                "/usr/lib/ferry/receivers",
                dist("receivers").to_str().unwrap(),
            );
        fs::write(folder.path().join(name), text).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    verify.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()));
    for name in [
        "ferry-receive.socket",
        "ferry-receive.service",
        "ferry-receive@x.service",
    ] {
        verify.arg(folder.path().join(name));
    }
    let output = verify
        .output()
        .expect("systemd-analyze, of Debian's package systemd");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// The script that keeps a receiver waiting, with a systemctl that does as its folder says and keeps what it was asked.
/// Its starts wait until the folder says otherwise, or is gone.
struct Receivers {
    folder: TempDir,
    child: Child,
}

impl Receivers {
    fn start(left_waiting: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let systemctl = folder.path().join("systemctl");
        let script = "#!/bin/sh\ncd \"${0%/*}\"\necho \"$*\" >> asked\ncase $1 in\n\
            list-units) cat left;;\nis-active) cat state;;\n\
            start) while [ -e systemctl ] && [ ! -e ready ] && [ ! -e broken ]; do\n\
            echo \"$*\" > waits; sleep 0.02; done; rm -f ready waits; [ ! -e broken ];;\nesac\n";
        let text = folder.path().join("systemctl.sh");
        fs::write(&text, script).unwrap();
        programs::install(&text, &systemctl).unwrap();
        fs::write(folder.path().join("left"), left_waiting).unwrap();
        fs::write(folder.path().join("state"), "activating\n").unwrap();
        let path = format!(
            "{}:{}",
            folder.path().display(),
            std::env::var("PATH").unwrap()
        );
        let child = Command::new(dist("receivers"))
            .env("PATH", path)
            .env("FERRY_RECEIVERS_REST", "0.1")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder, child }
    }

    fn set(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.folder.path().join("asked"));
        asked
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Waits until it has asked for so many starts.
    fn wait_starts(&self, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let mut asked = self.asked();
            asked.retain(|words| words.starts_with("start "));
            if asked.len() >= count {
                return asked;
            }
            assert!(start.elapsed() < STEP, "{asked:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and what it asked for at last.
    fn stop(mut self) -> Option<String> {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(start.elapsed() < STEP, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0));
        // The systemctl start that it leaves behind ends with its folder.
        self.asked().pop()
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_receiver_waits_at_a_time() {
    let receivers = Receivers::start("");
    let first = receivers.wait_starts(1);
    assert!(
        first[0].starts_with("start ferry-receive@") && first[0].ends_with(".service"),
        "{first:?}"
    );
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        receivers.wait_starts(1).len(),
        1,
        "a second one beside the first"
    );
    receivers.set("ready", "");
    let two = receivers.wait_starts(2);
    assert_ne!(two[0], two[1]);
    // One that does not come up is tried anew, by and by.
    receivers.set("broken", "");
    receivers.wait_starts(4);
    fs::remove_file(receivers.folder.path().join("broken")).unwrap();
    // It waits for the last that it has asked for.
    let start = Instant::now();
    let waiting = loop {
        let last = receivers.wait_starts(4).pop().unwrap();
        let waits = fs::read_to_string(receivers.folder.path().join("waits"));
        if waits.is_ok_and(|waits| waits.trim_end() == last) {
            break last;
        }
        assert!(start.elapsed() < STEP, "nobody waits");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_ne!(two[1], waiting);
    assert_eq!(
        receivers.stop().unwrap(),
        waiting.replace("start ", "stop ")
    );
}

#[test]
fn one_left_waiting_is_taken_over_and_one_with_a_guest_is_left_alone() {
    let left = "ferry-receive@0badcafe.service loaded activating start A guest\n";
    let receivers = Receivers::start(left);
    assert_eq!(
        receivers.wait_starts(1),
        ["start ferry-receive@0badcafe.service"]
    );
    receivers.set("state", "active\n");
    assert_eq!(
        receivers.stop().unwrap(),
        "is-active ferry-receive@0badcafe.service"
    );
}

#[test]
fn a_service_may_log_json() {
    let words = ["--log-format", "json", "--log", "debug"];
    let mut guest = GUEST.boot_with(None, &words).unwrap();
    assert!(guest.command("stop", &[]).unwrap().status.success());
    guest.wait_end(STEP).unwrap();
    let lines = guest.messages().tail();
    let mut messages = Vec::new();
    for line in lines.lines().filter(|line| line.contains('{')) {
        let line = &line[line.find('{').unwrap()..];
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        for key in ["timestamp", "level", "target", "message"] {
            assert!(value[key].is_string(), "{key}: {line}");
        }
        messages.push(value["message"].as_str().unwrap().to_owned());
    }
    assert!(
        messages.iter().any(|text| text == "the guest was stopped"),
        "{lines}"
    );

    // A line that makes no sense is told as text: nobody knows yet how it was to be told.
    let mut command = Command::new(programs::ferry().unwrap());
    let output = command
        .args(["run", "--pulse", "--log-format", "xml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("take text or json"));
}
