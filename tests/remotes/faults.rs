//! What a reader gets while the link fails: the right bytes or a timely error; never a hang, never wrong bytes, never a
//! task that goes on.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use castore::{
    cache::Cache,
    model::Node,
    remote::{self, Chain, Outage, Policy},
};

use crate::{
    behaviour::{cache_at, compare, import, run},
    kinds::{Fixture, Test},
    support::{
        Scratch,
        proxy::{Link, Proxy},
        tree,
    },
};

pub const ALL: [Test; 8] = [
    ("far_away", far_away),
    ("a_narrow_link", a_narrow_link),
    ("connections_are_reset", connections_are_reset),
    ("a_black_hole", a_black_hole),
    ("half_open_connections", half_open_connections),
    ("wrong_bytes", wrong_bytes),
    ("away_and_back", away_and_back),
    ("readers_that_go_away", readers_that_go_away),
];

/// Of the policy here; an error comes at most this long after it.
const TIMEOUT: Duration = Duration::from_secs(3);
const LATE: Duration = Duration::from_secs(25);

/// A tree at a remote behind a link.
struct Behind {
    scratch: Scratch,
    source: PathBuf,
    root: Node,
    proxy: Proxy,
    address: String,
}

impl Behind {
    fn new(fixture: &Fixture, place: &str) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        std::fs::create_dir(&source).unwrap();
        let seed = place.len() as u64;
        for file in 0..20 {
            let content = tree::noise(seed * 100 + file, 5_000);
            tree::file(
                &source,
                &format!("d{}/small-{file}", file % 3),
                &content,
                false,
            );
        }
        tree::file(&source, "large", &tree::noise(seed, 4_000_000), false);
        let root = run(async { import(&fixture.publish(place), &source).await });
        let (upstream, via) = fixture.link.as_ref().expect("a link");
        let proxy = Proxy::start(upstream.clone());
        let address = via(proxy.port(), place);
        Self {
            scratch,
            source,
            root,
            proxy,
            address,
        }
    }

    fn chain(&self, policy: Policy) -> Chain {
        Chain::of_groups(vec![remote::open(&self.address, &policy).unwrap()], policy)
    }

    /// A cache that is empty, unless it had the name before.
    fn cache(&self, name: &str, policy: Policy) -> Arc<Cache> {
        cache_at(&self.scratch.path(name), self.chain(policy))
    }

    /// Reads the whole tree through the link as it is; the bytes must be right, or the error in time.
    fn read(&self, name: &str) -> Result<(), String> {
        let started = Instant::now();
        let result = run(async {
            let cache = self.cache(name, policy());
            let result = compare(&cache, &self.root, &self.source).await;
            cache.close();
            result
        });
        if result.is_err() {
            assert!(started.elapsed() < TIMEOUT + LATE, "late: {result:?}");
        }
        result
    }
}

fn policy() -> Policy {
    Policy {
        timeout: TIMEOUT,
        ..Policy::default()
    }
}

fn far_away(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    behind.proxy.set(Link {
        delay: Duration::from_millis(25),
        ..Link::default()
    });
    behind.read("cache").unwrap();
}

fn a_narrow_link(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    behind.proxy.set(Link {
        bandwidth: Some(1_000_000),
        ..Link::default()
    });
    behind.read("cache").unwrap();
}

fn connections_are_reset(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    behind.proxy.set(Link {
        reset_after: Some(1_200_000),
        ..Link::default()
    });
    behind.read("cache").unwrap();
    assert!(behind.proxy.accepted() > 2, "none was reset");
    // So soon that no chunk comes through; and all is well again afterwards.
    behind.proxy.set(Link {
        reset_after: Some(100),
        ..Link::default()
    });
    assert!(behind.read("other").is_err());
    behind.proxy.set(Link::default());
    behind.read("other").unwrap();
}

fn a_black_hole(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    behind.proxy.set(Link {
        black_hole: true,
        ..Link::default()
    });
    assert!(behind.read("cache").is_err());
    behind.proxy.set(Link::default());
    behind.read("cache").unwrap();
}

