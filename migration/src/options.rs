//! What a user may ask of a move.

use std::time::Duration;

use crate::guest::ThrottlePercent;
use crate::pack::Compress;

/// What happens when the bound on rounds or on time is reached with the blackout still predicted too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnTimeout {
    /// The move is given up and the guest runs on at the source: nobody gets a longer blackout than asked.
    #[default]
    GiveUp,
    /// The guest is switched over all the same, with a blackout beyond the limit.
    SwitchOver,
}

/// How a guest that writes faster than the link carries is slowed down; see [`crate::policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThrottlePolicy {
    /// Never.
    Off,
    /// As QEMU does.
    AutoConverge,
    /// By short sleeps that keep it just below what is sent.
    Sdps,
    /// Late, and as far as the remaining rounds need it.
    #[default]
    Auto,
    /// Each vCPU that writes faster than its limit, until it writes at it. Needs a dirty log that knows who writes
    /// ([`crate::dirty::DirtyLog::written_by_vcpu`]).
    DirtyLimit,
}

/// What the steps of the blackout cost that the engine cannot measure beforehand. The VMM may know better
/// than the defaults: about three times what a guest of one vCPU was seen to take on KVM, so that a small
/// host or a few vCPUs more stay within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateCosts {
    /// To stop the vCPUs and the devices.
    pub stop: Duration,
    /// To save the state.
    pub save: Duration,
    /// To restore the state on the destination.
    pub restore: Duration,
    /// To resume on the destination.
    pub resume: Duration,
    /// Size of the state on the wire, in bytes.
    pub state_bytes: u64,
}

impl Default for StateCosts {
    fn default() -> Self {
        Self {
            stop: Duration::from_micros(250),
            save: Duration::from_micros(500),
            restore: Duration::from_millis(1),
            resume: Duration::from_micros(500),
            state_bytes: 32 << 10,
        }
    }
}

/// A move, as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The longest blackout that is wanted.
    pub downtime_limit: Duration,
    /// The most bytes a second on the wire, all streams together; at least [`MIN_BANDWIDTH`].
    pub bandwidth: Option<u64>,
    /// Connections that are to carry pages, 1 to [`MAX_STREAMS`]. The destination may grant fewer, and there are no
    /// more than the bandwidth leaves 40 KiB/s each.
    pub streams: u16,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// A peer from which nothing comes, or that takes nothing, for so long is dead. At least [`LEAST_PATIENCE`].
    pub peer_timeout: Duration,
    /// The most rounds before the guest is stopped.
    pub max_rounds: u32,
    /// The most time before the guest is stopped.
    pub max_total: Duration,
    /// What to do when either is reached.
    pub on_timeout: OnTimeout,
    /// How the guest is slowed down where it writes faster than the link carries.
    pub throttle: ThrottlePolicy,
    /// The most that vCPUs are slowed down, whatever the policy.
    pub max_throttle: ThrottlePercent,
    /// Whether pages are compressed.
    pub compress: Compress,
    /// Pages that go again go as what changed in them, if they are still in a cache of at most so many bytes;
    /// `None` for no such cache.
    pub delta_cache: Option<u64>,
    /// Whether both memories are compared before GO. The guest stands still for it, beyond `downtime_limit`.
    pub verify: bool,
    /// What the engine should expect of steps that it has not seen yet.
    pub costs: StateCosts,
}

/// A peer's timeout is no shorter than this (500 ms): whoever has nothing to say for a while says several times in it
/// that he lives.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(500);

/// The most connections of one move.
pub const MAX_STREAMS: u16 = 16;

/// A lower bandwidth than this (64 KiB/s) is raised to it: a page must leave well within the peer's timeout.
pub const MIN_BANDWIDTH: u64 = 64 << 10;

impl Default for Options {
    fn default() -> Self {
        Self {
            downtime_limit: Duration::from_millis(300),
            bandwidth: None,
            streams: 2,
            connect_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(5),
            max_rounds: 100,
            max_total: Duration::from_secs(3600),
            on_timeout: OnTimeout::GiveUp,
            throttle: ThrottlePolicy::Auto,
            max_throttle: ThrottlePercent::MAX,
            compress: Compress::None,
            delta_cache: None,
            verify: false,
            costs: StateCosts::default(),
        }
    }
}
