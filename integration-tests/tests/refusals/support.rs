//! Commands that are to be refused, and guests that are not to notice.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::ferry::{Ferry, Lines, Netns};
use integration_tests::programs;

/// Time for anything that is quick on an idle machine.
pub const STEP: Duration = Duration::from_secs(60);

/// What a refused command left behind.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit status.
    pub status: i32,
    /// The line that says why.
    pub line: String,
}

/// A `ferry` command.
pub fn ferry(args: &[&str]) -> Command {
    let mut command = Command::new(programs::ferry().unwrap());
    command.args(args);
    command
}

/// The same in a network namespace.
pub fn ferry_in(netns: &Netns, args: &[&str]) -> Command {
    let mut command = netns.command(&programs::ferry().unwrap());
    command.args(args);
    command
}

/// The same in a mount namespace of its own, after `prepare` has changed that: words of a shell.
pub fn ferry_after(prepare: &str, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("{prepare} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script, "sh"]);
    command.arg(programs::ferry().unwrap()).args(args);
    command
}

/// Runs a command that has to end by itself, not with status 0, and with exactly one line of Ferry's.
pub fn refused(mut command: Command) -> Refusal {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut child = vmm::study::child::spawn_bound(command, Vec::new()).unwrap();
    let out = Lines::collect(child.stdout.take().unwrap());
    let err = Lines::collect(child.stderr.take().unwrap());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > STEP {
            let _ = child.kill();
            let _ = child.wait();
            panic!("not refused: {shown}\n{}{}", out.tail(), err.tail());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // Until the pipes are read to their ends.
    for lines in [&out, &err] {
        assert_eq!(lines.wait(0, STEP, |_| false), None);
    }
    let lines = err.since(0);
    let ours: Vec<_> = lines.iter().filter(|l| l.starts_with("ferry: ")).collect();
    let [line] = ours[..] else {
        panic!("{shown} ended with {status} and said {lines:?}");
    };
    let status = status.code().unwrap_or_else(|| panic!("{shown}: {status}"));
    assert_ne!(status, 0, "{shown}: {line}");
    Refusal {
        status,
        line: line.clone(),
    }
}

/// Like [`refused`], by a command that says nothing but that line; with its status and parts of the line.
pub fn refuses(command: Command, status: i32, parts: &[&str]) {
    let shown = format!("{command:?}");
    let refusal = refused(command);
    println!("{}", refusal.line);
    assert_eq!(refusal.status, status, "{shown}: {}", refusal.line);
    for part in parts {
        assert!(refusal.line.contains(part), "{shown}: {}", refusal.line);
    }
}

/// The bare guest, beating every millisecond and writing; `args` are added to its `ferry run`.
pub fn beating(netns: Option<&Netns>, args: &[&str]) -> Ferry {
    let first = ["run", "--pulse", "beat=1 ws=16:8 rate=2000", "--memory"];
    let mut guest = Ferry::start(netns, &[&first[..], &["64M"], args].concat()).unwrap();
    guest
        .wait_console("pulse's READY", STEP, |line| line.contains("pulse: READY"))
        .unwrap();
    guest.wait_control(STEP).unwrap();
    ticks_on(&guest);
    guest
}

/// The guest runs, and its heart beats.
pub fn ticks_on(guest: &Ferry) {
    let began = Instant::now();
    let mut first = None;
    loop {
        let status = guest.status().unwrap();
        assert_eq!(status["state"], "running", "{status:#}");
        let count = status["heartbeat"]["count"].as_u64().unwrap();
        if count >= *first.get_or_insert(count) + 10 {
            return;
        }
        assert!(began.elapsed() < STEP, "the guest's heart stands still");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