fn half_open_connections(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    run(async {
        let cache = behind.cache("cache", policy());
        compare(&cache, &behind.root, &behind.source).await.unwrap();
        cache.close();
    });
    run(async {
        let cache = behind.cache("other", policy());
        // A connection is there, and then the other end is gone without a word.
        cache
            .directory(digest(&behind.root), digest(&behind.root))
            .await
            .unwrap();
        behind.proxy.set(Link {
            half_open: true,
            black_hole: true,
            ..Link::default()
        });
        let started = Instant::now();
        let stalled = compare(&cache, &behind.root, &behind.source).await;
        assert!(stalled.is_err());
        assert!(started.elapsed() < TIMEOUT + LATE, "late");
        behind.proxy.set(Link::default());
        // The breaker is closed by a probe, at the latest after seconds.
        let until = Instant::now() + LATE;
        while let Err(error) = compare(&cache, &behind.root, &behind.source).await {
            assert!(Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cache.close();
    });
}

fn digest(root: &Node) -> castore::model::Digest {
    match root {
        Node::Directory { digest, .. } => *digest,
        other => panic!("{other:?}"),
    }
}

fn wrong_bytes(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    // `compare` fails on a wrong byte; an error is fine.
    for (round, every) in [300_000, 50_000, 2_000].into_iter().enumerate() {
        behind.proxy.set(Link {
            wrong_byte_every: Some(every),
            ..Link::default()
        });
        let _ = behind.read(&format!("cache-{round}"));
    }
    behind.proxy.set(Link::default());
    for round in 0..3 {
        // What was kept of it was right, too.
        behind.read(&format!("cache-{round}")).unwrap();
    }
}

/// An outage: `fail` tries for the time-out, then fails at once until the remote is back; `wait` waits.
fn away_and_back(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    run(async {
        let cache = behind.cache("cache", policy());
        let root = digest(&behind.root);
        cache.directory(root, root).await.unwrap();
        behind.proxy.close();
        let started = Instant::now();
        let failed = compare(&cache, &behind.root, &behind.source).await;
        assert!(failed.is_err());
        assert!(started.elapsed() >= TIMEOUT / 2, "it did not even try");
        // The second reader does not wait for the time-out again.
        let started = Instant::now();
        let failed = compare(&cache, &behind.root, &behind.source).await;
        assert!(failed.is_err());
        assert!(started.elapsed() < TIMEOUT, "it waits again");
        let waits = Policy {
            outage: Outage::Wait(Duration::from_secs(60)),
            ..policy()
        };
        let patient = behind.cache("other", waits);
        let reader = {
            let (cache, root, source) = (
                Arc::clone(&patient),
                behind.root.clone(),
                behind.source.clone(),
            );
            tokio::spawn(async move { compare(&cache, &root, &source).await })
        };
        tokio::time::sleep(TIMEOUT * 2).await;
        assert!(!reader.is_finished(), "it does not wait");
        behind.proxy.open();
        reader.await.unwrap().unwrap();
        patient.close();
        let until = Instant::now() + LATE;
        while let Err(error) = compare(&cache, &behind.root, &behind.source).await {
            assert!(Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cache.close();
    });
}

/// Their requests end with them: `run` fails when a task goes on.
fn readers_that_go_away(fixture: &Fixture, place: &str) {
    let behind = Behind::new(fixture, place);
    behind.proxy.set(Link {
        black_hole: true,
        ..Link::default()
    });
    run(async {
        let waits = Policy {
            timeout: Duration::from_secs(300),
            outage: Outage::Wait(Duration::from_secs(3600)),
            hedge: None,
        };
        let cache = behind.cache("cache", waits);
        for _ in 0..3 {
            let reading = compare(&cache, &behind.root, &behind.source);
            let given_up = tokio::time::timeout(Duration::from_millis(300), reading).await;
            assert!(given_up.is_err());
        }
        cache.close();
    });
}
