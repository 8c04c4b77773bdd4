//! The directory is moved or emptied, or has files of others.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, chown},
};

use crate::{
    filled, is_read,
    support::{self, Scratch, before, tree},
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

/// Files were left in it that its owner could not read, by whose name nobody was told.
#[test]
#[ignore = "needs root"]
fn a_directory_of_another_user_is_refused() {
    const OTHER: u32 = 54_321;
    let scratch = Scratch::new();
    let source = scratch.path("source");
    tree::file(&source, "f", b"content", false);
    let digest = scratch.import(&source);
    let cache = scratch.path("theirs");
    fs::create_dir(&cache).unwrap();
    chown(&cache, Some(OTHER), Some(OTHER)).unwrap();
    let path = format!("{digest}/f");
    let mut cat = scratch.command(["cat", &path]);
    cat.env("CASTORE_CACHE_DIR", &cache);
    let error = support::failed(&support::output(cat));
    assert!(
        error.contains("id 54321") && error.contains("--cache-dir"),
        "{error}"
    );
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    // Its owner uses it.
    let mut cat = scratch.command(["cat", &path]);
    cat.env("CASTORE_CACHE_DIR", &cache);
    let id = OTHER.to_string();
    let user = ["--reuid", &id, "--regid", &id, "--clear-groups"];
    let cat = support::output(before("setpriv", user, &cat));
    assert_eq!(support::succeeded(&cat), "content");
    let index = fs::metadata(cache.join("index.sqlite")).unwrap();
    assert_eq!(index.uid(), OTHER);
}
