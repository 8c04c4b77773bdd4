//! What happens to the cache directory while it is used: other processes that hold its index, disks that are full, read-only or
//! damaged below the filesystem, files and directories that go or come. Readers get the right bytes all the while.
//!
//! - `disk`: a filesystem of the test's own
//! - `index`: an index that is held, cannot be written, or is gone
//! - `directory`: the directory is moved or emptied, or has files of others
//! - `medium`: bytes that change below the filesystem
//! - `scan`: what stays when there is too little room
//! - `shared`: what several processes want at the same time
//! - `slow`: a disk that hangs, or fails to sync

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod directory;
mod disk;
mod index;
mod medium;
mod scan;
mod shared;
mod slow;
#[path = "../support/mod.rs"]
mod support;

use std::{fs, path::PathBuf};

use support::{Scratch, tree};

/// A scratch directory whose cache, in `cache`, has all of the sample tree; and the tree's digest.
fn filled(cache: &str) -> (Scratch, String) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let digest = scratch.import(&source);
    let mut fetch = scratch.command(["fetch", &digest]);
    fetch.env("CASTORE_CACHE_DIR", scratch.path(cache));
    support::succeeded(&support::output(fetch));
    (scratch, digest)
}

/// That everything can be read of the tree, from the cache alone: by commands and by a mount.
fn is_read(scratch: &Scratch, digest: &str, cache: &str) {
    let cache = scratch.path(cache);
    let command = |args: &[&str]| {
        let mut command = scratch.command(args);
        command.env("CASTORE_CACHE_DIR", &cache);
        command.env("CASTORE_OFFLINE", "true");
        command
    };
    let run = |args: &[&str]| support::succeeded(&support::output(command(args)));
    run(&["status"]);
    assert_eq!(run(&["ls", &format!("{digest}/deep")]), "er\nlink\n");
    assert_eq!(run(&["cat", &format!("{digest}/hello")]), "Hello World");
    let mount = command(&[
        "mount",
        "--foreground",
        digest,
        scratch.mnt().to_str().unwrap(),
    ]);
    let mount = support::Mount::start(mount, &scratch.mnt());
    tree::assert_equal(&scratch.path("source"), &mount.path);
    mount.stop();
    // In the background it has a log.
    let background = Background(scratch.mnt());
    let mnt = background.0.to_str().unwrap();
    run(&["mount", digest, mnt]);
    assert_eq!(
        fs::read(background.0.join("hello")).unwrap(),
        b"Hello World"
    );
    assert!(run(&["status"]).contains(mnt));
    run(&["unmount", mnt]);
}

/// A mount whose process ends with it, however the test ends.
struct Background(PathBuf);

impl Drop for Background {
    fn drop(&mut self) {
        support::detach(&self.0);
    }
}
