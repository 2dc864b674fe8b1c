//! `ferry receive` and sources that are none, or that are wrong: each is told why, the receiver says the same in one
//! line, and waits for the next; at the end it still takes a real guest.

use integration_tests::ferry::{Ferry, Netns};
use kvm_bindings::kvm_cpuid_entry2;
use migration::pages::{MemoryLayout, Region};
use migration::state::{Kind, Section, VmState};
use migration::wire::frame::{Frame, Hello, Run};
use serde::{Deserialize, Serialize};
use vmm::kvm::cpuid::baseline::Baseline;
use vmm::layout::Transport;
use vmm::vm::CardShape;

use super::peer::{Captured, Peer, capture, ferry_says};
use super::support::{STEP, beating, ticks_on};

const PORT: u16 = 4700;

/// A receiver that goes on after a failed attempt, a real guest, and what that guest's source says.
struct Lab {
    netns: Netns,
    receiver: Ferry,
    source: Ferry,
    real: Captured,
}

impl Lab {
    fn new() -> Self {
        let netns = Netns::new("sources").unwrap();
        let source = beating(Some(&netns), &[]);
        let real = capture(&netns, &source, PORT + 1);
        ticks_on(&source);
        let target = format!("tcp:127.0.0.1:{PORT}");
        let args = ["receive", "--listen", &target, "--max-memory", "1G"];
        let mut receiver = Ferry::start(Some(&netns), &args).unwrap();
        receiver.wait_control(STEP).unwrap();
        // What it says before anybody has come is no answer to them.
        let waits = |line: &str| line.starts_with("ferry: waiting for a guest on");
        receiver.messages().wait(0, STEP, waits).unwrap();
        Self {
            netns,
            receiver,
            source,
            real,
        }
    }

    /// Says these bytes to the receiver; it answers with a reason that it prints as well.
    fn refuses(&self, said: &[u8], parts: &[&str]) {
        let from = self.receiver.messages().count();
        let mut peer = Peer::connect(&self.netns, PORT);
        peer.say(said);
        let reason = peer.reason().unwrap_or_else(|| panic!("no {parts:?} said"));
        let line = self.complaint(from, parts);
        assert!(line.ends_with(&reason), "told {reason:?}, printed {line:?}");
    }

    /// Says these bytes and hangs up: nobody is left to be told.
    fn notices(&self, said: &[u8], parts: &[&str]) {
        let from = self.receiver.messages().count();
        let mut peer = Peer::connect(&self.netns, PORT);
        peer.say(said);
        peer.hang_up();
        self.complaint(from, parts);
    }

    /// The one line that the receiver has printed about the attempt.
    fn complaint(&self, from: usize, parts: &[&str]) -> String {
        const START: &str = "ferry: no guest came in: ";
        let messages = self.receiver.messages();
        let line = messages.wait(from, STEP, |line| line.starts_with(START));
        let line = line.unwrap_or_else(|| panic!("{parts:?}: {:?}", messages.since(from)));
        println!("{line}");
        for part in parts {
            assert!(line.contains(part), "{part:?} is not in: {line}");
        }
        for other in messages.since(from) {
            let expected = other == line || other.starts_with("ferry: receiving a guest of 64 MiB");
            assert!(expected, "{other}");
        }
        line
    }

    /// The source's guest comes over after all of that.
    fn still_receives(mut self) {
        let target = format!("tcp:127.0.0.1:{PORT}");
        self.source
            .migrate(&target, &[])
            .unwrap()
            .completed()
            .unwrap();
        ticks_on(&self.receiver);
        assert_eq!(self.source.wait_end(STEP).unwrap().code(), Some(0));
    }

    /// The real HELLO, but for one stream alone, with something changed.
    fn hello(&self, change: impl FnOnce(&mut Hello)) -> Frame {
        let mut hello = self.real.hello.clone();
        hello.streams = 1;
        change(&mut hello);
        Frame::Hello(Box::new(hello))
    }

    /// The real HELLO with another section in place of one of its own.
    fn described(&self, kind: Kind, bytes: Vec<u8>) -> Vec<u8> {
        ferry_says(&[self.hello(|hello| {
            let sections = &hello.description.sections;
            hello.description.sections = changed(sections, kind, |section| section.bytes = bytes);
        })])
    }
}

/// The sections with the first of a kind changed.
fn changed(state: &VmState, kind: Kind, change: impl FnOnce(&mut Section)) -> VmState {
    let mut sections = state.sections().to_vec();
    change(sections.iter_mut().find(|s| s.kind == kind).unwrap());
    VmState::from_sections(sections)
}

