//! Remotes that are away: offline, outages, restarts, and the next one.

use std::{
    fs,
    io::Read,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use crate::support::{self, Scratch, hub::Hub, proxy::Proxy, tree, within};

fn status(scratch: &Scratch) -> serde_json::Value {
    serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap()
}

/// A command's words, with a remote.
fn at(remote: &str, args: &[&str]) -> Vec<String> {
    let args = args.iter().copied().chain(["--remote", remote]);
    args.map(str::to_owned).collect()
}

/// `docs/offline.md`, step by step.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_laptop_that_is_closed_and_opened() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    tree::file(
        &source,
        "other/not-fetched",
        &tree::noise(8, 300_000),
        false,
    );
    let root = scratch.import(&source);
    scratch.ok(["name", "toolchain", &root]);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let address = hub.address.clone();
    let with = |args: &[&str]| at(&address, args);
    scratch.ok(with(&["fetch", "toolchain/deep"]));
    scratch.ok(with(&["fetch", "toolchain/large"]));
    hub.stop();
    // The lid was closed. Mounted by its name, with nothing to be reached.
    let mount = scratch.mount(["--offline", "--remote", &address, "toolchain"]);
    assert!(fs::read(mount.at("large")).unwrap() == tree::noise(3, 5_000_001));
    assert_eq!(
        fs::read_to_string(mount.at("deep/er/and/deeper/end")).unwrap(),
        "the end"
    );
    // All else can be seen and fails at once, however often it is tried.
    let started = Instant::now();
    for _ in 0..50 {
        let error = fs::read(mount.at("other/not-fetched")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert!(started.elapsed() < Duration::from_secs(10), "not at once");
    let told = status(&scratch);
    let counters = told["mounts"][0]["counters"].as_array().unwrap();
    let misses = counters
        .iter()
        .find(|counter| counter[0] == "offline_misses")
        .unwrap();
    assert!(misses[1].as_u64().unwrap() > 0, "{told}");
    let log = mount.stop();
    let lines = log.lines();
    let digest = castore::model::Digest::of(&tree::noise(8, 300_000)).to_string();
    let of_blob = lines.filter(|line| line.contains(&digest));
    assert_eq!(of_blob.count(), 1, "{log}");
    // Names that are known can be listed, others are told.
    assert!(
        scratch
            .ok(with(&["roots", "--offline"]))
            .contains("toolchain")
    );
    let said = scratch.fails(with(&["ls", "--offline", "unheard-of"]));
    assert!(
        said.contains("unheard-of") && said.contains("offline"),
        "{said}"
    );
}

/// The server is killed and comes back in the middle of a read: the reader gets all bytes.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_restart_in_the_middle_of_a_large_read() {
    const SIZE: usize = 1 << 30;
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    {
        // Parts that differ, without a gigabyte of noise in memory.
        let file = fs::File::create(source.join("large")).unwrap();
        let part = tree::noise(1, 1 << 20);
        for at in 0..SIZE >> 20 {
            let mut part = part.clone();
            part[..8].copy_from_slice(&at.to_le_bytes());
            part[500_000..500_008].copy_from_slice(&at.to_le_bytes());
            file.write_all_at(&part, (at << 20) as u64).unwrap();
        }
    }
    let root = scratch.import(&source);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let (port, address) = (hub.port(), hub.address.clone());
    let mount = scratch.mount(["--remote", &address, &root]);
    let (read, expected) = (mount.at("large"), source.join("large"));
    let (progress, seen) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || {
        let mut file = fs::File::open(read).unwrap();
        let mut expected = fs::File::open(expected).unwrap();
        let (mut buffer, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in 0..SIZE >> 20 {
            file.read_exact(&mut buffer).unwrap();
            expected.read_exact(&mut wanted).unwrap();
            assert!(buffer == wanted, "wrong bytes in the MiB {at}");
            let _ = progress.send(at);
        }
    });
    let wait_for = |part: usize| {
        let at = || {
            seen.recv_timeout(support::DEADLINE)
                .expect("the reader hangs or has failed")
        };
        while at() < part {}
    };
    wait_for(200);
    hub.kill();
    thread::sleep(Duration::from_secs(3));
    let place = format!("127.0.0.1:{port}");
    let hub = Hub::listen(&scratch, &place, "hub", &scratch.remote(), [""; 0]);
    wait_for(600);
    hub.kill();
    let hub = Hub::listen(&scratch, &place, "hub", &scratch.remote(), [""; 0]);
    within(Duration::from_secs(100), "the reader", || {
        reader.join().unwrap();
    });
    mount.stop();
    hub.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn the_next_remote_takes_over_and_the_first_comes_back() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for seed in 0..40 {
        tree::file(
            &source,
            &format!("f{seed}"),
            &tree::noise(seed, 10_000),
            false,
        );
    }
    let root = scratch.import(&source);
    let first = Hub::start(&scratch, "first", &scratch.remote(), [""; 0]);
    let second = Hub::start(&scratch, "second", &scratch.remote(), [""; 0]);
    let proxy = Proxy::start(first.port());
    // Before both, one that has nothing.
    let empty = scratch.path("empty");
    fs::create_dir(&empty).unwrap();
    let remotes = format!(
        "objectstore+file://{},grpc+http://127.0.0.1:{},{}",
        empty.display(),
        proxy.port(),
        second.address
    );
    let wait = ["--timeout", "5s", "--prefetch", "off"];
    let mount = scratch.mount(wait.into_iter().chain(["--remote", &remotes, &root]));
    let read = |seed: u64| {
        let content = fs::read(mount.at(&format!("f{seed}"))).unwrap();
        assert!(content == tree::noise(seed, 10_000));
    };
    (0..5).for_each(read);
    proxy.close();
    (5..20).for_each(read);
    let told = status(&scratch);
    let remotes = told["mounts"][0]["remotes"].as_array().unwrap();
    assert_eq!(remotes[1]["away"], true, "{told}");
    assert_eq!(remotes[2]["away"], false, "{told}");
    let text = scratch.ok(["status"]);
    assert!(text.contains("has not answered"), "{text}");
    proxy.open();
    support::eventually("the first is back", || {
        status(&scratch)["mounts"][0]["remotes"][1]["away"] == false
    });
    let before = proxy.bytes().1;
    (20..40).for_each(read);
    assert!(proxy.bytes().1 - before > 100_000, "the first is not asked");
    mount.stop();
    first.stop();
    second.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_cached_is_read_at_full_speed_while_all_are_away() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "cached", &tree::noise(1, 8_000_000), false);
    tree::file(&source, "not", &tree::noise(2, 500_000), false);
    let root = scratch.import(&source);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let proxy = Proxy::start(hub.port());
    let remote = format!("grpc+http://127.0.0.1:{}", proxy.port());
    let mount = scratch.mount([
        "--outage",
        "wait=60s",
        "--timeout",
        "3s",
        "--remote",
        &remote,
        &root,
    ]);
    assert!(fs::read(mount.at("cached")).unwrap() == tree::noise(1, 8_000_000));
    proxy.close();
    let not = mount.at("not");
    let waits = thread::spawn(move || fs::read(not).unwrap());
    thread::sleep(Duration::from_secs(1));
    for _ in 0..20 {
        // Not from the kernel's pages: a direct read of what the daemon has.
        assert!(fs::read(mount.at("cached")).unwrap().len() == 8_000_000);
    }
    assert!(!waits.is_finished(), "it does not wait");
    // A reader that waits can be interrupted.
    let mut child = std::process::Command::new("cat")
        .arg(mount.at("not"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    support::signal(&child, libc::SIGINT);
    assert!(
        support::wait(&mut child, Duration::from_secs(10)).is_some(),
        "it cannot be interrupted"
    );
    thread::sleep(Duration::from_secs(4));
    proxy.open();
    let read = within(support::DEADLINE, "the reader that waits", move || {
        waits.join().unwrap()
    });
    assert!(read == tree::noise(2, 500_000));
    mount.stop();
    hub.stop();
}

#[test]
fn a_slow_remote_is_raced_by_the_next() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "f", b"raced", false);
    let root = scratch.import(&source);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let slow = Proxy::start(hub.port());
    slow.set(support::proxy::Link {
        black_hole: true,
        ..support::proxy::Link::default()
    });
    let remotes = format!("grpc+http://127.0.0.1:{},{}", slow.port(), scratch.remote());
    let started = Instant::now();
    let args = [
        "cat",
        "--timeout",
        "60s",
        "--hedge",
        "100ms",
        "--remote",
        &remotes,
    ];
    let said = scratch.ok([&args[..], &[&format!("{root}/f")]].concat());
    assert_eq!(said, "raced");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "it waited for the slow one"
    );
    hub.stop();
}

/// Who is interrupted while a mount waits for its remote leaves nothing behind that still tries.
#[test]
#[ignore = "needs /dev/fuse"]
fn an_interrupted_mount_leaves_nothing() {
    let scratch = Scratch::new();
    let mnt = scratch.mnt();
    let mnt = mnt.to_str().unwrap();
    let args = [
        "mount",
        "--outage",
        "wait=10m",
        "--remote",
        "grpc+http://127.0.0.1:1",
        "tree",
        mnt,
    ];
    let mut child = scratch
        .command(args)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let log = scratch.path("cache/castore.log");
    support::eventually("it tries", || log.exists());
    thread::sleep(Duration::from_millis(500));
    support::signal(&child, libc::SIGINT);
    support::wait(&mut child, support::DEADLINE).unwrap();
    // The mount point is free again.
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    let root = scratch.import(&source);
    support::eventually("the mount point", || {
        scratch.run(["mount", &root, mnt]).status.success()
    });
    scratch.ok(["unmount", mnt]);
}
