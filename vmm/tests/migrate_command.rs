//! `ferry migrate` as a person runs it, against a VM that answers from a script: exit statuses, the report, Ctrl-C.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use migration::report::{Outcome, Report};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vmm::control::{ControlServer, Happening, MoveEvent, Reply, calls};

const FERRY: &str = env!("CARGO_BIN_EXE_ferry");

fn report(outcome: Outcome) -> Report {
    let text = include_str!("../src/control/tests/report.json");
    let whole: Report = serde_json::from_str(text).expect("a report");
    Report { outcome, ..whole }
}

/// A VM whose main thread does what `script` says.
struct Vm {
    folder: tempfile::TempDir,
    _server: ControlServer,
    quit: Sender<()>,
    main: Option<JoinHandle<()>>,
}

impl Vm {
    fn start(mut script: impl FnMut(vmm::control::Command) -> Reply + Send + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (sender, receiver) = calls().expect("a queue");
        let server =
            ControlServer::start(&folder.path().join("vm.sock"), sender).expect("a server");
        let (quit, quitting) = channel();
        let main = std::thread::spawn(move || {
            while quitting.recv_timeout(Duration::from_millis(2)).is_err() {
                for call in receiver.take() {
                    let reply = script(call.command.clone());
                    call.answer(reply);
                }
            }
        });
        Self {
            folder,
            _server: server,
            quit,
            main: Some(main),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vm.sock")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.quit.send(());
        if let Some(main) = self.main.take() {
            let _ = main.join();
        }
    }
}

fn migrate(socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(FERRY);
    command
        .arg("migrate")
        .arg("--control")
        .arg(socket)
        .arg("tcp:127.0.0.1:7000")
        .args(more);
    command
}

fn run(socket: &Path, more: &[&str]) -> Output {
    migrate(socket, more).output().expect("ferry runs")
}

/// A VM whose moves end at once with these lines.
fn scripted(lines: Vec<MoveEvent>) -> Vm {
    Vm::start(move |_| {
        let (sender, receiver) = channel();
        for line in &lines {
            sender.send(line.clone()).expect("the other end is here");
        }
        Reply::Moving(receiver)
    })
}

fn error_line(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("ferry: "))
        .collect();
    lines.last().unwrap_or(&"").to_string()
}

#[test]
fn the_exit_status_tells_where_the_guest_is() {
    let table = [
        (
            Outcome::Completed,
            0,
            "Moved: the guest runs on tcp:127.0.0.1:7000.",
        ),
        (Outcome::Failed, 1, "Failed: the guest runs here."),
        (Outcome::Cancelled, 3, "Cancelled: the guest runs here."),
        (Outcome::Unknown, 4, "Unknown: the guest may run on"),
    ];
    for (outcome, status, headline) in table {
        let vm = scripted(vec![report(outcome).into()]);
        let output = run(&vm.socket(), &[]);
        assert_eq!(output.status.code(), Some(status), "{outcome:?}");
        let table = String::from_utf8(output.stdout).expect("text");
        assert!(table.contains(headline), "{table}");
        assert!(
            table.contains("downtime (blackout)") && !table.contains('\x1b'),
            "{table}"
        );
    }
}

#[test]
fn without_a_terminal_there_are_plain_lines() {
    let happening = |happening| MoveEvent::Happened(happening);
    let vm = scripted(vec![
        happening(Happening::Connected {
            peer: "127.0.0.1:7000".to_owned(),
            memory_bytes: 1 << 30,
        }),
        happening(Happening::RoundStarted {
            index: 0,
            pages: 262_144,
        }),
        happening(Happening::Progress {
            index: 0,
            pages_done: 1,
            pages: 2,
            wire_bytes: 3,
        }),
        happening(Happening::RoundFinished {
            round: migration::report::Round::default(),
        }),
        happening(Happening::Live { blackout_ms: 48.2 }),
        report(Outcome::Completed).into(),
    ]);
    let output = run(&vm.socket(), &[]);
    let lines = String::from_utf8(output.stderr).expect("text");
    let firsts: Vec<_> = lines
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    assert_eq!(firsts, ["connected", "round", "live"], "{lines}");
    assert!(!lines.contains(['\r', '\x1b']), "{lines:?}");
}