#[test]
fn strangers() {
    let lab = Lab::new();
    let noise: Vec<u8> = (0..64u8).map(|n| n.wrapping_mul(151) ^ 0x5a).collect();
    lab.refuses(&noise, &["is not Ferry", "check address and port"]);
    let get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    lab.refuses(get, &["is not Ferry", "\"GET / HTTP/1.1"]);
    lab.refuses(b"", &["sent nothing for 5.0 s", "check that end"]);
    lab.notices(b"", &["closed the connection"]);
    let mut other = ferry_says(&[]);
    other[8..12].copy_from_slice(&[9, 0, 8, 0]);
    lab.refuses(
        &other,
        &["versions 8 to 9", "1 to 3", "closer to each other"],
    );
    lab.still_receives();
}

#[test]
fn descriptions_of_guests_that_cannot_come() {
    let lab = Lab::new();
    let of_hello = |change: fn(&mut Hello)| ferry_says(&[lab.hello(change)]);
    let memory = |hello: &mut Hello, regions: &[(u64, u64)]| {
        let region = |&(gpa, bytes)| Region { gpa, bytes };
        hello.description.layout = MemoryLayout::new(regions.iter().map(region).collect()).unwrap();
    };
    lab.refuses(
        &of_hello(|hello| hello.description.vcpus = 17),
        &["the guest has 17 vCPUs", "1 to 16"],
    );
    lab.refuses(
        &ferry_says(&[lab.hello(|hello| memory(hello, &[(0, 2 << 30)]))]),
        &["2G of memory", "a larger --max-memory"],
    );
    // The header promises too much; the count of vCPUs, of regions, of sections is absurd.
    let body = 16 + 8;
    let sections = body + 48 + 16;
    for (at, value, part) in [
        (
            16 + 4,
            u32::MAX,
            "HELLO: body of 4294967295 bytes, expected 68 to 1048576",
        ),
        (body + 36, 16384, "page size is 16384"),
        (body + 40, u32::MAX, "vCPUs is 4294967295"),
        (body + 44, 17, "regions is 17"),
        (body + 56, 4097, "multiple"),
        (sections, u32::MAX, "sections is 4294967295"),
        (sections + 4 + 12, u32::MAX, "ends early"),
    ] {
        let mut said = of_hello(|_| {});
        said[at..at + 4].copy_from_slice(&value.to_le_bytes());
        lab.refuses(&said, &["broke the protocol", "the same ferry", part]);
    }
    lab.still_receives();
}

/// As the VMM encodes it.
#[derive(Clone, Serialize, Deserialize)]
struct CpuModel {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    baseline: Baseline,
    msrs: Vec<u32>,
    arch_capabilities: Option<u64>,
    counters: bool,
}

#[derive(Serialize)]
struct DeviceList {
    heartbeat: bool,
    slots: Vec<u32>,
    /// What the disks are. None is described here: that is `refusals/disks.rs`.
    disks: Vec<()>,
    /// What the network cards are.
    cards: Vec<CardShape>,
    /// The interrupt lines of the slots.
    lines: Vec<u32>,
    transport: Transport,
}

