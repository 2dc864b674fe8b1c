//! Feature bits and limits of a disk (virtio 1.2, 5.2.3, 5.2.4).
//!
//! Not offered is CONFIG_WCE, by which a driver switches the cache off: what was written before would have to be on the
//! disk when the switch is done, and that is a write to the configuration space, by a vCPU, which must not wait for a
//! disk.

use virtio_bindings::virtio_blk as bit;

/// SIZE_MAX: a segment has at most [`MAX_SEGMENT_BYTES`].
pub const SIZE_MAX: u64 = 1 << bit::VIRTIO_BLK_F_SIZE_MAX;
/// SEG_MAX: a request has at most [`MAX_SEGMENTS`] segments of data.
pub const SEG_MAX: u64 = 1 << bit::VIRTIO_BLK_F_SEG_MAX;
/// RO: nothing can be written.
pub const RO: u64 = 1 << bit::VIRTIO_BLK_F_RO;
/// BLK_SIZE: how large a block is that is best written at once.
pub const BLK_SIZE: u64 = 1 << bit::VIRTIO_BLK_F_BLK_SIZE;
/// FLUSH: a driver that accepts it says when writes must be on the disk; else each one is before it completes.
pub const FLUSH: u64 = 1 << bit::VIRTIO_BLK_F_FLUSH;
/// TOPOLOGY: how large blocks are on the disk below.
pub const TOPOLOGY: u64 = 1 << bit::VIRTIO_BLK_F_TOPOLOGY;
/// MQ: there is more than one queue.
pub const MQ: u64 = 1 << bit::VIRTIO_BLK_F_MQ;
/// DISCARD: sectors whose contents do not matter any more can be given back.
pub const DISCARD: u64 = 1 << bit::VIRTIO_BLK_F_DISCARD;
/// WRITE_ZEROES: sectors can be zeroed without a buffer of zeros.
pub const WRITE_ZEROES: u64 = 1 << bit::VIRTIO_BLK_F_WRITE_ZEROES;

/// Bytes of a sector, the unit of the protocol whatever the disk's block is (5.2.2).
pub const SECTOR: u64 = 512;
/// The most queues of a disk: as many as a guest has vCPUs at most.
pub const MAX_QUEUES: u16 = 8;
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// The most segments of data in a request: a chain has two descriptors besides, for header and status.
pub const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most bytes of a segment, 128 KiB.
pub const MAX_SEGMENT_BYTES: u32 = 128 << 10;
/// The most bytes that a request reads or writes, 31.75 MiB; larger ones fail. So a pause, which waits for the request
/// being done, does not wait long.
pub const MAX_REQUEST_BYTES: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64;
/// The most sectors of a discarded range, 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 2 << 20;
/// The most sectors of a zeroed range, 32 MiB: where the host's file system cannot do it they are written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 64 << 10;
/// The most ranges of a discard request. One of write-zeroes has one, for the same reason as [`MAX_REQUEST_BYTES`].
pub const MAX_RANGES: u32 = 16;
/// Bytes of a physical block, as TOPOLOGY tells it: a page of the host's cache, and a block of nearly all file systems.
pub const PHYSICAL_BLOCK: u32 = 4096;

/// What a disk offers.
pub fn offered(read_only: bool, queues: u16) -> u64 {
    let always = SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY;
    let access = if read_only {
        RO
    } else {
        DISCARD | WRITE_ZEROES
    };
    let queues = if queues > 1 { MQ } else { 0 };
    always | access | queues
}
