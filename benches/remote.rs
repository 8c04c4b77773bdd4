//! Cold reads from each kind of remote, near and far: `make bench-remote`.
//!
//! For each kind, on loopback and behind a link of 1 Gbit/s with a round trip of 20 ms and 50 ms: bytes a second of a
//! sequential read of 1 GiB through a fresh mount over an empty cache, beside `castore fetch` of the same file; the time
//! of a walk (names and attributes) over 20,000 small files; and the time to read some of those one by one, beside `castore
//! fetch` of all of them. Beside that, `rclone mount --vfs-cache-mode full` and `weed mount` over the same `SeaweedFS`: the
//! former through the same links, the latter on loopback alone, since it talks to servers of its own choice.
//!
//! Medians of `CASTORE_BENCH_ROUNDS` rounds (1). `CASTORE_BENCH_KINDS` names kinds to measure, with commas between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a benchmark stops by panicking, and its figures are for people"
)]

#[path = "others/mod.rs"]
mod others;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    env,
    fs::{self, File},
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use others::{Other, program, rclone_mount, upload};
use support::{
    Scratch,
    hub::Hub,
    proxy::{Link, Proxy},
    servers::Server,
    tree,
};

const LARGE: usize = 1 << 30;
const SMALL_FILES: usize = 20_000;
const READ_SINGLY: usize = 300;
/// 1 Gbit/s, in bytes a second.
const BANDWIDTH: u64 = 125_000_000;
/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// A walk over a mount of another system is given up after this time.
const OTHERS_WALK: Duration = Duration::from_secs(60);

/// One way, in milliseconds; `None`: loopback as it is.
const LINKS: [(&str, Option<u64>); 3] =
    [("loopback", None), ("20 ms", Some(10)), ("50 ms", Some(25))];

struct Kind {
    name: &'static str,
    port: Option<u16>,
    address: Box<dyn Fn(Option<u16>) -> String>,
}

fn main() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    make_source(&source);
    let large = imported(&scratch, "large");
    let small = imported(&scratch, "small");
    let rounds = env::var("CASTORE_BENCH_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let wanted = env::var("CASTORE_BENCH_KINDS").ok();
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), ["--cache-size", "8GiB"]);
    let (weed, nginx) = (Server::weed(), Server::nginx(&scratch.path("store")));
    println!(
        "| remote | link | read 1 GiB | fetch 1 GiB | walk 20,000 | read {READ_SINGLY} singly | fetch 20,000 |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kind in kinds(&scratch, &hub, weed.as_ref().ok(), nginx.as_ref().ok()) {
        if wanted
            .as_ref()
            .is_some_and(|wanted| !wanted.split(',').any(|name| name == kind.name))
        {
            continue;
        }
        let proxy = kind.port.map(Proxy::start);
        for (link, delay) in LINKS {
            let (Some(delay), Some(proxy)) = (delay, &proxy) else {
                if delay.is_none() {
                    row(
                        &scratch,
                        kind.name,
                        link,
                        &(kind.address)(None),
                        &large,
                        &small,
                        rounds,
                    );
                }
                continue;
            };
            proxy.set(Link {
                delay: Duration::from_millis(delay),
                bandwidth: Some(BANDWIDTH),
                ..Link::default()
            });
            let address = (kind.address)(Some(proxy.port()));
            row(&scratch, kind.name, link, &address, &large, &small, rounds);
        }
    }
    if let Ok(weed) = &weed
        && wanted.is_none_or(|wanted| wanted.contains("others"))
    {
        compare(&scratch, &source, weed);
    }
    hub.stop();
}

fn make_source(source: &Path) {
    fs::create_dir_all(source.join("large")).unwrap();
    let file = File::create(source.join("large/file")).unwrap();
    for part in 0..LARGE >> 20 {
        let bytes = tree::noise(part as u64, 1 << 20);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, (part << 20) as u64).unwrap();
    }
    for number in 0..SMALL_FILES {
        let dir = source.join(format!("small/d{}", number / 100));
        fs::create_dir_all(&dir).unwrap();
        let content = tree::noise(number as u64, 500 + number % 7000);
        fs::write(dir.join(format!("f{number}")), content).unwrap();
    }
}

fn imported(scratch: &Scratch, name: &str) -> String {
    let mut command = scratch.command([Path::new("import"), &scratch.path("source").join(name)]);
    command.env_remove("CASTORE_CACHE_DIR");
    support::succeeded(&support::output(command))
        .trim()
        .to_owned()
}

fn kinds<'a>(
    scratch: &Scratch,
    hub: &Hub,
    weed: Option<&'a Server>,
    nginx: Option<&'a Server>,
) -> Vec<Kind> {
    let file = scratch.remote();
    let grpc = hub.port();
    let mut kinds = vec![
        Kind {
            name: "file",
            port: None,
            address: Box::new(move |_| file.clone()),
        },
        Kind {
            name: "grpc",
            port: Some(grpc),
            address: Box::new(move |port| {
                format!("grpc+http://127.0.0.1:{}", port.unwrap_or(grpc))
            }),
        },
    ];
    let served = |name, server: &Server, place: &str| {
        let own = server.port();
        // The address differs by its port alone.
        let address = server.address(place);
        Kind {
            name,
            port: Some(own),
            address: Box::new(move |port| match port {
                Some(port) => address.replace(&format!(":{own}"), &format!(":{port}")),
                None => address.clone(),
            }),
        }
    };
    if let Some(server) = nginx {
        let mut kind = served("http", server, "x");
        let address = kind.address;
        kind.address = Box::new(move |port| address(port).trim_end_matches("/x").to_owned());
        kinds.push(kind);
    }
    if let Some(server) = weed {
        for root in ["large", "small"] {
            let digest = imported(scratch, root);
            let to = server.address("store");
            let mut copy =
                scratch.command(["copy", &digest, "--from", &scratch.remote(), "--to", &to]);
            assert!(copy.stdout(Stdio::null()).status().unwrap().success());
        }
        kinds.push(served("s3", server, "store"));
    }
    kinds
}

