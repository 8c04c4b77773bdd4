//! What several processes want of a remote at the same time comes once.

use std::{fs, path::Path, process::Stdio};

use crate::support::{self, Mount, Scratch, signal, tree, wait};

const FILES: u64 = 120;
const LEN: usize = 300_000;

fn tree_of(scratch: &Scratch) -> String {
    let source = scratch.path("source");
    for number in 0..FILES {
        let content = tree::noise(number, LEN);
        tree::file(&source, &format!("{number}"), &content, false);
    }
    let digest = scratch.import(&source);
    scratch.clear_cache();
    digest
}

/// Bytes of chunks that all processes have fetched.
fn fetched(scratch: &Scratch) -> u64 {
    let status = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["cache"]["counters"]["fetched_bytes"]
        .as_u64()
        .unwrap()
}

/// A machine that is busy elsewhere may have somebody fetch what another process takes too long for.
fn is_fetched_once(scratch: &Scratch) {
    let (fetched, all) = (fetched(scratch), FILES * LEN as u64);
    assert!(
        fetched >= all && fetched * 2 <= all * 3,
        "{fetched} of {all}"
    );
}

fn is_read(dir: &Path) {
    for number in 0..FILES {
        let bytes = fs::read(dir.join(number.to_string())).unwrap();
        assert!(bytes == tree::noise(number, LEN), "{number}");
    }
}

/// Four fetches brought 3.2 times the bytes.
#[test]
fn four_fetches_bring_one_tree() {
    let scratch = Scratch::new();
    let digest = tree_of(&scratch);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| scratch.ok(["fetch", &digest]));
        }
    });
    is_fetched_once(&scratch);
    scratch.ok(["verify", &digest]);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn two_mounts_bring_one_tree() {
    let scratch = Scratch::new();
    let digest = tree_of(&scratch);
    let second = scratch.path("second");
    fs::create_dir(&second).unwrap();
    let first = scratch.mount([digest.as_str()]);
    let mut command = scratch.command(["mount", "--foreground", &digest]);
    command.arg(&second);
    let second = Mount::start(command, &second);
    std::thread::scope(|scope| {
        for mount in [&first, &second] {
            scope.spawn(|| is_read(&mount.path));
        }
    });
    first.stop();
    second.stop();
    is_fetched_once(&scratch);
}

/// Whoever waits for another process does not wait for ever.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_process_that_is_stopped_holds_up_nobody() {
    let scratch = Scratch::new();
    let digest = tree_of(&scratch);
    // So slow that it is under way for as long as it takes.
    let mut fetch = scratch.command(["fetch", "--bandwidth", "1MiB", &digest]);
    let mut fetch = fetch.stderr(Stdio::null()).spawn().unwrap();
    let mount = scratch.mount([digest.as_str()]);
    support::eventually("the fetch has begun", || {
        let bytes = fs::read_dir(scratch.path("cache/data")).unwrap().count();
        bytes > 0
    });
    signal(&fetch, libc::SIGSTOP);
    support::within(support::DEADLINE, "reading", {
        let path = mount.path.clone();
        move || is_read(&path)
    });
    signal(&fetch, libc::SIGCONT);
    signal(&fetch, libc::SIGTERM);
    wait(&mut fetch, support::DEADLINE).unwrap();
    mount.stop();
}
