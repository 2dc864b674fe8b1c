//! How many queues a tap of several has, whoever holds them. The kernel lets any number of processes take such a tap,
//! and divides its frames among them; two guests on one tap would get half of each other's.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// Bytes of `struct nlmsghdr`, `struct ifinfomsg` and `struct rtattr` (include/uapi/linux/netlink.h, rtnetlink.h).
/// Numbers are in the order of the host, which is little-endian.
const MESSAGE: usize = 16;
const LINK: usize = 16;
const ATTRIBUTE: usize = 4;
/// IFLA_TUN_NUM_QUEUES and IFLA_TUN_NUM_DISABLED_QUEUES (include/uapi/linux/if_link.h).
const NUM_QUEUES: u16 = 8;
const NUM_DISABLED_QUEUES: u16 = 9;

/// The queues of tap `name`, attached or detached. None where the kernel does not tell: it is older than 4.17, or there
/// is no such interface.
pub fn queues(name: &str) -> Option<u32> {
    let index = nix::net::if_::if_nametoindex(name).ok()?;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .ok()?;
    parse(&ask(&socket, index)?)
}

/// One RTM_GETLINK, and its answer.
fn ask(socket: &OwnedFd, index: u32) -> Option<Vec<u8>> {
    let mut request = [0u8; MESSAGE + LINK];
    let len = u32::try_from(request.len()).ok()?;
    request[..4].copy_from_slice(&len.to_le_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETLINK.to_le_bytes());
    let flags = u16::try_from(libc::NLM_F_REQUEST).ok()?;
    request[6..8].copy_from_slice(&flags.to_le_bytes());
    request[MESSAGE + 4..MESSAGE + 8].copy_from_slice(&index.to_le_bytes());
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).ok()?;
    let mut answer = vec![0; 1 << 15];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
    answer.truncate(len);
    Some(answer)
}

/// The count in an answer.
fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_le_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != libc::RTM_NEWLINK {
        return None;
    }
    let info = attribute(answer.get(MESSAGE + LINK..)?, libc::IFLA_LINKINFO)?;
    let tun = attribute(info, libc::IFLA_INFO_DATA)?;
    let count = |kind| Some(u32::from_le_bytes(*attribute(tun, kind)?.first_chunk()?));
    count(NUM_QUEUES)?.checked_add(count(NUM_DISABLED_QUEUES)?)
}

/// The payload of the first attribute of that type.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_le_bytes(*bytes.first_chunk()?));
        let kind = u16::from_le_bytes(*bytes.get(2..)?.first_chunk()?);
        let payload = bytes.get(ATTRIBUTE..len)?;
        // Its highest bit says that there are attributes within.
        if kind & 0x7fff == wanted {
            return Some(payload);
        }
        bytes = bytes.get(len.next_multiple_of(ATTRIBUTE)..)?;
    }
}
