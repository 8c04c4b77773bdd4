//! The directory is moved or emptied, or has files of others.

use std::fs::{self, File};

use crate::{
    filled, is_read,
    support::{Scratch, tree},
};

fn verified(scratch: &Scratch, digest: &str) -> String {
    scratch.ok(["verify", digest])
}

/// A mount took what it did not find for broken, dropped the rows and removed the files: all that was cached was gone.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_directory_that_is_away_for_a_moment_loses_nothing() {
    let (scratch, digest) = filled("cache");
    let mount = scratch.mount([digest.as_str()]);
    fs::rename(scratch.path("cache"), scratch.path("away")).unwrap();
    tree::assert_equal(&scratch.path("source"), &mount.path);
    fs::rename(scratch.path("away"), scratch.path("cache")).unwrap();
    tree::assert_equal(&scratch.path("source"), &mount.path);
    mount.stop();
    is_read(&scratch, &digest, "cache");
    verified(&scratch, &digest);
}

/// It counted as the cache's, so that everything else went.
#[test]
fn a_file_of_somebody_else_takes_nothing_away() {
    let (scratch, digest) = filled("cache");
    scratch.ok(["resize", "32MiB"]);
    let foreign = scratch.path("cache/somebody's");
    File::create(&foreign).unwrap().set_len(101 << 20).unwrap();
    let status = scratch.ok(["status"]);
    assert!(
        status.contains("101.00 MiB in files that are not"),
        "{status}"
    );
    verified(&scratch, &digest);
    assert_eq!(fs::metadata(foreign).unwrap().len(), 101 << 20);
}
