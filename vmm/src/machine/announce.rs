//! Telling the network where a guest's cards are, after a move.

use std::time::Duration;

use crate::sandbox::{self, Kind};
use crate::vm::View;

/// The pauses between rounds, as QEMU has them by default (docs/devel/migration: announce-initial 50 ms,
/// announce-step 100 ms, 5 rounds): a switch that loses one frame hears the next.
const PAUSES_MS: [u64; 4] = [50, 150, 250, 350];

/// Announces five times, in a thread of its own.
pub fn spawn(view: View) {
    if !view.has_network() {
        return;
    }
    let announcing = std::thread::Builder::new()
        .name("announce".into())
        .spawn(move || {
            sandbox::enter(Kind::Announce);
            view.announce_round();
            for pause in PAUSES_MS {
                std::thread::sleep(Duration::from_millis(pause));
                view.announce_round();
            }
        });
    if let Err(error) = announcing {
        tracing::warn!("announce the guest on the network: {error}");
    }
}
