//! Large blobs from a server that does not cut them.

use std::{
    fs,
    os::unix::fs::FileExt,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use castore::model::{Digest, Node};

use crate::support::{self, Scratch, plain::Plain, tree};

const SIZE: usize = 9_000_001;

fn served() -> (Plain, Vec<u8>, String) {
    let plain = Plain::start("tvix");
    let content = tree::noise(11, SIZE);
    let large = plain.blob(content.clone());
    let small = plain.blob(b"small".to_vec());
    let Node::Directory { digest, .. } = plain.tree([("large", large), ("small", small)]) else {
        panic!("not a directory");
    };
    (plain, content, digest.to_string())
}

#[test]
#[ignore = "needs /dev/fuse"]
fn it_is_read_once_and_served_once_it_is_verified() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    let mount = scratch.mount(["--remote", &plain.address(), &root]);
    // Broken off in the middle: read again and compared.
    plain.state.break_after.store(5_000_000, Ordering::SeqCst);
    assert!(fs::read(mount.at("large")).unwrap() == content);
    assert_eq!(plain.state.reads.load(Ordering::SeqCst), 2);
    assert_eq!(fs::read_to_string(mount.at("small")).unwrap(), "small");
    mount.stop();
    // All of it is in the cache, in parts.
    let reads = plain.state.reads.load(Ordering::SeqCst);
    let mount = scratch.mount(["--remote", &plain.address(), &root]);
    assert!(fs::read(mount.at("large")).unwrap() == content);
    assert_eq!(plain.state.reads.load(Ordering::SeqCst), reads);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn nothing_of_a_wrong_one_is_seen() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    plain.state.lies.store(true, Ordering::SeqCst);
    let mount = scratch.mount(["--remote", &plain.address(), &root]);
    let file = fs::File::open(mount.at("large")).unwrap();
    let mut first = [0; 4096];
    let error = file.read_at(&mut first, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    plain.state.lies.store(false, Ordering::SeqCst);
    assert!(fs::read(mount.at("large")).unwrap() == content);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_trusted_stream_is_served_as_it_comes() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    plain.state.slow.store(20, Ordering::SeqCst);
    let mount = scratch.mount(["--trust", "stream", "--remote", &plain.address(), &root]);
    let file = fs::File::open(mount.at("large")).unwrap();
    let mut first = [0; 4096];
    let started = Instant::now();
    file.read_exact_at(&mut first, 0).unwrap();
    let to_first = started.elapsed();
    assert!(first[..] == content[..4096]);
    assert!(fs::read(mount.at("large")).unwrap() == content);
    let to_last = started.elapsed();
    assert!(to_first < to_last / 2, "{to_first:?} of {to_last:?}");
    assert_eq!(plain.state.reads.load(Ordering::SeqCst), 1);
    let log = mount.stop();
    assert!(!log.contains("ERROR"), "{log}");
    // Once it was verified, it is known by its parts.
    let mount = scratch.mount(["--offline", "--remote", &plain.address(), &root]);
    assert!(fs::read(mount.at("large")).unwrap() == content);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_was_trusted_and_wrong_is_dropped() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    plain.state.lies.store(true, Ordering::SeqCst);
    plain.state.slow.store(5, Ordering::SeqCst);
    let mount = scratch.mount(["--trust", "stream", "--remote", &plain.address(), &root]);
    let file = fs::File::open(mount.at("large")).unwrap();
    let mut last = [0; 1000];
    let at = (SIZE - 1000) as u64;
    // A reader may see the wrong byte, or the error; then the error, also for what the kernel had kept.
    let _ = file.read_at(&mut last, at);
    support::eventually("an error", || file.read_at(&mut last, at).is_err());
    // As long as it is wrong there: what was wrong once is not trusted again.
    for _ in 0..5 {
        assert!(fs::read(mount.at("large")).is_err());
    }
    support::eventually("an error", || file.read_at(&mut last, at).is_err());
    support::eventually("an error", || {
        file.read_at(&mut last, 0).is_err() || plain.state.reads.load(Ordering::SeqCst) > 1
    });
    plain.state.lies.store(false, Ordering::SeqCst);
    support::eventually("the right bytes", || {
        fs::read(mount.at("large")).is_ok_and(|bytes| bytes == content)
    });
    let status: serde_json::Value =
        serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    assert!(!status["mounts"][0]["errors"].as_array().unwrap().is_empty());
    mount.stop();
}

#[test]
fn a_hub_cuts_for_itself_and_tells_nobody() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    let hub = support::hub::Hub::start(&scratch, "hub", &plain.address(), [""; 0]);
    let cat = scratch.run(["cat", "--remote", &hub.address, &format!("{root}/large")]);
    assert!(cat.status.success() && cat.stdout == content);
    assert_eq!(plain.state.reads.load(Ordering::SeqCst), 1);
    // One who knows no size.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let policy = castore::remote::Policy::default();
        let remote = castore::remote::open(&hub.address, &policy)
            .unwrap()
            .remove(0);
        let digest = Digest::of(&content);
        assert_eq!(remote.manifest(digest).await.unwrap(), None);
        let urgency = castore::remote::Urgency::reader();
        let bytes = tokio::time::timeout(
            Duration::from_secs(60),
            remote.chunk(digest, None, &urgency),
        );
        assert!(bytes.await.unwrap().unwrap() == content);
    });
    hub.stop();
}

/// A part that was served was wrong, and the stream broke off; the second one is right. What the kernel keeps must be it.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_part_that_comes_in_two_ways() {
    let scratch = Scratch::new();
    let (plain, content, root) = served();
    plain
        .state
        .lies_before_it_breaks
        .store(true, Ordering::SeqCst);
    plain.state.break_after.store(3_000_000, Ordering::SeqCst);
    plain.state.slow.store(10, Ordering::SeqCst);
    let mount = scratch.mount(["--trust", "stream", "--remote", &plain.address(), &root]);
    let file = fs::File::open(mount.at("large")).unwrap();
    let mut first = [0; 4096];
    // Wrong, or not: that is what trust means.
    let _ = file.read_at(&mut first, 0);
    support::eventually("the second stream", || {
        plain.state.reads.load(Ordering::SeqCst) > 1
            && fs::read(mount.at("large")).is_ok_and(|bytes| bytes[4096..] == content[4096..])
    });
    support::eventually("the right bytes", || {
        fs::read(mount.at("large")).is_ok_and(|bytes| bytes == content)
    });
    file.read_exact_at(&mut first, 0).unwrap();
    assert!(first[..] == content[..4096]);
    mount.stop();
}

/// Who makes up a size must not take the memory for it.
#[test]
fn a_size_that_was_made_up() {
    let scratch = Scratch::new();
    let plain = Plain::start("snix");
    let Node::File { digest, .. } = plain.blob(b"short".to_vec()) else {
        panic!("not a file");
    };
    for size in [1 << 62, u64::MAX, 1 << 39] {
        let lie = Node::File {
            digest,
            size,
            executable: false,
        };
        let Node::Directory { digest: root, .. } = plain.tree([("f", lie)]) else {
            panic!("not a directory");
        };
        let path = format!("{root}/f");
        let said = scratch.fails([
            "cat",
            "--timeout",
            "2s",
            "--remote",
            &plain.address(),
            &path,
        ]);
        assert!(said.contains("bytes"), "{said}");
    }
}
