//! Guests of Ferry's.

use std::path::Path;
use std::time::Duration;

use super::team::{Keeper, Team, image, kernel_words, mac, tap};
use crate::Error;
use crate::ferry::Ferry;

/// Boots the next guest, whose card is behind `virtio` (mmio or pci), and waits until it answers.
///
/// # Errors
/// It does not come up.
pub fn add(team: &mut Team<'_>, virtio: &str, memory: &str, limit: Duration) -> Result<(), Error> {
    let (number, guest) = (team.number, team.keepers.len());
    let tap = tap(number, guest);
    team.host.add_tap(&tap, Some(&team.bridge()))?;
    let image = image()?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (kernel, initramfs) = (text(&image.kernel), text(&image.initramfs));
    let (words, net) = (
        kernel_words(number, guest),
        format!("tap={tap},mac={}", mac(number, guest)),
    );
    let args = [
        "run",
        &kernel,
        "--initramfs",
        &initramfs,
        "--cpus",
        "1",
        "--memory",
        memory,
        "--append",
        &words,
        "--net",
        &net,
        "--virtio",
        virtio,
    ];
    let ferry = Ferry::start(Some(team.host), &args)?;
    team.join(Keeper::Ferry(ferry), limit)
}
