//! What a person asked for in the way of memory.

use std::str::FromStr;

use crate::units::{Size, UnitError};

/// A guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// How much, a multiple of 2 MiB.
    pub bytes: u64,
    /// What it is made of.
    pub backing: MemoryBacking,
}

/// What guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryBacking {
    /// Anonymous memory, with huge pages where the host has them to spare (transparent huge pages).
    #[default]
    Anonymous,
    /// Anonymous memory in huge pages of 2 MiB that the host has set aside (hugetlb), all of it or none.
    HugePages,
    /// A memfd: slower to touch first, and without huge pages, but a move within the host hands it over as it is.
    Memfd,
}

impl From<u64> for MemoryConfig {
    fn from(bytes: u64) -> Self {
        Self {
            bytes,
            backing: MemoryBacking::default(),
        }
    }
}

impl FromStr for MemoryConfig {
    type Err = String;

    /// `SIZE`, then `,backing=anonymous|memfd` and `,hugepages=on|off`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let size = parts.next().unwrap_or_default();
        let Size(bytes) = size.parse().map_err(|error: UnitError| error.to_string())?;
        let (mut backing, mut huge_pages) = (MemoryBacking::Anonymous, false);
        for part in parts {
            match part {
                "backing=anonymous" => backing = MemoryBacking::Anonymous,
                "backing=memfd" => backing = MemoryBacking::Memfd,
                "hugepages=on" => huge_pages = true,
                "hugepages=off" => huge_pages = false,
                other => {
                    return Err(format!(
                        "\"{other}\" behind the size: take backing=anonymous or backing=memfd, and hugepages=on or hugepages=off"
                    ));
                }
            }
        }
        let backing = match (backing, huge_pages) {
            (backing, false) => backing,
            (MemoryBacking::Memfd, true) => {
                return Err("hugepages=on is for anonymous memory: which pages of a file in huge pages were never touched cannot be told, so a move would send, and fill, all of it".into());
            }
            (_, true) => MemoryBacking::HugePages,
        };
        Ok(Self { bytes, backing })
    }
}