#[test]
fn the_report_is_written_as_it_came() {
    let vm = scripted(vec![report(Outcome::Completed).into()]);
    let path = vm.folder.path().join("report.json");
    let output = run(&vm.socket(), &["--report", path.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(0));
    let written: Value =
        serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON");
    assert_eq!(
        written,
        serde_json::to_value(report(Outcome::Completed)).expect("JSON")
    );
}

#[test]
fn a_report_that_cannot_be_written_stops_the_move_before_it_begins() {
    let vm = Vm::start(|_| unreachable!("nothing may be asked"));
    let output = run(&vm.socket(), &["--report", "/nowhere/report.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_line(&output).contains("/nowhere/report.json"),
        "{}",
        error_line(&output)
    );
}

#[test]
fn a_refusal_is_one_line_in_the_words_of_the_vm() {
    let vm = Vm::start(|_| Reply::Refused("the guest is being moved already".to_owned()));
    let output = run(&vm.socket(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        error_line(&output),
        "ferry: the guest is being moved already"
    );
}

#[test]
fn a_vm_that_ends_in_the_middle_leaves_the_outcome_unknown() {
    let vm = scripted(vec![MoveEvent::Happened(Happening::Go)]);
    let output = run(&vm.socket(), &[]);
    assert_eq!(output.status.code(), Some(4));
    assert!(
        error_line(&output).contains("unknown"),
        "{}",
        error_line(&output)
    );
}

/// It may have begun the move before it died.
#[test]
fn a_vm_that_ends_before_it_answers_leaves_the_outcome_unknown() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("vm.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let dying = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.read(&mut [0; 4096]);
    });
    let output = run(&socket, &[]);
    dying.join().expect("it ends");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let line = error_line(&output);
    assert!(line.contains("its outcome is unknown here"), "{line}");
}

#[test]
fn a_vm_that_is_not_there_is_named() {
    let output = run(Path::new("/nowhere/vm.sock"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let line = error_line(&output);
    assert!(
        line.contains("/nowhere/vm.sock") && line.contains("No such file"),
        "{line}"
    );
}

/// Runs a move, interrupts it once it has begun, and gives what came of it.
fn interrupt(vm: &Vm) -> Output {
    let mut child = migrate(&vm.socket(), &[])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ferry runs");
    let mut lines = BufReader::new(child.stderr.take().expect("its lines")).lines();
    while !lines
        .next()
        .expect("a line")
        .expect("text")
        .starts_with("connected")
    {}
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("a signal");
    let mut rest = Vec::new();
    for line in lines {
        rest.extend_from_slice(line.expect("text").as_bytes());
        rest.push(b'\n');
    }
    let output = child.wait_with_output().expect("its end");
    Output {
        stderr: rest,
        ..output
    }
}

/// A VM whose move goes on until somebody cancels, and then ends in this way.
fn endless(cancel: impl Fn() -> Reply + Send + 'static, outcome: Outcome) -> Vm {
    let mut moving = None;
    Vm::start(move |command| match command {
        vmm::control::Command::Migrate(_) => {
            let (sender, receiver) = channel();
            let connected = Happening::Connected {
                peer: "127.0.0.1:7000".to_owned(),
                memory_bytes: 1 << 30,
            };
            sender
                .send(MoveEvent::Happened(connected))
                .expect("the other end is here");
            moving = Some(sender);
            Reply::Moving(receiver)
        }
        vmm::control::Command::Cancel => {
            let sender = moving.take().expect("a move");
            sender
                .send(report(outcome).into())
                .expect("somebody listens");
            cancel()
        }
        other => unreachable!("{other:?}"),
    })
}

#[test]
fn an_interrupt_cancels_the_move_and_waits_for_its_outcome() {
    let output = interrupt(&endless(|| Reply::Done, Outcome::Cancelled));
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn an_interrupt_that_comes_too_late_says_so_and_the_move_goes_on() {
    let vm = endless(
        || Reply::Refused("the move is committed".to_owned()),
        Outcome::Completed,
    );
    let output = interrupt(&vm);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
