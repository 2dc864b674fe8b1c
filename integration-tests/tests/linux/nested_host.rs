//! The nested host itself: commands run in it, and nothing of it stays.

use std::fs;
use std::time::Duration;

use integration_tests::nested::{Command, Ended, Host, Options, Stream, command_like_ours};
use integration_tests::{Error, linux_test, programs};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn options() -> Options {
    Options {
        timeout: Duration::from_secs(300),
        ..Options::new(programs::nested_host().unwrap())
    }
}

fn sh(script: &str) -> Command {
    command_like_ours(vec!["sh".into(), "-c".into(), script.into()]).unwrap()
}

/// Runs and collects standard output.
fn run(host: &mut Host, script: &str) -> (Ended, String) {
    let mut stdout = Vec::new();
    let ended = host
        .run(&sh(script), |stream, bytes| {
            if stream == Stream::Stdout {
                stdout.extend_from_slice(bytes);
            }
        })
        .unwrap();
    (ended, String::from_utf8(stdout).unwrap())
}

#[test]
fn one_boot_serves_many_commands_and_leaves_nothing() {
    let share = tempfile::tempdir().unwrap();
    let mut host = Host::boot(&Options {
        share: Some(share.path().to_owned()),
        ..options()
    })
    .unwrap();
    assert_eq!(
        host.ready().kvm,
        Ok(12),
        "the stable KVM API has version 12"
    );

    // Exit status, signals, and commands that are not there.
    assert_eq!(run(&mut host, "exit 7").0, Ended::Exited(7));
    assert_eq!(run(&mut host, "kill -9 $$").0, Ended::Signaled(9));
    let missing = command_like_ours(vec!["/no/such/program".into()]).unwrap();
    assert_eq!(host.run(&missing, |_, _| {}).unwrap(), Ended::NotStarted);

    // All output arrives before the end, in full.
    let (ended, text) = run(&mut host, "yes 0123456789abcde | head -c 300000");
    assert_eq!((ended, text.len()), (Ended::Exited(0), 300_000));

    // One that takes longer than it may is ended, and says what it was at.
    let slow = Command {
        limit: Some(Duration::from_secs(1)),
        ..sh("sleep 1000")
    };
    let mut text = Vec::new();
    let ended = host.run(&slow, |_, bytes| text.extend_from_slice(bytes));
    assert_eq!(ended.unwrap(), Ended::Signaled(9));
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("ended after 1s"), "{text}");
    assert!(
        text.contains("sleep 1000") && text.contains("nanosleep"),
        "{text}"
    );

    // A process left behind is gone when the next command starts.
    run(&mut host, "sleep 1000 & echo started");
    let (_, left) = run(
        &mut host,
        "grep -l '^Name:.sleep' /proc/[0-9]*/status 2>/dev/null",
    );
    assert_eq!(left, "");

    // The shared folder is written through, all else is seen but not changed.
    let inside = share.path().join("made-inside");
    let outside = share.path().with_extension("not-shared");
    fs::write(share.path().join("made-outside"), "from outside").unwrap();
    let script = format!(
        "cat {0}/made-outside && echo inside > {1} && echo lost > {2} && cat {2}",
        share.path().display(),
        inside.display(),
        outside.display()
    );
    let (ended, text) = run(&mut host, &script);
    assert_eq!(
        (ended, text.as_str()),
        (Ended::Exited(0), "from outsidelost\n")
    );
    assert_eq!(fs::read_to_string(&inside).unwrap(), "inside\n");
    assert!(!outside.exists());

    let qemu = format!("/proc/{}", host.qemu());
    assert!(fs::exists(&qemu).unwrap());
    drop(host);
    assert!(!fs::exists(&qemu).unwrap());
}

#[test]
fn a_standstill_is_told_from_a_slow_command() {
    let mut host = Host::boot(&Options {
        standstill: Duration::from_secs(8),
        ..options()
    })
    .unwrap();
    // Long silence of the command is none of the machine.
    assert_eq!(run(&mut host, "sleep 12").0, Ended::Exited(0));
    let qemu = Pid::from_raw(host.qemu().try_into().unwrap());
    kill(qemu, Signal::SIGSTOP).unwrap();
    let error = host.run(&sh("true"), |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::StandsStill(..)), "{error}");
}

#[test]
fn the_time_limit_ends_it() {
    let mut host = Host::boot(&Options {
        timeout: Duration::from_secs(1),
        ..options()
    });
    let error = match &mut host {
        // No machine boots that quickly under emulation, but should one do so:
        Ok(host) => host.run(&sh("sleep 1000"), |_, _| {}).unwrap_err(),
        Err(error) => std::mem::replace(error, Error::NoPackage("")),
    };
    assert!(matches!(error, Error::Timeout(..)), "{error}");
}

linux_test! {
    fn a_test_runs_where_kvm_runs_linux() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let _vcpu = vm.create_vcpu(0).unwrap();
        let output = std::process::Command::new("ip").args(["link", "add", "type", "veth"]).output().unwrap();
        let _ = std::process::Command::new("ip").args(["link", "del", "veth0"]).output();
        assert!(output.status.success(), "{output:?}");
    }
}
