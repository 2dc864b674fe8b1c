//! Hosts that are short of something in mid-move: memory, room on a disk. The guest does not notice, and what is said
//! of it is true.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use integration_tests::bench::cpu::bytes_of;
use integration_tests::ferry::{Ferry, MemoryBound, PulseGuest};
use integration_tests::linux_test;
use nix::mount::{MsFlags, mount, umount};

const STEP: Duration = Duration::from_secs(60);
const SEED: u64 = 9;
const GUEST: PulseGuest<'_> = PulseGuest {
    words: "beat=1 ws=8:8 rate=2000",
    cpus: 1,
    mib: 64,
};

fn boot() -> Ferry {
    let guest = GUEST.boot(None).unwrap();
    guest.fill(SEED, &[GUEST.fillable()]).unwrap();
    guest
}

fn unharmed(guest: &Ferry) {
    assert_eq!(guest.state().unwrap(), "running");
    guest.wait_beats(20).unwrap();
    guest.check_pulse().unwrap();
    guest.check_fill(SEED, &[GUEST.fillable()]).unwrap();
}

/// A receiver that may not have as much memory as the guest brings; then one, and a source, that may, but not much
/// more.
fn little_memory(ports: [u16; 2], version: u8) {
    let target = |index: usize| format!("tcp:127.0.0.1:{}", ports[index]);
    let bounds = [96 << 20, 32 << 20].map(|bytes| MemoryBound::new(bytes).unwrap());
    let guest = boot();
    {
        // A bound goes when nobody is in it any more: after the process.
        let bound = MemoryBound::new(32 << 20).unwrap();
        let mut receiver = Ferry::receive(None, &target(0), &[]).unwrap();
        assert_eq!(bound.version(), version);
        bound.put(receiver.pid()).unwrap();
        let moved = guest.migrate(&target(0), &[]).unwrap();
        println!("{}{:?}", moved.stderr, receiver.wait_end(STEP));
        assert_eq!(moved.status, 1, "{moved:?}");
        assert_eq!(moved.report["outcome"], "failed", "{moved:?}");
        receiver.kill();
    }
    unharmed(&guest);

    let receiver = Ferry::receive(None, &target(1), &[]).unwrap();
    bounds[0].put(receiver.pid()).unwrap();
    // What the source has already is not counted in.
    bounds[1].put(guest.pid()).unwrap();
    let moved = guest.migrate(&target(1), &[]).unwrap();
    moved.completed().unwrap();
    unharmed(&receiver);
}

/// Huge pages that are set aside beside those that the host had; given back when this is dropped.
struct HugePages {
    before: u64,
}

impl HugePages {
    const SETTING: &str = "/proc/sys/vm/nr_hugepages";

    fn more(pages: u64) -> Self {
        let before = std::fs::read_to_string(Self::SETTING).unwrap();
        let before = before.trim().parse().unwrap();
        let these = Self { before };
        these.change(pages);
        let given = std::fs::read_to_string(Self::SETTING).unwrap();
        assert_eq!(
            given.trim(),
            (before + pages).to_string(),
            "memory is in pieces"
        );
        these
    }

    fn change(&self, pages: u64) {
        std::fs::write(Self::SETTING, (self.before + pages).to_string()).unwrap();
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::SETTING, self.before.to_string());
    }
}

/// Huge pages that are set aside on both sides, for two guests of 64 MiB and not for a third. For a host that no other
/// test is in meanwhile.
fn few_huge_pages(ports: [u16; 2]) {
    let set_aside = HugePages::more(80);
    // Those that were touched: of this guest, all but a few at its beginning.
    let in_huge_pages = |ferry: &Ferry| {
        let status = format!("/proc/{}/status", ferry.pid());
        bytes_of(&status, "HugetlbPages:").unwrap() > GUEST.mib << 19
    };
    let target = |index: usize| format!("tcp:127.0.0.1:{}", ports[index]);
    let guest = GUEST.boot_in_huge_pages().unwrap();
    guest.fill(SEED, &[GUEST.fillable()]).unwrap();
    assert!(in_huge_pages(&guest));
    let there = Ferry::receive(None, &target(0), &["--hugepages"]).unwrap();
    let moved = guest.migrate(&target(0), &["--verify"]).unwrap();
    moved.completed().unwrap();
    unharmed(&there);
    assert!(in_huge_pages(&there));
    // So many that a few are left beside this guest's.
    set_aside.change(40);
    let last = Ferry::receive(None, &target(1), &["--hugepages"]).unwrap();
    let moved = there.migrate(&target(1), &[]).unwrap();
    assert_eq!(moved.status, 1, "{moved:?}");
    let said = "fewer free that are set aside";
    assert!(moved.stderr.contains(said), "{moved:?}");
    unharmed(&there);
    drop(last);
}

#[test]
fn a_receiver_without_enough_memory_costs_the_move_alone() {
    let version = MemoryBound::new(1 << 20).unwrap().version();
    little_memory([4710, 4711], version);
}

linux_test! {
    /// The nested host has control groups of version 2.
    fn a_receiver_without_enough_memory_costs_the_move_alone_by_version_2() {
        little_memory([4712, 4713], 2);
        few_huge_pages([4716, 4717]);
    }
}

