//! Snapshots of the bare guest, straight on this machine's `/dev/kvm`: saved while it writes, restored more than once,
//! in chains, and refused where a file is not what was written. Its memory is read past Ferry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use guest_images::ReadGuest;
use integration_tests::ferry::{Ferry, PulseGuest};
use integration_tests::programs;
use tempfile::TempDir;

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 0x5a4e_0001;

const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=16:32 rate=5000 cpu1.ws=64:16 cpu1.rate=2000 cpu1.pattern=sweep",
    cpus: 2,
    mib: 256,
};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Takes a snapshot, which has to come about; says what was printed.
fn save(ferry: &Ferry, path: &Path, how: &[&str]) -> String {
    let output = ferry
        .command("snapshot", &[&[text(path)], how].concat())
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", ferry.messages().tail());
    String::from_utf8(output.stdout).unwrap()
}

/// A guest out of files, paused or running.
fn restore(files: &[&Path], how: &[&str]) -> Ferry {
    let files: Vec<&str> = files.iter().map(|path| text(path)).collect();
    let args = [&["restore"], &files[..], how].concat();
    let mut ferry = Ferry::start(None, &args).unwrap();
    let wanted = if how.contains(&"--paused") {
        "paused"
    } else {
        "running"
    };
    ferry.wait_control(STEP).unwrap();
    ferry.wait_state(wanted, STEP).unwrap();
    ferry
}

/// All memory of a guest that stands still.
fn memory(ferry: &Ferry) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(GUEST.mib << 20).unwrap()];
    ferry.memory().unwrap().read(0, &mut bytes).unwrap();
    bytes
}

fn log_is_on(ferry: &Ferry) -> bool {
    ferry.status().unwrap()["dirty_log"]["on"]
        .as_bool()
        .unwrap()
}

#[test]
fn a_guest_that_writes_is_saved_and_runs_on_twice_from_the_same_bytes() {
    let folder = folder();
    let path = folder.path().join("a.snap");
    let filled = std::slice::from_ref(&(128 << 20..160 << 20));
    let ferry = GUEST.boot(None).unwrap();
    ferry.fill(SEED, filled).unwrap();
    let before = ferry.check_pulse().unwrap();
    let report = folder.path().join("report.json");
    println!("{}", save(&ferry, &path, &["--report", text(&report)]));
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    println!(
        "stood still for {} ms, in all {} ms",
        report["blackout_ms"], report["total_ms"]
    );
    assert_eq!(report["outcome"], "completed");
    // It goes on, with nothing left on, and nothing lies about.
    assert!(!log_is_on(&ferry));
    ferry.wait_beats(50).unwrap();
    ferry.check_pulse().unwrap().follows(&before).unwrap();
    ferry.check_fill(SEED, filled).unwrap();
    drop(ferry);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // What was never touched, or is zeros, is not in it.
    assert!(fs::metadata(&path).unwrap().len() < 160 << 20);
    let mut first = None;
    for _ in 0..2 {
        let again = restore(&[&path], &["--paused"]);
        let bytes = memory(&again);
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes);
        again.check_still_pulse().unwrap().follows(&before).unwrap();
        again.act("resume").unwrap();
        again.wait_beats(50).unwrap();
        again.check_pulse().unwrap().follows(&before).unwrap();
        again.check_fill(SEED, filled).unwrap();
    }
    // What was restored can be saved in turn, packed, and ended by that.
    let mut again = restore(&[&path], &[]);
    let packed = folder.path().join("packed.snap");
    save(&again, &packed, &["--compress", "zstd", "--stop"]);
    assert_eq!(again.wait_end(STEP).unwrap().code(), Some(0));
    let last = restore(&[&packed], &[]);
    last.wait_beats(50).unwrap();
    last.check_pulse().unwrap().follows(&before).unwrap();
    last.check_fill(SEED, filled).unwrap();
}

#[test]
fn a_chain_gives_the_memory_that_the_guest_has_at_its_end() {
    for tracking in ["bitmap", "ring"] {
        let folder = folder();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
        let ferry = GUEST
            .boot_with(None, &["--dirty-tracking", tracking])
            .unwrap();
        save(&ferry, &a, &["--track"]);
        assert!(log_is_on(&ferry));
        ferry.wait_beats(50).unwrap();
        save(&ferry, &b, &["--base", text(&a), "--track"]);
        // A guest that was paused meanwhile is still tracked.
        ferry.check_pulse().unwrap();
        ferry.wait_beats(50).unwrap();
        save(&ferry, &c, &["--base", text(&b), "--pause"]);
        let held = memory(&ferry);
        let restored = restore(&[&a, &b, &c], &["--paused"]);
        assert!(memory(&restored) == held, "{tracking}");
        drop(ferry);
        restored.act("resume").unwrap();
        restored.wait_beats(50).unwrap();
        restored.check_pulse().unwrap();
        let len = |path: &Path| fs::metadata(path).unwrap().len();
        println!(
            "{tracking}: {} bytes, then {} and {}",
            len(&a),
            len(&b),
            len(&c)
        );
        // The end of a chain by itself, and out of order.
        for files in [vec![&b], vec![&a, &c], vec![&a, &b, &b]] {
            let files: Vec<&Path> = files.into_iter().map(PathBuf::as_path).collect();
            assert!(refused(&files).contains("give"), "{files:?}");
        }
    }
}