#[test]
fn cpus_and_devices_that_are_not_here() {
    let lab = Lab::new();
    let real: CpuModel = lab
        .real
        .hello
        .description
        .sections
        .get(Kind::CPU_MODEL, 0, vmm::vm::CPU_VERSION)
        .unwrap();
    assert!(real.msrs.len() > 20, "{:x?}", real.msrs);
    assert!(!real.counters);
    let cpu = |change: fn(&mut CpuModel)| {
        let mut model = real.clone();
        change(&mut model);
        lab.described(Kind::CPU_MODEL, postcard::to_stdvec(&model).unwrap())
    };
    let all_features = cpu(|model| {
        let leaf = |e: &&mut kvm_cpuid_entry2| (e.function, e.index) == (7, 0);
        model.cpuid.iter_mut().find(leaf).unwrap().ebx = u32::MAX;
    });
    // sgx is never offered; bit 22 has no name.
    let parts = ["CPU lacks", "sgx", "CPUID.0x7.0:EBX bit 22", "a newer CPU"];
    lab.refuses(&all_features, &parts);
    let other_vendor = cpu(|model| {
        model
            .cpuid
            .iter_mut()
            .find(|e| e.function == 0)
            .unwrap()
            .ecx = 0x2121_2121
    });
    lab.refuses(
        &other_vendor,
        &["started on a processor of", "!!!!", "this host's is of"],
    );
    let wide = cpu(|model| {
        let leaf = |e: &&mut kvm_cpuid_entry2| e.function == 0x8000_0008;
        model.cpuid.iter_mut().find(leaf).unwrap().eax |= 0xff;
    });
    lab.refuses(
        &wide,
        &["physical addresses have 255 bits", "this host's have"],
    );
    let msrs = cpu(|model| model.msrs.extend([0xe1, 0xdead_beef]));
    let parts = [
        "lacks MSRs",
        "IA32_UMWAIT_CONTROL (0xe1), 0xdeadbeef",
        "--cpu v2",
    ];
    lab.refuses(&msrs, &parts);
    lab.refuses(
        &cpu(|model| model.msrs = vec![0x10; 300]),
        &["300 MSRs", "at most 256"],
    );
    // A host without the MSR refuses the guest for that.
    if real.arch_capabilities.is_some() {
        // No processor has bit 63.
        let immune = cpu(|model| {
            model.arch_capabilities = model.arch_capabilities.map(|bits| bits | 1 << 63);
        });
        let parts = [
            "IA32_ARCH_CAPABILITIES (0x10a)",
            "told of bit 63",
            "--cpu v2",
        ];
        lab.refuses(&immune, &parts);
    }
    // A KVM that scales would take it.
    if !kvm_ioctls::Kvm::new()
        .unwrap()
        .check_extension(kvm_ioctls::Cap::TscControl)
    {
        let fast = cpu(|model| model.tsc_khz = model.tsc_khz.map(|khz| khz + khz / 1000));
        lab.refuses(
            &fast,
            &[
                "the guest's TSC runs at",
                "this host's at",
                "kHz",
                "250 ppm",
            ],
        );
    }
    lab.refuses(
        &cpu(|model| model.cpuid.clear()),
        &["0 CPUID entries", "1 to "],
    );
    let with_cards = |slots: &[u32], cards: &[CardShape]| {
        let list = DeviceList {
            heartbeat: true,
            slots: slots.to_vec(),
            disks: Vec::new(),
            cards: cards.to_vec(),
            lines: (16..).take(slots.len()).collect(),
            transport: Transport::Mmio,
        };
        lab.described(Kind::DEVICE_LIST, postcard::to_stdvec(&list).unwrap())
    };
    let slots = |slots: &[u32]| with_cards(slots, &[]);
    lab.refuses(
        &with_cards(&[1], &[CardShape::PLAIN]),
        &["card 0 has no tap here", "--net 0=tap=NAME"],
    );
    let pairs = CardShape {
        pairs: 9,
        ..CardShape::PLAIN
    };
    lab.refuses(&with_cards(&[1], &[pairs]), &["9 queue pairs", "1 to 8"]);
    lab.refuses(&slots(&[1]), &["network card in slot 0", "nothing is said"]);
    lab.refuses(&slots(&[2]), &["disk in slot 0", "nothing is said"]);
    lab.refuses(&slots(&[3]), &["device of type 3 in slot 0", "newer ferry"]);
    lab.refuses(&slots(&[4; 17]), &["17 virtio devices", "16 slots"]);
    for kind in [Kind::CPU_MODEL, Kind::DEVICE_LIST] {
        let parts = ["guest's description", "cannot be decoded"];
        lab.refuses(&lab.described(kind, vec![0xff; 12]), &parts);
        let without = lab.hello(|hello| {
            let mut sections = hello.description.sections.sections().to_vec();
            sections.retain(|section| section.kind != kind);
            hello.description.sections = VmState::from_sections(sections);
        });
        lab.refuses(&ferry_says(&[without]), &["is missing"]);
    }
    lab.still_receives();
}

