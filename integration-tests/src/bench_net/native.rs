//! No guests: processes in namespaces of their own, each joined to the bridge by a pair of devices.

use std::time::Duration;

use super::team::{Keeper, Team, address};
use crate::Error;
use crate::ferry::Netns;

/// Adds a namespace in the place of the next guest.
///
/// # Errors
/// `ip` fails.
pub fn add(team: &mut Team<'_>) -> Result<(), Error> {
    let guest = team.keepers.len();
    let netns = Netns::new("native")?;
    let port = format!("veth{}-{guest}", team.number);
    team.host.join(&port, &netns, "eth0")?;
    team.host.up(&port, Some(&team.bridge()))?;
    let address = address(team.number, guest + 1);
    netns.ip(&format!("address add {address}/24 dev eth0"))?;
    team.join(Keeper::Netns(netns), Duration::from_secs(10))
}