/// What `ferry restore` says of files that it has to refuse.
fn refused(files: &[&Path]) -> String {
    let mut command = Command::new(programs::ferry().unwrap());
    let output = command.arg("restore").args(files).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn files_that_are_cut_or_changed_are_refused() {
    let folder = folder();
    let (path, bad) = (folder.path().join("a.snap"), folder.path().join("bad.snap"));
    let ferry = PulseGuest {
        words: "beat=1 ws=16:1 rate=1000",
        cpus: 1,
        mib: 32,
    };
    let ferry = ferry.boot(None).unwrap();
    save(&ferry, &path, &[]);
    let whole = fs::read(&path).unwrap();
    let len = whole.len();
    for cut in [
        0,
        1,
        15,
        16,
        55,
        57,
        700,
        len / 3,
        len / 2,
        len - 25,
        len - 1,
    ] {
        fs::write(&bad, &whole[..cut]).unwrap();
        let said = refused(&[&bad]);
        assert!(said.contains(&format!("cut at byte {cut}")), "{said}");
    }
    // In the preamble, the names, the guest's description, frames, pages, the state and the end mark.
    for at in [
        0,
        9,
        30,
        60,
        100,
        140,
        4000,
        len / 3,
        len / 2,
        len - 3000,
        len - 100,
        len - 20,
        len - 2,
    ] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&bad, &flipped).unwrap();
        println!("byte {at}: {}", refused(&[&bad]));
    }
    assert!(refused(&[Path::new("/dev/null")]).contains("cut at byte 0"));
    assert!(refused(&[&folder.path().join("none")]).contains("open snapshot"));
}

/// `ferry snapshot` in a mount namespace of its own, where there is a small disk at `disk`: only the command sees
/// it, and hands the open file over.
fn save_on_small_disk(ferry: &Ferry, disk: &Path) -> Output {
    let script =
        r#"mount -t tmpfs -o size=8m none "$1" && exec "$2" snapshot --control "$3" "$1/a.snap""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", script, "sh"]);
    command
        .arg(disk)
        .arg(programs::ferry().unwrap())
        .arg(ferry.control());
    command.output().unwrap()
}

#[test]
fn a_full_disk_a_cancel_and_a_limit_leave_the_guest_as_it_was() {
    let folder = folder();
    let path = folder.path().join("a.snap");
    let ferry = GUEST.boot(None).unwrap();
    let filled = std::slice::from_ref(&(128 << 20..192 << 20));
    ferry.fill(SEED, filled).unwrap();
    let well = |what: &str| {
        assert_eq!(ferry.state().unwrap(), "running", "{what}");
        assert!(!log_is_on(&ferry), "{what}");
        ferry.wait_beats(50).unwrap();
        ferry.check_pulse().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{what}");
    };
    let full = save_on_small_disk(&ferry, folder.path());
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(
        said.contains("No space left") && said.contains("the guest runs on"),
        "{said}"
    );
    well("full disk");

    let mut slow = ferry
        .prepare("snapshot", &[text(&path), "--bandwidth", "1MB"])
        .unwrap()
        .spawn()
        .unwrap();
    ferry.wait_state("saving", STEP).unwrap();
    // One thing at a time.
    let second = ferry
        .refused("snapshot", &[text(&folder.path().join("b"))])
        .unwrap();
    assert!(second.contains("is being saved"), "{second}");
    ferry.act("cancel").unwrap();
    assert_eq!(slow.wait().unwrap().code(), Some(3));
    well("cancelled");

    let limit = |bytes: &str| {
        let mut prlimit = Command::new("prlimit");
        let pid = ferry.pid().to_string();
        prlimit.args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]);
        assert!(prlimit.status().unwrap().success());
    };
    limit("4194304");
    let said = ferry.command("snapshot", &[text(&path)]).unwrap();
    assert_eq!(said.status.code(), Some(1));
    well("limit");
    limit("unlimited");
    save(&ferry, &path, &[]);
}

