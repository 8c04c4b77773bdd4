//! Bringing trees here, moving them between stores, and saying what is missing.

use std::{fs, process::Stdio, time::Duration};

use crate::support::{
    self, Scratch,
    hub::Hub,
    proxy::{Link, Proxy},
    signal, tree, wait,
};

fn imported(scratch: &Scratch) -> String {
    let source = scratch.path("source");
    fs::create_dir_all(&source).unwrap();
    tree::sample(&source);
    let root = scratch.import(&source);
    scratch.clear_cache();
    root
}

#[test]
fn fetch_brings_all_of_it_and_verify_says_so() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let address = hub.address.clone();
    let with = |args: &[&str]| -> Vec<String> {
        let args = args.iter().copied().chain(["--remote", &address]);
        args.map(str::to_owned).collect()
    };
    let said = scratch.fails(with(&["verify", &root]));
    assert!(said.contains(&root), "{said}");
    // A part of it.
    scratch.ok(with(&["fetch", &format!("{root}/deep")]));
    assert!(
        scratch
            .ok(with(&["verify", &format!("{root}/deep")]))
            .contains("complete")
    );
    let missing = scratch.run(with(&["verify", &root]));
    assert_eq!(missing.status.code(), Some(1));
    let listed = String::from_utf8(missing.stdout).unwrap();
    assert!(
        listed.contains("/large") && !listed.contains("deeper/end"),
        "{listed}"
    );
    let said = scratch.ok(with(&["fetch", &root]));
    assert!(said.contains("is in the cache"), "{said}");
    assert!(
        scratch
            .ok(with(&["fetch", &root]))
            .contains("of which 0 B were fetched")
    );
    hub.stop();
    assert!(scratch.ok(with(&["verify", &root])).contains("complete"));
    // A damaged chunk is missing, too.
    let data = scratch.path("cache/data");
    let largest = fs::read_dir(&data)
        .unwrap()
        .flatten()
        .max_by_key(|entry| entry.metadata().unwrap().len());
    let path = largest.unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = scratch.run(with(&["verify", &root]));
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8(said.stdout).unwrap().contains("missing"));
}

#[test]
fn what_cannot_fit_is_refused_before_the_first_byte() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for seed in 0..5 {
        tree::file(
            &source,
            &seed.to_string(),
            &tree::noise(seed, 5_000_000),
            false,
        );
    }
    let root = scratch.import(&source);
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let proxy = Proxy::start(hub.port());
    let remote = format!("grpc+http://127.0.0.1:{}", proxy.port());
    let said = scratch.fails(["fetch", "--cache-size", "16MiB", "--remote", &remote, &root]);
    assert!(
        said.contains("--cache-size") && said.contains("nothing was fetched"),
        "{said}"
    );
    assert!(proxy.bytes().1 < 100_000, "{:?}", proxy.bytes());
    // What fits does, also where other things have to go.
    scratch.ok(["fetch", "--cache-size", "40MiB", "--remote", &remote, &root]);
    let said = scratch.fails([
        "fetch",
        "--min-free",
        "100%",
        "--remote",
        &remote,
        &format!("{root}/1"),
    ]);
    assert!(said.contains("can hold"), "{said}");
    drop(proxy);
    hub.stop();
}

#[test]
fn a_copy_that_is_interrupted_goes_on() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for seed in 0..8 {
        tree::file(
            &source,
            &seed.to_string(),
            &tree::noise(seed, 4_000_000),
            false,
        );
    }
    let root = scratch.import(&source);
    scratch.ok(["name", "release", &root]);
    let names = scratch.path("t");
    fs::write(&names, "t").unwrap();
    let target = format!("objectstore+file://{}", scratch.path("target").display());
    let args = ["--writable", "--names-token-file", names.to_str().unwrap()];
    let hub = Hub::start(&scratch, "hub", &target, args);
    let proxy = Proxy::start(hub.port());
    proxy.set(Link {
        bandwidth: Some(8_000_000),
        ..Link::default()
    });
    let to = format!(
        "grpc+http://127.0.0.1:{}?names-token-file={}",
        proxy.port(),
        names.display()
    );
    let mut copy = scratch
        .command(["copy", "release", "--from", &scratch.remote(), "--to", &to])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    support::eventually("some of it", || proxy.bytes().0 > 12_000_000);
    signal(&copy, libc::SIGKILL);
    wait(&mut copy, support::DEADLINE).unwrap();
    // A root that is not complete is not there.
    let there = scratch.path("target/dirs");
    assert!(!there.exists() || fs::read_dir(&there).unwrap().count() == 0);
    let before = proxy.bytes().0;
    proxy.set(Link::default());
    let said = scratch.ok(["copy", "release", "--from", &scratch.remote(), "--to", &to]);
    let moved = proxy.bytes().0 - before;
    assert!(moved < 28_000_000, "{moved} bytes once more: {said}");
    assert!(
        scratch
            .ok(["roots", "--remote", &target])
            .contains("release")
    );
    // Pulled into a third store it is the same.
    let third = format!("objectstore+file://{}", scratch.path("third").display());
    scratch.ok(["copy", "--all", "--from", &hub.address, "--to", &third]);
    let other = scratch.path("other");
    let args = [
        "fetch",
        "--remote",
        &third,
        "--cache-dir",
        other.to_str().unwrap(),
        "release",
    ];
    scratch.ok(args);
    assert!(
        scratch
            .ok(["copy", "release", "--from", &scratch.remote(), "--to", &to])
            .contains("0 B of 1 trees moved")
    );
    hub.stop();
}

