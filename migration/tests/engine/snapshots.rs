//! Guests into files and out of them: whole ones, chains, files that are cut or damaged, and disks that are full.

use crate::support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use migration::cancel::CancelToken;
use migration::destination::{RestoreError, Snapshot, restore, restore_lazily};
use migration::guest::{GuestRam, PausedGuest};
use migration::options::Options;
use migration::pack::{Codec, Compress};
use migration::pages::{PAGE_SIZE, PageSet};
use migration::report::Outcome;
use migration::source::{After, Hold, Keep, Kept, MoveError, Snapshotted, migrate, snapshot};
use migration::wire::UnixTarget;
use migration::wire::frame::{Run, SnapshotId};
use support::{
    Content, FakeHost, Faults, Paused, Running, World, Writer, boot, run, unbooted,
    unbooted_in_files,
};
use vm_memory::{Bytes, GuestAddress};

/// A folder of a test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ferry-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn keep(path: &Path) -> Keep {
    Keep {
        file: File::create(path).unwrap(),
        name: path.display().to_string(),
        base: None,
        track: false,
        hold: Hold::No,
    }
}

fn save(guest: Running, keep: Keep, options: &Options) -> Snapshotted<Running> {
    let cancel = CancelToken::new().unwrap();
    snapshot(guest, keep, options, &cancel, &mut |_| {})
}

fn running(taken: Snapshotted<Running>) -> (Running, SnapshotId) {
    assert_eq!(taken.report.outcome, Outcome::Completed);
    match taken.guest {
        Kept::Running(guest) => (guest, taken.id.unwrap()),
        _ => panic!("the guest does not run"),
    }
}

fn paused(taken: Snapshotted<Running>) -> Paused {
    taken.id.unwrap();
    match taken.guest {
        Kept::Paused(guest) => guest,
        _ => panic!("the guest is not paused"),
    }
}

/// The guest out of files; made at once, and lazily, of which the same must come.
fn load(world: &Arc<World>, files: &[&Path]) -> Result<Paused, RestoreError> {
    let at_once = load_at_once(world, files);
    let lazily = load_lazily(world, files);
    match (&at_once, &lazily) {
        (Ok(one), Ok(other)) => {
            assert!(bytes(world, &one.0.ram) == bytes(world, &other.0.ram));
        }
        (Err(one), Err(other)) => {
            let kind = std::mem::discriminant::<RestoreError>;
            // Lazily a state is loaded before the digest is known: it may be one that cannot be.
            let early = matches!(other, RestoreError::Guest(_));
            assert!(early || kind(one) == kind(other), "{one}, {other}");
        }
        _ => panic!("at once {:?}, lazily {:?}", at_once.err(), lazily.err()),
    }
    at_once
}

/// Some pages are asked for, one by one; the others come by themselves, and none is given twice.
fn load_lazily(world: &Arc<World>, files: &[&Path]) -> Result<Paused, RestoreError> {
    let cancel = CancelToken::new().unwrap();
    let open = |path: &&Path| (File::open(path).unwrap(), path.display().to_string());
    let mut host = FakeHost(Arc::clone(world));
    let mut served = None;
    let paused = restore_lazily(
        &mut host,
        files.iter().map(open).collect(),
        &cancel,
        &mut |_| {},
        &mut |ram, lazy| {
            served = Some((ram.clone(), lazy));
            Ok(())
        },
    )?;
    let (ram, mut lazy) = served.unwrap();
    let at = |page| GuestAddress(world.layout.gpa(page).unwrap());
    let mut expected = lazy.pages();
    let mut fetched = Vec::new();
    for page in (0..world.layout.pages()).rev().step_by(7) {
        match lazy.fetch(page)? {
            Some(bytes) => {
                fetched.push((page, bytes.to_vec()));
                ram.write_slice(bytes, at(page)).unwrap();
            }
            None => assert!(!expected.contains(page)),
        }
    }
    assert_eq!(lazy.fetch(u64::MAX)?, None);
    let mut install = |run: Run, bytes: &[u8]| {
        for (page, bytes) in (run.first..).zip(bytes.chunks_exact(4096)) {
            assert!(expected.contains(page), "page {page} comes twice");
            let mut one = PageSet::empty(world.layout.pages());
            one.insert(page);
            expected.subtract(&one);
            let before = fetched.iter().find(|(fetched, _)| *fetched == page);
            assert!(before.is_none_or(|(_, before)| before == bytes));
            ram.write_slice(bytes, at(page)).unwrap();
        }
        Ok(())
    };
    while lazy.advance(&mut install)? {}
    assert!(!lazy.advance(&mut install)?);
    assert!(expected.is_empty());
    Ok(paused)
}

