//! Where it is measured: trees in a store, servers over it, links to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    others::{self, Other},
    support::{
        self, Mount, Scratch,
        hub::Hub,
        proxy::{Link, Proxy},
        servers::Server,
        tree,
    },
};

pub const LARGE: usize = 1 << 30;
pub const SMALL_FILES: usize = 20_000;
/// Entries of the tree for `find`, 100 in a directory.
pub const ENTRIES: usize = 50_000;
/// 1 Gbit/s, in bytes a second.
pub const GIGABIT: u64 = 125_000_000;
/// Nothing here takes longer.
pub const LIMIT: Duration = Duration::from_secs(115);

pub struct Lab {
    pub scratch: Scratch,
    pub remotes: Vec<Remote>,
    pub rounds: usize,
    weed: Option<Server>,
    plain: Option<Proxy>,
    /// Trees whose plain files are in the S3 server.
    uploaded: Mutex<BTreeSet<String>>,
    /// Dropped last.
    hub: Hub,
}

/// A remote behind a link.
pub struct Remote {
    pub name: &'static str,
    pub proxy: Proxy,
    pub address: String,
}

impl Lab {
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let hub = Hub::start(
            &scratch,
            "hub",
            &scratch.remote(),
            ["--cache-size", "20GiB"],
        );
        let weed = Server::weed().ok();
        let mut lab = Self {
            remotes: Vec::new(),
            rounds: env::var("CASTORE_BENCH_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap()),
            plain: weed.as_ref().map(|weed| Proxy::start(weed.port())),
            weed,
            uploaded: Mutex::default(),
            scratch,
            hub,
        };
        let proxy = Proxy::start(lab.hub.port());
        let grpc = Remote {
            name: "gRPC",
            address: format!("grpc+http://127.0.0.1:{}", proxy.port()),
            proxy,
        };
        let s3 = lab.weed.as_ref().map(|weed| {
            let proxy = Proxy::start(weed.port());
            Remote {
                name: "S3",
                address: weed.address_via(proxy.port(), "store"),
                proxy,
            }
        });
        let remotes = [Some(grpc), s3].into_iter().flatten();
        lab.remotes = remotes
            .filter(|remote| wants("CASTORE_BENCH_REMOTES", remote.name))
            .collect();
        lab
    }

    /// Where the files of a tree are, before they were imported.
    pub fn source(&self, name: &str) -> PathBuf {
        self.scratch.path("source").join(name)
    }

    /// Imports a tree into the store, made by `make` when it is not there, and into the S3 server; gives its digest.
    pub fn tree(&self, name: &str, make: impl FnOnce(&Path)) -> String {
        let source = self.source(name);
        let known = self.scratch.path(&format!("{name}.digest"));
        if let Ok(digest) = fs::read_to_string(&known) {
            return digest;
        }
        if !source.exists() {
            fs::create_dir_all(&source).unwrap();
            make(&source);
        }
        let import = self.scratch.command([Path::new("import"), &source]);
        let digest = run(import).trim().to_owned();
        if let Some(weed) = &self.weed
            && wants("CASTORE_BENCH_REMOTES", "S3")
        {
            let to = weed.address("store");
            let from = self.scratch.remote();
            let copy = self
                .scratch
                .command(["copy", &digest, "--from", &from, "--to", &to]);
            run(copy);
        }
        // The hub has it, as one has that was asked before: how fast it gets what it lacks is not what is measured.
        for remote in &self.remotes {
            remote.link(0, 100 * GIGABIT);
            self.fetch(remote, &digest);
        }
        fs::write(known, &digest).unwrap();
        digest
    }

    /// 1 GiB in one file, and once more in eight.
    pub fn large(&self) -> String {
        self.tree("large", |source| {
            write_noise(&source.join("file"), 1, LARGE);
            for part in 0..8 {
                write_noise(&source.join(format!("part{part}")), 100 + part, LARGE / 8);
            }
        })
    }

    /// A fresh mount over an empty cache.
    pub fn mount<S: AsRef<OsStr>>(
        &self,
        remote: &Remote,
        args: impl IntoIterator<Item = S>,
    ) -> Mount {
        let _ = fs::remove_dir_all(self.scratch.path("cache"));
        self.remount(remote, args)
    }

