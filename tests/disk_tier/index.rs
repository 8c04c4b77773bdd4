//! An index that is held, cannot be written, or is gone.

use std::{fs, process::Stdio};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::{
    disk::Disk,
    filled, is_read,
    support::{self, Mount, Scratch, eventually, signal, tree, wait},
};

/// A stopped process was enough to let mounts wait for twenty seconds, or fail, with everything cached.
#[test]
#[ignore = "needs /dev/fuse"]
fn readers_do_not_wait_for_whoever_holds_the_write_lock() {
    let (scratch, digest) = filled("cache");
    let mut index = Connection::open(scratch.path("cache/index.sqlite")).unwrap();
    let held = index.transaction_with_behavior(TransactionBehavior::Immediate);
    let held = held.unwrap();
    is_read(&scratch, &digest, "cache");
    drop(held);
    is_read(&scratch, &digest, "cache");
}

#[test]
#[ignore = "needs /dev/fuse and root"]
fn a_full_disk_is_read() {
    for left_a_log in [false, true] {
        let scratch = Scratch::new();
        let disk = Disk::tmpfs(&scratch.path("disk"), 64);
        let (scratch, digest) = refilled(scratch, left_a_log);
        disk.fill();
        is_read(&scratch, &digest, "disk/cache");
        drop(disk);
    }
}

#[test]
#[ignore = "needs /dev/fuse and root"]
fn a_read_only_disk_is_read() {
    for left_a_log in [false, true] {
        let scratch = Scratch::new();
        let disk = Disk::tmpfs(&scratch.path("disk"), 64);
        let (scratch, digest) = refilled(scratch, left_a_log);
        disk.make_read_only();
        is_read(&scratch, &digest, "disk/cache");
        drop(disk);
    }
}

/// Fills a cache on the disk of a scratch directory. With `left_a_log` its last process was killed, so that what it has committed last is
/// in the write-ahead log alone.
fn refilled(scratch: Scratch, left_a_log: bool) -> (Scratch, String) {
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let digest = scratch.import(&source);
    let cache = scratch.path("disk/cache");
    let mut fetch = scratch.command(["fetch", &digest]);
    fetch.env("CASTORE_CACHE_DIR", &cache);
    if left_a_log {
        // Somebody reads what was there before, so that what `fetch` has written stays in the log; and the last process is killed.
        let mut mount = scratch.command(["mount", "--foreground", &digest]);
        mount.arg(scratch.mnt()).env("CASTORE_CACHE_DIR", &cache);
        let mut mount = Mount::start(mount, &scratch.mnt());
        let index = cache.join("index.sqlite");
        let reader = Connection::open_with_flags(index, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM meta").unwrap();
        support::succeeded(&support::output(fetch));
        signal(&mount.child, libc::SIGKILL);
        assert!(wait(&mut mount.child, support::DEADLINE).is_some());
        support::detach(&scratch.mnt());
        drop((mount, reader));
        let log = fs::metadata(cache.join("index.sqlite-wal")).unwrap();
        assert!(log.len() > 0);
    } else {
        support::succeeded(&support::output(fetch));
        let log = fs::metadata(cache.join("index.sqlite-wal"));
        assert!(log.is_err(), "it leaves a log");
    }
    (scratch, digest)
}

/// Connections that were made later found an empty database without tables, and gave EIO for good.
#[test]
#[ignore = "needs /dev/fuse"]
fn an_emptied_directory_is_filled_again() {
    let (scratch, digest) = filled("cache");
    let mount = scratch.mount([digest.as_str()]);
    for entry in fs::read_dir(scratch.path("cache")).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    // Many at once, so that each takes a connection of its own.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| tree::assert_equal(&scratch.path("source"), &mount.path));
        }
    });
    mount.stop();
    assert!(!scratch.path("cache/index.sqlite").exists());
}

/// `status` of a cache that another process writes to changes nothing there.
#[test]
fn a_size_is_set_by_who_fills_the_cache() {
    let (scratch, digest) = filled("cache");
    let complete = || {
        let mut verify = scratch.command(["verify", &digest]);
        verify.stderr(Stdio::null());
        support::output(verify).status.success()
    };
    let quota = || {
        let status = scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["cache"]["quota_bytes"].as_u64().unwrap()
    };
    let before = quota();
    scratch.ok(["status", "--cache-size", "16MiB"]);
    scratch.ok(["ls", "--cache-size", "16MiB", &format!("{digest}/deep")]);
    let cat = format!("{digest}/hello");
    scratch.ok(["cat", "--cache-size", "16MiB", &cat]);
    assert!(complete());
    assert_eq!(quota(), before);
    let told = scratch.ok(["resize", "17MiB"]);
    assert!(told.contains("17.00 MiB"), "{told}");
    eventually("it has the new quota", || quota() == 17 << 20);
}

/// Nothing started any more, and no way out was told.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_damaged_header_costs_what_was_cached() {
    for damage in [
        |index: &mut Vec<u8>| index[..100].fill(0xff),
        |index: &mut Vec<u8>| index.truncate(50),
        Vec::clear,
    ] {
        let (scratch, digest) = filled("cache");
        // Somebody has it open.
        let mount = scratch.mount([digest.as_str()]);
        let path = scratch.path("cache/index.sqlite");
        let mut index = fs::read(&path).unwrap();
        damage(&mut index);
        fs::write(&path, index).unwrap();
        scratch.ok(["fetch", &digest]);
        tree::assert_equal(&scratch.path("source"), &mount.path);
        mount.stop();
        is_read(&scratch, &digest, "cache");
    }
}
