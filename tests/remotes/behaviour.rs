//! What every remote does.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use castore::{
    cache::{Cache, Check, Config, Quota, Reader, Slice},
    copy,
    import::{self, Options, Progress},
    model::{Digest, Directory, Entry, EntryRef, Manifest, Name, Node, NodeRef, SizeRule},
    remote::{Chain, Policy, Publish, Remote, RemoteError, Urgency},
};
use futures::StreamExt;

use crate::{
    kinds::{Fixture, Test, policy},
    support::{Scratch, tree},
};

pub const ALL: [Test; 8] = [
    (
        "what_is_imported_is_read_back",
        what_is_imported_is_read_back,
    ),
    ("a_mount_shows_it", a_mount_shows_it),
    ("what_is_missing_is_not_found", what_is_missing_is_not_found),
    ("names_come_and_go", names_come_and_go),
    ("what_was_put_is_there", what_was_put_is_there),
    ("a_copy_moves_what_is_missing", a_copy_moves_what_is_missing),
    ("many_read_at_once", many_read_at_once),
    ("sizes_are_held_to", sizes_are_held_to),
];

/// Runs a test's future to its end, and sees that nothing goes on afterwards.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(100), test)
            .await
            .expect("it hangs")
    });
    crate::support::eventually("all tasks end", || runtime.metrics().num_alive_tasks() == 0);
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

pub fn cache_at(dir: &Path, chain: Chain) -> Arc<Cache> {
    let config = Config {
        dir: dir.to_owned(),
        size: Some(Quota::Bytes(1 << 30)),
        min_free: Quota::Bytes(0),
        memory: 32 << 20,
        resizes: true,
        trust_streams: false,
        keeps: false,
        check: Check::Stamp,
        bandwidth: castore::cache::Bandwidth::default(),
    };
    Cache::open(&config, chain).unwrap()
}

pub async fn import(publish: &Arc<dyn Publish>, source: &Path) -> Node {
    let progress = Arc::new(Progress::default());
    let imported = import::import_path(Arc::clone(publish), source, Options::default(), progress);
    imported.await.unwrap().root
}

/// Reads every byte of a tree and compares it with a directory.
pub async fn compare(cache: &Arc<Cache>, root: &Node, source: &Path) -> Result<(), String> {
    let Node::Directory { digest: root, .. } = *root else {
        panic!("not a directory");
    };
    let mut left = vec![(root, source.to_owned())];
    let mut seen = 0;
    while let Some((digest, path)) = left.pop() {
        let directory = cache.directory(digest, root).await;
        let directory = directory.map_err(|error| error.to_string())?;
        let listed = std::fs::read_dir(&path).unwrap().count();
        assert_eq!(directory.len(), listed, "{path:?}");
        for EntryRef { name, node } in directory.entries() {
            seen += 1;
            let path =
                path.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
            match node {
                NodeRef::Directory { digest, .. } => left.push((digest, path)),
                NodeRef::Symlink { target } => {
                    let actual = std::fs::read_link(&path).unwrap();
                    assert_eq!(actual.as_os_str().as_encoded_bytes(), target);
                }
                NodeRef::File { digest, size, .. } => {
                    let bytes = read(cache, digest, size).await?;
                    assert!(
                        bytes == std::fs::read(&path).unwrap(),
                        "wrong bytes: {path:?}"
                    );
                }
            }
        }
    }
    assert!(seen > 0);
    Ok(())
}

