//! Commands to a VM that is not there, or is something else.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::{fs, thread};

use integration_tests::programs;
use tempfile::TempDir;

use super::support::{beating, ferry, refuses, text, ticks_on};

const ERROR: i32 = 1;
const UNKNOWN: i32 = 4;

/// Every command that speaks to a VM, at that socket.
fn everybody_refuses(socket: &Path, parts: &[&str]) {
    everybody_ends(socket, ERROR, parts);
}

/// The same; a move ends with this status.
fn everybody_ends(socket: &Path, moving: i32, parts: &[&str]) {
    for act in ["status", "pause", "resume", "cancel", "stop", "migrate"] {
        let mut command = ferry(&[act, "--control", text(socket)]);
        if act == "migrate" {
            command.arg("tcp:127.0.0.1:9");
        }
        let status = if act == "migrate" { moving } else { ERROR };
        refuses(command, status, parts);
    }
}

#[test]
fn nobody_there() {
    let folder = TempDir::new().unwrap();
    let path = |name| folder.path().join(name);
    let remedy = "start the VM with --control";
    everybody_refuses(&path("none"), &["cannot connect to control socket", remedy]);
    drop(UnixListener::bind(path("stale")).unwrap());
    everybody_refuses(
        &path("stale"),
        &["cannot connect to control socket", remedy],
    );
    fs::write(path("file"), "text").unwrap();
    everybody_refuses(
        &path("file"),
        &["is not a socket", "give the control socket"],
    );
    refuses(ferry(&["status"]), 2, &["--control <SOCKET>"]);
}

#[test]
fn somebody_else_there() {
    let folder = TempDir::new().unwrap();
    for (name, answer) in [
        ("ssh", &b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..]),
        (
            "web",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!",
        ),
        ("noise", b"\x00\xff\x1b[2J\r\n\r\n"),
    ] {
        let path = folder.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            while let Ok((mut peer, _)) = listener.accept() {
                // The request is read first: who closes before that resets the connection.
                let _ = peer.read(&mut [0; 4096]);
                let _ = peer.write_all(answer);
            }
        });
        everybody_refuses(&path, &["does not speak ferry's control protocol"]);
    }
    let path = folder.path().join("closes");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || while listener.accept().is_ok() {});
    // It may have been a VM that has begun the move before it died.
    everybody_ends(&path, UNKNOWN, &["broke", "not a VM's socket"]);
}

/// What a VM does not do, it says; and goes on.
#[test]
fn orders_at_the_wrong_time() {
    let guest = beating(None, &[]);
    let control = guest.control();
    let order = |act, args: &[&str]| {
        let mut command = ferry(&[act, "--control", text(&control)]);
        command.args(args);
        command
    };
    refuses(order("cancel", &[]), ERROR, &["no move is under way"]);
    for (args, parts) in [
        (&["tcp:127.0.0.1"][..], ["is no address", "tcp:HOST:PORT"]),
        (
            &["tcp:192.0.2.1:9"],
            ["is not on this machine", "--tls DIR"],
        ),
        (
            &["tcp:192.0.2.1:9", "--tls", "--insecure-plaintext"],
            ["--insecure-plaintext", "--tls"],
        ),
        (
            &["--tls", "tcp:192.0.2.1:9"],
            ["is the target, not a folder", "--tls DIR"],
        ),
        (
            &["unix:/tmp/x", "--tls"],
            ["TLS is for tcp targets", "does not leave this machine"],
        ),
        (
            &["tcp:localhost:9", "--downtime", "0ms"],
            ["0 ms", "take 1 ms to"],
        ),
        (
            &["tcp:localhost:9", "--downtime", "soon"],
            ["'soon'", "50ms"],
        ),
        (
            &["tcp:localhost:9", "--bandwidth", "8bit"],
            ["bandwidth", "at least"],
        ),
    ] {
        refuses(order("migrate", args), 2, &parts);
    }
    let args = ["tcp:localhost:9", "--report", "/nowhere/report.json"];
    refuses(
        order("migrate", &args),
        ERROR,
        &[
            "cannot write the report to /nowhere/report.json",
            "may write to",
        ],
    );
    assert!(order("pause", &[]).status().unwrap().success());
    refuses(
        order("migrate", &["tcp:127.0.0.1:9"]),
        ERROR,
        &["migrate is not possible", "`ferry resume` first"],
    );
    assert!(order("resume", &[]).status().unwrap().success());
    ticks_on(&guest);
}

/// The socket is its owner's: by its mode, and where that was changed, by whom the kernel says that has come.
#[test]
fn another_user() {
    const NOBODY: u32 = 65534;
    let guest = beating(None, &[]);
    let control = guest.control();
    let chmod =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    assert_eq!(fs::metadata(&control).unwrap().mode() & 0o777, 0o600);
    chmod(control.parent().unwrap(), 0o755);
    // Where he can run it.
    let place = tempfile::tempdir().unwrap();
    chmod(place.path(), 0o755);
    let program = place.path().join("ferry");
    programs::install(&programs::ferry().unwrap(), &program).unwrap();
    let stop = || {
        let mut command = Command::new(&program);
        command.args(["stop", "--control", text(&control)]);
        command.uid(NOBODY).gid(NOBODY);
        command
    };
    refuses(stop(), ERROR, &["Permission denied"]);
    chmod(&control, 0o666);
    refuses(
        stop(),
        ERROR,
        &["user 65534 may not control a VM of user 0"],
    );
    ticks_on(&guest);
}
