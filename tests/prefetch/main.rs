//! What is fetched before anybody asks for it: through real mounts, over a link that is far or slow. Nothing here depends
//! on how long something takes; what is compared is bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "tests stop by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod files;
mod profiles;
mod told;
mod trees;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use support::{
    Mount, Scratch,
    hub::Hub,
    proxy::{Link, Proxy},
    tree,
};

/// A hub over a store, behind a link.
struct Far {
    scratch: Scratch,
    proxy: Proxy,
    address: String,
    root: String,
    /// Dropped last.
    _hub: Hub,
}

impl Far {
    /// With a tree that `make` makes.
    fn new(make: impl FnOnce(&Path)) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir_all(&source).unwrap();
        make(&source);
        let root = scratch.import(&source);
        scratch.clear_cache();
        let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
        let proxy = Proxy::start(hub.port());
        Self {
            address: format!("grpc+http://127.0.0.1:{}", proxy.port()),
            proxy,
            scratch,
            root,
            _hub: hub,
        }
    }

    /// One with a round trip in milliseconds and bytes a second.
    fn link(&self, round_trip: u64, bandwidth: Option<u64>) {
        self.proxy.set(Link {
            delay: Duration::from_micros(round_trip * 500),
            bandwidth,
            ..Link::default()
        });
    }

    fn mount(&self, args: &[&str]) -> Mount {
        let mut all = vec!["--remote", &self.address];
        all.extend(args);
        all.push(&self.root);
        self.scratch.mount(all)
    }

    /// Counters of the mount that there is.
    fn counters(&self) -> BTreeMap<String, u64> {
        let status = self.scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let counters = status["mounts"][0]["counters"].as_array().unwrap();
        let pair = |pair: &serde_json::Value| {
            (
                pair[0].as_str().unwrap().to_owned(),
                pair[1].as_u64().unwrap(),
            )
        };
        counters.iter().map(pair).collect()
    }

    /// The counters once nothing more comes.
    fn settled(&self) -> BTreeMap<String, u64> {
        let mut last = (0, self.counters());
        loop {
            std::thread::sleep(Duration::from_millis(700));
            let (bytes, counters) = (self.proxy.bytes().1, self.counters());
            if (bytes, &counters["fetched_bytes"]) == (last.0, &last.1["fetched_bytes"]) {
                return counters;
            }
            last = (bytes, counters);
        }
    }
}

/// A file of random bytes.
fn noise(path: &Path, seed: u64, len: usize) {
    fs::write(path, tree::noise(seed, len)).unwrap();
}

/// Reads a range of a file, with a deadline, and compares it.
fn read_range(mount: &Mount, far: &Far, name: &str, offset: u64, len: usize) {
    let (mounted, source) = (mount.at(name), far.scratch.path("source").join(name));
    support::within(support::DEADLINE, "the read", move || {
        let read = |path| {
            let mut buffer = vec![0; len];
            let file = File::open(path).unwrap();
            file.read_exact_at(&mut buffer, offset).unwrap();
            buffer
        };
        assert!(read(mounted) == read(source), "wrong bytes at {offset}");
    });
}

/// Reads a whole file, with a deadline, and compares it.
fn read_file(mount: &Mount, far: &Far, name: &str) {
    let (mounted, source) = (mount.at(name), far.scratch.path("source").join(name));
    support::within(support::DEADLINE, "the read", move || {
        assert!(
            fs::read(mounted).unwrap() == fs::read(&source).unwrap(),
            "{source:?}"
        );
    });
}