#[test]
fn copy_says_what_it_needs() {
    let scratch = Scratch::new();
    let root = imported(&scratch);
    assert!(scratch.fails(["copy", &root]).contains("--to"));
    assert!(
        scratch
            .fails(["copy", "--to", &scratch.remote()])
            .contains("ROOT")
    );
    let web = "objectstore+http://127.0.0.1:1/x";
    assert!(
        scratch
            .fails(["copy", &root, "--to", web])
            .contains("only be read")
    );
    let said = scratch.fails([
        "copy",
        "nobody",
        "--from",
        &scratch.remote(),
        "--to",
        &scratch.remote(),
    ]);
    assert!(said.contains("nobody"), "{said}");
}

/// Many clients, cold, through one hub: each byte comes from upstream once.
#[test]
fn a_herd_is_fetched_once() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for seed in 0..60 {
        tree::file(
            &source,
            &format!("d{}/small-{seed}", seed % 7),
            &tree::noise(seed, 20_000),
            false,
        );
    }
    for seed in 100..103 {
        tree::file(
            &source,
            &format!("large-{seed}"),
            &tree::noise(seed, 3_000_000),
            false,
        );
    }
    let tree_bytes = 60 * 20_000 + 3 * 3_000_000;
    let root = scratch.import(&source);
    let origin = Hub::start(&scratch, "origin", &scratch.remote(), [""; 0]);
    let proxy = Proxy::start(origin.port());
    proxy.set(Link {
        delay: Duration::from_millis(5),
        ..Link::default()
    });
    let upstream = format!("grpc+http://127.0.0.1:{}", proxy.port());
    let hub = Hub::start(&scratch, "hub", &upstream, [""; 0]);
    let clients = 16;
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let cache = scratch.path(&format!("client-{client}"));
            let mut command = scratch.command(["fetch", "--remote", &hub.address, &root]);
            command.env("CASTORE_CACHE_DIR", cache);
            std::thread::spawn(move || support::succeeded(&support::output(command)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let came = proxy.bytes().1;
    assert!(
        came * 100 <= tree_bytes * 105,
        "{came} bytes came for {tree_bytes}"
    );
    hub.stop();
    origin.stop();
}

/// A source whose manifest names chunks that make up something else.
#[test]
fn a_copy_verifies_what_it_copies() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "f", &tree::noise(1, 2_000_000), false);
    tree::file(&source, "g", &tree::noise(2, 2_000_000), false);
    let root = scratch.import(&source);
    let manifest = |seed| {
        let hex = castore::model::Digest::of(&tree::noise(seed, 2_000_000)).to_hex();
        scratch.path(&format!("store/blobs/b3/{}/{hex}", &hex[..4]))
    };
    fs::copy(manifest(2), manifest(1)).unwrap();
    let target = format!("objectstore+file://{}", scratch.path("target").display());
    for _ in 0..2 {
        let said = scratch.fails(["copy", &root, "--from", &scratch.remote(), "--to", &target]);
        assert!(said.contains("other bytes than its digest says"), "{said}");
    }
    assert!(!scratch.path("target/dirs").exists());
    let hub = Hub::start(&scratch, "hub", &target, ["--writable"]);
    let said = scratch.fails([
        "copy",
        &root,
        "--from",
        &scratch.remote(),
        "--to",
        &hub.address,
    ]);
    assert!(said.contains("make up the blob"), "{said}");
    hub.stop();
}

/// It ended with 0 while the directories above the part were still on their way, and nothing was found without the remote.
#[test]
fn a_part_that_was_fetched_is_found_without_its_remote() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "a/part", b"of it", false);
    for directory in 0..2000 {
        // Long names, so that the closure takes its time.
        let name = format!("b/{directory}/{}", "n".repeat(200));
        tree::file(&source, &name, b"", false);
    }
    let root = scratch.import(&source);
    scratch.clear_cache();
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
    let line = Proxy::start(hub.port());
    line.set(Link {
        bandwidth: Some(500 << 10),
        ..Link::default()
    });
    let address = format!("grpc+http://127.0.0.1:{}", line.port());
    let part = format!("{root}/a");
    scratch.ok(["fetch", "--remote", &address, &part]);
    line.close();
    let offline = |args: &[&str]| {
        let args = args.iter().copied();
        scratch.ok(args.chain(["--offline", "--remote", &address]))
    };
    assert_eq!(offline(&["ls", &root]), "a\nb\n");
    assert_eq!(offline(&["cat", &format!("{part}/part")]), "of it");
    let below = format!("{root}/b/1999");
    assert_eq!(offline(&["ls", &below]), format!("{}\n", "n".repeat(200)));
    hub.stop();
}