fn row(
    scratch: &Scratch,
    kind: &str,
    link: &str,
    address: &str,
    large: &str,
    small: &str,
    rounds: usize,
) {
    let mut columns: [Vec<f64>; 5] = Default::default();
    for _ in 0..rounds {
        let mount = mount(scratch, address, large);
        columns[0].push(timed(|| read_all(&mount.at("file"))));
        mount.stop();
        columns[1].push(timed(|| fetch(scratch, address, large)));
        let mount = self::mount(scratch, address, small);
        columns[2].push(timed(|| walk(&mount.path)));
        columns[3].push(timed(|| read_singly(&mount.path)));
        mount.stop();
        columns[4].push(timed(|| fetch(scratch, address, small)));
    }
    let [read, fetched, walked, singly, all] = columns.map(median);
    let rate = |seconds: f64| LARGE as f64 / seconds / 1e6;
    println!(
        "| {kind} | {link} | {:.0} MB/s | {:.0} MB/s | {walked:.2} s | {singly:.2} s | {all:.2} s |",
        rate(read),
        rate(fetched)
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// A fresh mount over an empty cache.
fn mount(scratch: &Scratch, address: &str, root: &str) -> support::Mount {
    let _ = fs::remove_dir_all(scratch.path("cache"));
    scratch.mount(["--remote", address, root])
}

fn fetch(scratch: &Scratch, address: &str, root: &str) {
    let cache = scratch.path("fetch-cache");
    let _ = fs::remove_dir_all(&cache);
    let mut command = scratch.command(["fetch", "--remote", address, root]);
    command
        .env("CASTORE_CACHE_DIR", &cache)
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let status = support::wait(&mut child, LIMIT);
    assert!(status.expect("fetch does not end").success());
}

fn read_all(path: &Path) {
    let path = path.to_owned();
    support::within(LIMIT, "the read", move || {
        let mut file = File::open(path).unwrap();
        let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                read => total += read,
            }
        }
        assert_eq!(total, LARGE);
    });
}

fn walk(root: &Path) {
    let root = root.to_owned();
    support::within(LIMIT, "the walk", move || {
        let mut files = 0;
        for dir in fs::read_dir(root).unwrap() {
            for file in fs::read_dir(dir.unwrap().path()).unwrap() {
                files += usize::from(file.unwrap().metadata().unwrap().is_file());
            }
        }
        assert_eq!(files, SMALL_FILES);
    });
}

/// Seconds, where it ends in time; where it does not, taking the mount down ends it.
fn walk_within(limit: Duration, root: &Path) -> Option<f64> {
    let root = root.to_owned();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let walk = std::panic::catch_unwind(|| timed(|| walk(&root)));
        let _ = walk.map(|seconds| sender.send(seconds));
    });
    receiver.recv_timeout(limit).ok()
}

fn read_singly(root: &Path) {
    let root = root.to_owned();
    support::within(LIMIT, "the reads", move || {
        for number in 0..READ_SINGLY {
            let path = root.join(format!("d{}/f{number}", number / 100));
            assert_eq!(fs::read(path).unwrap().len(), 500 + number % 7000);
        }
    });
}

/// The same files as plain objects in the same `SeaweedFS`.
fn compare(scratch: &Scratch, source: &Path, weed: &Server) {
    for tree in ["large", "small"] {
        upload(scratch, &source.join(tree), weed, tree);
    }
    let measure = |name: &str, link: &str, start: &dyn Fn() -> Other| {
        let mount = start();
        let read = timed(|| read_all(&mount.path.join("large/file")));
        drop(mount);
        let mount = start();
        let singly = timed(|| read_singly(&mount.path.join("small")));
        drop(mount);
        let mount = start();
        let walked = walk_within(OTHERS_WALK, &mount.path.join("small"));
        let walked = walked.map_or_else(
            || format!("more than {} s", OTHERS_WALK.as_secs()),
            |walked| format!("{walked:.2} s"),
        );
        println!(
            "| {name} | {link} | {:.0} MB/s | | {walked} | {singly:.2} s | |",
            LARGE as f64 / read / 1e6
        );
    };
    let proxy = Proxy::start(weed.port());
    for (link, delay) in LINKS {
        let port = match delay {
            Some(delay) => {
                proxy.set(Link {
                    delay: Duration::from_millis(delay),
                    bandwidth: Some(BANDWIDTH),
                    ..Link::default()
                });
                proxy.port()
            }
            None => weed.port(),
        };
        measure("rclone mount", link, &|| rclone_mount(scratch, port));
    }
    let filer = weed.filer().unwrap();
    measure("weed mount", "loopback", &|| {
        let dir = scratch.path("weed-cache");
        let _ = fs::remove_dir_all(&dir);
        let path = scratch.path("weed-mnt");
        fs::create_dir_all(&path).unwrap();
        fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new(program("weed"));
        command
            .arg("mount")
            .arg(format!("-filer={filer}"))
            .arg("-filer.path=/buckets/castore/plain")
            .arg(format!("-dir={}", path.display()))
            .args([
                "-dirAutoCreate=false",
                "-readOnly",
                "-cacheCapacityMB=2048",
                "-allowOthers=false",
            ])
            .arg(format!("-cacheDir={}", dir.display()))
            .arg(format!(
                "-localSocket={}",
                scratch.path("weed.sock").display()
            ))
            .env("HOME", &dir)
            .env("TMPDIR", &dir);
        Other::start(command, &path)
    });
}
