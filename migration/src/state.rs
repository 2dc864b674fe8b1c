//! What a paused guest is made of besides its memory: a list of sections `{kind, instance, version, bytes}`.
//!
//! A section is opaque to the engine. Whoever owns a piece of state implements [`Snapshot`] for it; the
//! engine only carries the bytes. [`Snapshot`] has no default bodies on purpose: every owner says in full
//! how it is saved and how it is made from what arrived.

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// What a section describes. The numbers are part of the wire format: they are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u32);

impl Kind {
    /// One vCPU: registers, MSRs, local APIC, XSAVE area. The instance is the vCPU's index.
    pub const VCPU: Kind = Kind(1);
    /// The in-kernel interrupt controllers (PIC pair, IOAPIC), the PIT and the kvmclock.
    pub const VM: Kind = Kind(2);
    /// A 16550 serial port.
    pub const SERIAL: Kind = Kind(16);
    /// The virtio-mmio transport of one device with its queues. The instance is the slot.
    pub const VIRTIO_MMIO: Kind = Kind(17);
    /// virtio-net. The instance is the slot.
    pub const VIRTIO_NET: Kind = Kind(18);
    /// virtio-rng. The instance is the slot.
    pub const VIRTIO_RNG: Kind = Kind(19);
    /// The heartbeat port of the bare test guest.
    pub const HEARTBEAT: Kind = Kind(20);
    /// Description: vCPU count, CPUID, TSC frequency, MSRs. Sent before the first page.
    pub const CPU_MODEL: Kind = Kind(64);
    /// Description: which devices sit in which slots, with their features. Sent before the first page.
    pub const DEVICE_LIST: Kind = Kind(65);
}

impl fmt::Display for Kind {
    /// Its name for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::VCPU => "vCPU",
            Self::VM => "interrupt controllers and clock",
            Self::SERIAL => "serial port",
            Self::VIRTIO_MMIO => "virtio-mmio slot",
            Self::VIRTIO_NET => "virtio-net in slot",
            Self::VIRTIO_RNG => "virtio-rng in slot",
            Self::HEARTBEAT => "heartbeat port",
            Self::CPU_MODEL => "CPU model",
            Self::DEVICE_LIST => "device list",
            Self(number) => return write!(f, "section {number}, instance"),
        })
    }
}

/// One piece of state, in the encoding of the version that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it describes.
    pub kind: Kind,
    /// Which one, where there are several of a kind.
    pub instance: u32,
    /// Version of the encoding of `bytes`.
    pub version: u32,
    /// The encoded state.
    pub bytes: Vec<u8>,
}

/// All state of a paused guest besides its memory; also used for the description sent beforehand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmState {
    sections: Vec<Section>,
}

/// Why a section could not be written or used.
#[derive(Debug, Error)]
pub enum StateError {
    /// The section is not in the state that arrived.
    #[error(
        "state of {kind} {instance} is missing from what the peer sent: run the same ferry on both ends"
    )]
    Missing {
        /// The kind looked for.
        kind: Kind,
        /// The instance looked for.
        instance: u32,
    },
    /// The section is of a version that this build cannot read.
    #[error(
        "state of {kind} {instance} has version {found}, this build reads up to {supported}: use the same or a newer ferry on the destination"
    )]
    Version {
        /// The section's kind.
        kind: Kind,
        /// The section's instance.
        instance: u32,
        /// The version that arrived.
        found: u32,
        /// The newest version that this build reads.
        supported: u32,
    },
    /// The bytes are not an encoding of the state.
    #[error("state of {kind} {instance} cannot be decoded: run the same ferry on both ends")]
    Decode {
        /// The section's kind.
        kind: Kind,
        /// The section's instance.
        instance: u32,
        /// The decoder's complaint.
        source: postcard::Error,
    },
    /// The state cannot be encoded.
    #[error("state of {kind} {instance} cannot be encoded")]
    Encode {
        /// The section's kind.
        kind: Kind,
        /// The section's instance.
        instance: u32,
        /// The encoder's complaint.
        source: postcard::Error,
    },
    /// The state decodes, but its values make no sense.
    #[error("state of {kind} {instance} is refused: {reason}")]
    Invalid {
        /// The section's kind.
        kind: Kind,
        /// The section's instance.
        instance: u32,
        /// What is wrong, with the values.
        reason: String,
    },
}