/// Memory that is there before the guest: also for the next one after a move that came to nothing, and when the guest
/// is there it is the guest's, and no more than that.
#[test]
fn memory_is_ready_for_a_guest_and_for_the_next() {
    const READY: u64 = 96 << 20;
    let target = "tcp:127.0.0.1:4714";
    let ready = ["--prefault", "96M", "--max-memory", "128M"];
    let mut receiver = Ferry::start(
        None,
        &[&["receive", "--listen", target], &ready[..]].concat(),
    )
    .unwrap();
    receiver.wait_control(STEP).unwrap();
    let guest = boot();
    let ready_again = || {
        let began = Instant::now();
        while receiver.resident().unwrap() < READY {
            assert!(began.elapsed() < STEP, "memory is ready once");
            thread::sleep(Duration::from_millis(10));
        }
    };
    ready_again();
    let given_up = thread::scope(|scope| {
        let moving = scope.spawn(|| guest.migrate(target, &["--bandwidth", "8MB/s"]).unwrap());
        let came = |line: &str| line.contains("receiving a guest");
        receiver.messages().wait(0, STEP, came).unwrap();
        // The guest has taken it over, and nothing is left beside that.
        assert!(receiver.resident().unwrap() < READY);
        guest.act("cancel").unwrap();
        moving.join().unwrap()
    });
    assert_eq!(given_up.report["outcome"], "cancelled", "{given_up:?}");
    unharmed(&guest);
    ready_again();
    // A probe of the link writes to it, of which the guest finds nothing.
    let watch = ["--watch", "250ms"];
    let predicted = guest.command("predict", &[&[target], &watch[..]].concat());
    assert!(predicted.unwrap().status.success());
    ready_again();
    guest
        .migrate(target, &["--verify"])
        .unwrap()
        .completed()
        .unwrap();
    unharmed(&receiver);
    assert!(receiver.resident().unwrap() < READY);

    // Who has it by descriptor needs none of it; and it goes on as any guest does.
    let last = Ferry::receive(None, "tcp:127.0.0.1:4715", &["--prefault", "16M"]).unwrap();
    let moved = receiver
        .migrate("tcp:127.0.0.1:4715", &["--verify"])
        .unwrap();
    moved.completed().unwrap();
    unharmed(&last);
}

/// Memory is touched by a thread of its own: meanwhile the receiver answers, and goes when it is told to.
#[test]
fn a_receiver_that_touches_memory_can_be_asked_and_stopped() {
    // Once in a while whoever asks is without a processor until all is touched.
    assert!((0..5).any(|_| answers_before_all_is_touched()));
}

fn answers_before_all_is_touched() -> bool {
    let args = ["receive", "--listen", "tcp:127.0.0.1:0", "--prefault", "3G"];
    let mut receiver = Ferry::start(None, &args).unwrap();
    receiver.wait_control(STEP).unwrap();
    assert_eq!(receiver.state().unwrap(), "waiting");
    let early = receiver.resident().unwrap() < 3 << 30;
    receiver.act("stop").unwrap();
    assert_eq!(receiver.wait_end(STEP).unwrap().code(), Some(0));
    let said = receiver.messages().text();
    assert!(said.contains("touching 3G of memory"), "{said}");
    assert!(said.contains("stopped before a guest came"), "{said}");
    early
}

/// A disk without any room left.
struct FullDisk(tempfile::TempDir);

impl FullDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kind = Some("tmpfs");
        mount(
            kind,
            folder.path(),
            kind,
            MsFlags::empty(),
            Some("size=16k"),
        )
        .unwrap();
        let disk = Self(folder);
        let mut file = File::create(disk.file("everything")).unwrap();
        while file.write(&[1; 4096]).is_ok_and(|count| count > 0) {}
        disk
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        umount(self.0.path()).unwrap();
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_full_disk_costs_the_files_alone() {
    let disk = FullDisk::new();
    let serial = format!("file={}", disk.file("console").display());
    let mut guest = {
        let words = ["run", "--pulse", GUEST.words, "--memory", "64M"];
        Ferry::start(None, &[&words[..], &["--serial", &serial]].concat()).unwrap()
    };
    guest.wait_control(STEP).unwrap();
    let lost = |line: &str| line.contains("serial output is lost");
    let line = guest.messages().wait(0, STEP, lost);
    println!("{line:?}");
    assert!(line.is_some(), "{}", guest.messages().tail());
    guest.wait_beats(20).unwrap();
    guest.fill(SEED, &[GUEST.fillable()]).unwrap();

    let files = ["report.json", "page.html"].map(|name| text(&disk.file(name)));
    let args = ["--report", &files[0], "--html", &files[1]];
    let migrate = |guest: &Ferry, target: &str| {
        let mut command = guest.prepare("migrate", &[target]).unwrap();
        let output = command.args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        for file in &files {
            let about = said.lines().find(|line| line.contains(file));
            println!("{about:?}");
            assert!(
                about.is_some_and(|line| line.contains("No space left")),
                "{said}"
            );
        }
        output.status.code()
    };
    // Nobody is there: the guest stays, and that is what the status says.
    assert_eq!(migrate(&guest, "tcp:127.0.0.1:4718"), Some(1));
    unharmed(&guest);

    let serial = format!("file={}", disk.file("other").display());
    let target = "tcp:127.0.0.1:4719";
    let receiver = Ferry::receive(None, target, &["--serial", &serial]).unwrap();
    assert_eq!(migrate(&guest, target), Some(0));
    assert_eq!(guest.wait_end(STEP).unwrap().code(), Some(0));
    unharmed(&receiver);
}
