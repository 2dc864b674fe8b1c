//! The frame by which a host says for a guest where it is now.

use super::backend::HEADER;

/// Bytes of the shortest Ethernet frame without its checksum.
const MIN_FRAME: usize = 60;

/// A reverse ARP request (RFC 903) from `mac` to everybody, with an empty virtio header in front. Bridges and
/// switches learn from its source address behind which port the guest is; nobody answers it. Unlike a gratuitous ARP it
/// needs no IP address, which the host does not know.
pub fn rarp(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // EtherType RARP; hardware Ethernet, protocol IPv4, their address lengths; operation 3, request reverse.
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    // Sender and target: whose protocol address is asked for is the sender itself.
    for _ in 0..2 {
        frame.extend(mac);
        frame.extend([0; 4]);
    }
    frame.resize(HEADER + MIN_FRAME, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_reverse_arp_request_for_its_sender() {
        let mac = [2, 0, 0, 0xaa, 0xbb, 0xcc];
        let frame = rarp(mac);
        assert_eq!(frame.len(), 72);
        let (header, frame) = frame.split_at(12);
        assert_eq!(header, [0; 12]);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
    }
}