fn load_at_once(world: &Arc<World>, files: &[&Path]) -> Result<Paused, RestoreError> {
    let cancel = CancelToken::new().unwrap();
    let open = |path: &&Path| {
        Snapshot::open(
            File::open(path).unwrap(),
            path.display().to_string(),
            &cancel,
        )
    };
    let snapshots: Result<Vec<_>, _> = files.iter().map(open).collect();
    let mut host = FakeHost(Arc::clone(world));
    restore(&mut host, snapshots?, &cancel, &mut |_| {})
}

fn bytes(world: &World, ram: &GuestRam) -> Vec<u8> {
    let mut all = Vec::new();
    for page in 0..world.layout.pages() {
        let mut bytes = vec![0; usize::try_from(PAGE_SIZE).unwrap()];
        let at = GuestAddress(world.layout.gpa(page).unwrap());
        ram.read_slice(&mut bytes, at).unwrap();
        all.extend(bytes);
    }
    all
}

fn busy() -> Arc<World> {
    let writer = Writer {
        pages: 100..300,
        per_ms: 20,
    };
    World::new(&[4, 2], writer, Faults::default())
}

#[test]
fn a_guest_is_saved_while_it_writes_and_comes_out_again_twice() {
    let folder = Folder::new("saved");
    let codecs = [Compress::None, Compress::Always(Codec::Zstd)];
    for (compress, content) in codecs.into_iter().zip([Content::Stamped, Content::Text]) {
        let writer = Writer {
            pages: 100..300,
            per_ms: 20,
        };
        let world = World::of(content, &[4, 2], writer, Faults::default());
        let path = folder.file("a.snap");
        let mut wanted = keep(&path);
        wanted.hold = Hold::Yes;
        let options = Options {
            compress,
            ..run::options()
        };
        let taken = save(boot(&world), wanted, &options);
        let rounds = u64::try_from(taken.report.rounds.len()).unwrap();
        let held = paused(taken);
        let there = bytes(&world, &held.0.ram);
        for _ in 0..2 {
            let restored = load(&world, &[&path]).unwrap();
            assert!(bytes(&world, &restored.0.ram) == there);
        }
        // A page that is zero or was never touched has no bytes in the file; those written go again in each round.
        let full = there.chunks(usize::try_from(PAGE_SIZE).unwrap());
        let full = full
            .filter(|page| page.iter().any(|byte| *byte != 0))
            .count();
        let pages = u64::try_from(full).unwrap() + rounds * 200;
        let len = fs::metadata(&path).unwrap().len();
        assert!(
            len < pages * (PAGE_SIZE + 64) + (64 << 10),
            "{len} bytes, {rounds} rounds"
        );
        assert!(world.wrong_pages(&held.0.ram).is_empty());
    }
}

#[test]
fn the_guest_goes_on_at_full_speed_and_the_stop_is_told() {
    let folder = Folder::new("goes-on");
    let world = busy();
    let taken = save(boot(&world), keep(&folder.file("a.snap")), &run::options());
    assert!(taken.report.blackout_ms.unwrap() < 1000.0);
    assert!(!taken.report.rounds.is_empty());
    let (guest, _) = running(taken);
    assert!(!guest.log_is_on());
    assert_eq!(guest.throttle_now(), 0);
    run::verify(&world, guest);
}

