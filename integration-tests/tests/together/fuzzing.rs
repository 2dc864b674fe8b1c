//! What fuzzing has found, and what it begins with, on a stable compiler: every input of the corpus in the tree, and
//! inputs that are made of it by chance.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use integration_tests::fuzzing::{TARGETS, Target};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

/// Runs all of a target's corpus, and names the file of each input that breaks a promise.
fn replay(target: &Target) -> Vec<PathBuf> {
    let breaks = |input: &[u8]| catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err();
    let corpus = corpus(target);
    assert!(
        corpus.len() >= (target.seeds)().len(),
        "{}: seeds are missing",
        target.name
    );
    let broken = corpus.into_iter().filter(|(_, input)| breaks(input));
    broken.map(|(path, _)| path).collect()
}

#[test]
fn every_input_of_the_corpus_keeps_the_promises() {
    let broken: Vec<_> = TARGETS.iter().flat_map(replay).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A seed is what its generator makes; `fuzz seeds` writes them anew after a change of a format.
#[test]
fn seeds_in_the_tree_are_those_that_are_made() {
    for target in TARGETS {
        let kept = corpus(&target);
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let name = format!("seed-{number:02}");
            let file = kept.iter().find(|(path, _)| path.ends_with(&name));
            let file = file.unwrap_or_else(|| panic!("{}: no {name}", target.name));
            assert!(file.1 == seed, "{}: {name} is another", target.name);
        }
    }
}

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (at(), 1usize..20).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        at().prop_map(Change::Cut),
    ]
}

fn changed(mut input: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for change in changes {
        let len = input.len();
        if len == 0 {
            break;
        }
        match change {
            Change::Set(at, byte) => input[at.index(len)] = byte,
            Change::Flip(at, bit) => input[at.index(len)] ^= 1 << bit,
            Change::Remove(at, count) => {
                let at = at.index(len);
                input.drain(at..len.min(at + count));
            }
            Change::Insert(at, bytes) => {
                let at = at.index(len);
                input.splice(at..at, bytes);
            }
            Change::Cut(at) => input.truncate(at.index(len)),
        }
    }
    input
}

/// So many inputs, or as many as PROPTEST_CASES says.
fn by_chance(target: &Target, cases: u32) {
    let corpus: Vec<_> = corpus(target).into_iter().map(|(_, input)| input).collect();
    let changes = prop::collection::vec(change(), 1..8);
    let inputs = (prop::sample::select(corpus), changes)
        .prop_map(|(input, changes)| changed(input, changes));
    let more = std::env::var("PROPTEST_CASES").ok();
    let config = Config {
        cases: more.and_then(|more| more.parse().ok()).unwrap_or(cases),
        failure_persistence: None,
        ..Config::default()
    };
    let run = |input: Vec<u8>| {
        (target.run)(&input);
        Ok(())
    };
    let ran = TestRunner::new(config).run(&inputs, run);
    ran.unwrap_or_else(|error| panic!("{}: {error}", target.name));
}

#[test]
fn changed_inputs_keep_the_promises() {
    for target in TARGETS {
        // A session takes some milliseconds and a thread or two, all others next to nothing.
        by_chance(
            &target,
            if target.name == "wire_session" {
                60
            } else {
                500
            },
        );
    }
}

/// The oracles themselves: bytes that break a promise are noticed.
#[test]
fn a_broken_promise_is_noticed() {
    let target = Target {
        run: |input| assert!(!input.contains(&0x5a)),
        ..TARGETS[0]
    };
    assert!(catch_unwind(|| (target.run)(&[0x5a])).is_err());
    let strict = Target {
        run: |input| assert!(input.is_empty()),
        ..TARGETS[0]
    };
    assert!(!replay(&strict).is_empty());
    assert!(catch_unwind(|| by_chance(&strict, 20)).is_err());
}
