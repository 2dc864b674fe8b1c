//! Guests of QEMU's: the same kernel and memory, a q35 with virtio-net over PCI and MSI-X, which is how QEMU is mostly
//! run and at its fastest, and without any device that the traffic does not need. Without an HPET, too, as virt-install
//! makes guests: one that its guest has left running takes a tenth of this processor for nothing, and from all that are
//! measured.

use std::process::{Child, Stdio};
use std::time::Duration;

use vmm::study::child::spawn_bound;

use super::team::{Keeper, Team, image, kernel_words, mac, tap};
use crate::Error;
use crate::qemu::Package;

/// A QEMU with a guest. It ends when this is dropped.
#[derive(Debug)]
pub struct Qemu(Child);

impl Qemu {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the next guest, and waits until it answers.
///
/// # Errors
/// It does not come up.
pub fn add(
    team: &mut Team<'_>,
    package: &Package,
    vhost: bool,
    memory: &str,
    limit: Duration,
) -> Result<(), Error> {
    let (number, guest) = (team.number, team.keepers.len());
    let tap = tap(number, guest);
    team.host.add_tap(&tap, Some(&team.bridge()))?;
    let image = image()?;
    let vhost = if vhost { "on" } else { "off" };
    let mut command = team.host.command(package.program());
    package.prepare(&mut command);
    command
        .args(["-M", "q35,accel=kvm,hpet=off", "-cpu", "host", "-smp", "1"])
        .args(["-m", memory, "-nodefaults", "-display", "none"])
        .args(["-no-reboot", "-serial", "null"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 {}",
            kernel_words(number, guest)
        ))
        .arg("-netdev")
        .arg(format!(
            "tap,id=n0,ifname={tap},script=no,downscript=no,vhost={vhost}"
        ))
        .arg("-device")
        .arg(format!(
            "virtio-net-pci,netdev=n0,mac={},romfile=",
            mac(number, guest)
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let child = spawn_bound(command, Vec::new()).map_err(Error::NoQemu)?;
    team.join(Keeper::Qemu(Qemu(child)), limit)
}
