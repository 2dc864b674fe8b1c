//! How a VM is, as the API tells it.

use migration::guest::Heartbeat;
use migration::report::Outcome;
use serde::{Deserialize, Serialize};

use crate::sandbox::InForce;

/// What a person does about a guest in [`State::Unknown`]; "here" is its source.
pub const IF_UNKNOWN: &str = "look at the destination: if the guest runs there, `ferry stop` here; if it is still receiving there, wait and look again; \
     if the destination has no guest, or is surely dead, `ferry resume --force` here";

/// What a person does about a guest that is paused here, and was not to be.
pub const IF_PAUSED: &str = "`ferry resume` tries again";

/// What the VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No guest yet: a receiver that listens.
    #[default]
    Waiting,
    /// A guest is coming in.
    Receiving,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still, as asked.
    Paused,
    /// The guest is going out; it runs, or is in its blackout.
    Migrating,
    /// The guest is being saved into a file; it runs, or is in its blackout.
    Saving,
    /// The connection was cut between GO and LIVE: the guest is paused here and may run on the destination.
    Unknown,
}

/// A VM and its process. Without a guest the numbers of the guest are 0 and its lists empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// The process that is its VMM.
    pub pid: u32,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Guest memory, all regions.
    pub memory_bytes: u64,
    /// Where guest memory lies, for the guest and in the VMM.
    pub memory_regions: Vec<MemoryRegion>,
    /// What is still to be read of the snapshots from which a guest's memory is filled while it runs; 0 when all is
    /// here.
    #[serde(default)]
    pub memory_to_come_bytes: u64,
    /// Since the guest began to run in this process.
    pub uptime_ms: u64,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// How written pages are found.
    pub dirty_log: Option<DirtyLogStatus>,
    /// How its process is confined.
    pub sandbox: Option<InForce>,
    /// The move out of here that is under way, or the snapshot.
    pub migration: Option<MoveProgress>,
    /// How the last move out of this process ended, if there was one and the process still has the guest.
    pub last_move: Option<LastMove>,
    /// The guest's balloon, if it has one. A VM of an older ferry has none.
    #[serde(default)]
    pub balloon: Option<BalloonStatus>,
    /// The guest's heartbeats, if it is one that reports them.
    pub heartbeat: Option<HeartbeatStatus>,
}

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Its guest-physical address.
    pub gpa: u64,
    /// Its size.
    pub bytes: u64,
    /// Where the VMM has mapped it: /proc/PID/mem at this offset is guest memory.
    pub host_address: u64,
}

/// A device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// What it is: `virtio-net`, `virtio-blk`, `virtio-rng`, `serial`, …
    pub kind: String,
    /// Its slot, where it sits in one.
    pub slot: Option<u32>,
    /// The tap that it is bound to, for a network device.
    pub tap: Option<String>,
    /// Its MAC address, for a network device.
    pub mac: Option<String>,
    /// Where this host has it, for a disk. One that an older ferry answers about has none.
    #[serde(default)]
    pub disk: Option<String>,
    /// How many queue pairs a network device has, or queues a disk.
    #[serde(default)]
    pub queues: Option<u16>,
}

/// How written pages are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyLogStatus {
    /// Which of KVM's logs: `manual_protect` or `get_and_clear`, its bitmap; `ring`, a list a vCPU.
    pub kind: String,
    /// Whether it is on now.
    pub on: bool,
}

/// A guest's balloon: memory that the guest does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// Whether the guest has a driver for it.
    pub driven: bool,
    /// How large it is to be.
    pub target_bytes: u64,
    /// How large the guest says that it is.
    pub actual_bytes: u64,
    /// What the guest has put into it in this process, all in all.
    pub inflated_bytes: u64,
    /// What the guest has reported as free in this process, all in all.
    pub reported_bytes: u64,
}

/// A move under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MoveProgress {
    /// The other end, once connected.
    pub peer: Option<String>,
    /// The round it is in.
    pub round: u32,
    /// Pages that this round has dealt with.
    pub pages_done: u64,
    /// Pages that it has to deal with.
    pub pages: u64,
    /// What is still to be done of it.
    pub remaining_pages: u64,
    /// Bytes on the wire since the move began.
    pub wire_bytes: u64,
    /// What the link has carried in this round, bytes a second.
    pub bandwidth_bytes_per_s: u64,
    /// How much each vCPU is slowed down, in percent.
    pub throttle_percent: Vec<u8>,
    /// Whether it can no longer be cancelled.
    pub committed: bool,
}

/// How a move ended that left the guest here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMove {
    /// Where it went to.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
}

/// A guest's heartbeats. Times are of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatStatus {
    /// How many were seen in this process.
    pub count: u64,
    /// When the first was seen in this process.
    pub first_ns: u64,
    /// When the last was seen.
    pub last_ns: u64,
    /// The largest distance between two.
    pub largest_gap_ns: u64,
}

impl From<Heartbeat> for HeartbeatStatus {
    fn from(heartbeat: Heartbeat) -> Self {
        let Heartbeat {
            count,
            first_ns,
            last_ns,
            largest_gap_ns,
        } = heartbeat;
        Self {
            count,
            first_ns,
            last_ns,
            largest_gap_ns,
        }
    }
}

impl State {
    /// All of them.
    pub const ALL: [State; 7] = [
        State::Waiting,
        State::Receiving,
        State::Running,
        State::Paused,
        State::Migrating,
        State::Saving,
        State::Unknown,
    ];

    /// The word that JSON and tables use.
    pub fn word(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Receiving => "receiving",
            State::Running => "running",
            State::Paused => "paused",
            State::Migrating => "migrating",
            State::Saving => "saving",
            State::Unknown => "unknown",
        }
    }
}
