//! The transport over `/dev/fuse`: decodes requests, calls the filesystem, encodes answers.
//!
//! - [`Session`]: a mount and the threads that serve it
//! - `device`: reading requests, writing answers
//! - `wire`: the layout of the messages
//! - `init`: what is agreed with the kernel
//! - `dispatch`: the operations that can miss, and READ answered from mapped slices
//! - `pending`: requests that wait for a fetch, and interrupting them
//! - [`mountinfo`]: what is mounted where
//! - `rest`: all other operations, through fuse-backend-rs

mod device;
mod dispatch;
mod init;
pub mod mountinfo;
mod pending;
mod rest;
mod session;
mod wire;

pub use init::IoMode;
pub use session::{MountError, MountOptions, RootEntries, Session};
