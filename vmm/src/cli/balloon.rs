//! `ferry balloon`: how much of its memory a guest is to do without.

use super::error::Failure;
use super::exit;
use super::orders::Vm;
use crate::control::BalloonRequest;
use crate::units::Size;

/// Set how much of its memory a running guest is to do without
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  Have the guest give 1 GiB back to the host:
    ferry balloon --control /tmp/a.sock 1G
  Let it have all of its memory again:
    ferry balloon --control /tmp/a.sock 0

The guest needs a balloon (`ferry run --balloon`) and a driver for it. It gives pages as fast as it
finds some to spare, or not at all: `ferry status` says how far it is. The size moves with the
guest.")]
pub struct Args {
    #[command(flatten)]
    vm: Vm,

    /// The size of the balloon: what the guest has less than all of its memory. 0 lets it have all
    #[arg(value_name = "SIZE", allow_hyphen_values = true)]
    size: Size,
}

impl Args {
    pub(super) fn run(self) -> Result<u8, Failure> {
        let request = BalloonRequest {
            target_bytes: self.size.0,
        };
        self.vm.client().balloon(request).map_err(Failure::error)?;
        Ok(exit::OK)
    }
}
