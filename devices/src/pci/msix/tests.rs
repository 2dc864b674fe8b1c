//! The table as a guest programs it.

use std::sync::Mutex;

use super::*;

#[derive(Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl MessageSink for Sent {
    fn send(&self, address: u64, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

impl Sent {
    fn take(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn program(msix: &mut Msix, vector: usize, data: u32, sent: &Sent) {
    let at = vector * ENTRY_LEN;
    msix.write_table(at, &0xfee0_1000u32.to_le_bytes(), sent);
    msix.write_table(at + 4, &1u32.to_le_bytes(), sent);
    msix.write_table(at + 8, &data.to_le_bytes(), sent);
}

fn mask(msix: &mut Msix, vector: usize, masked: bool, sent: &Sent) {
    let control = u32::from(masked).to_le_bytes();
    msix.write_table(vector * ENTRY_LEN + 12, &control, sent);
}

const ADDRESS: u64 = 0x1_fee0_1000;

#[test]
fn a_message_is_sent_when_nothing_masks_it_and_once() {
    let (mut msix, sent) = (Msix::new(3), Sent::default());
    msix.let_master(true, &sent);
    assert_eq!(msix.control(), 2, "the last vector's number");
    program(&mut msix, 1, 0x4041, &sent);
    mask(&mut msix, 1, false, &sent);
    msix.raise(1, &sent);
    assert_eq!(sent.take(), [], "MSI-X is not in use");
    msix.set_control(ENABLE | MASK_ALL, &sent);
    msix.raise(1, &sent);
    assert_eq!(sent.take(), []);
    let mut pending = [0xff; 8];
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, 2u64.to_le_bytes());
    msix.set_control(ENABLE, &sent);
    assert_eq!(msix.control(), ENABLE | 2);
    assert_eq!(sent.take(), [(ADDRESS, 0x4041)]);
    mask(&mut msix, 1, true, &sent);
    msix.raise(1, &sent);
    msix.raise(1, &sent);
    assert_eq!(sent.take(), []);
    // Another vector's mask has nothing to do with it.
    mask(&mut msix, 0, false, &sent);
    assert_eq!(sent.take(), []);
    program(&mut msix, 1, 0x4042, &sent);
    mask(&mut msix, 1, false, &sent);
    assert_eq!(sent.take(), [(ADDRESS, 0x4042)], "once, and as it is now");
    msix.raise(1, &sent);
    msix.raise(3, &sent);
    msix.raise(u16::MAX, &sent);
    assert_eq!(sent.take(), [(ADDRESS, 0x4042)]);
    // A function that may not write to memory sends no message.
    msix.let_master(false, &sent);
    msix.raise(1, &sent);
    assert_eq!(sent.take(), []);
    msix.let_master(true, &sent);
    assert_eq!(sent.take(), [(ADDRESS, 0x4042)]);
    // What was pending when MSI-X went out of use is nobody's.
    mask(&mut msix, 1, true, &sent);
    msix.raise(1, &sent);
    msix.set_control(0, &sent);
    msix.set_control(ENABLE, &sent);
    mask(&mut msix, 1, false, &sent);
    assert_eq!(sent.take(), []);
}

#[test]
fn the_table_is_read_as_written_and_no_further() {
    let (mut msix, sent) = (Msix::new(2), Sent::default());
    program(&mut msix, 1, 7, &sent);
    let mut table = [0xaa; 40];
    msix.read_table(0, &mut table);
    assert_eq!(
        table[..16],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(table[16..24], ADDRESS.to_le_bytes());
    assert_eq!(table[24..32], [7, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(table[32..], [0; 8]);
    let before = msix.clone();
    // Beyond the table, and across the end of an entry.
    for (at, len) in [(32, 4), (14, 4), (usize::MAX, 1), (31, 2)] {
        msix.write_table(at, &[0xff; 8][..len], &sent);
    }
    assert_eq!(msix, before);
}

#[test]
fn a_table_of_another_function_is_refused() {
    let msix = Msix::new(3);
    msix.check(3).unwrap();
    assert!(msix.check(2).unwrap_err().contains("3 MSI-X vectors"));
    let beyond = Msix {
        pending: 8,
        ..msix.clone()
    };
    assert!(beyond.check(3).unwrap_err().contains("0x8 of 3"));
    let all = Msix {
        pending: u64::MAX,
        ..Msix::new(1000)
    };
    assert_eq!(all.vectors(), MAX_VECTORS);
    all.check(MAX_VECTORS).unwrap();
}
