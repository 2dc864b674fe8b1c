//! Standard error that takes nothing: a disk that is full, or a reader that is gone. Nobody is told of a guest then,
//! and that is all.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmm::study::child::spawn_bound;

const FERRY: &str = env!("CARGO_BIN_EXE_ferry");

/// A receiver says something at once; then it is asked, and stopped.
fn lives_on(words: &[&str], stderr: Stdio) {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("control");
    let mut command = Command::new(FERRY);
    command
        .args(["receive", "--listen", "tcp:127.0.0.1:0"])
        .args(words)
        .arg("--control")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let mut receiver = spawn_bound(command, Vec::new()).expect("ferry receive");
    let ask = |what: &str| {
        let asked = Command::new(FERRY)
            .args([what, "--control"])
            .arg(&socket)
            .output();
        asked.is_ok_and(|asked| asked.status.success())
    };
    let until = Instant::now() + Duration::from_secs(60);
    while !ask("status") {
        let ended = receiver.try_wait().expect("its status");
        assert!(ended.is_none(), "{words:?}: it has ended");
        assert!(Instant::now() < until, "{words:?}: it does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    // By then it has said where it waits.
    std::thread::sleep(Duration::from_millis(200));
    assert!(ask("stop"), "{words:?}");
    let status = receiver.wait().expect("its status");
    assert!(status.success(), "{words:?}: {status}");
}

#[test]
fn what_cannot_be_said_ends_nobody() {
    for words in [&[][..], &["--log-format", "json"]] {
        let full = OpenOptions::new().write(true).open("/dev/full");
        lives_on(words, full.expect("/dev/full").into());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        lives_on(words, writer.into());
    }
}
