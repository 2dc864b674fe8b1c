//! Where Linux guests run: straight on this machine's KVM, or in a nested host. And why.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::Mutex;
use std::time::Duration;

use super::{Command, Ended, Host, Options, Stream};
use crate::{Error, lock, programs};

/// Overrides the choice: `native` or `nested`.
const CHOICE: &str = "FERRY_HOST";
/// Set for everything that runs in a nested host.
const INSIDE: &str = "FERRY_INSIDE_NESTED_HOST";
/// The longest takes two minutes alone, four beside other work.
const TEST_LIMIT: Duration = Duration::from_secs(8 * 60);

/// Where Linux guests run, with the reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On this machine's own `/dev/kvm`.
    Native(String),
    /// In a nested host.
    Nested(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native(why) => {
                write!(f, "native: Linux guests run on this machine's KVM ({why})")
            }
            Self::Nested(why) => write!(f, "nested: Linux guests run in a nested host ({why})"),
        }
    }
}

impl Place {
    /// Looks at the machine and decides.
    pub fn choose() -> Self {
        if inside() {
            return Self::Native("this is a nested host already".into());
        }
        match std::env::var(CHOICE).as_deref() {
            Ok("native") => return Self::Native(format!("{CHOICE}=native")),
            Ok("nested") => return Self::Nested(format!("{CHOICE}=nested")),
            _ => {}
        }
        if let Err(error) = kvm_ioctls::Kvm::new() {
            return Self::Nested(format!("/dev/kvm cannot be used here: {error}"));
        }
        if let Some(execution) = programs::ferry().ok().and_then(ask_ferry) {
            let why = format!("ferry check: guest execution is {execution}");
            return if execution == "native" {
                Self::Native(why)
            } else {
                Self::Nested(why)
            };
        }
        match hardware() {
            Some(flag) => Self::Native(format!("/dev/kvm is there and the processor has {flag}")),
            None => {
                Self::Nested("/dev/kvm is there, but the processor has neither vmx nor svm".into())
            }
        }
    }
}

/// What `ferry check --json` measured: `native`, `emulated`, or nothing where it could not tell.
fn ask_ferry(ferry: PathBuf) -> Option<String> {
    let output = Process::new(ferry)
        .args(["check", "--json"])
        .output()
        .ok()?;
    let check: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let execution = check.pointer("/facts/guest_execution/kind")?.as_str()?;
    ["native", "emulated"]
        .contains(&execution)
        .then(|| execution.to_owned())
}

fn hardware() -> Option<&'static str> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"]
        .into_iter()
        .find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

/// Whether this process runs in a nested host.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The command line of `argv` with our own environment and folder, for a run inside.
///
/// # Errors
/// There is no current folder.
pub fn command_like_ours(argv: Vec<String>) -> io::Result<Command> {
    let mut env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .collect();
    env.insert(INSIDE.into(), "1".into());
    let cwd = std::env::current_dir()?;
    Ok(Command {
        argv,
        env,
        cwd,
        limit: None,
    })
}

/// Runs this very program again in a nested host, with `words` as its arguments, and hands on what it prints. A host
/// that stands still is the emulator's doing (see [`Options::new`]): the program then runs once more, in a fresh one.
///
/// # Errors
/// There is no nested host to be had, or it ends before the program does.
pub fn enter_with(words: &[&str], options: &Options) -> Result<Ended, Error> {
    match enter_once(words, options) {
        Err(error @ Error::StandsStill(..)) => {
            println!("{}\nonce more, in a fresh one", crate::chain(&error));
            enter_once(words, options)
        }
        ended => ended,
    }
}

/// As [`enter_with`], without a second try.
pub(super) fn enter_once(words: &[&str], options: &Options) -> Result<Ended, Error> {
    let us = |e| Error::file("find", "(this program)".as_ref(), e);
    let program = std::env::current_exe().map_err(us)?;
    let program = program.to_string_lossy();
    let argv = [&[&*program], words].concat();
    let command = command_like_ours(argv.into_iter().map(str::to_owned).collect()).map_err(us)?;
    Host::boot(options)?.run(&command, |stream, bytes| {
        // Whoever reads that may have gone.
        let _ = match stream {
            Stream::Stdout => io::stdout().write_all(bytes),
            Stream::Stderr => io::stderr().write_all(bytes),
        };
    })
}

/// Runs `body` here if Linux guests run here, one test at a time; else runs this very test, by its path, of this very
/// test program in a nested host. The tests of one program share nested hosts, of which there are as many as tests that
/// run at a time (`--test-threads`): each keeps one processor busy.
///
/// # Panics
/// If the test fails inside, or there is no nested host to be had.
pub fn run_or_enter(path: &str, body: fn()) {
    static HERE: Mutex<()> = Mutex::new(());
    static IDLE: Mutex<Vec<Host>> = Mutex::new(Vec::new());
    let place = Place::choose();
    if let Place::Native(_) = place {
        let _alone = lock(&HERE);
        return body();
    }
    // Behind the name of the program.
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    let mut host = lock(&IDLE).pop();
    let mut entered = enter(&mut host, test);
    if let Err(Failed::StoodStill(reason)) = entered {
        // The emulator's doing, whatever ran in it (see `Options::new`): once, and not in silence.
        println!("{test}: {reason}\n{test}: once more, in a fresh one");
        host = None;
        entered = enter(&mut host, test);
    }
    if let Err(Failed::StoodStill(reason) | Failed::Otherwise(reason)) = entered {
        // The next test gets a fresh host, whatever was wrong with this one.
        drop(host);
        panic!("{test}: {reason}");
    }
    lock(&IDLE).extend(host);
}

/// How a test failed in the nested host, in words.
enum Failed {
    /// The whole machine stopped, its kernel included.
    StoodStill(String),
    Otherwise(String),
}

/// Runs a test of this program in a nested host, which is booted if there is none.
fn enter(host: &mut Option<Host>, test: &str) -> Result<(), Failed> {
    let otherwise = |e: Error| Failed::Otherwise(crate::chain(&e));
    let host = match host {
        Some(host) => host,
        None => {
            println!("{}", Place::choose());
            host.insert(boot_for_tests().map_err(otherwise)?)
        }
    };
    let us = |e| otherwise(Error::file("find", "(us)".as_ref(), e));
    let program = std::env::current_exe().map_err(us)?;
    let argv = vec![
        program.to_string_lossy().into_owned(),
        test.into(),
        "--exact".into(),
        "--nocapture".into(),
        "--test-threads=1".into(),
    ];
    let command = Command {
        limit: Some(TEST_LIMIT),
        ..command_like_ours(argv).map_err(us)?
    };
    match host.run(&command, print) {
        Ok(Ended::Exited(0)) => Ok(()),
        Ok(ended) => Err(Failed::Otherwise(format!(
            "failed in the nested host: {ended:?}"
        ))),
        Err(error @ Error::StandsStill(..)) => Err(Failed::StoodStill(crate::chain(&error))),
        Err(error) => Err(otherwise(error)),
    }
}

fn boot_for_tests() -> Result<Host, Error> {
    Host::boot(&Options {
        share: programs::target(),
        // One boot serves all tests of a program; on a busy machine these have taken 9 minutes.
        timeout: Duration::from_secs(20 * 60),
        ..Options::new(programs::nested_host()?)
    })
}

/// Through the macros, so that the test harness captures it.
fn print(stream: Stream, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match stream {
        Stream::Stdout => print!("{text}"),
        Stream::Stderr => eprint!("{text}"),
    }
    let _ = io::stdout().flush();
}