#[test]
fn what_cannot_be_done_is_said_in_a_line() {
    let folder = folder();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let ferry = GUEST.boot(None).unwrap();
    save(&ferry, &a, &[]);
    let said = ferry.refused("snapshot", &[text(&a)]).unwrap();
    assert!(said.contains("is there already"), "{said}");
    let said = ferry
        .refused("snapshot", &[text(&b), "--base", text(&a)])
        .unwrap();
    assert!(said.contains("take a whole one"), "{said}");
    // A measurement of the dirty rate takes the log for itself.
    save(&ferry, &b, &["--track"]);
    let measured = ferry
        .command("dirty-rate", &["--longest", "125ms"])
        .unwrap();
    assert!(measured.status.success());
    let c = folder.path().join("c");
    let said = ferry
        .refused("snapshot", &[text(&c), "--base", text(&b)])
        .unwrap();
    assert!(said.contains("take a whole one"), "{said}");
    ferry.act("pause").unwrap();
    let said = ferry.refused("snapshot", &[text(&c)]).unwrap();
    assert!(said.contains("ferry resume"), "{said}");
    assert!(!c.exists());
    let said = refused(&[&a, &b]);
    assert!(said.contains("whole by itself"), "{said}");
}

/// Waits until all memory of a guest that runs already is read.
fn filled(ferry: &Ferry) {
    for _ in 0..3000 {
        if ferry.status().unwrap()["memory_to_come_bytes"] == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{}", ferry.messages().tail());
}

/// The snapshot is good, and the guest goes on, or ends, as asked: only the report is not there.
#[test]
fn a_report_that_cannot_be_written_costs_no_snapshot() {
    let folder = folder();
    let path = folder.path().join("a.snap");
    let mut ferry = GUEST.boot(None).unwrap();
    for how in [&[][..], &["--stop"]] {
        let args = [&[text(&path), "--report", "/dev/full"], how].concat();
        let output = ferry.command("snapshot", &args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("/dev/full"), "{said}");
        assert!(path.exists());
        if how.is_empty() {
            assert_eq!(ferry.state().unwrap(), "running");
            fs::remove_file(&path).unwrap();
        }
    }
    assert_eq!(ferry.wait_end(STEP).unwrap().code(), Some(0));
    restore(&[&path], &["--paused"])
        .check_still_pulse()
        .unwrap();
}

#[test]
fn a_guest_runs_before_its_memory_is_read() {
    let folder = folder();
    let fill = std::slice::from_ref(&(128 << 20..192 << 20));
    let ferry = GUEST.boot(None).unwrap();
    ferry.fill(SEED, fill).unwrap();
    let before = ferry.check_pulse().unwrap();
    let (plain, packed) = (folder.path().join("a"), folder.path().join("b"));
    save(&ferry, &plain, &[]);
    save(&ferry, &packed, &["--compress", "lz4", "--stop"]);
    for path in [&plain, &packed] {
        let again = restore(&[path], &["--lazy"]);
        filled(&again);
        again.wait_beats(50).unwrap();
        again.check_pulse().unwrap().follows(&before).unwrap();
        again.check_fill(SEED, fill).unwrap();
        // From here on it is like any other: it can be saved, and is the same.
        let once_more = folder.path().join("c");
        save(&again, &once_more, &["--stop"]);
        let last = restore(&[&once_more], &["--lazy", "--paused"]);
        filled(&last);
        last.check_still_pulse().unwrap().follows(&before).unwrap();
        last.check_fill(SEED, fill).unwrap();
        fs::remove_file(&once_more).unwrap();
    }

    // Packed pages that cannot be unpacked: vCPUs that wait for them never get them, and are ended.
    let mut damaged = fs::read(&packed).unwrap();
    for byte in &mut damaged[200 << 10..][..64] {
        *byte ^= 0xff;
    }
    fs::write(&packed, damaged).unwrap();
    let mut lame = Ferry::start(None, &["restore", text(&packed), "--lazy"]).unwrap();
    assert_eq!(lame.wait_end(STEP).unwrap().code(), Some(1));
    let said = lame.messages().text();
    let found = said.contains("not all of its memory could be read") && said.contains("unpack");
    assert!(found, "{said}");

    // A wrong bit in a page is found out when the file has been read, and the guest that has run with it is ended.
    let mut bytes = fs::read(&plain).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&plain, bytes).unwrap();
    let args = ["restore", text(&plain), "--lazy"];
    let mut wrong = Ferry::start(None, &args).unwrap();
    assert_eq!(wrong.wait_end(STEP).unwrap().code(), Some(1));
    let said = wrong.messages().text();
    let found = said.contains("not all of its memory could be read") && said.contains("its digest");
    assert!(found, "{said}");
}
