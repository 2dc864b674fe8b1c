//! What is told to a Ferry by its control socket, at rest and in every phase of a move.

use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::ferry::{Fault, Migration, Relay, Spot};
use serde_json::Value;

use super::lab::{Lab, STEP, goes_through};

/// A measurement is by then in its window of 8 s, and still is so much later.
const LATER: Duration = Duration::from_millis(4500);
const SOON: Duration = Duration::from_secs(2);

impl Lab {
    /// Moves the guest to `target`, and does `meanwhile` once the move has come to where `until` waits for.
    fn moving<T: Send>(
        &self,
        target: &str,
        args: &[&str],
        until: impl FnOnce(),
        meanwhile: impl FnOnce() -> T,
    ) -> (Migration, T) {
        thread::scope(|scope| {
            let moving = scope.spawn(|| self.guest.migrate(target, args));
            until();
            let done = meanwhile();
            (moving.join().unwrap().unwrap(), done)
        })
    }

    /// Moves the guest to `address`, held at a spot while `meanwhile` lasts.
    fn held<T: Send>(
        &self,
        address: SocketAddr,
        spot: Spot,
        args: &[&str],
        meanwhile: impl FnOnce() -> T,
    ) -> (Migration, T) {
        let relay = Relay::start(&self.host, address, spot, Fault::Hold).unwrap();
        let done = goes_through(&self.guest, &relay, args, || {
            let done = meanwhile();
            relay.release();
            done
        });
        // What is still under way must not be cut off.
        drop(relay);
        done
    }

    /// Waits until the status is as wanted.
    fn wait_status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.guest.wait_status(STEP, wanted).unwrap()
    }

    /// A move was cancelled: nothing has come of it, and the next one succeeds.
    fn was_cancelled(&mut self, moved: &Migration) {
        assert_eq!(moved.status, 3, "{moved:?}");
        assert_eq!(moved.report["outcome"], "cancelled", "{moved:?}");
        self.unharmed();
        let status = self.guest.status().unwrap();
        assert_eq!(status["last_move"]["outcome"], "cancelled", "{status}");
        assert_eq!(status["dirty_log"]["on"], false, "{status}");
        self.moves_on();
    }
}

#[test]
fn a_move_is_cancelled_in_every_phase_before_go() {
    let mut lab = Lab::new();

    // Somebody is said to live at the other end of a cable that leads nowhere: nobody answers.
    lab.host
        .ip("link add dev cable type veth peer name end")
        .unwrap();
    lab.host.ip("address add 10.7.0.1/24 dev cable").unwrap();
    lab.host.up("cable", None).unwrap();
    lab.host.up("end", None).unwrap();
    let neighbour = "neighbour add 10.7.0.2 lladdr 02:00:00:00:00:02 dev cable";
    lab.host.ip(neighbour).unwrap();
    let connecting = || {
        let status = lab.wait_status(|status| status["state"] == "migrating");
        assert_eq!(status["migration"]["peer"], Value::Null, "{status}");
    };
    let cancel = || lab.guest.act("cancel").unwrap();
    let plain = ["--insecure-plaintext"];
    let (moved, ()) = lab.moving("tcp:10.7.0.2:4700", &plain, connecting, cancel);
    lab.was_cancelled(&moved);

    let rounds: &[&str] = &["--bandwidth", "100MB", "--downtime", "50ms"];
    for (spot, args) in [
        (Spot::ACCEPT, &[][..]),
        (Spot::pages(0, 5), &[]),
        (Spot::pages(1, 1), rounds),
        (Spot::STATE, &[]),
        (Spot::READY, &[]),
    ] {
        let (mut receiver, address) = lab.receiver();
        let relay = Relay::start(&lab.host, address, spot, Fault::Hold).unwrap();
        let reached = || relay.wait_reached(STEP).unwrap();
        let cancel = || lab.guest.act("cancel").unwrap();
        let (moved, ()) = lab.moving(&relay.target(), args, reached, cancel);
        relay.cut();
        assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
        println!("{spot:?}: {}", receiver.messages().tail());
        lab.was_cancelled(&moved);
    }

    // Throttled: the guest writes several times as fast as the move may send.
    let (mut receiver, address) = lab.receiver();
    let target = format!("tcp:{address}");
    let throttled = || {
        lab.wait_status(|status| {
            let percents = status["migration"]["throttle_percent"].as_array();
            percents.is_some_and(|all| all.iter().any(|percent| *percent != 0))
        });
    };
    let cancel = || lab.guest.act("cancel").unwrap();
    let slow = ["--bandwidth", "20MB", "--downtime", "50ms"];
    let (moved, ()) = lab.moving(&target, &slow, throttled, cancel);
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
    let said = receiver.messages().text();
    assert!(said.contains("cancelled"), "{said}");
    lab.was_cancelled(&moved);
}

