//! The bytes of every section that a device writes, kept here: a guest that was saved by an older build arrives as
//! these bytes. A change that breaks this test needs a new section version, and a reader for the old one.

use migration::state::Snapshot;
use serde::{Serialize, de::DeserializeOwned};

use crate::heartbeat::{HeartbeatPort, HeartbeatState};
use crate::serial::{Serial, SerialState};
use crate::virtio::mmio::{MmioState, VirtioMmio};
use crate::virtio::net::{NetState, VirtioNet};
use crate::virtio::queue::RingState;
use crate::virtio::rng::{RngState, VirtioRng};

fn check<S: Snapshot>(version: u32, state: &S::State, bytes: &[u8])
where
    S::State: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    assert_eq!(S::VERSION, version);
    let written = postcard::to_stdvec(state).unwrap();
    assert!(written == bytes, "{:?} is written as\n{written:?}", S::KIND);
    assert_eq!(&postcard::from_bytes::<S::State>(bytes).unwrap(), state);
}

#[test]
fn sections_of_version_1_are_these_bytes() {
    check::<HeartbeatPort>(1, &HeartbeatState { counter: 300 }, &[172, 2]);
    check::<VirtioRng>(1, &RngState {}, &[]);
    let serial = SerialState {
        scratch: 0x5a,
        input: b"ab".to_vec(),
        ..SerialState::reset()
    };
    check::<Serial>(1, &serial, &[12, 0, 0, 1, 3, 96, 8, 176, 90, 2, 97, 98]);
    let queue = RingState {
        max_size: 256,
        size: 128,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x1_0000_0000,
        next_avail: 5,
        next_used: 4,
        signalled_used: 3,
    };
    let mmio = MmioState {
        device_type: 1,
        status: 0xf,
        device_features_sel: 1,
        driver_features_sel: 0,
        driver_features: 1 << 32 | 3,
        queue_sel: 2,
        interrupt_status: 1,
        config_generation: 7,
        queues: vec![queue],
    };
    check::<VirtioMmio>(
        1,
        &mmio,
        &[
            1, 15, 1, 0, 131, 128, 128, 128, 16, 2, 1, 7, 1, 128, 2, 128, 1, 1, 128, 32, 128, 64,
            128, 128, 128, 128, 16, 5, 4, 3,
        ],
    );
    let net = NetState {
        default_mac: [2, 0, 0, 0, 0, 1],
        mac: [2, 0, 0, 0, 0, 2],
        mtu: Some(1500),
        features: 0x35,
        announcing: true,
        guest_offloads: Some(2),
        held: vec![vec![9; 12]],
    };
    check::<VirtioNet>(
        1,
        &net,
        &[
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 1, 220, 11, 53, 1, 1, 2, 1, 12, 9, 9, 9, 9, 9, 9,
            9, 9, 9, 9, 9, 9,
        ],
    );
}
