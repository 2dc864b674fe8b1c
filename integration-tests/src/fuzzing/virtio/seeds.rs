//! What drivers do: frames received and sent, descriptors in tables of their own, commands on the control queue, moves
//! in between.

use super::super::input::Written;
use super::guest::BUFFERS;

const ALL: u64 = u64::MAX;
/// Without merged buffers, event index and indirect tables.
const PLAIN: u64 = !(1 << 15 | 1 << 28 | 1 << 29);

/// Steps, by the numbers that `World::step` has for them.
#[derive(Clone, Default)]
struct Steps(Written);

impl Steps {
    fn set_up(self, features: u64) -> Self {
        Self(self.0.u8(13).u64(features))
    }

    fn descriptor(self, queue: u8, index: u8, at: u64, len: u32, flags: u8, next: u8) -> Self {
        let at = u32::try_from(at - BUFFERS).unwrap();
        let step = self.0.u8(2).u8(queue).u8(index).u8(0).u32(at).u32(len);
        Self(step.u8(flags).u8(next))
    }

    fn offer(self, queue: u8, heads: &[u8]) -> Self {
        let steps = (0..).zip(heads).fold(self.0, |steps, (slot, head)| {
            steps.u8(3).u8(queue).u8(slot).u8(*head)
        });
        let count = u8::try_from(heads.len()).unwrap();
        Self(steps.u8(4).u8(queue).u8(count))
    }

    fn write(self, at: u64, bytes: &[u8]) -> Self {
        let at = u32::try_from(at - BUFFERS).unwrap();
        let len = u8::try_from(bytes.len()).unwrap();
        Self(self.0.u8(12).u8(0).u32(at).u8(len).bytes(bytes))
    }

    fn notify(self, queue: u8) -> Self {
        Self(self.0.u8(6).u8(queue))
    }

    fn frame(self, len: u16) -> Self {
        Self(self.0.u8(8).u16(len).u8(0x5a).bytes(&[0; 12]))
    }

    fn backend(self) -> Self {
        Self(self.0.u8(7))
    }

    fn register(self, offset: u16, value: u64) -> Self {
        Self(self.0.u8(0).u16(offset).u8(3).u64(value))
    }

    /// Drain, announce, move, service.
    fn plain(self, step: u8) -> Self {
        Self(self.0.u8(step))
    }
}

pub fn seeds_net() -> Vec<Vec<u8>> {
    let at = |page: u64| BUFFERS + page * 0x1000;
    let receive = |features, len| {
        let steps = Steps::default().set_up(features);
        let steps = steps
            .descriptor(0, 0, at(0), 2048, 2, 0)
            .descriptor(0, 1, at(1), 2048, 2, 0);
        let steps = steps
            .descriptor(0, 2, at(2), 100, 3, 3)
            .descriptor(0, 3, at(3), 4096, 2, 0);
        let steps = steps
            .offer(0, &[0, 1, 2])
            .frame(60)
            .frame(len)
            .frame(len)
            .backend();
        steps.plain(11).backend().notify(0)
    };
    let send = Steps::default()
        .set_up(ALL)
        .descriptor(1, 0, at(0), 12, 1, 1);
    let send = send
        .descriptor(1, 1, at(1), 1000, 0, 0)
        .offer(1, &[0])
        .notify(1)
        .plain(9);
    let command = |class: u8, number: u8, data: &[u8]| {
        let bytes = [&[class, number], data].concat();
        let len = u32::try_from(bytes.len()).unwrap();
        let steps = Steps::default().set_up(ALL).write(at(4), &bytes);
        let steps = steps
            .descriptor(2, 0, at(4), len, 1, 1)
            .descriptor(2, 1, at(5), 1, 2, 0);
        steps.offer(2, &[0]).notify(2).plain(10).plain(11).plain(14)
    };
    // A table of two descriptors: the receive buffer's header, and the rest.
    let entry = |gpa: u64, len: u32, flags: u16, next: u16| {
        Written::default().u64(gpa).u32(len).u16(flags).u16(next).0
    };
    let table = [entry(at(6), 12, 3, 1), entry(at(7), 2000, 2, 0)].concat();
    let indirect = Steps::default().set_up(ALL).write(at(5), &table);
    let indirect = indirect
        .descriptor(0, 0, at(5), 32, 4, 0)
        .offer(0, &[0])
        .frame(900)
        .backend();
    let twice = send
        .clone()
        .register(0x70, 0)
        .set_up(PLAIN)
        .frame(10)
        .backend()
        .plain(11);
    let seeds = [
        receive(ALL, 3000),
        receive(PLAIN, 1000),
        receive(PLAIN, 60_000),
        send,
        command(0, 0, &[1]),
        command(1, 1, &[2, 0, 0, 0, 0, 9]),
        command(3, 0, &[]),
        command(5, 0, &[0; 8]),
        indirect,
        twice,
    ];
    seeds.map(|steps| steps.0.0).to_vec()
}

