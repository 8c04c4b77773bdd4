//! Readers of large files, and of many small ones.

use std::{fs, io::Read, thread};

use super::{Far, noise, read_file, read_range, support};

const MIB: u64 = 1 << 20;

fn large(len: u64) -> Far {
    Far::new(|source| {
        noise(&source.join("large"), 1, usize::try_from(len).unwrap());
        noise(&source.join("other"), 2, 4 << 20);
    })
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_comes_next_is_fetched_once() {
    let far = large(24 * MIB);
    far.link(20, None);
    let mount = far.mount(&[]);
    read_file(&mount, &far, "large");
    let counters = far.settled();
    assert_eq!(counters["fetched_bytes"], 24 * MIB);
    let ahead = counters["prefetch_sequential_bytes"];
    assert!(ahead > 6 * MIB, "{counters:?}");
    assert_eq!(counters["prefetch_sequential_used_bytes"], ahead);
    assert!(counters["prefetch_sequential_late_bytes"] <= ahead);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn sixteen_readers_of_a_file_fetch_it_once() {
    let far = large(24 * MIB);
    far.link(10, None);
    let mount = far.mount(&[]);
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let path = mount.at("large");
            thread::spawn(move || {
                support::within(support::DEADLINE, "a reader", move || {
                    fs::read(path).unwrap().len()
                })
            })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap() as u64, 24 * MIB);
    }
    assert_eq!(far.settled()["fetched_bytes"], 24 * MIB);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn random_reads_fetch_the_chunks_they_touch_alone() {
    let far = large(64 * MIB);
    let fetched = |prefetch: &str| {
        let mount = far.mount(&["--prefetch", prefetch]);
        let mut at = 1_u64;
        for _ in 0..60 {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            read_range(&mount, &far, "large", (at >> 33) % (16 << 10) * 4096, 4096);
        }
        let counters = far.settled();
        mount.stop();
        far.scratch.clear_cache();
        counters["fetched_bytes"]
    };
    let (needed, fetched) = (fetched("off"), fetched("auto"));
    assert!(needed > 4 * MIB && fetched >= needed, "{needed} {fetched}");
    // The beginning of the file may have come with it.
    assert!(fetched <= needed + 2 * MIB, "{needed} {fetched}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn nothing_is_fetched_ahead_when_that_is_off() {
    let far = large(8 * MIB);
    let mount = far.mount(&["--prefetch", "off"]);
    read_range(&mount, &far, "large", 0, 1 << 20);
    let counters = far.settled();
    // The kernel itself reads ahead.
    assert!(counters["fetched_bytes"] < 6 * MIB, "{counters:?}");
    let ahead = counters
        .iter()
        .filter(|(name, _)| name.starts_with("prefetch"));
    assert_eq!(
        ahead.map(|(_, bytes)| bytes).sum::<u64>(),
        0,
        "{counters:?}"
    );
    mount.stop();
}

/// A reader's miss goes before all that waits to be fetched ahead, also when that is a lot.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_miss_overtakes_a_full_queue() {
    let far = large(64 * MIB);
    far.link(4, Some(4_000_000));
    let mount = far.mount(&["--prefetch", "tree"]);
    // In order, so that there is a window to fill besides the tree.
    read_range(&mount, &far, "large", 0, 2 << 20);
    read_range(&mount, &far, "large", 2 * MIB, 1 << 20);
    read_range(&mount, &far, "other", 3 * MIB, 4096);
    // 16 s of the link are in front of it.
    let fetched = far.counters()["fetched_bytes"];
    assert!(fetched < 16 * MIB, "{fetched}");
    mount.stop();
}

/// Bytes that come in all when a reader in order stops after 3 MiB: 6 MiB more are wanted ahead of it, on a link that takes
/// 15 s for them.
fn after_the_reader_stopped(mode: &str, close: bool) -> u64 {
    let far = large(32 * MIB);
    far.link(4, Some(400_000));
    let mount = far.mount(&["--io-mode", mode]);
    let path = mount.at("large");
    let file = support::within(support::DEADLINE, "the reader", move || {
        let mut file = fs::File::open(path).unwrap();
        file.read_exact(&mut vec![0; 3 << 20]).unwrap();
        file
    });
    let file = (!close).then_some(file);
    let counters = far.settled();
    drop(file);
    mount.stop();
    counters["fetched_bytes"]
}

#[test]
#[ignore = "needs /dev/fuse"]
fn closing_a_file_cancels_what_only_it_wanted() {
    let came = after_the_reader_stopped("large", true);
    assert!((3 * MIB..6 * MIB).contains(&came), "{came}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_file_that_nobody_reads_any_more_counts_as_closed() {
    let came = after_the_reader_stopped("small", false);
    assert!((3 * MIB..8 * MIB).contains(&came), "{came}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn the_next_small_files_are_fetched_in_the_order_of_a_walk() {
    let far = Far::new(|source| {
        for number in 0..600_u64 {
            let dir = source.join(format!("d{}", number / 60));
            fs::create_dir_all(&dir).unwrap();
            noise(&dir.join(format!("f{number:03}")), number, 3000);
        }
    });
    far.link(10, None);
    let mount = far.mount(&[]);
    for number in 0..600 {
        read_file(&mount, &far, &format!("d{}/f{number:03}", number / 60));
    }
    let counters = far.settled();
    assert_eq!(counters["fetched_bytes"], 600 * 3000);
    let (ahead, used) = (
        counters["prefetch_siblings_bytes"],
        counters["prefetch_siblings_used_bytes"],
    );
    assert!(ahead > 300 * 3000, "{counters:?}");
    assert_eq!(ahead, used);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_small_directory_is_fetched_as_a_whole_in_any_order() {
    let far = Far::new(|source| {
        for number in 0..40_u64 {
            noise(&source.join(format!("f{number:02}")), number, 3000);
        }
    });
    far.link(10, None);
    let mount = far.mount(&[]);
    read_file(&mount, &far, "f30");
    read_file(&mount, &far, "f07");
    let counters = far.settled();
    assert_eq!(counters["fetched_bytes"], 40 * 3000, "{counters:?}");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn random_small_files_of_a_large_directory_come_alone() {
    let far = Far::new(|source| {
        for number in 0..400_u64 {
            noise(&source.join(format!("f{number:03}")), number, 3000);
        }
    });
    let mount = far.mount(&[]);
    for number in [300, 100, 200, 20, 350, 150] {
        read_file(&mount, &far, &format!("f{number:03}"));
    }
    let counters = far.settled();
    assert_eq!(counters["fetched_bytes"], 6 * 3000, "{counters:?}");
    mount.stop();
}

/// One who goes through a large directory in order gets what comes next, and not all of it.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_walk_fetches_twice_as_much_as_is_read() {
    let far = Far::new(|source| {
        for number in 0..400_u64 {
            noise(&source.join(format!("f{number:03}")), number, 20_000);
        }
    });
    far.link(10, None);
    let mount = far.mount(&[]);
    for number in 0..50 {
        read_file(&mount, &far, &format!("f{number:03}"));
    }
    let counters = far.settled();
    assert!(counters["fetched_bytes"] <= 200 * 20_000, "{counters:?}");
    mount.stop();
}

/// What is cached and was not verified yet, because the cache is another directory by now, makes nobody look for what to fetch.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_cached_is_not_missed() {
    let far = Far::new(|source| {
        for number in 0..60_u64 {
            noise(&source.join(format!("f{number:02}")), number, 3000);
        }
    });
    let read_all = |mount: &support::Mount| {
        for number in 0..30 {
            read_file(mount, &far, &format!("f{number:02}"));
        }
    };
    let mount = far.mount(&["--prefetch", "off", "--profile", "off"]);
    read_all(&mount);
    mount.stop();
    let (cache, moved) = (far.scratch.path("cache"), far.scratch.path("moved"));
    let mut copy = std::process::Command::new("cp");
    copy.arg("-r").arg(&cache).arg(&moved);
    assert!(copy.status().unwrap().success());
    fs::remove_dir_all(&cache).unwrap();
    fs::rename(&moved, &cache).unwrap();
    let mount = far.mount(&["--profile", "off"]);
    read_all(&mount);
    let counters = far.settled();
    assert_eq!(counters["fetched_bytes"], 0, "{counters:?}");
    mount.stop();
}