/// Whoever moves it hears of that before its process ends as it would without a move.
#[test]
fn a_guest_that_ends_by_itself_on_the_way_is_not_moved() {
    let mut lab = Lab::new();
    let (mut receiver, address) = lab.receiver();
    // No code that a processor could run, and no table that says what then.
    let crash = || {
        let nonsense = [0x0f, 0x0b].repeat(16 << 10);
        lab.guest
            .memory()
            .unwrap()
            .write(1 << 20, &nonsense)
            .unwrap();
        // It comes to that when it is next awake, and may not have been moved by then. The process may end before it is
        // asked how the guest is.
        let beats = || {
            lab.guest
                .status()
                .ok()
                .map(|all| all["heartbeat"]["count"].clone())
        };
        let deadline = Instant::now() + STEP;
        while let Some(before) = beats() {
            thread::sleep(Duration::from_millis(300));
            if beats().is_none_or(|now| now == before) {
                return;
            }
            assert!(Instant::now() < deadline, "the guest goes on");
        }
    };
    let (moved, ()) = lab.held(address, Spot::pages(0, 5), &[], crash);
    assert_eq!(moved.status, 3, "{moved:?}");
    let reason = moved.report["reason"].as_str().unwrap();
    assert!(reason.ends_with("it has ended by itself since"), "{reason}");
    // By a triple fault; or, of a KVM that interprets and was in the middle of an instruction, by one that it cannot.
    let code = lab.guest.wait_end(STEP).unwrap().code();
    let said = lab.guest.messages().text();
    let crashed = code == Some(1) && said.contains("crashed");
    assert!(code == Some(10) || crashed, "{code:?}: {said}");
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
}

#[test]
fn a_cancel_after_go_answers_that_the_move_is_committed() {
    let mut lab = Lab::new();
    for spot in [Spot::GO, Spot::LIVE] {
        let (receiver, address) = lab.receiver();
        let (moved, ()) = lab.held(address, spot, &[], || {
            let (code, body) = lab.guest.put("/v1/cancel").unwrap();
            assert_eq!(code, 409, "{body}");
            assert!(body.contains("committed"), "{body}");
            let said = lab.guest.refused("cancel", &[]).unwrap();
            assert!(said.contains("committed"), "{said}");
            assert_eq!(lab.guest.status().unwrap()["migration"]["committed"], true);
        });
        lab.arrived(receiver, moved);
    }
}

#[test]
fn a_guest_under_way_takes_no_second_move_and_no_pause() {
    let mut lab = Lab::new();
    let (receiver, address) = lab.receiver();
    let (other, other_address) = lab.receiver();
    let other_target = format!("tcp:{other_address}");
    let (moved, ()) = lab.held(address, Spot::pages(0, 5), &[], || {
        let status = lab.guest.status().unwrap();
        assert_eq!(status["state"], "migrating");
        assert_eq!(status["dirty_log"]["on"], true, "{status}");
        for (act, args) in [
            ("migrate", &[other_target.as_str()][..]),
            ("pause", &[]),
            ("resume", &[]),
        ] {
            let said = lab.guest.refused(act, args).unwrap();
            assert!(said.contains("is being moved"), "{said}");
        }
        assert_eq!(lab.guest.put("/v1/pause").unwrap().0, 409);
        assert_eq!(other.state().unwrap(), "waiting");
        lab.guest.wait_beats(20).unwrap();
    });
    lab.arrived(receiver, moved);
}

#[test]
fn a_guest_is_stopped_in_mid_move() {
    let mut lab = Lab::new();
    let (mut receiver, address) = lab.receiver();
    let (moved, ()) = lab.held(address, Spot::pages(0, 5), &[], || {
        lab.guest.act("stop").unwrap();
    });
    assert_eq!(moved.status, 3, "{moved:?}");
    assert_eq!(lab.guest.wait_end(STEP).unwrap().code(), Some(0));
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(1));
}