    /// A fresh mount over the cache as it is.
    pub fn remount<S: AsRef<OsStr>>(
        &self,
        remote: &Remote,
        args: impl IntoIterator<Item = S>,
    ) -> Mount {
        let mut all = vec!["--remote".into(), remote.address.clone().into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self.scratch.mount(all)
    }

    /// `castore fetch` of a tree into an empty cache, in seconds.
    pub fn fetch(&self, remote: &Remote, digest: &str) -> f64 {
        let cache = self.scratch.path("fetch-cache");
        let _ = fs::remove_dir_all(&cache);
        let mut command = self
            .scratch
            .command(["fetch", "--remote", &remote.address, digest]);
        command.env("CASTORE_CACHE_DIR", &cache);
        let took = timed(|| run(command));
        let _ = fs::remove_dir_all(&cache);
        took
    }

    /// `rclone mount` of the same files, behind the same link; `None` where it does not apply.
    pub fn rclone(&self, remote: &Remote, link: Link, tree: &str) -> Option<Other> {
        let (weed, plain) = (self.weed.as_ref()?, self.plain.as_ref()?);
        if remote.name != "S3" {
            return None;
        }
        if self.uploaded.lock().unwrap().insert(tree.to_owned()) {
            others::upload(&self.scratch, &self.source(tree), weed, tree);
        }
        plain.set(link);
        Some(others::rclone_mount(&self.scratch, plain.port()))
    }

    /// Bytes that rclone has been sent so far.
    pub fn rclone_bytes(&self) -> u64 {
        self.plain.as_ref().map_or(0, |plain| plain.bytes().1)
    }

    /// Counters of the one mount there is.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let status = run(self.scratch.command(["status", "--json"]));
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let counters = status["mounts"][0]["counters"].as_array().unwrap();
        counters
            .iter()
            .map(|pair| {
                (
                    pair[0].as_str().unwrap().to_owned(),
                    pair[1].as_u64().unwrap(),
                )
            })
            .collect()
    }

    /// The median of some rounds.
    pub fn median(&self, mut measure: impl FnMut() -> f64) -> f64 {
        let mut values: Vec<_> = (0..self.rounds).map(|_| measure()).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    }
}

/// Whether a variable names it, or is not set.
pub fn wants(variable: &str, name: &str) -> bool {
    let wanted = env::var(variable).ok();
    wanted.is_none_or(|wanted| wanted.split(',').any(|one| one.eq_ignore_ascii_case(name)))
}

impl Remote {
    /// Sets the link: the round trip in milliseconds, and bytes a second.
    pub fn link(&self, round_trip: u64, bandwidth: u64) -> Link {
        let link = link(round_trip, bandwidth);
        self.proxy.set(link.clone());
        link
    }
}

pub fn link(round_trip: u64, bandwidth: u64) -> Link {
    Link {
        delay: Duration::from_micros(round_trip * 500),
        bandwidth: Some(bandwidth),
        ..Link::default()
    }
}

pub fn run(mut command: std::process::Command) -> String {
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let reader = thread::spawn(move || std::io::read_to_string(&mut out).unwrap());
    let status = support::wait(&mut child, Duration::from_secs(600));
    assert!(status.is_some_and(|status| status.success()), "{command:?}");
    reader.join().unwrap()
}

pub fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

pub fn write_noise(path: &Path, seed: u64, len: usize) {
    let file = File::create(path).unwrap();
    for part in 0..len >> 20 {
        let bytes = tree::noise(seed << 32 | part as u64, 1 << 20);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, (part << 20) as u64).unwrap();
    }
}

/// Watches how much memory of its own a process takes at the most, in bytes.
pub struct Watch {
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    pub fn start(pid: u32) -> Self {
        let (most, done) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (noted, end) = (Arc::clone(&most), Arc::clone(&done));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("RssAnon:"));
                let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
                noted.fetch_max(kib.unwrap_or(0) << 10, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            most,
            done,
            thread: Some(thread),
        }
    }

    pub fn most(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        self.most.load(Ordering::Relaxed)
    }
}
