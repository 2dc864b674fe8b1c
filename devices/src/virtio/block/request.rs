//! One request of the driver's (virtio 1.2, 5.2.6): what it asks for, whether that can be, and what came of it.

use std::io;

use virtio_bindings::virtio_blk as kind;
use vm_memory::GuestMemoryError;

use super::disk::{Area, Disk, Transfer, TransferError};
use super::features::{
    DISCARD, FLUSH, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_REQUEST_BYTES, MAX_WRITE_ZEROES_SECTORS,
    SECTOR, WRITE_ZEROES,
};
use crate::GuestRam;
use crate::virtio::chain::{self, Chain};
use crate::virtio::queue::QueueError;

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a range of a discard or write-zeroes request: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Bytes of a disk's name (5.2.6).
pub const ID_BYTES: usize = 20;

/// The last byte of a request that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

/// What a request is done with.
#[derive(Debug)]
pub struct Means<'a> {
    /// Guest memory.
    pub ram: &'a GuestRam,
    /// The disk.
    pub disk: &'a Disk,
    /// The way there and back.
    pub transfer: Transfer<'a>,
    /// What the driver has accepted.
    pub features: u64,
    /// The disk's name.
    pub id: &'a [u8; ID_BYTES],
}

/// What came of a request.
#[derive(Debug)]
pub struct Done {
    /// Bytes at the beginning of the writable buffers that hold something.
    pub written: u32,
    /// Bytes read from the disk or written to it.
    pub moved: u64,
    /// Why it has failed, if the disk has.
    pub failure: Option<io::Error>,
}

/// A request in a chain.
struct Request<'a> {
    chain: &'a Chain,
    kind: u32,
    sector: u64,
    /// Bytes behind the header that the driver has written.
    given: u64,
    /// Bytes before the status that the driver may be given.
    room: u64,
}

/// Why a request was not done.
enum Refusal {
    /// With this status: the driver's fault.
    Status(Status),
    /// The disk has failed.
    Disk(io::Error),
    /// The driver's memory is not there.
    Memory(GuestMemoryError),
}

impl From<TransferError> for Refusal {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Disk(error) => Self::Disk(error),
            TransferError::Memory(error) => Self::Memory(error),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<GuestMemoryError> for Refusal {
    fn from(error: GuestMemoryError) -> Self {
        Self::Memory(error)
    }
}

/// Does the request in `chain`, and writes its status.
///
/// # Errors
/// It has no header, or no room for a status.
pub fn serve(chain: &Chain, means: &mut Means<'_>) -> Result<Done, QueueError> {
    let request = Request::parse(means.ram, chain)?;
    let (status, moved, failure) = match request.perform(means) {
        Ok(moved) => (Status::Ok, moved, None),
        Err(Refusal::Status(status)) => (status, 0, None),
        Err(Refusal::Disk(error)) => (Status::IoError, 0, Some(error)),
        Err(Refusal::Memory(error)) => return Err(error.into()),
    };
    chain::write(means.ram, chain.writable(), request.room, &[status.byte()])?;
    // What is told is how much is there from the first byte on: the status belongs to it where no gap comes before it.
    let data = match status {
        Status::Ok => request.returned(),
        Status::IoError | Status::Unsupported => 0,
    };
    let written = data + u64::from(data == request.room);
    Ok(Done {
        written: u32::try_from(written).unwrap_or(0),
        moved,
        failure,
    })
}

impl Status {
    fn byte(self) -> u8 {
        let byte = match self {
            Status::Ok => kind::VIRTIO_BLK_S_OK,
            Status::IoError => kind::VIRTIO_BLK_S_IOERR,
            Status::Unsupported => kind::VIRTIO_BLK_S_UNSUPP,
        };
        byte.to_le_bytes()[0]
    }
}

impl<'a> Request<'a> {
    fn parse(ram: &GuestRam, chain: &'a Chain) -> Result<Self, QueueError> {
        let malformed = |reason| QueueError::Request {
            head: chain.head(),
            reason,
        };
        let mut header = [0; HEADER];
        if chain::read(ram, chain.readable(), 0, &mut header)? < HEADER {
            return Err(malformed("its header is too short"));
        }
        let room = chain::bytes(chain.writable()).checked_sub(1);
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        Ok(Self {
            chain,
            kind: u32::from_le_bytes([a, b, c, d]),
            sector: u64::from_le_bytes(sector),
            given: chain::bytes(chain.readable()) - HEADER as u64,
            room: room.ok_or_else(|| malformed("no room for its status"))?,
        })
    }

    /// Bytes that the driver is given where all goes well, before the status.
    fn returned(&self) -> u64 {
        match self.kind {
            kind::VIRTIO_BLK_T_IN => self.room,
            kind::VIRTIO_BLK_T_GET_ID => ID_BYTES as u64,
            _ => 0,
        }
    }

