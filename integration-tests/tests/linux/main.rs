//! Stock Linux guests: they boot, they are moved, they end. In a nested host where need be, and with them whatever else
//! needs one.
#![allow(clippy::unwrap_used)]

mod balloon;
mod disk;
mod nested_host;
mod scarcity;

use std::process::Command;
use std::time::Duration;

use integration_tests::ferry::{
    Agent, EchoClient, Ferry, Hosts, Image, LinuxGuest, Netns, Ticks, World,
};
use integration_tests::{linux_test, programs};
use serde_json::Value;

const STEP: Duration = Duration::from_secs(90);

fn cloud() -> LinuxGuest {
    LinuxGuest::new(Image::built("cloud").unwrap())
}

/// A guest without network, up to its agent's READY, and what its agent says of the machine.
fn boots(image: Image) -> String {
    let guest = LinuxGuest {
        nics: 0,
        ..LinuxGuest::new(image)
    };
    let mut ferry = guest.boot(None).unwrap();
    ferry
        .wait_console("the third tick", STEP, |line| line.starts_with("tick 3 "))
        .unwrap();
    ferry
        .wait_console("READY", STEP, |line| line.contains("AGENT READY"))
        .unwrap()
}

linux_test! {
    // In one nested host: its boot takes as long as each of theirs.
    fn stock_kernels_boot_from_a_bzimage_and_as_elf_by_pvh() {
        let (cloud, generic) = (Image::built("cloud").unwrap(), Image::built("generic").unwrap());
        let folder = tempfile::tempdir().unwrap();
        let elf = folder.path().join("vmlinux");
        let script = programs::target().unwrap().with_file_name("guest-images/extract-vmlinux");
        let status = Command::new(script).arg(&cloud.kernel).arg(&elf).status().unwrap();
        assert!(status.success());
        let pvh = Image { kernel: elf, ..cloud.clone() };
        for image in [cloud, generic, pvh] {
            let ready = boots(image);
            assert!(ready.contains("cpus=2"), "{ready}");
        }
    }
}

/// Moves the guest and waits until its first VMM has ended in peace.
fn move_to(source: &mut Ferry, guest: &LinuxGuest, host: &Netns, address: &str) -> (Ferry, Value) {
    let destination = guest.receive(host, address).unwrap();
    move_into(source, destination, address, &["--insecure-plaintext"])
}

fn move_into(
    source: &mut Ferry,
    destination: Ferry,
    address: &str,
    how: &[&str],
) -> (Ferry, Value) {
    let moved = source
        .migrate(&format!("tcp:{address}"), how)
        .unwrap()
        .completed()
        .unwrap();
    println!("{}", moved.stdout);
    // It counts no work.
    assert_eq!(moved.report["guest_work_lost_percent"], Value::Null);
    let status = source.wait_end(STEP).unwrap();
    assert_eq!(status.code(), Some(0), "{}", source.messages().tail());
    (destination, moved.report)
}

/// All that a guest with peers on every NIC must have kept after its moves.
fn unharmed(agent: &Agent<'_>, echoes: Vec<EchoClient>, consoles: &[String]) {
    for echo in &echoes {
        echo.wait_more(100, STEP).unwrap();
    }
    let check = agent.ask("check", STEP).unwrap();
    assert_eq!(
        (&check["ok"], &check["mismatches"]),
        (&true.into(), &0.into()),
        "{check}"
    );
    for echo in echoes {
        let count = echo.finish(STEP);
        assert!(count.connection_survived, "{count:?}");
        assert_eq!((count.lost, count.repeated), (0, 0), "{count:?}");
        println!("{count:?}");
    }
    let ticks = Ticks::unbroken(consoles).unwrap();
    assert!(ticks.count > 10, "{ticks:?}");
    let text = consoles.concat();
    let after_boot = text.split_once("AGENT READY").unwrap().1;
    for trouble in ["MISMATCH", "lockup", "rcu", "Call Trace", "clocksource:"] {
        let line = after_boot.lines().find(|line| line.contains(trouble));
        assert_eq!(line, None);
    }
}