#[test]
fn a_chain_holds_the_same_memory_as_the_guest_at_its_end() {
    let folder = Folder::new("chain");
    let world = busy();
    let (a, b, c) = (folder.file("a"), folder.file("b"), folder.file("c"));
    let mut guest = boot(&world);
    let mut base = None;
    let mut rounds = 0;
    for path in [&a, &b] {
        let mut wanted = keep(path);
        (wanted.base, wanted.track) = (base, true);
        let taken = save(guest, wanted, &run::options());
        rounds = u64::try_from(taken.report.rounds.len()).unwrap();
        // Round 0 is that of the whole memory, which is in the first file alone.
        let indexes = taken.report.rounds.iter().map(|round| round.index);
        assert!(indexes.eq((u32::from(path == &b)..).take(taken.report.rounds.len())));
        let id;
        (guest, id) = running(taken);
        assert!(guest.log_is_on());
        base = Some(id);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut wanted = keep(&c);
    (wanted.base, wanted.hold) = (base, Hold::Yes);
    let held = paused(save(guest, wanted, &run::options()));
    let restored = load(&world, &[&a, &b, &c]).unwrap();
    assert!(bytes(&world, &restored.0.ram) == bytes(&world, &held.0.ram));
    assert!(world.wrong_pages(&restored.0.ram).is_empty());
    // Only what is written again is in the later files: in each round 200 pages at most.
    let len = fs::metadata(&b).unwrap().len();
    assert!(
        len < rounds * 200 * (PAGE_SIZE + 64) + (64 << 10),
        "{len} bytes in {rounds} rounds"
    );
    for (files, says) in [
        (&[&b, &c][..], "give that one first"),
        (&[&a, &c], "not on the one given before it"),
        (&[&a, &a], "whole by itself"),
        (&[&b], "give that one first"),
    ] {
        let files: Vec<&Path> = files.iter().map(|path| path.as_path()).collect();
        let error = load(&world, &files).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// A move needs the log for itself, and a guest that stays has none to pay for: nobody keeps its base any more.
#[test]
fn a_move_that_reaches_nobody_turns_the_log_off() {
    let folder = Folder::new("log-off");
    let world = busy();
    let mut wanted = keep(&folder.file("a"));
    wanted.track = true;
    let (guest, _) = running(save(boot(&world), wanted, &run::options()));
    assert!(guest.log_is_on());
    let cancel = CancelToken::new().unwrap();
    let nowhere = UnixTarget::new(folder.file("nowhere"));
    let moved = migrate(guest, &nowhere, &run::options(), &cancel, &mut |_| {});
    assert_eq!(moved.report.outcome, Outcome::Failed);
    let After::Running(guest) = moved.guest else {
        panic!("the guest does not run");
    };
    assert!(!guest.log_is_on());
    run::verify(&world, guest);
}

/// A page that has become zero since is zero in what is restored.
#[test]
fn zeros_of_a_later_snapshot_count() {
    let folder = Folder::new("zeros");
    let writer = Writer {
        pages: 0..200,
        per_ms: 40,
    };
    let world = World::of(Content::Blinking, &[2], writer, Faults::default());
    let (a, b) = (folder.file("a"), folder.file("b"));
    let mut wanted = keep(&a);
    wanted.track = true;
    let (guest, id) = running(save(boot(&world), wanted, &run::options()));
    std::thread::sleep(Duration::from_millis(30));
    let mut wanted = keep(&b);
    (wanted.base, wanted.hold) = (Some(id), Hold::Yes);
    let held = paused(save(guest, wanted, &run::options()));
    let restored = load(&world, &[&a, &b]).unwrap();
    assert!(bytes(&world, &restored.0.ram) == bytes(&world, &held.0.ram));
}

/// In memory of a file a page that was given back is a hole, and stays one when its zeros are told.
#[test]
fn what_was_given_back_takes_no_memory_again() {
    let folder = Folder::new("given-back");
    let world = World::idle(&[4, 2]);
    let (a, b) = (folder.file("a"), folder.file("b"));
    let paused_at_first = unbooted_in_files(&world);
    let pages = world.layout.pages();
    // Saving writes to the last page each time.
    for page in (0..700).chain(1100..1200).chain([pages - 1]) {
        paused_at_first.0.stamp(page);
    }
    let mut wanted = keep(&a);
    wanted.track = true;
    let guest = paused_at_first.resume().unwrap();
    let (guest, id) = running(save(guest, wanted, &run::options()));
    let body = guest.body.as_ref().unwrap();
    assert_eq!(body.allocated(), 801);
    for page in (100..600).chain(1150..1160) {
        body.give_back(page);
    }
    // It may be the guest's again.
    (300..310).for_each(|page| body.stamp(page));
    assert_eq!(body.allocated(), 301);
    let mut wanted = keep(&b);
    (wanted.base, wanted.hold) = (Some(id), Hold::Yes);
    let taken = save(guest, wanted, &run::options());
    assert!(taken.report.zero_pages >= 500);
    let held = paused(taken);
    assert_eq!(held.0.allocated(), 301);
    let restored = load(&world, &[&a, &b]).unwrap();
    assert!(world.wrong_pages(&restored.0.ram).is_empty());
    assert!(world.wrong_pages(&held.0.ram).is_empty());
}

/// A small snapshot of a guest of three stamped pages, the same bytes each time but for its name and the boot.
fn small(path: &Path) -> Arc<World> {
    let world = World::idle(&[2]);
    let guest = unbooted(&world);
    for page in [0, 1, 300] {
        guest.0.stamp(page);
    }
    let mut wanted = keep(path);
    wanted.hold = Hold::Yes;
    paused(save(guest.resume().unwrap(), wanted, &run::options()));
    world
}

#[test]
fn cut_and_longer_files_are_refused_before_a_guest_is_made() {
    let folder = Folder::new("cut");
    let (path, cut) = (folder.file("a"), folder.file("cut"));
    let world = small(&path);
    let whole = fs::read(&path).unwrap();
    let ends = |len: usize| len < 300 || len + 300 > whole.len() || len.is_multiple_of(97);
    for len in (0..whole.len()).filter(|&len| ends(len)) {
        fs::write(&cut, &whole[..len]).unwrap();
        let error = load(&world, &[&cut]).unwrap_err().to_string();
        assert!(error.contains(&format!("cut at byte {len}")), "{error}");
        assert!(world.there.lock().unwrap().is_none());
    }
    let mut long = whole.clone();
    for more in [1, 24, 4096] {
        long.resize(whole.len() + more, 0);
        fs::write(&cut, &long).unwrap();
        let error = load(&world, &[&cut]).unwrap_err().to_string();
        assert!(error.contains("bytes behind its end"), "{error}");
    }
    // With an end mark of its own behind the other.
    long.truncate(whole.len());
    let mark = whole.len() - 24;
    let mut second = whole[mark..].to_vec();
    second[8..16].copy_from_slice(&u64::try_from(whole.len()).unwrap().to_le_bytes());
    long.extend(second);
    fs::write(&cut, &long).unwrap();
    let error = load(&world, &[&cut]).unwrap_err().to_string();
    assert!(error.contains("is damaged at byte"), "{error}");
}

#[test]
fn no_flipped_bit_gets_through() {
    let folder = Folder::new("flips");
    let (path, bad) = (folder.file("a"), folder.file("bad"));
    let world = small(&path);
    let whole = fs::read(&path).unwrap();
    // Every byte of what is not a page, and some of those.
    let near = |at: usize| at < 400 || at + 400 > whole.len() || at.is_multiple_of(61);
    for at in (0..whole.len()).filter(|&at| near(at)) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&bad, &flipped).unwrap();
        let error = load(&world, &[&bad]).map(drop).unwrap_err().to_string();
        // Behind the preamble every text says where, or that it is another guest, or a file of a chain.
        let says = ["at byte", "another guest", "give that one first"];
        let located = says.iter().any(|says| error.contains(says));
        assert!(at < 16 || located, "byte {at}: {error}");
    }
}

#[test]
fn what_is_no_snapshot_is_told_apart() {
    let folder = Folder::new("foreign");
    let (path, other) = (folder.file("a"), folder.file("other"));
    let world = small(&path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[..8].copy_from_slice(b"#!/bin/s");
    fs::write(&other, &bytes).unwrap();
    let error = load(&world, &[&other]).unwrap_err();
    assert!(matches!(error, RestoreError::Foreign { .. }), "{error}");
    assert!(
        load(&world, &[])
            .unwrap_err()
            .to_string()
            .contains("no snapshot")
    );
}

#[test]
fn a_full_disk_leaves_the_guest_running() {
    let world = busy();
    let mut wanted = keep(Path::new("/dev/null"));
    wanted.file = File::options().write(true).open("/dev/full").unwrap();
    wanted.track = true;
    let taken = save(boot(&world), wanted, &run::options());
    let error = taken.id.unwrap_err();
    assert!(matches!(error, MoveError::File { .. }), "{error}");
    assert_eq!(taken.report.outcome, Outcome::Failed);
    assert!(taken.report.reason.contains("free space there"));
    let Kept::Running(guest) = taken.guest else {
        panic!("the guest does not run");
    };
    assert!(!guest.log_is_on());
    assert_eq!(guest.throttle_now(), 0);
    run::verify(&world, guest);
}

#[test]
fn a_cancel_and_a_guest_that_cannot_be_saved_leave_it_running() {
    let folder = Folder::new("cancel");
    let world = busy();
    let cancel = CancelToken::new().unwrap();
    let mut guest = boot(&world);
    for cancelled in [true, false] {
        let cancel = match cancelled {
            true => {
                cancel.cancel().unwrap();
                cancel.clone()
            }
            false => CancelToken::new().unwrap(),
        };
        let wanted = keep(&folder.file("a"));
        let taken = snapshot(guest, wanted, &run::options(), &cancel, &mut |_| {});
        assert_eq!(taken.id.is_err(), cancelled);
        let Kept::Running(again) = taken.guest else {
            panic!("the guest does not run");
        };
        assert!(!again.log_is_on());
        guest = again;
    }
    run::verify(&world, guest);
    let faults = Faults {
        save: true,
        ..Faults::default()
    };
    let world = World::new(&[2], Writer::default(), faults);
    let taken = save(boot(&world), keep(&folder.file("b")), &run::options());
    assert!(taken.id.is_err());
    assert!(matches!(taken.guest, Kept::Running(_)));
    assert!(load(&world, &[&folder.file("b")]).is_err());
}

/// Bytes of a file up to STATE, as they have been since there are files. STATE and END have golden bytes of their own,
/// and this guest's state is a time. To change these give the format another version.
#[test]
fn golden_bytes_of_a_file() {
    const STATE: usize = 0x4129;
    let folder = Folder::new("golden-file");
    let path = folder.file("a");
    let world = small(&path);
    let mut ours = fs::read(&path).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-files/v3-full.snapshot");
    let kept = fs::read(&golden).unwrap();
    // Behind the preamble (16) and the header of SNAPSHOT (8) its name (16) and no base's (16); behind the header of
    // HELLO (8) the same name, and the boot of this host (16).
    for random in [24..40, 64..96] {
        ours[random.clone()].copy_from_slice(&kept[random]);
    }
    assert!(
        ours[..STATE] == kept[..STATE],
        "the bytes of a snapshot have changed"
    );
    let restored = load(&world, &[&golden]).unwrap();
    assert!(
        bytes(&world, &restored.0.ram) == bytes(&world, &load(&world, &[&path]).unwrap().0.ram)
    );
}
