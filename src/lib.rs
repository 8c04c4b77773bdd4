//! castore mounts content-addressed trees (BLAKE3, the Directory/blob model of the tvix and snix stores) read-only
//! over FUSE, and serves their bytes from a local cache that fills itself from a remote.
//!
//! Dependencies point downwards only, in this order; `tests/layering.rs` holds the code to it:
//! `cli`, [`fs`], [`prefetch`], [`cache`], [`import`], [`remote`], [`proto`], [`model`].

pub mod model;
pub mod proto;