#[test]
fn the_dirty_rate_is_measured_of_a_guest_that_then_moves() {
    let mut lab = Lab::new();
    let off = |status: &Value| status["dirty_log"]["on"] == false;
    let on = |status: &Value| status["dirty_log"]["on"] == true;

    let output = lab
        .guest
        .command("dirty-rate", &["--longest", "2s", "--json"]);
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let curve: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(curve["memory_bytes"], 128 << 20);
    let windows = curve["windows"].as_array().unwrap();
    let pages: Vec<_> = (windows
        .iter()
        .map(|window| window["pages"].as_u64().unwrap()))
    .collect();
    println!("pages written within 8 ms, 16 ms and so on to 2 s: {pages:?}");
    // The shortest ones are left out where arming took long.
    assert!((5..=9).contains(&pages.len()), "{pages:?}");
    assert!(pages.is_sorted(), "{pages:?}");
    // Its working set, again and again, and little beside.
    let all = pages.last().copied().unwrap_or(0);
    assert!((1000..=64 * 256 + 64).contains(&all), "{pages:?}");
    assert!(off(&lab.guest.status().unwrap()));

    // By what pages hold, of a sample: with no log, about the same in the end.
    let compare = ["--longest", "2s", "--contents", "--sample", "4", "--json"];
    let output = lab.guest.command("dirty-rate", &compare).unwrap();
    assert!(output.status.success(), "{output:?}");
    let curve: Value = serde_json::from_slice(&output.stdout).unwrap();
    let last = curve["windows"].as_array().and_then(|all| all.last());
    let seen = last.and_then(|last| last["pages"].as_u64()).unwrap();
    println!("compared, a sample of one in four: {seen}");
    assert!((all / 2..=all * 2).contains(&seen), "{seen} of {all}");
    let refused = ["--contents", "--sample", "1"];
    let output = lab.guest.command("dirty-rate", &refused).unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    // Nothing else that needs the log begins meanwhile, and a cancel ends it.
    let measure = |longest| {
        let mut command = lab.guest.prepare("dirty-rate", &["--longest", longest]);
        let command = command.as_mut().unwrap();
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.spawn().unwrap()
    };
    let measuring = measure("60s");
    lab.wait_status(on);
    for (act, args) in [
        ("migrate", &["tcp:127.0.0.1:4700"][..]),
        ("dirty-rate", &[]),
    ] {
        let said = lab.guest.refused(act, args).unwrap();
        assert!(said.contains("is being measured"), "{said}");
    }
    lab.guest.act("cancel").unwrap();
    let ended = measuring.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("cancelled"), "{said}");
    assert!(off(&lab.guest.status().unwrap()));

    // So does an asker that goes away, whatever is left of the window.
    let mut measuring = measure("60s");
    lab.wait_status(on);
    thread::sleep(LATER);
    measuring.kill().unwrap();
    measuring.wait().unwrap();
    lab.guest.wait_status(SOON, off).unwrap();

    lab.guest.act("pause").unwrap();
    let said = lab.guest.refused("dirty-rate", &[]).unwrap();
    assert!(said.contains("ferry resume"), "{said}");
    lab.guest.act("resume").unwrap();
    lab.unharmed();
    lab.moves_on();
}

#[test]
fn a_guest_is_paused_resumed_and_stopped() {
    let mut lab = Lab::new();
    let status = lab.guest.status().unwrap();
    assert_eq!(status["state"], "running");
    assert_eq!(status["pid"], lab.guest.pid());
    assert_eq!(status["vcpus"], 1);
    assert_eq!(status["memory_bytes"], 128 << 20);
    assert!(
        status["heartbeat"]["count"].as_u64().unwrap() > 0,
        "{status}"
    );
    let table = lab.guest.command("status", &[]).unwrap();
    assert!(String::from_utf8(table.stdout).unwrap().contains("running"));

    lab.guest.act("resume").unwrap();
    for _ in 0..20 {
        lab.guest.act("pause").unwrap();
        assert_eq!(lab.guest.state().unwrap(), "paused");
        assert!(lab.guest.stands_still().unwrap());
        lab.guest.act("resume").unwrap();
        lab.guest.wait_beats(5).unwrap();
    }
    lab.unharmed();
    assert!(
        lab.guest
            .refused("cancel", &[])
            .unwrap()
            .contains("no move")
    );

    lab.guest.act("pause").unwrap();
    lab.guest.act("pause").unwrap();
    let (receiver, address) = lab.receiver();
    let target = format!("tcp:{address}");
    let said = lab.guest.refused("migrate", &[&target]).unwrap();
    assert!(said.contains("ferry resume"), "{said}");
    assert_eq!(receiver.state().unwrap(), "waiting");
    assert!(receiver.refused("pause", &[]).unwrap().contains("no guest"));
    assert!(
        receiver
            .refused("migrate", &[&target])
            .unwrap()
            .contains("no guest")
    );
    lab.guest.act("resume").unwrap();
    let moved = lab.guest.migrate(&target, &[]).unwrap();
    lab.arrived(receiver, moved);

    lab.guest.act("pause").unwrap();
    lab.guest.act("stop").unwrap();
    assert_eq!(lab.guest.wait_end(STEP).unwrap().code(), Some(0));
    assert!(!lab.guest.control().exists());
}
