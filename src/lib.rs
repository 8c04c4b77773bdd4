//! castore mounts content-addressed trees (BLAKE3, the Directory/blob model of the tvix and snix stores) read-only
//! over FUSE, and serves their bytes from a local cache that fills itself from a remote.
//!
//! Dependencies point downwards only, in this order; `tests/layering.rs` holds the code to it:
//! `cli`, [`fs`], [`serve`], [`prefetch`], [`cache`], [`copy`], [`import`], [`remote`], [`proto`], [`model`].

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "what `tokio::test` expands to blocks on a future"
    )
)]

pub mod cache;
pub mod cli;
pub mod copy;
pub mod fs;
pub mod import;
pub mod model;
pub mod prefetch;
pub mod proto;
pub mod remote;
pub mod serve;
