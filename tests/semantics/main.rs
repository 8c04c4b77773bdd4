//! What `docs/SEMANTICS.md` promises of a mount, where no other test shows it, and that each of its claims names a test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod attributes;
mod document;
mod files;
mod limits;
mod locks;
mod pages;
mod sources;
mod switch;

use std::fs;

use support::{Mount, Scratch, tree};

/// A mount of the sample tree.
fn mounted(options: &[&str]) -> (Scratch, Mount) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let digest = scratch.import(&source);
    let mount = scratch.mount(options.iter().copied().chain([digest.as_str()]));
    (scratch, mount)
}
