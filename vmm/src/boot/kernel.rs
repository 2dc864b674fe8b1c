//! Which kind of kernel a file holds, if any.

use std::borrow::Cow;
use std::path::Path;

use migration::guest::GuestRam;

use super::bzimage::BzImage;
use super::elf::ElfKernel;
use super::image::Image;
use super::{BootError, Protocol};
use crate::layout;

/// A kernel whose headers were checked; nothing of it is in guest memory yet.
#[derive(Debug)]
pub struct Kernel {
    image: Image,
    format: Format,
}

#[derive(Debug)]
pub(super) enum Format {
    BzImage(BzImage),
    Elf(ElfKernel),
}

impl Kernel {
    /// Opens and checks a kernel file.
    ///
    /// # Errors
    /// It cannot be read, is not a kernel, is not one for this machine, or is cut short.
    pub fn open(path: &Path) -> Result<Self, BootError> {
        Self::parse(Image::kernel(path)?)
    }

    /// Checks a kernel that is in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, BootError> {
        Self::parse(Image::built_in(name, bytes.into()))
    }

    fn parse(image: Image) -> Result<Self, BootError> {
        // Long enough to hold all magic numbers; a bzImage's first header begins at 0x1f1.
        let mut head = vec![0; 0x210.min(usize::try_from(image.bytes()).unwrap_or(usize::MAX))];
        image.read(0, &mut head)?;
        let format = if head.get(0x202..0x206) == Some(b"HdrS") {
            Format::BzImage(BzImage::parse(&image)?)
        } else if head.starts_with(b"\x7fELF") {
            Format::Elf(ElfKernel::parse(&image)?)
        } else {
            return Err(BootError::NotAKernel {
                path: image.path().to_owned(),
                found: match head.len() {
                    // Magic numbers lie at its front, the boot header behind: too short to tell.
                    1..0x206 => format!(
                        "{}, of {} bytes, too few for a kernel",
                        describe(&head),
                        head.len()
                    ),
                    _ => describe(&head),
                },
            });
        };
        Ok(Self { image, format })
    }

    /// How it is started.
    pub fn protocol(&self) -> Protocol {
        match self.format {
            Format::BzImage(_) => Protocol::Linux64,
            Format::Elf(_) => Protocol::Pvh,
        }
    }

    /// Whether it is Linux, as far as its format tells: a bzImage always is, an ELF kernel may be anything.
    pub fn is_linux(&self) -> bool {
        matches!(&self.format, Format::BzImage(_))
            || matches!(&self.format, Format::Elf(elf) if elf.is_linux())
    }

    pub(super) fn format(&self) -> &Format {
        &self.format
    }

    /// The most bytes of a command line, without the closing zero.
    pub(super) fn cmdline_max(&self) -> u64 {
        let room = layout::CMDLINE_SIZE - 1;
        match &self.format {
            Format::BzImage(image) => u64::from(image.header().cmdline_size).min(room),
            Format::Elf(_) => room,
        }
    }

    /// Where the initramfs has to end at the latest.
    pub(super) fn initramfs_end(&self) -> u64 {
        match &self.format {
            Format::BzImage(image) => u64::from(image.header().initrd_addr_max) + 1,
            Format::Elf(_) => layout::LOW_RAM_END,
        }
    }

    /// The end of what the kernel occupies before it knows what else is in memory, if that is RAM.
    pub(super) fn place(&self, low_end: u64, initramfs: &Option<Image>) -> Result<u64, BootError> {
        let end = match &self.format {
            Format::BzImage(image) => image.end(),
            Format::Elf(image) => image.end(),
        };
        let initramfs = initramfs.as_ref().map_or(0, Image::bytes);
        if end > low_end {
            let all = end.saturating_add(initramfs);
            return Err(BootError::memory(all, low_end, initramfs));
        }
        Ok(end)
    }

    pub(super) fn load(&self, ram: &GuestRam) -> Result<(), BootError> {
        match &self.format {
            Format::BzImage(kernel) => kernel.load(&self.image, ram),
            Format::Elf(kernel) => kernel.load(&self.image, ram),
        }
    }
}

/// Says what a file that is no kernel seems to be, from its first bytes.
fn describe(head: &[u8]) -> String {
    const MAGIC: [(&[u8], &str); 13] = [
        (b"\x1f\x8b", "gzip data (unpack it first)"),
        (b"\xfd7zXZ\0", "xz data (unpack it first)"),
        (b"\x28\xb5\x2f\xfd", "zstd data (unpack it first)"),
        (b"\x04\x22\x4d\x18", "lz4 data (unpack it first)"),
        (b"BZh", "bzip2 data (unpack it first)"),
        (b"#!", "a script"),
        (b"07070", "a cpio archive (an initramfs?)"),
        (b"!<arch>\n", "an ar archive (a Debian package?)"),
        (b"\xed\xab\xee\xdb", "an RPM package"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"PK\x03\x04", "a zip archive"),
        (b"{", "text"),
        (b"MZ", "a PE file without Linux's boot header"),
    ];
    if head.is_empty() {
        return "an empty file".to_owned();
    }
    if let Some((_, name)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*name).to_owned();
    }
    if head.get(0x38..0x3c) == Some(b"ARM\x64") {
        return "an arm64 kernel".to_owned();
    }
    if head.iter().all(|&byte| byte == 0) {
        return "a file that begins with zeros".to_owned();
    }
    if head
        .iter()
        .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace())
    {
        return "text".to_owned();
    }
    let start: Vec<String> = head.iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("a file that begins with the bytes {}", start.join(" "))
}
