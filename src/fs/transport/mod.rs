//! How requests come and answers go.
//!
//! - [`Channel`]: a descriptor that keeps the boundaries of messages: `/dev/fuse`, or a socket
//! - [`fuse`]: mounting on this machine, and the threads that serve a mount

mod channel;
pub mod fuse;

pub use channel::Channel;
