//! The wire: bytes, connections and what the messages mean. The protocol, byte by byte:
//!
#![doc = include_str!("../../PROTOCOL.md")]

pub mod channel;
pub mod codec;
pub mod connect;
pub mod file;
pub mod frame;
pub mod iov;
mod lending;
mod local;
mod parse;
pub mod preamble;
pub mod tls;
pub mod transport;

pub use connect::{Connect, ConnectError, Connected, TcpTarget, UnixTarget};
pub use local::Local;
pub use tls::TlsTarget;
pub use transport::Transport;
