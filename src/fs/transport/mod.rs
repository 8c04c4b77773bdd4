//! How requests come and answers go.
//!
//! - [`Channel`]: a descriptor that keeps the boundaries of messages: `/dev/fuse`, or a socket
//! - [`fuse`]: mounting on this machine, and the threads that serve a mount
//! - `virtiofs`: a guest's requests, over vhost-user

mod channel;
pub mod fuse;
#[cfg(all(feature = "virtiofs", target_os = "linux"))]
pub mod virtiofs;

pub use channel::Channel;
