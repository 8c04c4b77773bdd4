//! Whole trees in the background, and the limits that hold for it.

use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use castore::model::{Directory, Entry, Name, Node};

use super::{
    Far, noise, read_file,
    support::{self, Scratch, plain::Plain},
};

const MIB: u64 = 1 << 20;

fn two_parts() -> Far {
    Far::new(|source| {
        fs::create_dir_all(source.join("bin/deep")).unwrap();
        fs::create_dir_all(source.join("lib")).unwrap();
        noise(&source.join("bin/deep/a"), 1, 3 << 20);
        noise(&source.join("bin/b"), 2, 1000);
        noise(&source.join("lib/c"), 3, 2 << 20);
    })
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_tree_is_filled_in_the_background() {
    let far = two_parts();
    let mount = far.mount(&["--prefetch", "tree"]);
    let all = 5 * MIB + 1000;
    support::eventually("all of the tree", || far.counters()["fetched_bytes"] == all);
    assert_eq!(far.counters()["prefetch_tree_bytes"], all);
    read_file(&mount, &far, "lib/c");
    assert_eq!(far.counters()["prefetch_tree_used_bytes"], 2 * MIB);
    mount.stop();
    // All of it can be read offline.
    let verified = far.scratch.ok(["verify", "--offline", &far.root]);
    assert!(verified.contains("complete"), "{verified}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn and_so_are_paths_of_it() {
    let far = two_parts();
    let mount = far.mount(&["--prefetch", "bin"]);
    support::eventually("the path", || {
        far.counters()["fetched_bytes"] == 3 * MIB + 1000
    });
    assert_eq!(far.settled()["fetched_bytes"], 3 * MIB + 1000);
    mount.stop();
    let (remote, mnt) = (&far.address, far.scratch.mnt());
    let mount = [
        "mount",
        "--remote",
        remote,
        &far.root,
        mnt.to_str().unwrap(),
    ];
    let fails = |prefetch: &[&str]| far.scratch.fails(mount.iter().chain(prefetch));
    let said = fails(&["--prefetch", "bin,/nowhere"]);
    assert!(said.contains("nowhere"), "{said}");
    let said = fails(&["--prefetch", "bin", "--prefetch", "tree"]);
    assert!(said.contains("stand alone"), "{said}");
    let said = far.scratch.fails(["mount", "--prefetch", "../x", "a", "b"]);
    assert!(said.contains("no path of the tree"), "{said}");
    let said = far
        .scratch
        .fails(["mount", "--prefetch", "tree", "--all", "b"]);
    assert!(said.contains("one tree"), "{said}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_full_cache_is_not_emptied_for_what_nobody_reads() {
    let far = Far::new(|source| {
        for number in 0..6_u64 {
            noise(&source.join(format!("f{number}")), number, 8 << 20);
        }
    });
    let mount = far.mount(&["--cache-size", "32MiB", "--prefetch", "tree"]);
    support::eventually("a full cache", || {
        far.counters()["fetched_bytes"] >= 16 * MIB
    });
    let counters = far.settled();
    assert!(counters["fetched_bytes"] < 32 * MIB, "{counters:?}");
    assert_eq!(counters["evicted_bytes"], 0, "{counters:?}");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_bandwidth_is_kept_to() {
    let far = two_parts();
    // What comes is as much as may, and no faster than that: being slower breaks no promise.
    let mount = far.mount(&["--bandwidth", "1MiB"]);
    let started = Instant::now();
    read_file(&mount, &far, "bin/deep/a");
    let allowed = MIB as f64 * (started.elapsed().as_secs_f64() + 1.0);
    let fetched = far.counters()["fetched_bytes"];
    assert!(
        fetched >= 3 * MIB && fetched as f64 <= allowed,
        "{fetched} of {allowed}"
    );
    mount.stop();
    far.scratch.clear_cache();
    // Of what nobody waits for alone: nobody does.
    let mount = far.mount(&["--bandwidth", "prefetch:100KiB", "--prefetch", "tree"]);
    let started = Instant::now();
    support::eventually("some of the tree", || far.counters()["fetched_bytes"] > 0);
    let fetched = far.counters()["fetched_bytes"];
    // The largest chunk is 512 KiB.
    let allowed = 100e3 * 1.024 * (started.elapsed().as_secs_f64() + 1.0) + 1e6;
    assert!((fetched as f64) < allowed, "{fetched} of {allowed}");
    read_file(&mount, &far, "lib/c");
    mount.stop();
    let said = far.scratch.fails(["mount", "--bandwidth", "5%", "a", "b"]);
    assert!(said.contains("bytes a second"), "{said}");
}

/// A tree of so many directories with three files each, which say that they are as large as `claims`.
fn many_directories(server: &Plain, count: usize, claims: u64) -> Node {
    let file = server.blob(b"content".to_vec());
    let entries = (0..count).map(|number| {
        let name = Name::new(format!("f{number}")).unwrap();
        let files = [("a", &file), ("b", &file)].map(|(name, node)| Entry {
            name: Name::new(name).unwrap(),
            node: node.clone(),
        });
        let own = Entry {
            name,
            node: file.clone(),
        };
        let files = files.into_iter().chain([own]).collect();
        let Node::Directory { digest, .. } = server.directory(&Directory::new(files).unwrap())
        else {
            unreachable!();
        };
        Entry {
            name: Name::new(format!("d{number:03}")).unwrap(),
            node: Node::Directory {
                digest,
                size: claims,
            },
        }
    });
    server.directory(&Directory::new(entries.collect()).unwrap())
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_huge_tree_is_asked_for_by_parts_and_another_at_once() {
    for (claims, closures) in [(3, 1..=1), (1_000_000, 61..=61)] {
        let scratch = Scratch::new();
        let server = Plain::start("tvix");
        let Node::Directory { digest, .. } = many_directories(&server, 60, claims) else {
            unreachable!();
        };
        let state = Arc::clone(&server.state);
        let mount = scratch.mount(["--remote", &server.address(), &digest.to_string()]);
        assert_eq!(state.closures.load(Ordering::SeqCst), 1);
        let walk = |path: std::path::PathBuf| {
            support::within(support::DEADLINE, "the walk", move || {
                let mut files = 0;
                for directory in fs::read_dir(path).unwrap() {
                    files += fs::read_dir(directory.unwrap().path()).unwrap().count();
                }
                files
            })
        };
        // The first look at one has the next ones fetched, and not all of them.
        fs::metadata(mount.at("d000/a")).unwrap();
        support::eventually("the next directories", || {
            state.closures.load(Ordering::SeqCst) >= 16 || claims == 3
        });
        assert!(state.closures.load(Ordering::SeqCst) < 40);
        assert_eq!(walk(mount.path.clone()), 180);
        let asked = || state.closures.load(Ordering::SeqCst);
        assert!(closures.contains(&asked()), "{} for {claims}", asked());
        mount.stop();
        // It is never fetched again.
        let mount = scratch.mount(["--remote", &server.address(), &digest.to_string()]);
        assert_eq!(walk(mount.path.clone()), 180);
        assert!(closures.contains(&asked()), "{} for {claims}", asked());
        mount.stop();
    }
}