pub fn seeds_rng() -> Vec<Vec<u8>> {
    let ask = |features| {
        let steps = Steps::default()
            .set_up(features)
            .descriptor(0, 0, BUFFERS, 64, 2, 0);
        let steps = steps.descriptor(0, 1, BUFFERS + 0x1ff0, 0x2020, 3, 2);
        let steps = steps.descriptor(0, 2, BUFFERS + 0x8000, 5000, 2, 0);
        steps.offer(0, &[0, 1]).notify(0).plain(11).plain(14)
    };
    let seeds = [ask(ALL), ask(PLAIN), ask(ALL).register(0x70, 0).set_up(ALL)];
    seeds.map(|steps| steps.0.0).to_vec()
}

/// Lists of pages on both queues, in one buffer and in pieces, above the gap and beside it; reports; moves in between.
pub fn seeds_balloon() -> Vec<Vec<u8>> {
    let at = |page: u64| BUFFERS + page * 0x1000;
    let list = |features, queue: u8, pages: &[u32]| {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let len = u32::try_from(bytes.len()).unwrap();
        let steps = Steps::default().set_up(features).write(at(0), &bytes);
        let steps = steps
            .descriptor(queue, 0, at(0), len, 0, 0)
            .descriptor(queue, 1, at(0), 2, 1, 2)
            .descriptor(queue, 2, at(0) + 2, len - 2, 0, 0);
        let steps = steps.offer(queue, &[0, 1]).notify(queue).plain(11);
        steps.plain(14)
    };
    let report = |features, len: u32| {
        let steps = Steps::default()
            .set_up(features)
            .write(at(3), &[7; 16])
            .descriptor(2, 0, at(2), len, 3, 1)
            .descriptor(2, 1, at(8) + 5, 0x2000, 2, 0);
        steps.offer(2, &[0]).notify(2).plain(11).plain(14)
    };
    let high = 1 << 20;
    let seeds = [
        list(ALL, 0, &[0x18, 0x17, 0x19, high, high + 15]),
        list(PLAIN, 1, &[0x18, 0x19]),
        list(ALL, 0, &[0x18, 0x20, high + 16]),
        report(ALL, 0x3000),
        report(PLAIN, 0x1001),
        report(0, 0x1000),
        list(ALL, 0, &[0x1a]).register(0x104, 1).register(0x70, 0),
    ];
    seeds.map(|steps| steps.0.0).to_vec()
}

/// Reads and writes on both queues, a flush, a name, zeroed ranges, what lies beside the disk, and moves in between.
pub fn seeds_blk() -> Vec<Vec<u8>> {
    let at = |page: u64| BUFFERS + page * 0x1000;
    let header = |kind: u32, sector: u64| Written::default().u32(kind).u32(0).u64(sector).0;
    let ask = |features, queue: u8, kind, sector, len, flags| {
        let steps = Steps::default().set_up(features);
        let steps = steps
            .write(at(0), &header(kind, sector))
            .write(at(1), &[1, 0, 0, 0, 0, 0, 0, 0, 8]);
        let steps = steps
            .descriptor(queue, 0, at(0), 16, 1, 1)
            .descriptor(queue, 1, at(1), len, flags, 2)
            .descriptor(queue, 2, at(3), 1, 2, 0);
        steps.offer(queue, &[0]).notify(queue).plain(11).plain(14)
    };
    let (read, write) = (3, 1);
    let seeds = [
        ask(ALL, 0, 0, 3, 1024, read),
        ask(PLAIN, 1, 1, 2, 4096, write),
        ask(0, 1, 1, 2, 512, write),
        ask(ALL, 0, 4, 0, 512, write),
        ask(ALL, 0, 8, 0, 20, read),
        ask(ALL, 1, 11, 0, 16, write),
        ask(ALL, 1, 13, 0, 16, write),
        ask(ALL, 0, 0, 127, 1024, read),
        ask(ALL, 0, 99, 0, 512, read),
    ];
    seeds.map(|steps| steps.0.0).to_vec()
}