/// How many of a tap's queues are attached, and how many are not.
fn queues(host: &Netns, tap: &str) -> (u64, u64) {
    let mut command = host.command("ip".as_ref());
    let shown = command
        .args(["-d", "-j", "link", "show", "dev", tap])
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let data = &shown[0]["linkinfo"]["info_data"];
    let number = |name: &str| {
        data[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {shown}"))
    };
    (number("numqueues"), number("numdisabled"))
}

linux_test! {
    fn four_vcpus_and_two_nics_of_two_queue_pairs_are_moved() {
        let world = World::multi_queue(2).unwrap();
        let guest = LinuxGuest {
            cpus: 4,
            cpu: "v2",
            nics: 2,
            queues: 2,
            append: "agent.ws=64 agent.rate=2000 agent.workers=2".into(),
            ..cloud()
        };
        let mut source = guest.boot(Some(&world.a)).unwrap();
        let agent = Agent::new(&world.world, 0);
        let echoes: Vec<_> = (0..2)
            .map(|nic| Agent::new(&world.world, nic).echo_address().unwrap())
            .map(|address| EchoClient::start(&world.world, address, STEP).unwrap())
            .collect();
        for echo in &echoes {
            echo.wait_more(50, STEP).unwrap();
        }
        // The guest's driver uses a pair a vCPU, as far as there are any; a receiver has all that a tap can have, and
        // lets one be in use until it knows of the guest.
        let (used, unused) = queues(&world.a, "tap1");
        assert_eq!((used, unused), (2, 0));
        let address = format!("{}:4700", World::B);
        let (destination, report) = move_to(&mut source, &guest, &world.b, &address);
        assert_eq!(report["memory_bytes"], 512 << 20);
        assert_eq!(queues(&world.b, "tap1").0, 2);
        unharmed(&agent, echoes, &[source.console().text(), destination.console().text()]);
    }
}

linux_test! {
    fn a_guest_goes_there_and_back() {
        let world = World::new(1).unwrap();
        // The others are behind PCI.
        let guest = LinuxGuest {
            virtio: "mmio",
            append: "agent.ws=64 agent.rate=2000".into(),
            ..cloud()
        };
        // There by the bitmap, back and there once more by the dirty ring; the first time over TLS, by the addresses of
        // the hosts, which their certificates name, and with both memories compared. (The emulated processor encrypts 4
        // MB/s.)
        let hosts = Hosts::new(&[("a", World::A), ("b", World::B)]).unwrap();
        let (tls_a, tls_b) = (hosts.folder("a"), hosts.folder("b"));
        let ring = ["--dirty-tracking", "ring"];
        let plain = ["--insecure-plaintext"];
        let stages = [
            (&world.b, format!("{}:4700", World::B), "bitmap", &["--tls", &*tls_b, "--peer", "a"][..], &["--tls", &*tls_a, "--verify"][..]),
            (&world.a, format!("{}:4701", World::A), "ring", &[], &plain),
            (&world.b, format!("{}:4702", World::B), "ring", &[], &plain),
        ];
        println!("certificates made");
        let mut ferries = vec![guest.boot(Some(&world.a)).unwrap()];
        println!("booted");
        let agent = Agent::new(&world.world, 0);
        let before = agent.ask("status", STEP).unwrap();
        let echo = EchoClient::start(&world.world, agent.echo_address().unwrap(), STEP).unwrap();
        echo.wait_more(50, STEP).unwrap();
        println!("it answers");
        for (host, address, tracking, waiting, how) in stages {
            let waiting = [&ring, waiting].concat();
            let destination = guest.receive_with(host, &address, &waiting).unwrap();
            println!("a receiver");
            let source = ferries.last_mut().unwrap();
            let (next, report) = move_into(source, destination, &address, how);
            assert_eq!(report["dirty_tracking"], tracking, "{report}");
            assert_eq!(report["tls"], how != plain, "{report}");
            assert_eq!(report["verify_ms"].is_number(), how.contains(&"--verify"), "{report}");
            ferries.push(next);
            echo.wait_more(50, STEP).unwrap();
        }
        let after = agent.ask("status", STEP).unwrap();
        assert!(after["uptime_s"].as_f64().unwrap() > before["uptime_s"].as_f64().unwrap());
        let consoles: Vec<_> = ferries.iter().map(|ferry| ferry.console().text()).collect();
        unharmed(&agent, vec![echo], &consoles);
    }
}

linux_test! {
    fn a_saved_guest_goes_on_where_it_was_twice() {
        let world = World::new(1).unwrap();
        let guest = LinuxGuest {
            append: "agent.ws=64 agent.rate=2000".into(),
            ..cloud()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("linux.snap");
        let path = path.to_str().unwrap();
        let ferry = guest.boot(Some(&world.a)).unwrap();
        let agent = Agent::new(&world.world, 0);
        let echo = EchoClient::start(&world.world, agent.echo_address().unwrap(), STEP).unwrap();
        echo.wait_more(50, STEP).unwrap();
        let saved = ferry.command("snapshot", &[path]).unwrap();
        assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
        println!("{}", String::from_utf8_lossy(&saved.stdout));
        let then = agent.ask("status", STEP).unwrap();
        // Nobody has noticed.
        unharmed(&agent, vec![echo], &[ferry.console().text()]);
        drop(ferry);
        for host in [&world.b, &world.a] {
            let args = ["restore", path, "--net", "0=tap=tap0"];
            let mut again = Ferry::start(Some(host), &args).unwrap();
            again.wait_control(STEP).unwrap();
            let now = agent.ask("status", STEP).unwrap();
            let uptime = |status: &Value| status["uptime_s"].as_f64().unwrap();
            assert!(uptime(&now) < uptime(&then) + 30.0, "{now} after {then}");
            let echo = EchoClient::start(&world.world, agent.echo_address().unwrap(), STEP).unwrap();
            echo.wait_more(100, STEP).unwrap();
            let check = agent.ask("check", STEP).unwrap();
            assert_eq!((&check["ok"], &check["mismatches"]), (&true.into(), &0.into()), "{check}");
            let count = echo.finish(STEP);
            assert!(count.connection_survived && count.lost == 0, "{count:?}");
            let text = again.console().text();
            for trouble in ["MISMATCH", "lockup", "rcu", "Call Trace"] {
                assert!(!text.contains(trouble), "{text}");
            }
        }
    }
}

/// Tells the agent to end the guest and gives back the exit status of `ferry run`.
fn end_by(word: &str) -> (Option<i32>, Ferry) {
    let world = World::new(1).unwrap();
    let guest = LinuxGuest {
        // No tick comes in between the kernel's last words.
        append: "agent.tick=60000".into(),
        ..cloud()
    };
    let mut ferry = guest.boot(Some(&world.a)).unwrap();
    // The answer may be lost with the guest; asking again does no harm.
    let _ = Agent::new(&world.world, 0).ask(word, Duration::from_secs(1));
    let status = ferry.wait_end(STEP).unwrap();
    (status.code(), ferry)
}

linux_test! {
    fn power_off_reboot_and_panic_end_with_statuses_of_their_own() {
        let (status, ferry) = end_by("poweroff");
        assert_eq!(status, Some(0), "{}", ferry.messages().tail());
        let (status, ferry) = end_by("reboot");
        assert_eq!(status, Some(10), "{}", ferry.messages().tail());
        let (status, ferry) = end_by("panic");
        assert_eq!(status, Some(11), "{}", ferry.messages().tail());
        let console = ferry.console().text();
        assert!(console.contains("Kernel panic"), "{console}");
    }
}