pub async fn read(cache: &Arc<Cache>, digest: Digest, size: u64) -> Result<Vec<u8>, String> {
    let blob = cache
        .blob(digest, size)
        .await
        .map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    for slice in blob.manifest().slices(0, size) {
        let data = match cache.slice_at_hand(&blob, slice, Reader::New) {
            Some(slice) => slice.data,
            None => cache
                .chunk(&blob, slice.index)
                .await
                .map_err(|error| error.to_string())?,
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

fn what_is_imported_is_read_back(fixture: &Fixture, place: &str) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    tree::sample(&source);
    run(async {
        let publish = fixture.publish(place);
        let root = import(&publish, &source).await;
        let cache = cache_at(
            &scratch.path("cache"),
            Chain::new(vec![fixture.remote(place)], policy()),
        );
        compare(&cache, &root, &source).await.unwrap();
        cache.close();
        // All of it is in the cache now.
        let offline = Chain::offline(vec![vec![fixture.remote(place)]]);
        let cache = cache_at(&scratch.path("cache"), offline);
        compare(&cache, &root, &source).await.unwrap();
        cache.close();
    });
}

/// By the command line, as a person does it.
fn a_mount_shows_it(fixture: &Fixture, place: &str) {
    let Some(address) = fixture.address(place) else {
        return; // No other process can see it.
    };
    if !Path::new("/dev/fuse").exists() {
        eprintln!("no /dev/fuse here: only listed, not mounted");
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.path("source");
    tree::sample(&source);
    let root = run(async { import(&fixture.publish(place), &source).await });
    let Node::Directory { digest, .. } = root else {
        panic!("not a directory");
    };
    let digest = digest.to_string();
    let mount = scratch.mount(["--remote", &address, &digest]);
    tree::assert_equal(&source, &mount.path);
    let log = mount.stop();
    for secret in ["secret-of-", "castore-tests-only"] {
        assert!(!log.contains(secret), "{log}");
    }
}

fn what_is_missing_is_not_found(fixture: &Fixture, place: &str) {
    run(async {
        // So that there is a store.
        fixture.publish(place).sync().await.unwrap();
        let remote = fixture.remote(place);
        let digest = Digest::of(format!("nobody has this at {place}").as_bytes());
        let name = Name::new(format!("nobody-{place}")).unwrap();
        let not_found = |error: RemoteError| assert!(error.is_not_found(), "{error}");
        not_found(remote.manifest(digest).await.unwrap_err());
        let reader = Urgency::reader();
        not_found(remote.chunk(digest, Some(5), &reader).await.unwrap_err());
        not_found(remote.chunk(digest, None, &reader).await.unwrap_err());
        not_found(remote.root(&name).await.unwrap_err());
        match remote.closure(digest).await {
            Err(error) => not_found(error),
            Ok(mut records) => not_found(records.next().await.unwrap().unwrap_err()),
        }
        // What is nowhere is there all the same: the empty blob and the empty directory.
        assert_eq!(remote.manifest(Digest::empty()).await.unwrap(), None);
        let empty: Vec<_> = remote
            .closure(Digest::empty())
            .await
            .unwrap()
            .collect()
            .await;
        assert_eq!(empty.len(), 1);
        assert!(empty[0].as_ref().unwrap().is_empty());
    });
}

fn names_come_and_go(fixture: &Fixture, place: &str) {
    run(async {
        let (publish, remote) = (fixture.publish(place), fixture.remote(place));
        let node = Node::Directory {
            digest: Digest::empty(),
            size: 0,
        };
        let link = Node::Symlink {
            target: castore::model::Target::new("elsewhere").unwrap(),
        };
        let names = [
            "plain",
            "with space",
            "percent%41",
            "dots..",
            "ünï-cödé",
            "a+b=c&d?e#f",
            "~tilde",
            "back\\slash",
        ];
        let names: Vec<_> = names
            .iter()
            .map(|name| Name::new((*name).to_owned()).unwrap())
            .chain([Name::new(&b"not \xff utf-8"[..]).unwrap()])
            .collect();
        for name in &names {
            publish
                .put_root(name, &node)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            publish.sync().await.unwrap();
            assert_eq!(
                remote
                    .root(name)
                    .await
                    .unwrap_or_else(|error| panic!("{name:?}: {error}")),
                node
            );
        }
        let listed = || async {
            let roots = remote.roots().await.unwrap().into_iter();
            roots.map(|(name, _)| name).collect::<BTreeSet<_>>()
        };
        if fixture.lists {
            let all = listed().await;
            assert!(names.iter().all(|name| all.contains(name)), "{all:?}");
        } else {
            assert!(listed().await.is_empty());
        }
        // A name can stand for something else, and go.
        publish.put_root(&names[0], &link).await.unwrap();
        assert_eq!(remote.root(&names[0]).await.unwrap(), link);
        for name in &names {
            assert!(publish.remove_root(name).await.unwrap(), "{name:?}");
            assert!(!publish.remove_root(name).await.unwrap(), "{name:?}");
            let until = Instant::now() + fixture.lag;
            while remote.root(name).await.is_ok() {
                assert!(Instant::now() < until, "{name:?} is still there");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(remote.root(name).await.unwrap_err().is_not_found());
        }
        assert!(
            names
                .iter()
                .all(|name| !futures::executor::block_on(listed()).contains(name))
        );
    });
}

fn what_was_put_is_there(fixture: &Fixture, place: &str) {
    run(async {
        let (publish, remote) = (fixture.publish(place), fixture.remote(place));
        let parts = [tree::noise(71, 200_000), tree::noise(72, 300_000)];
        let whole = parts.concat();
        let blob = Digest::of(&whole);
        assert!(!publish.has_blob(blob).await.unwrap());
        let mut chunks = Vec::new();
        for part in parts {
            let digest = Digest::of(&part);
            chunks.push((digest, part.len() as u64));
            publish.put_chunk(digest, Bytes::from(part)).await.unwrap();
            assert!(publish.has_chunk(digest).await.unwrap());
        }
        let manifest = Manifest::new(chunks.clone()).unwrap();
        publish.put_manifest(blob, &manifest).await.unwrap();
        publish.sync().await.unwrap();
        assert!(publish.has_blob(blob).await.unwrap());
        let found = remote.manifest(blob).await.unwrap();
        let found = found.expect("it is split");
        assert_eq!(found.size(), whole.len() as u64);
        let mut joined = Vec::new();
        for chunk in found.chunks() {
            let urgency = Urgency::reader();
            let bytes = remote
                .chunk(chunk.digest, Some(chunk.size), &urgency)
                .await
                .unwrap();
            joined.extend_from_slice(&bytes);
        }
        assert!(joined == whole);
        for (digest, size) in chunks {
            let bytes = remote
                .chunk(digest, None, &Urgency::default())
                .await
                .unwrap();
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (digest, size));
        }
        let entry = Entry {
            name: Name::new("f").unwrap(),
            node: Node::File {
                digest: blob,
                size: whole.len() as u64,
                executable: true,
            },
        };
        let child = Directory::new(vec![entry]).unwrap();
        let child_bytes = Bytes::copy_from_slice(child.encoded());
        let entry = Entry {
            name: Name::new("d").unwrap(),
            node: Node::Directory {
                digest: Digest::of(&child_bytes),
                size: child.size(SizeRule::Protocol),
            },
        };
        let root = Directory::new(vec![entry]).unwrap();
        let root_bytes = Bytes::copy_from_slice(root.encoded());
        let root = Digest::of(&root_bytes);
        assert!(!publish.has_closure(root).await.unwrap());
        let closure = vec![root_bytes, child_bytes];
        publish.put_closure(root, closure.clone()).await.unwrap();
        publish.sync().await.unwrap();
        assert!(publish.has_closure(root).await.unwrap());
        let records: Vec<_> = remote.closure(root).await.unwrap().collect().await;
        let records: Vec<_> = records.into_iter().map(Result::unwrap).collect();
        assert_eq!(records, closure);
    });
}

fn a_copy_moves_what_is_missing(fixture: &Fixture, place: &str) {
    let scratch = Scratch::new();
    let (source, other) = (scratch.path("source"), scratch.path("other"));
    tree::sample(&source);
    std::fs::create_dir(&other).unwrap();
    tree::file(&other, "seed", place.as_bytes(), false);
    tree::file(&other, "large", &tree::noise(900, 2_500_000), false);
    run(async {
        // From a directory to there, from there to another directory, and that is the same.
        let here = castore::remote::open_for_writing(&scratch.remote(), &policy()).unwrap();
        let there = fixture.publish(place);
        for source in [&source, &other] {
            let root = import(&here, source).await;
            let from: Arc<dyn Remote> = here.clone();
            let from = Chain::new(vec![from], policy());
            let progress = copy::Progress::default();
            copy::copy(&from, &there, &root, &progress).await.unwrap();
            let again = copy::Progress::default();
            copy::copy(&from, &there, &root, &again).await.unwrap();
            assert_eq!(again.moved.load(std::sync::atomic::Ordering::Relaxed), 0);
            let back = format!("objectstore+file://{}", scratch.path("back").display());
            let back = castore::remote::open_for_writing(&back, &policy()).unwrap();
            let from = Chain::new(vec![fixture.remote(place)], policy());
            copy::copy(&from, &back, &root, &progress).await.unwrap();
            let back: Arc<dyn Remote> = back;
            let cache = cache_at(&scratch.path("cache"), Chain::new(vec![back], policy()));
            compare(&cache, &root, source).await.unwrap();
            cache.close();
        }
    });
}

fn many_read_at_once(fixture: &Fixture, place: &str) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    std::fs::create_dir(&source).unwrap();
    for file in 0..60 {
        tree::file(
            &source,
            &format!("small-{file}"),
            &tree::noise(file, 3_000),
            false,
        );
    }
    tree::file(&source, "large", &tree::noise(500, 3_000_000), false);
    run(async {
        let root = import(&fixture.publish(place), &source).await;
        let chain = Chain::new(vec![fixture.remote(place)], policy());
        let cache = cache_at(&scratch.path("cache"), chain);
        let readers = (0..12).map(|_| {
            let (cache, root, source) = (Arc::clone(&cache), root.clone(), source.clone());
            tokio::spawn(async move { compare(&cache, &root, &source).await })
        });
        for reader in futures::future::join_all(readers).await {
            reader.unwrap().unwrap();
        }
        cache.close();
    });
}

fn sizes_are_held_to(fixture: &Fixture, place: &str) {
    run(async {
        let bytes = tree::noise(4321, 50_000);
        let digest = Digest::of(&bytes);
        let publish = fixture.publish(place);
        publish.put_chunk(digest, Bytes::from(bytes)).await.unwrap();
        publish.sync().await.unwrap();
        let hasty = Policy {
            timeout: Duration::from_secs(2),
            ..policy()
        };
        for size in [49_999, 50_001] {
            let chain = Chain::new(vec![fixture.remote(place)], hasty);
            let urgency = Urgency::reader();
            let error = chain.chunk(digest, Some(size), &urgency).await.unwrap_err();
            assert!(error.to_string().contains("bytes"), "{error}");
        }
    });
}
