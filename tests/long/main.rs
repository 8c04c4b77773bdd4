//! What takes minutes: `make test-long`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use castore::{
    model::{Digest, Directory, NodeRef},
    remote::{self, Chain, Outage, Policy, Urgency},
};
use futures::{StreamExt, TryStreamExt};

use support::{Scratch, hub::Hub, proxy::Link, proxy::Proxy, signal, tree, wait};

/// Reads all of a tree from a remote, as a client without a cache does: each chunk is verified.
async fn read_all(address: &str, root: Digest) -> u64 {
    let policy = Policy {
        timeout: Duration::from_secs(60),
        outage: Outage::Wait(Duration::from_secs(120)),
        hedge: None,
    };
    let chain = Chain::of_groups(vec![remote::open(address, &policy).unwrap()], policy);
    let mut files = Vec::new();
    let mut records = chain.closure(root, 0).await.unwrap();
    while let Some(record) = records.try_next().await.unwrap() {
        for entry in Directory::decode(record).unwrap().entries() {
            if let NodeRef::File { digest, size, .. } = entry.node {
                files.push((digest, size));
            }
        }
    }
    let reader = Urgency::reader();
    let (chain, reader) = (&chain, &reader);
    let read = futures::stream::iter(files).map(|(digest, size)| async move {
        if size <= 128 << 10 {
            return chain.chunk(digest, Some(size), reader).await.unwrap().len() as u64;
        }
        let manifest = chain
            .manifest(digest, Some(size), |_| false)
            .await
            .unwrap()
            .unwrap();
        let mut bytes = 0;
        for chunk in manifest.chunks() {
            let read = chain.chunk(chunk.digest, Some(chunk.size), reader).await;
            bytes += read.unwrap().len() as u64;
        }
        bytes
    });
    read.buffer_unordered(8)
        .fold(0, |sum, bytes| async move { sum + bytes })
        .await
}

fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// 200 clients, cold, through one hub: what comes from upstream is at most 1.05 times the tree, nobody gets an error, and
/// the hub keeps to its memory.
#[test]
fn a_herd() {
    const CLIENTS: usize = 200;
    const MEMORY: u64 = 256 << 20;
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for seed in 0..400 {
        let content = tree::noise(seed, 20_000);
        tree::file(
            &source,
            &format!("d{}/small-{seed}", seed % 17),
            &content,
            false,
        );
    }
    for seed in 1000..1010 {
        tree::file(
            &source,
            &format!("large-{seed}"),
            &tree::noise(seed, 4_000_000),
            false,
        );
    }
    let bytes = 400 * 20_000 + 10 * 4_000_000;
    let root: Digest = scratch.import(&source).parse().unwrap();
    let origin = Hub::start(&scratch, "origin", &scratch.remote(), [""; 0]);
    let proxy = Proxy::start(origin.port());
    proxy.set(Link {
        delay: Duration::from_millis(10),
        bandwidth: Some(125_000_000),
        ..Link::default()
    });
    let upstream = format!("grpc+http://127.0.0.1:{}", proxy.port());
    let memory = MEMORY.to_string();
    let hub = Hub::start(&scratch, "hub", &upstream, ["--memory", &memory]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = Arc::new(format!("{}?connections=1", hub.address));
    let clients = (0..CLIENTS).map(|_| {
        let address = Arc::clone(&address);
        runtime.spawn(async move { read_all(&address, root).await })
    });
    let clients: Vec<_> = clients.collect();
    let started = Instant::now();
    runtime.block_on(async {
        let limit = Duration::from_secs(500);
        for client in clients {
            let read = tokio::time::timeout(limit, client)
                .await
                .expect("a client hangs");
            assert_eq!(read.unwrap(), bytes);
        }
    });
    let (came, peak) = (proxy.bytes().1, peak_memory(hub.pid()));
    eprintln!(
        "{CLIENTS} clients read {} MB each in {:.1} s; {:.3} times the tree came from upstream; the hub took {} MiB at most",
        bytes / 1_000_000,
        started.elapsed().as_secs_f64(),
        came as f64 / bytes as f64,
        peak >> 20
    );
    assert!(came * 100 <= bytes * 105, "{came} bytes came for {bytes}");
    // What the process takes beside what it keeps.
    assert!(peak <= MEMORY + (64 << 20), "{} MiB", peak >> 20);
    drop(runtime);
    hub.stop();
    origin.stop();
}

/// The hub is away for a minute while something is built with a toolchain from a cold mount: the build never learns.
#[test]
fn a_restart_under_a_build() {
    let toolchain = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    let toolchain = PathBuf::from(String::from_utf8(toolchain.stdout).unwrap().trim());
    let scratch = Scratch::new();
    let mut import = scratch.command([Path::new("import"), &toolchain]);
    let root = import
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let root = String::from_utf8(root.stdout).unwrap().trim().to_owned();
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let (port, address) = (hub.port(), hub.address.clone());
    let mut command = scratch.command([
        "mount",
        "--foreground",
        "--outage",
        "wait=10m",
        "--remote",
        &address,
        &root,
    ]);
    command.arg(scratch.mnt());
    let mount = support::Mount::start(command, &scratch.mnt());
    let program = scratch.path("hello.rs");
    fs::write(&program, "fn main() { println!(\"built\"); }").unwrap();
    let mut build = Command::new(mount.at("bin/rustc"))
        .arg(&program)
        .arg("-o")
        .arg(scratch.path("hello"))
        // cargo has its toolchain's libraries there, and all is to come from the mount.
        .env_remove("LD_LIBRARY_PATH")
        .spawn()
        .unwrap();
    // In the middle: some of it was read, and not all.
    support::eventually("the build reads", || {
        fs::metadata(scratch.path("hub")).is_ok()
            && size_of(&scratch.path("cache/data")) > 5_000_000
    });
    hub.kill();
    let away = Instant::now();
    assert!(
        build.try_wait().unwrap().is_none(),
        "it was built before the hub went away"
    );
    while away.elapsed() < Duration::from_secs(60) {
        assert!(
            build.try_wait().unwrap().is_none(),
            "the build has ended without its toolchain"
        );
        thread::sleep(Duration::from_millis(200));
    }
    let hub = Hub::listen(
        &scratch,
        &format!("127.0.0.1:{port}"),
        "hub",
        &scratch.remote(),
        [""; 0],
    );
    let built = wait(&mut build, Duration::from_secs(120));
    if built.is_none() {
        signal(&build, libc::SIGKILL);
    }
    assert!(
        built.expect("the build hangs").success(),
        "the build has failed"
    );
    let said = Command::new(scratch.path("hello")).output().unwrap();
    assert_eq!(said.stdout, b"built\n");
    let status: serde_json::Value =
        serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    assert_eq!(
        status["mounts"][0]["errors"].as_array().unwrap().len(),
        0,
        "{status}"
    );
    mount.stop();
    hub.stop();
}

fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
        .sum()
}
