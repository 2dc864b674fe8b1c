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

/// Declares the kinds, each with its name for people: none is without one, and none is missing in [`Kind::ALL`].
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Kind = Kind($number);)*

            /// All that this build knows.
            pub const ALL: &'static [Kind] = &[$(Self::$name),*];
        }

        impl fmt::Display for Kind {
            /// Its name for people.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(Self::$name => f.write_str($text),)*
                    Self(number) => write!(f, "section {number}, instance"),
                }
            }
        }
    };
}

kinds! {
    /// One vCPU: registers, MSRs, local APIC, XSAVE area. The instance is the vCPU's index.
    VCPU = 1, "vCPU";
    /// The in-kernel interrupt controllers (PIC pair, IOAPIC), the PIT and the kvmclock.
    VM = 2, "interrupt controllers and clock";
    /// A 16550 serial port.
    SERIAL = 16, "serial port";
    /// The virtio-mmio transport of one device with its queues. The instance is the slot.
    VIRTIO_MMIO = 17, "virtio-mmio slot";
    /// virtio-net. The instance is the slot.
    VIRTIO_NET = 18, "virtio-net in slot";
    /// virtio-rng. The instance is the slot.
    VIRTIO_RNG = 19, "virtio-rng in slot";
    /// The heartbeat port of the bare test guest.
    HEARTBEAT = 20, "heartbeat port";
    /// virtio-blk. The instance is the slot.
    VIRTIO_BLK = 21, "virtio-blk in slot";
    /// virtio-balloon. The instance is the slot.
    VIRTIO_BALLOON = 22, "virtio-balloon in slot";
    /// virtio over PCI: what a slot has beside its virtio-mmio section. The instance is the slot.
    VIRTIO_PCI = 23, "virtio-pci function in slot";
    /// The PCI bus.
    PCI_BUS = 24, "PCI bus";
    /// Description: vCPU count, CPUID, TSC frequency, MSRs. Sent before the first page.
    CPU_MODEL = 64, "CPU model";
    /// Description: which devices sit in which slots, with their features. Sent before the first page.
    DEVICE_LIST = 65, "device list";
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
    /// The bytes go on behind the state.
    #[error(
        "state of {kind} {instance} has {extra} bytes too many: run the same ferry on both ends"
    )]
    Trailing {
        /// The section's kind.
        kind: Kind,
        /// The section's instance.
        instance: u32,
        /// How many.
        extra: usize,
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
    /// Missing, of another version, not decodable, or longer than the state.
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
        let decoded = postcard::take_from_bytes(&section.bytes);
        let (state, rest) = decoded.map_err(|source| StateError::Decode {
            kind,
            instance,
            source,
        })?;
        match rest.len() {
            0 => Ok(state),
            extra => Err(StateError::Trailing {
                kind,
                instance,
                extra,
            }),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read_to_its_last_byte() {
        let with = |bytes: &[u8]| {
            let section = Section {
                kind: Kind::SERIAL,
                instance: 3,
                version: 1,
                bytes: bytes.to_vec(),
            };
            VmState::from_sections(vec![section]).get::<u16>(Kind::SERIAL, 3, 1)
        };
        assert_eq!(with(&[0x80, 1]).unwrap(), 128);
        let more = with(&[0x80, 1, 0]).unwrap_err().to_string();
        assert!(
            more.contains("serial port 3 has 1 bytes too many"),
            "{more}"
        );
        assert!(matches!(with(&[0x80]), Err(StateError::Decode { .. })));
    }

    #[test]
    fn kinds_have_numbers_and_names_of_their_own() {
        let mut numbers: Vec<_> = Kind::ALL.iter().map(|kind| kind.0).collect();
        let mut names: Vec<_> = Kind::ALL.iter().map(Kind::to_string).collect();
        numbers.sort_unstable();
        names.sort_unstable();
        numbers.dedup();
        names.dedup();
        assert_eq!(
            (numbers.len(), names.len()),
            (Kind::ALL.len(), Kind::ALL.len())
        );
        assert_eq!(Kind(99).to_string(), "section 99, instance");
    }
}
