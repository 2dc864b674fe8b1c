//! The registers as the driver reads them: a page of memory, which always holds what they say.
//!
//! The VMM can put it into the guest's address space, read-only (KVM_MEM_READONLY; Documentation/virt/kvm/api.rst,
//! 4.35). Then no read of a register is a way out of the guest, above all not that of InterruptStatus, which a driver
//! reads in every interrupt; writes come out as they do without. Reads that come out all the same are answered from
//! here.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio as reg;

use super::{MMIO_LEN, NEEDS_RESET};
use crate::virtio::device::VirtioDevice;

/// "virt" in little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Version 2: not the legacy interface.
const VERSION: u32 = 2;
/// "FRRY" in little-endian; drivers do not look at it.
const VENDOR: u32 = 0x5952_5246;
const CONFIG_SPACE: u32 = reg::VIRTIO_MMIO_CONFIG;
/// Bytes of the configuration space: up to [`MMIO_LEN`].
const CONFIG_BYTES: usize = 0x100;
const _: () = assert!(CONFIG_SPACE as u64 + CONFIG_BYTES as u64 == MMIO_LEN);
/// 32-bit words of a page of the processor's.
const WORDS: usize = 1024;

/// What a driver reads. The registers are little-endian, as is every host that there is KVM of this kind for.
#[repr(C, align(4096))]
pub struct RegisterPage([AtomicU32; WORDS]);

impl Default for RegisterPage {
    /// Registers of no device.
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; WORDS])
    }
}

impl std::fmt::Debug for RegisterPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterPage")
            .field("status", &self.status())
            .field("interrupts", &self.interrupts())
            .finish_non_exhaustive()
    }
}

impl RegisterPage {
    /// What does not change is there from now on.
    pub(super) fn begin(&self, device_type: u32) {
        self.put(reg::VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        self.put(reg::VIRTIO_MMIO_VERSION, VERSION);
        self.put(reg::VIRTIO_MMIO_DEVICE_ID, device_type);
        self.put(reg::VIRTIO_MMIO_VENDOR_ID, VENDOR);
        // No shared memory region exists: length and address are all ones (4.2.2.1).
        for offset in (reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
            self.put(offset, u32::MAX);
        }
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // At most the index of the last word.
        &self.0[offset as usize / 4 % WORDS]
    }

    /// Sets a register that nobody else sets.
    pub(super) fn put(&self, offset: u32, value: u32) {
        self.word(offset).store(value, Ordering::SeqCst);
    }

    /// The device status (2.1).
    pub(super) fn status(&self) -> u32 {
        self.word(reg::VIRTIO_MMIO_STATUS).load(Ordering::SeqCst)
    }

    /// Sets bits of the status, and says which there were.
    pub(super) fn add_status(&self, bits: u32) -> u32 {
        self.word(reg::VIRTIO_MMIO_STATUS)
            .fetch_or(bits, Ordering::SeqCst)
    }

    /// Whether the device is out of order until the driver resets it.
    pub(super) fn is_broken(&self) -> bool {
        self.status() & NEEDS_RESET != 0
    }

    /// The interrupts that the driver has not acknowledged.
    pub(super) fn interrupts(&self) -> u32 {
        self.word(reg::VIRTIO_MMIO_INTERRUPT_STATUS)
            .load(Ordering::SeqCst)
    }

    /// Adds interrupts.
    pub(super) fn add_interrupts(&self, why: u32) {
        self.word(reg::VIRTIO_MMIO_INTERRUPT_STATUS)
            .fetch_or(why, Ordering::SeqCst);
    }

    /// The driver acknowledges interrupts.
    pub(super) fn acknowledge(&self, why: u32) {
        self.word(reg::VIRTIO_MMIO_INTERRUPT_STATUS)
            .fetch_and(!why, Ordering::SeqCst);
    }

    /// How often the configuration space has changed.
    pub(super) fn generation(&self) -> u32 {
        self.word(reg::VIRTIO_MMIO_CONFIG_GENERATION)
            .load(Ordering::SeqCst)
    }

    /// Shows the device's configuration space as it is now. A driver that begins to read before sees another generation
    /// afterwards, and reads again (2.5.3.2): it counts before the first word and behind the last. One that begins in
    /// between may see some words of before and some of after, so nothing that changes while a driver runs may be longer
    /// than a word.
    pub(super) fn show_config(&self, device: &dyn VirtioDevice) {
        let mut bytes = [0; CONFIG_BYTES];
        device.read_config(0, &mut bytes);
        let words = bytes.as_chunks().0.iter();
        let words = (CONFIG_SPACE..)
            .step_by(4)
            .zip(words.map(|word| u32::from_le_bytes(*word)));
        let is_there = |(offset, value)| self.word(offset).load(Ordering::SeqCst) == value;
        if words.clone().all(is_there) {
            return;
        }
        let generation = self.word(reg::VIRTIO_MMIO_CONFIG_GENERATION);
        generation.fetch_add(1, Ordering::SeqCst);
        words.for_each(|(offset, value)| self.put(offset, value));
        generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Shows the configuration space of a device that has just been made, at this generation.
    pub(super) fn begin_config(&self, device: &dyn VirtioDevice, generation: u32) {
        self.show_config(device);
        self.put(reg::VIRTIO_MMIO_CONFIG_GENERATION, generation);
    }

    /// Reads as from memory; what lies behind its end reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let load = |offset: u64| {
            let word = usize::try_from(offset / 4)
                .ok()
                .and_then(|at| self.0.get(at));
            word.map_or(0, |word| word.load(Ordering::SeqCst))
                .to_le_bytes()
        };
        // The usual access sees the word as it was at one instant.
        if let ([a, b, c, d], 0) = (&mut *data, offset % 4) {
            [*a, *b, *c, *d] = load(offset);
            return;
        }
        for (n, byte) in (0..).zip(data) {
            let at = offset.saturating_add(n);
            let [a, b, c, d] = load(at);
            *byte = match at % 4 {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            };
        }
    }
}
