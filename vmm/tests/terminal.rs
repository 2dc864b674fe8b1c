//! The terminal is given back as it was found, whichever way the process ends. The test runs itself again as a child on
//! a pseudo-terminal, which opens the console and ends in the way that it is told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::pty::openpty;
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use vmm::config::SerialConfig;
use vmm::console::{Console, Signals};

const WAY: &str = "FERRY_TEST_WAY_TO_END";

/// What the terminal is set to, in a form that can be compared.
fn settings(terminal: &OwnedFd) -> (Termios, String) {
    let found = tcgetattr(terminal.as_fd()).expect("a terminal");
    let text = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        found.input_flags,
        found.output_flags,
        found.control_flags,
        found.local_flags,
        found.control_chars
    );
    (found, text)
}

/// The child: opens the console, says so, waits for a byte, and ends.
fn end(way: &str) {
    let signals = Signals::block().expect("signals");
    let console = Console::open(&SerialConfig::Stdio).expect("a console");
    console.output().write_all(b"RAW").expect("output");
    let input = console.input().expect("input");
    while way != "quit" && input.take(1).bytes.is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    match way {
        "return" => {}
        "panic" => panic!("as told"),
        "exit" => std::process::exit(0),
        "signal" => {
            raise(Signal::SIGTERM).expect("raise");
            assert_eq!(signals.take(), Some(Signal::SIGTERM));
        }
        "quit" => {
            while !input.take(64).quit {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
        other => unreachable!("{other}"),
    }
}

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    if let Ok(way) = std::env::var(WAY) {
        return end(&way);
    }
    for way in ["return", "panic", "exit", "signal", "quit"] {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        let (before, before_text) = settings(&pty.slave);
        assert!(
            before
                .local_flags
                .contains(LocalFlags::ICANON | LocalFlags::ECHO)
        );
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args([
                "--exact",
                "the_terminal_is_given_back_on_every_way_out",
                "--nocapture",
            ])
            .env(WAY, way)
            .stdin(pty.slave.try_clone().expect("a descriptor"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut stdout = child.stdout.take().expect("its output");
        let mut seen = Vec::new();
        while !seen.ends_with(b"RAW") {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("output up to the mark");
            seen.push(byte[0]);
        }
        let (raw, _) = settings(&pty.slave);
        let cooked = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        assert!(!raw.local_flags.intersects(cooked), "{way}: not raw");
        let keys: &[u8] = if way == "quit" { b"\x01x" } else { b"k" };
        File::from(pty.master.try_clone().expect("a descriptor"))
            .write_all(keys)
            .expect("a key");
        let output = child.wait_with_output().expect("its end");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), way != "panic", "{way}: {told}");
        assert!(
            told.contains("Ctrl-A x"),
            "{way}: the hint is missing: {told}"
        );
        assert_eq!(settings(&pty.slave).1, before_text, "{way}");
    }
}
