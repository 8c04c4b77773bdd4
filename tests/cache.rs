//! The cache under bad input, damage, small quotas and many readers. No mount is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and tokio::test blocks"
)]

mod support;

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use castore::{
    cache::{Blob, Cache, CacheError, Check, ChunkData, Config, Counter, Quota, Reader, Slice},
    import::{self, Options, Progress},
    model::{Digest, Manifest, Name, Node, OutputHash, SizeRule},
    remote::{
        self, Chain, Closure, Fault, Object, PathInfo, Pieces, Policy, Remote, RemoteError, Urgency,
    },
};
use support::{Scratch, tree};

const MIB: u64 = 1 << 20;

/// A remote that counts, delays, fails and lies as it is told.
#[derive(Debug)]
struct Unruly {
    inner: Arc<dyn Remote>,
    chunks: AtomicU64,
    closures: AtomicU64,
    delay: Duration,
    away: AtomicBool,
    wrong_bytes: AtomicBool,
    /// What is said of a blob, one after the other, before the truth.
    manifests: Mutex<Vec<Manifest>>,
}

impl Unruly {
    fn new(scratch: &Scratch, delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            inner: opened(&scratch.remote()),
            chunks: AtomicU64::new(0),
            closures: AtomicU64::new(0),
            delay,
            away: AtomicBool::new(false),
            wrong_bytes: AtomicBool::new(false),
            manifests: Mutex::default(),
        })
    }

    async fn pass(&self) -> Result<(), RemoteError> {
        tokio::time::sleep(self.delay).await;
        if self.away.load(Ordering::SeqCst) {
            return Err(RemoteError::Read {
                remote: self.address().into(),
                object: Object::Store,
                fault: Fault::Unavailable,
                cause: Arc::new(std::io::Error::other("away")),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Remote for Unruly {
    fn address(&self) -> &'static str {
        "unruly"
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        self.pass().await
    }

    async fn manifest(&self, blob: Digest) -> Result<Option<Manifest>, RemoteError> {
        self.pass().await?;
        if let Some(lie) = self.manifests.lock().unwrap().pop() {
            return Ok(Some(lie));
        }
        self.inner.manifest(blob).await
    }

    async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Bytes, RemoteError> {
        self.chunks.fetch_add(1, Ordering::SeqCst);
        self.pass().await?;
        let bytes = self.inner.chunk(chunk, size, urgency).await?;
        if self.wrong_bytes.load(Ordering::SeqCst) {
            let mut wrong = bytes.to_vec();
            wrong[0] ^= 1;
            return Ok(wrong.into());
        }
        Ok(bytes)
    }

    async fn pieces(&self, blob: Digest, size: Option<u64>) -> Result<Pieces, RemoteError> {
        self.pass().await?;
        self.inner.pieces(blob, size).await
    }

    fn has_parts_of_closures(&self) -> bool {
        false
    }

    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError> {
        self.closures.fetch_add(1, Ordering::SeqCst);
        self.pass().await?;
        self.inner.closure(root).await
    }

    async fn root(&self, name: &Name) -> Result<Node, RemoteError> {
        self.pass().await?;
        self.inner.root(name).await
    }

    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        self.inner.roots().await
    }

    async fn path_info(&self, hash: OutputHash) -> Result<PathInfo, RemoteError> {
        self.inner.path_info(hash).await
    }

    async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError> {
        self.inner.path_infos().await
    }
}

/// Soon out of patience: these tests are about what comes after.
fn policy() -> Policy {
    Policy {
        timeout: Duration::from_millis(500),
        ..Policy::default()
    }
}

fn opened(address: &str) -> Arc<dyn Remote> {
    remote::open(address, &policy()).unwrap().remove(0)
}

fn chain_of(remote: Arc<dyn Remote>) -> Chain {
    Chain::new(vec![remote], policy())
}

fn config(dir: PathBuf, size: u64) -> Config {
    Config {
        dir,
        size: Some(Quota::Bytes(size)),
        min_free: Quota::Bytes(0),
        memory: 16 * MIB,
        resizes: true,
        trust_streams: false,
        keeps: false,
        check: Check::Stamp,
        bandwidth: castore::cache::Bandwidth::default(),
    }
}

fn open(scratch: &Scratch, remote: &Arc<Unruly>) -> Arc<Cache> {
    open_sized(scratch, remote, 1 << 30)
}

fn open_sized(scratch: &Scratch, remote: &Arc<Unruly>, size: u64) -> Arc<Cache> {
    let chain = chain_of(Arc::clone(remote) as Arc<dyn Remote>);
    Cache::open(&config(scratch.path("cache"), size), chain).unwrap()
}

/// Imports a tree of files and gives its root.
async fn imported(scratch: &Scratch, make: impl Fn(&Path)) -> Digest {
    let source = scratch.path("source");
    fs::create_dir_all(&source).unwrap();
    make(&source);
    let publish = remote::open_for_writing(&scratch.remote(), &policy()).unwrap();
    let progress = Arc::new(Progress::default());
    let imported = import::import_path(publish, &source, Options::default(), progress);
    match imported.await.unwrap().root {
        Node::Directory { digest, .. } => digest,
        other => panic!("{other:?}"),
    }
}

async fn read(cache: &Arc<Cache>, digest: Digest, size: u64) -> Result<Vec<u8>, CacheError> {
    let blob = cache.blob(digest, size).await?;
    let mut bytes = Vec::new();
    for slice in blob.manifest().slices(0, size) {
        let data = match cache.slice_at_hand(&blob, slice, Reader::New) {
            Some(slice) => slice.data,
            None => cache.chunk(&blob, slice.index).await?,
        };
        let slice = Slice {
            data,
            start: slice.start,
            len: slice.len,
        };
        slice.append_to(&mut bytes).unwrap();
    }
    Ok(bytes)
}

/// Sizes of all files in a cache directory, as the disk has them.
fn disk_usage(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_fetch_for_many_readers() {
    let scratch = Scratch::new();
    let content = tree::noise(1, 100_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 100_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::from_millis(100));
    let cache = open(&scratch, &remote);
    let digest = Digest::of(&content);
    let readers: Vec<_> = (0..50)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { read(&cache, digest, 100_000).await.unwrap() })
        })
        .collect();
    // One that goes away harms nobody.
    readers[0].abort();
    for reader in readers.into_iter().skip(1) {
        assert!(reader.await.unwrap() == content);
    }
    assert_eq!(remote.chunks.load(Ordering::SeqCst), 1);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wrong_bytes_are_neither_served_nor_kept() {
    let scratch = Scratch::new();
    let content = tree::noise(1, 700_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 700_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    let digest = Digest::of(&content);
    remote.wrong_bytes.store(true, Ordering::SeqCst);
    let error = read(&cache, digest, 700_000).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("damaged at unruly: its bytes have the digest b3:"),
        "{error}"
    );
    cache.sync().await.unwrap();
    assert_eq!(cache.cached_bytes(digest, 700_000).await.unwrap(), 0);
    assert!(cache.stats().get(Counter::RejectedObjects) > 0);
    // One reader's failure is not the next one's.
    remote.wrong_bytes.store(false, Ordering::SeqCst);
    assert!(read(&cache, digest, 700_000).await.unwrap() == content);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_read_is_read_again_without_the_remote() {
    let scratch = Scratch::new();
    let root = imported(&scratch, tree::sample).await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let content = tree::noise(3, 5_000_001);
    let digest = Digest::of(&content);
    let cache = open(&scratch, &remote);
    cache.directory(root, root).await.unwrap();
    read(&cache, digest, 5_000_001).await.unwrap();
    cache.close();
    let closures = remote.closures.load(Ordering::SeqCst);
    remote.away.store(true, Ordering::SeqCst);
    let cache = open(&scratch, &remote);
    assert!(read(&cache, digest, 5_000_001).await.unwrap() == content);
    // Every directory of the closure came with the first request.
    let mut left = vec![root];
    let mut seen = 0;
    while let Some(digest) = left.pop() {
        let directory = cache.directory(digest, root).await.unwrap();
        seen += 1;
        left.extend(directory.directories().map(|(digest, _)| digest));
        assert!(directory.size(SizeRule::Protocol) < 1000);
    }
    assert!(seen > 8);
    assert_eq!(remote.closures.load(Ordering::SeqCst), closures);
    assert_eq!(cache.stats().get(Counter::Misses), 0);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn damage_on_disk_is_found_and_repaired() {
    let scratch = Scratch::new();
    imported(&scratch, |root| {
        tree::file(root, "large", &tree::noise(1, 3_000_000), false);
        tree::file(root, "small", &tree::noise(2, 50_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let files = [(1, 3_000_000), (2, 50_000)].map(|(seed, len)| tree::noise(seed, len));
    let cache = open(&scratch, &remote);
    for content in &files {
        read(&cache, Digest::of(content), content.len() as u64)
            .await
            .unwrap();
    }
    cache.sync().await.unwrap();
    // While the cache is open, and between two processes.
    for (open_now, bit) in [(true, 0x10), (false, 0x20)] {
        let running = if open_now {
            Arc::clone(&cache)
        } else {
            cache.close();
            open(&scratch, &remote)
        };
        for entry in fs::read_dir(scratch.path("cache/data")).unwrap() {
            flip_bits(&entry.unwrap().path(), bit);
        }
        for content in &files {
            let blob = running
                .blob(Digest::of(content), content.len() as u64)
                .await
                .unwrap();
            assert_no_wrong_byte(&running, &blob, content).await;
        }
        if !open_now {
            assert!(running.stats().get(Counter::DamagedChunks) >= 2);
            running.sync().await.unwrap();
            // Repaired: nothing is fetched any more.
            let before = running.stats().get(Counter::Misses);
            for content in &files {
                let again = read(&running, Digest::of(content), content.len() as u64);
                assert!(again.await.unwrap() == *content);
            }
            assert_eq!(running.stats().get(Counter::Misses), before);
            running.close();
        }
    }
}

/// Flips one bit in every 10,000 bytes of a data file.
fn flip_bits(path: &Path, bit: u8) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    for offset in (0..file.metadata().unwrap().len()).step_by(10_000) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ bit], offset).unwrap();
    }
}

async fn assert_no_wrong_byte(cache: &Arc<Cache>, blob: &Arc<Blob>, content: &[u8]) {
    let size = content.len() as u64;
    for slice in blob.manifest().slices(0, size) {
        let data: ChunkData = match cache.slice_at_hand(blob, slice, Reader::New) {
            Some(slice) => slice.data,
            None => cache.chunk(blob, slice.index).await.unwrap(),
        };
        let mut bytes = Vec::new();
        let part = Slice {
            data,
            start: slice.start,
            len: slice.len,
        };
        part.append_to(&mut bytes).unwrap();
        let at = usize::try_from(blob.manifest().chunks()[slice.index].offset).unwrap();
        assert!(
            bytes[..] == content[at..at + bytes.len()],
            "wrong bytes at {at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn missing_and_shortened_data_files_are_fetched_again() {
    let scratch = Scratch::new();
    imported(&scratch, |root| {
        tree::file(root, "large", &tree::noise(1, 3_000_000), false);
    })
    .await;
    let content = tree::noise(1, 3_000_000);
    let remote = Unruly::new(&scratch, Duration::ZERO);
    for harm in ["remove", "shorten", "replace"] {
        let cache = open(&scratch, &remote);
        read(&cache, Digest::of(&content), 3_000_000).await.unwrap();
        cache.close();
        for entry in fs::read_dir(scratch.path("cache/data")).unwrap() {
            let path = entry.unwrap().path();
            match harm {
                "remove" => fs::remove_file(path).unwrap(),
                "shorten" => fs::File::options()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(1000)
                    .unwrap(),
                _ => {
                    let len = fs::metadata(&path).unwrap().len();
                    fs::remove_file(&path).unwrap();
                    fs::write(&path, vec![0; usize::try_from(len).unwrap()]).unwrap();
                }
            }
        }
        let cache = open(&scratch, &remote);
        assert!(
            read(&cache, Digest::of(&content), 3_000_000).await.unwrap() == content,
            "{harm}"
        );
        cache.sync().await.unwrap();
        cache.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_quota_holds() {
    // Many files, and a blob larger than the quota.
    let scratch = Scratch::new();
    let quota = 24 * MIB;
    let sizes: Vec<usize> = (0..60)
        .map(|n| 100_000 + 37_000 * n)
        .chain([60 << 20])
        .collect();
    imported(&scratch, |root| {
        for (seed, size) in sizes.iter().enumerate() {
            tree::file(
                root,
                &seed.to_string(),
                &tree::noise(seed as u64, *size),
                false,
            );
        }
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open_sized(&scratch, &remote, quota);
    for round in 0..2 {
        for (seed, size) in sizes.iter().enumerate() {
            let content = tree::noise(seed as u64, *size);
            let got = read(&cache, Digest::of(&content), *size as u64)
                .await
                .unwrap();
            assert!(got == content, "{round} {seed}");
            let used = disk_usage(&scratch.path("cache"));
            assert!(used <= quota, "{used} bytes after {seed}");
        }
    }
    cache.sync().await.unwrap();
    let (usage, _) = cache.usage().unwrap();
    assert!(usage.data_bytes + usage.other_bytes <= quota, "{usage:?}");
    assert!(usage.data_bytes > quota / 4, "it hardly caches: {usage:?}");
    assert!(cache.stats().get(Counter::EvictedBytes) > 0);
    cache.close();
    // What is said last is remembered, and holds for what is there already.
    let cache = open_sized(&scratch, &remote, 16 * MIB);
    cache.close();
    let unsaid = Config {
        size: None,
        ..config(scratch.path("cache"), 0)
    };
    let chain = chain_of(Arc::clone(&remote) as Arc<dyn Remote>);
    let cache = Cache::open(&unsaid, chain).unwrap();
    assert_eq!(cache.usage().unwrap().0.quota_bytes, 16 * MIB);
    cache.close();
    assert!(disk_usage(&scratch.path("cache")) <= 16 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_worth_of_caches_share_a_quota() {
    // Two caches of one directory, as two processes have them, evict each other's files.
    let scratch = Scratch::new();
    let quota = 16 * MIB;
    imported(&scratch, |root| {
        for seed in 0..40 {
            tree::file(
                root,
                &seed.to_string(),
                &tree::noise(seed, 1_500_000),
                false,
            );
        }
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let caches = [(); 2].map(|()| open_sized(&scratch, &remote, quota));
    let readers: Vec<_> = caches
        .iter()
        .enumerate()
        .map(|(which, cache)| {
            let cache = Arc::clone(cache);
            tokio::spawn(async move {
                for step in 0..80_u64 {
                    let seed = if which == 0 {
                        step % 40
                    } else {
                        39 - step % 40
                    };
                    let content = tree::noise(seed, 1_500_000);
                    let got = read(&cache, Digest::of(&content), 1_500_000).await.unwrap();
                    assert!(got == content);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    for cache in caches {
        assert_eq!(cache.stats().get(Counter::DamagedChunks), 0);
        cache.close();
    }
    assert!(disk_usage(&scratch.path("cache")) <= quota);
}

/// It was fetched a second time to be hashed, since a part of it had been evicted by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_does_not_stay_is_verified_as_it_comes() {
    const SIZE: usize = 48 << 20;
    let scratch = Scratch::new();
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, SIZE), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open_sized(&scratch, &remote, 16 << 20);
    let content = tree::noise(1, SIZE);
    let digest = Digest::of(&content);
    assert!(read(&cache, digest, SIZE as u64).await.unwrap() == content);
    let blob = cache.blob(digest, SIZE as u64).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !blob.is_proven() {
        assert!(Instant::now() < deadline, "it is not verified");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let chunks = blob.manifest().chunks().len() as u64;
    assert_eq!(remote.chunks.load(Ordering::Relaxed), chunks);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_room_it_reads_without_caching() {
    let scratch = Scratch::new();
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 3_000_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let full = Config {
        // More than any disk has free.
        min_free: Quota::Bytes(1 << 60),
        ..config(scratch.path("cache"), 1 << 30)
    };
    let chain = chain_of(Arc::clone(&remote) as Arc<dyn Remote>);
    let cache = Cache::open(&full, chain).unwrap();
    let content = tree::noise(1, 3_000_000);
    for _ in 0..3 {
        assert!(read(&cache, Digest::of(&content), 3_000_000).await.unwrap() == content);
    }
    cache.sync().await.unwrap();
    assert!(cache.stats().get(Counter::Unwritten) > 0);
    assert_eq!(fs::read_dir(scratch.path("cache/data")).unwrap().count(), 0);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn orphans_are_removed() {
    let scratch = Scratch::new();
    imported(&scratch, |root| tree::file(root, "f", b"x", false)).await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    open(&scratch, &remote).close();
    let orphan = scratch.path("cache/data/00000000000000ff");
    fs::write(&orphan, b"left behind by a crash").unwrap();
    let cache = open(&scratch, &remote);
    support::eventually("the orphan goes", || !orphan.exists());
    assert_eq!(read(&cache, Digest::of(b"x"), 1).await.unwrap(), b"x");
    cache.close();
}

/// Writes a closure of directories as they are given, under the digest of the first.
fn write_closure(scratch: &Scratch, directories: &[Vec<u8>]) -> Digest {
    let mut records = Vec::new();
    for directory in directories {
        records.extend(u32::try_from(directory.len()).unwrap().to_be_bytes());
        records.extend(directory);
    }
    let root = Digest::of(&directories[0]);
    let frame = zstd::encode_all(&records[..], 3).unwrap();
    write_object(scratch, "dirs", root, &frame);
    root
}

fn write_object(scratch: &Scratch, kind: &str, digest: Digest, bytes: &[u8]) {
    let hex = digest.to_hex();
    let dir = scratch.path("store").join(kind).join("b3").join(&hex[..4]);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(hex), bytes).unwrap();
}

/// An entry of a Directory, encoded by hand: field 2 is a file, 1 a directory, 3 a symlink.
fn entry(field: u8, name: &[u8], digest_or_target: &[u8], size: Option<u8>) -> Vec<u8> {
    let mut inner = Vec::new();
    for (field, bytes) in [(0x0a, name), (0x12, digest_or_target)] {
        // What is empty is left out of the canonical encoding.
        if !bytes.is_empty() {
            inner.extend([field, u8::try_from(bytes.len()).unwrap()]);
            inner.extend(bytes);
        }
    }
    if let Some(size) = size {
        inner.extend([0x18, size]);
    }
    let mut outer = vec![field << 3 | 2, u8::try_from(inner.len()).unwrap()];
    outer.extend(inner);
    outer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn corrupt_directories_are_refused_by_name() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("store")).unwrap();
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    let digest = Digest::of(b"x");
    let file = |name: &[u8]| entry(2, name, digest.as_bytes(), Some(1));
    let cases: [(Vec<u8>, &str); 9] = [
        (file(b"a/b"), "a/b"),
        (file(b".."), "not a name"),
        (file(b"a\0"), "NUL"),
        (file(b""), "has 0 bytes"),
        ([file(b"b"), file(b"a")].concat(), "not sorted: \"a\""),
        (
            [file(b"twice"), file(b"twice")].concat(),
            "\"twice\" occurs twice",
        ),
        (
            entry(2, b"short", &[1; 31], Some(1)),
            "\"short\" has a bad digest",
        ),
        (
            entry(3, b"link", b"", None),
            "\"link\" has a symlink target of 0 bytes",
        ),
        (b"\xff\xff\xff".to_vec(), "not canonical"),
    ];
    for (bytes, part) in cases {
        let root = write_closure(&scratch, &[bytes]);
        let error = cache.directory(root, root).await.unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains(&root.to_string()),
            "{part}: {error}"
        );
    }
    // A target of 4096 bytes; its length takes two bytes.
    let mut inner = vec![0x0a, 1, b'l', 0x12, 0x80, 0x20];
    inner.extend([b'x'; 4096]);
    let mut long = vec![0x1a, 0x85, 0x20];
    long[1] = u8::try_from(inner.len() & 0x7f).unwrap() | 0x80;
    long[2] = u8::try_from(inner.len() >> 7).unwrap();
    long.extend(inner);
    let root = write_closure(&scratch, &[long]);
    let error = cache.directory(root, root).await.unwrap_err().to_string();
    assert!(error.contains("4096 bytes"), "{error}");
    // Bytes that are not those of the digest, a directory that nothing refers to, one that is missing.
    let good = file(b"a");
    write_object(
        &scratch,
        "dirs",
        digest,
        &zstd::encode_all(&b"\0\0\0\x02ab"[..], 3).unwrap(),
    );
    let error = cache.directory(digest, digest).await.unwrap_err();
    assert!(
        matches!(error, CacheError::UnexpectedDirectory { .. }),
        "{error}"
    );
    let stranger = write_closure(&scratch, &[file(b"z"), good.clone()]);
    cache.directory(stranger, stranger).await.unwrap();
    let parent = entry(1, b"d", Digest::of(&good).as_bytes(), Some(1));
    let root = write_closure(&scratch, &[parent]);
    cache.directory(root, root).await.unwrap();
    let child = cache.directory(Digest::of(&good), root).await.unwrap_err();
    assert!(
        child.to_string().contains(&Digest::of(&good).to_string()),
        "{child}"
    );
    // A frame that is cut off.
    let frame = zstd::encode_all(&[0, 0, 0, 9, 1, 2][..], 3).unwrap();
    write_object(&scratch, "dirs", digest, &frame[..frame.len() - 3]);
    let error = cache.directory(digest, digest).await.unwrap_err();
    assert!(
        matches!(error, CacheError::Remote(RemoteError::Corrupt { .. })),
        "{error}"
    );
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn corrupt_chunks_and_manifests_are_refused() {
    let scratch = Scratch::new();
    let content = tree::noise(1, 700_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 700_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let digest = Digest::of(&content);
    let cache = open(&scratch, &remote);
    let blob = cache.blob(digest, 700_000).await.unwrap();
    let chunk = blob.manifest().chunks()[1];
    let at = usize::try_from(chunk.offset).unwrap();
    let bytes = &content[at..at + usize::try_from(chunk.size).unwrap()];
    let right = zstd::encode_all(bytes, 3).unwrap();
    let more = zstd::encode_all(&[bytes, &[0]].concat()[..], 3).unwrap();
    let bomb = zstd::encode_all(&vec![0; 64 << 20][..], 3).unwrap();
    let other = zstd::encode_all(&tree::noise(9, bytes.len())[..], 3).unwrap();
    for (frame, part) in [
        (&right[..right.len() - 5], "damaged"),
        (&more, "more than"),
        (&bomb, "more than"),
        (&other, "its bytes have the digest"),
        (&b"no frame"[..], "damaged"),
        (&[][..], "damaged"),
    ] {
        write_object(&scratch, "chunks", chunk.digest, frame);
        let error = read(&cache, digest, 700_000).await.unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains(&chunk.digest.to_string()),
            "{part}: {error}"
        );
    }
    write_object(&scratch, "chunks", chunk.digest, &right);
    assert!(read(&cache, digest, 700_000).await.unwrap() == content);
    cache.close();
    scratch.clear_cache();
    // A manifest of another size, one that is no message, one with an empty chunk.
    for manifest in [&[0x12, 0x24, 0x0a, 0x20][..], b"\xff", &[0x12, 2, 0x18, 0]] {
        write_object(&scratch, "blobs", digest, manifest);
        let cache = open(&scratch, &remote);
        let error = cache.blob(digest, 700_000).await.unwrap_err().to_string();
        assert!(error.contains(&digest.to_string()), "{error}");
        cache.close();
    }
    // A manifest that names the chunks of another blob.
    let lie = Manifest::new([(Digest::of(bytes), chunk.size)].repeat(2)).unwrap();
    let size = lie.size();
    write_object(
        &scratch,
        "blobs",
        digest,
        &castore::proto::encode_manifest(&lie),
    );
    let cache = open(&scratch, &remote);
    assert!(cache.blob(digest, 700_000).await.is_err());
    let _ = size;
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_small_blob_that_was_split_is_joined() {
    // Other programs may cut smaller than we do.
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("store")).unwrap();
    let content = tree::noise(1, 1000);
    let parts = [&content[..400], &content[400..]];
    for part in parts {
        let frame = zstd::encode_all(part, 3).unwrap();
        write_object(&scratch, "chunks", Digest::of(part), &frame);
    }
    let manifest = Manifest::new(parts.map(|part| (Digest::of(part), part.len() as u64))).unwrap();
    let digest = Digest::of(&content);
    write_object(
        &scratch,
        "blobs",
        digest,
        &castore::proto::encode_manifest(&manifest),
    );
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    assert_eq!(read(&cache, digest, 1000).await.unwrap(), content);
    cache.close();
    // And one whose chunks join to something else is refused.
    let wrong = Digest::of(b"something else");
    write_object(
        &scratch,
        "blobs",
        wrong,
        &castore::proto::encode_manifest(&manifest),
    );
    let cache = open(&scratch, &remote);
    let error = read(&cache, wrong, 1000).await.unwrap_err();
    assert!(matches!(error, CacheError::BlobMismatch { .. }), "{error}");
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_manifest_that_lies_about_a_size_harms_only_itself() {
    // Two blobs share a chunk; the manifest of one says that the chunk is longer than it is.
    let scratch = Scratch::new();
    let content = tree::noise(1, 700_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 700_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    let honest = cache.blob(Digest::of(&content), 700_000).await.unwrap();
    let (chunk, other) = (honest.manifest().chunks()[0], honest.manifest().chunks()[1]);
    let longer = (chunk.digest, chunk.size + 1000);
    let lie = Manifest::new([longer, (other.digest, other.size)]).unwrap();
    let liar = Digest::of(b"a blob that lies");
    write_object(
        &scratch,
        "blobs",
        liar,
        &castore::proto::encode_manifest(&lie),
    );
    let lying = cache.blob(liar, lie.size()).await.unwrap();
    let slice = lying.manifest().slices(0, 10).next().unwrap();
    for _ in 0..3 {
        assert!(cache.chunk(&lying, 0).await.is_err());
        assert!(cache.slice_at_hand(&lying, slice, Reader::New).is_none());
        assert!(read(&cache, Digest::of(&content), 700_000).await.unwrap() == content);
        cache.sync().await.unwrap();
    }
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_manifests_of_one_blob_do_not_overwrite_each_other() {
    // The same blob with the chunks of another one: written ranges never change.
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("store")).unwrap();
    let (a, b) = (tree::noise(1, 2 << 20), tree::noise(2, 2 << 20));
    for part in a.chunks(1 << 18).chain(b.chunks(1 << 18)) {
        let frame = zstd::encode_all(part, 1).unwrap();
        write_object(&scratch, "chunks", Digest::of(part), &frame);
    }
    let cut = |content: &[u8]| {
        let parts = content.chunks(1 << 18);
        Manifest::new(parts.map(|part| (Digest::of(part), part.len() as u64))).unwrap()
    };
    let (digest, size) = (Digest::of(&a), 2 << 20);
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let mut kept = Vec::new();
    for content in [&a, &b] {
        let manifest = castore::proto::encode_manifest(&cut(content));
        write_object(&scratch, "blobs", digest, &manifest);
        let cache = open(&scratch, &remote);
        // What the first round has left in the index is put out of the way.
        let index = rusqlite::Connection::open(scratch.path("cache/index.sqlite")).unwrap();
        index.busy_timeout(Duration::from_secs(10)).unwrap();
        index.execute("DELETE FROM blobs", []).unwrap();
        let blob = cache.blob(digest, size).await.unwrap();
        assert_no_wrong_byte(&cache, &blob, content).await;
        cache.sync().await.unwrap();
        kept.push((cache, blob, content));
    }
    for (cache, blob, content) in &kept {
        assert_no_wrong_byte(cache, blob, content).await;
    }
    for (cache, ..) in kept {
        cache.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn names_of_one_remote_are_not_those_of_another() {
    let scratch = Scratch::new();
    let root = imported(&scratch, |root| tree::file(root, "f", b"x", false)).await;
    let name = Name::new("name").unwrap();
    let node = Node::Directory {
        digest: root,
        size: 1,
    };
    let publish = remote::open_for_writing(&scratch.remote(), &policy()).unwrap();
    publish.put_root(&name, &node).await.unwrap();
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    assert_eq!(cache.root(&name).await.unwrap(), node);
    cache.sync().await.unwrap();
    cache.close();
    // Away, the name is known from before; at another remote that is away it never was.
    remote.away.store(true, Ordering::SeqCst);
    let cache = open(&scratch, &remote);
    assert_eq!(cache.root(&name).await.unwrap(), node);
    cache.close();
    let chain = chain_of(opened("objectstore+file:///does/not/exist"));
    let cache = Cache::open(&config(scratch.path("cache"), 1 << 30), chain).unwrap();
    assert!(cache.root(&name).await.is_err());
    cache.close();
}

#[test]
fn many_first_opens_at_once() {
    // Going over to a write-ahead log does not wait for another process by itself.
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("store")).unwrap();
    for round in 0..10 {
        let dir = scratch.path(&format!("cache-{round}"));
        let openers: Vec<_> = (0..6)
            .map(|_| {
                let (dir, address) = (dir.clone(), scratch.remote());
                std::thread::spawn(move || {
                    let chain = chain_of(opened(&address));
                    Cache::open(&config(dir, 1 << 30), chain).map(|cache| cache.close())
                })
            })
            .collect();
        for opener in openers {
            opener.join().unwrap().unwrap();
        }
    }
}

/// A manifest with as many bytes as the right one, of chunks that are not there.
fn nowhere(size: u64, seed: u64) -> Manifest {
    let chunk = |part: u64| Digest::of(format!("nowhere {seed} {part}").as_bytes());
    Manifest::new([(chunk(0), size / 2), (chunk(1), size - size / 2)]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_manifest_that_was_misheard_is_asked_for_again() {
    let scratch = Scratch::new();
    let content = tree::noise(1, 1_000_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 1_000_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    remote.manifests.lock().unwrap().push(nowhere(1_000_000, 1));
    let cache = open(&scratch, &remote);
    let limit = Duration::from_secs(20);
    let reads =
        (0..8).map(|_| tokio::time::timeout(limit, read(&cache, Digest::of(&content), 1_000_000)));
    for bytes in futures::future::join_all(reads).await {
        assert!(bytes.expect("it hangs").unwrap() == content);
    }
    assert!(read(&cache, Digest::of(&content), 1_000_000).await.unwrap() == content);
    cache.close();
    // Nor does the wrong one stay in the index.
    let cache = open(&scratch, &remote);
    assert!(read(&cache, Digest::of(&content), 1_000_000).await.unwrap() == content);
    cache.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn manifests_that_are_never_right_are_an_error_and_no_hang() {
    let scratch = Scratch::new();
    let content = tree::noise(1, 1_000_000);
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 1_000_000), false);
    })
    .await;
    let remote = Unruly::new(&scratch, Duration::ZERO);
    let cache = open(&scratch, &remote);
    let lies: [Vec<Manifest>; 2] = [
        (0..50).map(|seed| nowhere(1_000_000, seed)).collect(),
        // The second one names the same missing chunk in another place.
        {
            let chunks: Vec<_> = nowhere(1_000_000, 1)
                .chunks()
                .iter()
                .map(|chunk| (chunk.digest, chunk.size))
                .collect();
            let turned = Manifest::new(chunks.into_iter().rev()).unwrap();
            std::iter::repeat_n([turned, nowhere(1_000_000, 1)], 25)
                .flatten()
                .collect()
        },
    ];
    for lies in lies {
        *remote.manifests.lock().unwrap() = lies;
        let limit = Duration::from_secs(20);
        let read = tokio::time::timeout(limit, read(&cache, Digest::of(&content), 1_000_000));
        assert!(read.await.expect("it hangs").is_err());
        remote.manifests.lock().unwrap().clear();
    }
    cache.close();
}

/// The first of two remotes lies about a blob's chunks; once it was found out, the second is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lie_is_asked_for_elsewhere() {
    let scratch = Scratch::new();
    let (content, other) = (tree::noise(1, 1_000_000), tree::noise(2, 1_000_000));
    imported(&scratch, |root| {
        tree::file(root, "f", &tree::noise(1, 1_000_000), false);
        tree::file(root, "g", &tree::noise(2, 1_000_000), false);
    })
    .await;
    let liar = Unruly::new(&scratch, Duration::ZERO);
    let lie = opened(&scratch.remote())
        .manifest(Digest::of(&other))
        .await
        .unwrap()
        .unwrap();
    *liar.manifests.lock().unwrap() = std::iter::repeat_n(lie, 100).collect();
    let chain = Chain::new(vec![liar.clone(), opened(&scratch.remote())], policy());
    let cache = Cache::open(&config(scratch.path("cache"), 1 << 30), chain).unwrap();
    let mut wrong = cache.wrong_blobs();
    // Each chunk is right, and the whole is not: that shows a second after the last was read.
    assert!(read(&cache, Digest::of(&content), 1_000_000).await.unwrap() == other);
    let told = tokio::time::timeout(Duration::from_secs(20), wrong.recv()).await;
    assert_eq!(told.unwrap().unwrap(), Digest::of(&content));
    assert!(read(&cache, Digest::of(&content), 1_000_000).await.unwrap() == content);
    cache.close();
}
