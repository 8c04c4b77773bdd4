//! Makes trees: reads files from a filesystem or a tar stream, cuts them into chunks and publishes what is new.
//!
//! - [`import_path`], [`import_tar`], [`import_blob`]: the ways in
//! - `pipeline`: hashing and publishing, in parallel, with bounded memory
//! - `chunker`: one file to chunks and manifest
//! - `tree`: the tree in memory, to directories bottom-up
//! - `walk`, `archive`: the sources
//! - [`Unkept`]: what the model cannot hold and the source had

mod archive;
mod blob;
mod chunker;
mod error;
mod pipeline;
mod tree;
mod unkept;
mod walk;

pub use archive::import_tar;
pub use blob::{Pipe, import_blob};
pub use error::ImportError;
pub use pipeline::Progress;
pub use unkept::Unkept;
pub use walk::import_path;

use crate::model::{Node, SizeRule};

/// What may differ from one import to the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Leave sockets, devices and fifos out instead of failing.
    pub skip_special: bool,
    pub size_rule: SizeRule,
}

/// What an import made.
#[derive(Debug)]
pub struct Imported {
    pub root: Node,
    pub unkept: Unkept,
    /// Sockets, devices and fifos that were left out.
    pub skipped: u64,
}
