//! Mounting on this machine, over `/dev/fuse`.
//!
//! - [`mount`]: mounting and unmounting
//! - [`Session`]: a mount and the threads that serve it
//! - [`mountinfo`]: what is mounted where

mod mount;
pub mod mountinfo;
mod session;

pub use crate::fs::dispatch::IoMode;
pub use mount::{MountError, MountOptions};
pub use session::{Kernel, Session};
