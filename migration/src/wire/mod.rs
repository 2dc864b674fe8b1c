#![doc = include_str!("../../PROTOCOL.md")]

pub mod channel;
pub mod codec;
pub mod connect;
pub mod frame;
pub mod iov;
mod parse;
pub mod preamble;
pub mod transport;

pub use connect::{Connect, ConnectError, Connected, TcpTarget, UnixTarget};
pub use transport::Transport;
