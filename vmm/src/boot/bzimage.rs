//! A bzImage: what Linux distributions ship as `vmlinuz`.
//!
//! ```text
//!   0        0x1f1           (setup_sects + 1) * 512                   end of file
//!   +--------+---------------+---------------------------------------+
//!   | sector | setup header  | protected-mode kernel, at least       |
//!   |        | and real mode | syssize * 16 bytes; goes to 1 MiB     |
//!   +--------+---------------+---------------------------------------+
//! ```
//!
//! The real-mode part is never run: the kernel is entered at its 64-bit entry, 0x200 bytes into the protected
//! mode part (Linux: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"). There it decompresses itself
//! to `pref_address` and needs `init_size` bytes from there on.
//!
//! linux-loader's own bzImage loader takes the header without looking for its end and the kernel up to
//! whatever end the file has, so the headers are checked here and its types are used alone.

use linux_loader::loader::bootparam::setup_header;
use migration::guest::GuestRam;
use vm_memory::ByteValued;

use super::BootError;
use super::image::Image;
use crate::layout::KERNEL_START;

/// Where the setup header begins in the file, and in the boot params.
const HEADER_OFFSET: u64 = 0x1f1;
/// Boot protocol 2.12, the first with `xloadflags`.
const LEAST_VERSION: u16 = 0x20c;
/// `loadflags`: the protected-mode part goes to 1 MiB (and not to 64 KiB, as before Linux 1.3.73).
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;

/// A checked setup header, and where the rest is.
#[derive(Debug)]
pub(super) struct BzImage {
    header: setup_header,
    /// Offset of the protected-mode part in the file.
    offset: u64,
    /// Bytes of it.
    bytes: u64,
}

impl BzImage {
    /// Reads and checks the header of a file that has its magic number.
    pub(super) fn parse(image: &Image) -> Result<Self, BootError> {
        let mut header = setup_header::default();
        image.read(HEADER_OFFSET, header.as_mut_slice())?;
        let (version, loadflags, xloadflags) =
            (header.version, header.loadflags, header.xloadflags);
        if version < LEAST_VERSION {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(image.unsupported(format!("its boot protocol is {major}.{minor:02}")));
        }
        if loadflags & LOADED_HIGH == 0 {
            return Err(image.unsupported("it is a zImage"));
        }
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(image.unsupported("it is a 32-bit kernel, without a 64-bit entry"));
        }
        // 0 stands for 4, for the sake of very old kernels (boot.rst, "setup_sects").
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let offset = (sectors + 1) * 512;
        // Signatures may follow the kernel, so the file may well be longer.
        let needed = offset + u64::from(header.syssize) * 16;
        if image.bytes() < needed || image.bytes() <= offset {
            return Err(image.cut_short(needed.max(offset + 1)));
        }
        clear_beyond_end(&mut header);
        Ok(Self {
            header,
            offset,
            bytes: image.bytes() - offset,
        })
    }

    /// The setup header as it is in the file, for the boot params.
    pub(super) fn header(&self) -> &setup_header {
        &self.header
    }

    /// The end of what it occupies in guest memory before it reads the memory map.
    pub(super) fn end(&self) -> u64 {
        let loaded = KERNEL_START.saturating_add(self.bytes);
        let runs_at = self.header.pref_address.max(KERNEL_START);
        loaded.max(runs_at.saturating_add(u64::from(self.header.init_size)))
    }

    /// Reads the protected-mode part into guest memory.
    pub(super) fn load(&self, image: &Image, ram: &GuestRam) -> Result<(), BootError> {
        image.load(ram, self.offset, KERNEL_START, self.bytes)
    }
}

/// Clears what lies beyond the end that the header itself gives, 0x202 + the byte at 0x201: in older kernels
/// that is code, not header, and the kernel must not take it for fields.
fn clear_beyond_end(header: &mut setup_header) {
    let [_, length] = header.jump.to_le_bytes();
    let end = 0x202 + usize::from(length) - 0x1f1;
    if let Some(beyond) = header.as_mut_slice().get_mut(end..) {
        beyond.fill(0);
    }
}