impl VmState {
    /// A state from sections, in the given order.
    pub fn from_sections(sections: Vec<Section>) -> Self {
        Self { sections }
    }

    /// The sections, in the order in which they were added.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Encodes and adds the state of one instance.
    ///
    /// # Errors
    /// [`StateError::Encode`] when the value cannot be encoded.
    pub fn put<T: Serialize>(
        &mut self,
        kind: Kind,
        instance: u32,
        version: u32,
        state: &T,
    ) -> Result<(), StateError> {
        let bytes = postcard::to_stdvec(state).map_err(|source| StateError::Encode {
            kind,
            instance,
            source,
        })?;
        self.sections.push(Section {
            kind,
            instance,
            version,
            bytes,
        });
        Ok(())
    }

    /// The section of that kind and instance.
    ///
    /// # Errors
    /// [`StateError::Missing`] when it is not there.
    pub fn section(&self, kind: Kind, instance: u32) -> Result<&Section, StateError> {
        self.sections
            .iter()
            .find(|s| s.kind == kind && s.instance == instance)
            .ok_or(StateError::Missing { kind, instance })
    }

    /// Decodes the state of one instance, of exactly the given version.
    ///
    /// # Errors
    /// Missing, of another version, or not decodable.
    pub fn get<T: DeserializeOwned>(
        &self,
        kind: Kind,
        instance: u32,
        version: u32,
    ) -> Result<T, StateError> {
        let section = self.section(kind, instance)?;
        if section.version != version {
            return Err(StateError::Version {
                kind,
                instance,
                found: section.version,
                supported: version,
            });
        }
        postcard::from_bytes(&section.bytes).map_err(|source| StateError::Decode {
            kind,
            instance,
            source,
        })
    }

    /// Saves `owner` as the given instance.
    ///
    /// # Errors
    /// [`StateError::Encode`] when the state cannot be encoded.
    pub fn save<S: Snapshot>(&mut self, instance: u32, owner: &S) -> Result<(), StateError> {
        self.put(S::KIND, instance, S::VERSION, &owner.save())
    }

    /// Makes the given instance from its section and the parts that do not travel.
    ///
    /// # Errors
    /// Missing, of another version, not decodable, or refused by the owner.
    pub fn restore<S: Snapshot>(&self, instance: u32, parts: S::Parts) -> Result<S, StateError> {
        let state = self.get(S::KIND, instance, S::VERSION)?;
        S::restore(state, parts).map_err(|reason| StateError::Invalid {
            kind: S::KIND,
            instance,
            reason,
        })
    }
}

/// Something whose state moves with the guest.
///
/// `save` destructures `self` without `..`, so that a new field does not compile until somebody decides
/// whether it travels. A fresh instance is `restore` of the reset state: one path to build, not two.
pub trait Snapshot: Sized {
    /// The section kind.
    const KIND: Kind;
    /// The version of [`Snapshot::State`] that `save` writes.
    const VERSION: u32;
    /// What travels. Untrusted when it arrives: `restore` checks every value.
    type State: Serialize + DeserializeOwned;
    /// What does not travel and has to be given anew: file descriptors, guest memory, interrupt lines.
    type Parts;

    /// The state at this moment; the owner is quiet while it is taken.
    fn save(&self) -> Self::State;

    /// Builds the owner from what arrived.
    ///
    /// # Errors
    /// What is wrong with the state, with the values, for a person to read.
    fn restore(state: Self::State, parts: Self::Parts) -> Result<Self, String>;
}