    /// How many bytes were moved.
    fn perform(&self, means: &mut Means<'_>) -> Result<u64, Refusal> {
        match self.kind {
            kind::VIRTIO_BLK_T_IN => {
                let area = Area {
                    segments: self.chain.writable(),
                    skip: 0,
                    bytes: self.room,
                };
                let offset = self.offset(means.disk, area.bytes)?;
                means.transfer.read(area, offset)?;
                Ok(area.bytes)
            }
            kind::VIRTIO_BLK_T_OUT => {
                let area = Area {
                    segments: self.chain.readable(),
                    skip: HEADER as u64,
                    bytes: self.given,
                };
                let offset = self.offset(means.disk, area.bytes)?;
                writable(means.disk)?;
                means.transfer.write(area, offset)?;
                means.written()?;
                Ok(area.bytes)
            }
            kind::VIRTIO_BLK_T_FLUSH => {
                means.disk.sync()?;
                Ok(0)
            }
            kind::VIRTIO_BLK_T_GET_ID if self.room >= ID_BYTES as u64 => {
                chain::write(means.ram, self.chain.writable(), 0, means.id)?;
                Ok(0)
            }
            kind::VIRTIO_BLK_T_GET_ID => Err(Refusal::Status(Status::IoError)),
            kind::VIRTIO_BLK_T_DISCARD if means.features & DISCARD != 0 => {
                let ranges = self.ranges(means, MAX_DISCARD_SECTORS, 0)?;
                for Range { offset, bytes, .. } in ranges {
                    means.disk.discard(offset, bytes)?;
                }
                means.written()?;
                Ok(0)
            }
            kind::VIRTIO_BLK_T_WRITE_ZEROES if means.features & WRITE_ZEROES != 0 => {
                let unmap = kind::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                let ranges = self.ranges(means, MAX_WRITE_ZEROES_SECTORS, unmap)?;
                // A driver that has come with its guest may know of more ranges.
                let sum: u64 = ranges.iter().map(|range| range.bytes).sum();
                if sum > u64::from(MAX_WRITE_ZEROES_SECTORS) * SECTOR {
                    return Err(Refusal::Status(Status::IoError));
                }
                for range in ranges {
                    means
                        .disk
                        .zero(range.offset, range.bytes, range.flags & unmap != 0)?;
                }
                means.written()?;
                Ok(0)
            }
            _ => Err(Refusal::Status(Status::Unsupported)),
        }
    }

    /// Where on the disk so many bytes lie, if they do.
    fn offset(&self, disk: &Disk, bytes: u64) -> Result<u64, Refusal> {
        if bytes > MAX_REQUEST_BYTES {
            return Err(Refusal::Status(Status::IoError));
        }
        span(disk, self.sector, bytes)
    }

    /// The ranges of a discard or write-zeroes request; all of them are checked before anything is done to the first.
    fn ranges(
        &self,
        means: &Means<'_>,
        max_sectors: u32,
        flags_known: u32,
    ) -> Result<Vec<Range>, Refusal> {
        writable(means.disk)?;
        let count = self.given / RANGE as u64;
        let whole = self.given.is_multiple_of(RANGE as u64);
        if !whole || count == 0 || count > u64::from(MAX_RANGES) {
            return Err(Refusal::Status(Status::IoError));
        }
        let read = |index: u64| {
            let mut range = [0; RANGE];
            let skip = HEADER as u64 + index * RANGE as u64;
            chain::read(means.ram, self.chain.readable(), skip, &mut range)?;
            Range::parse(range, means.disk, max_sectors, flags_known)
        };
        (0..count).map(read).collect()
    }
}

impl Means<'_> {
    /// Something was written. A driver that has no FLUSH takes it for safe now (5.2.6.2).
    fn written(&self) -> io::Result<()> {
        match self.features & FLUSH {
            0 => self.disk.sync(),
            _ => Ok(()),
        }
    }
}

/// A part of a disk.
struct Range {
    offset: u64,
    bytes: u64,
    flags: u32,
}

impl Range {
    fn parse(
        bytes: [u8; RANGE],
        disk: &Disk,
        max_sectors: u32,
        flags_known: u32,
    ) -> Result<Self, Refusal> {
        let [sector @ .., _, _, _, _, _, _, _, _] = bytes;
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h] = bytes;
        let sectors = u32::from_le_bytes([a, b, c, d]);
        let flags = u32::from_le_bytes([e, f, g, h]);
        if flags & !flags_known != 0 {
            return Err(Refusal::Status(Status::Unsupported));
        }
        if sectors == 0 || sectors > max_sectors {
            return Err(Refusal::Status(Status::IoError));
        }
        let bytes = u64::from(sectors) * SECTOR;
        let offset = span(disk, u64::from_le_bytes(sector), bytes)?;
        Ok(Self {
            offset,
            bytes,
            flags,
        })
    }
}

/// The offset of a span that lies on the disk, in whole blocks.
fn span(disk: &Disk, sector: u64, bytes: u64) -> Result<u64, Refusal> {
    let block = u64::from(disk.alignment());
    let offset = sector.checked_mul(SECTOR);
    let sound = |&offset: &u64| {
        let end = offset.checked_add(bytes);
        offset.is_multiple_of(block)
            && bytes.is_multiple_of(block)
            && end.is_some_and(|end| end <= disk.bytes())
    };
    offset.filter(sound).ok_or(Refusal::Status(Status::IoError))
}

fn writable(disk: &Disk) -> Result<(), Refusal> {
    match disk.read_only() {
        true => Err(Refusal::Status(Status::IoError)),
        false => Ok(()),
    }
}