#[test]
fn frames_out_of_place() {
    let lab = Lab::new();
    let hello = || lab.hello(|_| {});
    let (session, state) = ([7; 16], VmState::default());
    let run = |first, pages| vec![Run { first, pages }];
    let zero = |round, runs| Frame::Zero { round, runs };
    let end = |round, pages| Frame::RoundEnd { round, pages };
    for (said, parts) in [
        (vec![Frame::Go], ["sent GO", "waiting for HELLO"]),
        (
            vec![Frame::Join { session, index: 1 }],
            ["sent JOIN", "waiting for HELLO"],
        ),
        (
            vec![Frame::State(state)],
            ["sent STATE", "waiting for HELLO"],
        ),
        (vec![zero(0, run(0, 1))], ["sent ZERO", "waiting for HELLO"]),
        (vec![hello(), hello()], ["sent HELLO", "waiting for pages"]),
        (vec![hello(), Frame::Go], ["sent GO", "waiting for pages"]),
        (
            vec![hello(), Frame::Ready],
            ["sent READY", "waiting for pages"],
        ),
        (vec![hello(), zero(3, run(0, 1))], ["round 3", "in round 0"]),
        (
            vec![hello(), zero(0, run(16384, 1))],
            ["1 pages from page 16384", "guest's memory"],
        ),
        (
            vec![hello(), zero(0, run(u64::MAX, 1))],
            [
                "first page of a run is 18446744073709551615",
                "below 16 TiB",
            ],
        ),
        (
            vec![hello(), zero(0, run(0, 16385))],
            ["16385 pages", "the guest has 16384"],
        ),
        (
            vec![hello(), end(0, 5)],
            ["0 pages received", "5 were sent"],
        ),
        (
            vec![hello(), end(0, 0), end(0, 0)],
            ["round 0", "in round 1"],
        ),
    ] {
        lab.refuses(&ferry_says(&said), &parts);
    }
    lab.refuses(&ferry_says(&[hello()]), &["sent nothing for 5.0 s"]);
    lab.notices(&ferry_says(&[hello()]), &["closed the connection"]);
    let abort = Frame::Abort("changed\nmy mind".to_owned());
    lab.notices(
        &ferry_says(&[hello(), abort]),
        &["ended the move: changed my mind"],
    );
    lab.still_receives();
}

#[test]
fn state_that_is_corrupt() {
    let lab = Lab::new();
    let real = &lab.real.state;
    let said = |state: VmState| {
        let end = Frame::RoundEnd { round: 0, pages: 0 };
        ferry_says(&[lab.hello(|_| {}), end, Frame::State(state)])
    };
    for kind in [Kind::VCPU, Kind::VM, Kind::SERIAL, Kind::HEARTBEAT] {
        let short = changed(real, kind, |s| s.bytes.truncate(s.bytes.len() / 2));
        lab.refuses(&said(short), &["cannot be decoded"]);
        let newer = changed(real, kind, |s| s.version += 1);
        lab.refuses(&said(newer), &["has version 2", "newer ferry"]);
        let mut sections = real.sections().to_vec();
        sections.retain(|section| section.kind != kind);
        let without = VmState::from_sections(sections);
        lab.refuses(&said(without), &["is missing from what the peer sent"]);
    }
    // Bytes that mean something else: refused or, where any value is one, taken; never the end of the receiver.
    for kind in [Kind::VCPU, Kind::VM, Kind::SERIAL, Kind::HEARTBEAT] {
        let ones = changed(real, kind, |s| s.bytes.fill(0xff));
        lab.refuses(&said(ones), &["state"]);
    }
    lab.still_receives();
}

/// Wherever a byte is wrong, the receiver takes the state or says why not, and does not come to harm by it.
#[test]
fn state_with_a_byte_flipped() {
    const FLIPS: usize = 150;
    let lab = Lab::new();
    let sections = lab.real.state.sections();
    let bytes: usize = sections.iter().map(|section| section.bytes.len()).sum();
    let (mut taken, mut refused) = (0, 0);
    for at in (0..bytes).step_by(bytes / FLIPS) {
        let mut sections = sections.to_vec();
        let mut at = at;
        let section = sections.iter_mut().find(|section| {
            let here = at < section.bytes.len();
            at -= if here { 0 } else { section.bytes.len() };
            here
        });
        section.unwrap().bytes[at] ^= 0xff;
        let state = Frame::State(VmState::from_sections(sections));
        let end = Frame::RoundEnd { round: 0, pages: 0 };
        let mut peer = Peer::connect(&lab.netns, PORT);
        peer.say(&ferry_says(&[lab.hello(|_| {}), end, state]));
        peer.preamble().unwrap();
        match [peer.hear().unwrap(), peer.hear().unwrap()] {
            [Frame::Accept { .. }, Frame::Ready] => taken += 1,
            [Frame::Accept { .. }, Frame::Failed(reason)] => {
                println!("{reason}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        peer.hang_up();
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 0 && refused > 0);
    lab.still_receives();
}
