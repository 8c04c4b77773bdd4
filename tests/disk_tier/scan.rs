//! What is used stays, whatever is read once; and the quota holds for all processes together.

use std::{
    fs::{self, File},
    io::{Read, Seek},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::{
    disk::Disk,
    support::{self, Mount, Scratch, tree},
};

const MIB: u64 = 1 << 20;
/// The whole cache, in bytes; the hot files are a fifth of it, and those of the scan three times as much.
const QUOTA: u64 = 64 * MIB;
const CACHE: &str = "64MiB";
const HOT: u64 = QUOTA / 5;
const SCANNED: u64 = 3 * QUOTA;
const DEADLINE: Duration = Duration::from_secs(120);

/// Files of 20 KiB to 1.3 MiB that have so many bytes together. Returns how many there are.
fn files(dir: &Path, seed: u64, bytes: u64) -> u64 {
    fs::create_dir(dir).unwrap();
    let (mut made, mut number) = (0, 0);
    for len in [20, 70, 300, 1300].into_iter().cycle() {
        if made >= bytes {
            break;
        }
        let content = tree::noise(seed + number, len * 1024);
        tree::file(dir, &number.to_string(), &content, false);
        made += content.len() as u64;
        number += 1;
    }
    number
}

/// Reads a file past the kernel's cache, which it is dropped from first.
fn read_anew(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    // SAFETY: a plain call on a descriptor that lives until it returns.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// A store with a tree that is used, and others that are read once.
struct Case {
    scratch: Scratch,
    hot: String,
    count: u64,
    scanned: Vec<String>,
}

impl Case {
    fn new(scans: u64) -> Self {
        let scratch = Scratch::new();
        let hot = scratch.path("hot");
        let count = files(&hot, 0, HOT);
        let scanned = (1..=scans).map(|scan| {
            let source = scratch.path(&format!("scanned {scan}"));
            files(&source, scan * 1_000_000, SCANNED);
            // Nearly as large as what has a file of its own.
            let large = tree::noise(scan, 15 << 20);
            tree::file(&source, "large", &large, false);
            scratch.import(&source)
        });
        Self {
            hot: scratch.import(&hot),
            scanned: scanned.collect(),
            count,
            scratch,
        }
    }

    fn command(&self, cache: &Path, args: &[&str]) -> Command {
        let mut command = self.scratch.command(args);
        command.env("CASTORE_CACHE_DIR", cache);
        command
    }

    fn mount(&self, cache: &Path, name: &str, args: &[&str]) -> Mount {
        let path = self.scratch.path(name);
        fs::create_dir_all(&path).unwrap();
        let mut mount = self.command(cache, &["mount", "--foreground", "--cache-size", CACHE]);
        mount.args(args).arg(&path);
        Mount::start(mount, &path)
    }

    /// How many of the hot files are in a cache as a whole.
    fn left(&self, cache: &Path) -> u64 {
        let mount = self.mount(cache, "left", &["--offline", &self.hot]);
        let there =
            (0..self.count).filter(|number| fs::read(mount.at(&number.to_string())).is_ok());
        let there = there.count() as u64;
        mount.stop();
        there
    }

    /// Reads a tree once, while `meanwhile` runs again and again.
    fn scan(&self, which: usize, cache: &Path, args: &[&str], meanwhile: impl Fn() + Sync) {
        let args = [args, &[self.scanned[which].as_str()]].concat();
        let mount = self.mount(cache, "scan", &args);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    meanwhile();
                }
            });
            // Also when the scan fails.
            let _end = End(&ended);
            let path = mount.path.clone();
            support::within(DEADLINE, "the scan", move || {
                for entry in fs::read_dir(path).unwrap() {
                    read_anew(&entry.unwrap().path());
                }
            });
        });
        mount.stop();
    }
}

/// What goes on until this is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// In each of the ways of using something that a cache sees differently.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_used_outlives_a_scan() {
    let case = Case::new(1);
    let names: Vec<_> = (0..case.count).map(|number| number.to_string()).collect();
    for (setting, args, before, meanwhile_anew) in [
        (
            "from the kernel's cache all the while",
            &[][..],
            1,
            Some(false),
        ),
        ("ten times before", &[], 10, None),
        ("past the kernel's cache all the while", &[], 1, Some(true)),
        ("with little memory", &["--memory=16MiB"], 1, Some(true)),
    ] {
        let cache = case.scratch.path(&format!("cache of {setting}"));
        let mount = case.mount(&cache, "mnt", &[args, &[&case.hot]].concat());
        let read_all = |anew: bool| {
            for name in &names {
                let path = mount.at(name);
                match anew {
                    true => drop(read_anew(&path)),
                    false => drop(fs::read(path).unwrap()),
                }
            }
        };
        for _ in 0..before {
            read_all(true);
        }
        case.scan(0, &cache, args, || match meanwhile_anew {
            Some(anew) => read_all(anew),
            None => pause(),
        });
        mount.stop();
        let left = case.left(&cache);
        assert!(
            left * 10 >= case.count * 9,
            "{setting}: {left} of {}",
            case.count
        );
        fs::remove_dir_all(cache).unwrap();
    }
}

/// A cache that has long been full of other things, read once, takes in what is used from now on.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_used_later_stays_too() {
    let case = Case::new(2);
    let cache = case.scratch.path("full");
    case.scan(0, &cache, &[], pause);
    // On two days, the second of which finds some of it only.
    for _ in 0..2 {
        let mount = case.mount(&cache, "mnt", &[&case.hot]);
        for number in 0..case.count {
            read_anew(&mount.at(&number.to_string()));
        }
        mount.stop();
    }
    case.scan(1, &cache, &[], pause);
    let left = case.left(&cache);
    assert!(left * 10 >= case.count * 9, "{left} of {}", case.count);
}

/// Files that another process had open were unlinked, and counted as gone.
#[test]
#[ignore = "needs /dev/fuse and root"]
fn the_quota_holds_for_three_mounts() {
    let scratch = Scratch::new();
    let disks = [
        Disk::tmpfs(&scratch.path("tmpfs"), 512),
        Disk::ext4(&scratch.path("ext4"), &scratch.path("image"), 512),
    ];
    let roots = [0, 1, 2].map(|tree| {
        let source = scratch.path(&format!("source {tree}"));
        files(&source, tree * 1_000_000, 2 * QUOTA);
        scratch.import(&source)
    });
    for disk in disks {
        let used = || {
            let stat = rustix::fs::statvfs(&disk.path).unwrap();
            (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        };
        let before = used();
        let cache = disk.path.join("cache");
        let mounts = [0, 1, 2].map(|number| {
            let path = scratch.path(&format!("mnt {number}"));
            fs::create_dir_all(&path).unwrap();
            let args = [
                "mount",
                "--foreground",
                "--cache-size",
                CACHE,
                &roots[number],
            ];
            let mut mount = scratch.command(args);
            mount.env("CASTORE_CACHE_DIR", &cache).arg(&path);
            Mount::start(mount, &path)
        });
        let mut peak = 0;
        std::thread::scope(|scope| {
            let readers = mounts.each_ref().map(|mount| {
                scope.spawn(|| {
                    for _ in 0..2 {
                        for entry in fs::read_dir(&mount.path).unwrap() {
                            read_anew(&entry.unwrap().path());
                        }
                    }
                })
            });
            while !readers
                .iter()
                .all(std::thread::ScopedJoinHandle::is_finished)
            {
                peak = peak.max(used() - before);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(peak <= QUOTA + 16 * MIB, "{peak} bytes on {:?}", disk.path);
        assert!(peak >= QUOTA / 2, "it hardly caches: {peak}");
        for mount in mounts {
            mount.stop();
        }
        let condemned = fs::read_dir(cache.join("condemned")).unwrap().count();
        assert_eq!(condemned, 0, "what was evicted is gone");
    }
}

/// Batches that were smaller than what is kept for the index's log were left out for good, once all room was taken.
#[test]
#[ignore = "needs /dev/fuse and root"]
fn a_full_cache_takes_in_what_comes_one_by_one() {
    const COUNT: u64 = 700;
    let scratch = Scratch::new();
    let source = scratch.path("source");
    for number in 0..COUNT {
        let content = tree::noise(number, 64 << 10);
        tree::file(&source, &number.to_string(), &content, false);
    }
    let root = scratch.import(&source);
    for (name, size, free) in [("quota", "24MiB", "0"), ("free", "1GiB", "40MiB")] {
        let disk = Disk::tmpfs(&scratch.path(name), 64);
        let cache = disk.path.join("cache");
        let mount = |args: &[&str]| {
            let mut mount = scratch.command(["mount", "--foreground", "--prefetch", "off"]);
            mount.args(["--cache-size", size, "--min-free", free]);
            mount.env("CASTORE_CACHE_DIR", &cache);
            mount.args(args).arg(&root).arg(scratch.mnt());
            Mount::start(mount, &scratch.mnt())
        };
        let reads = mount(&["--memory", "16MiB"]);
        for number in 0..COUNT {
            let bytes = fs::read(reads.at(&number.to_string())).unwrap();
            assert!(bytes == tree::noise(number, 64 << 10), "{number}");
        }
        reads.stop();
        let offline = mount(&["--offline"]);
        let is_there = |number: &u64| fs::read(offline.at(&number.to_string())).is_ok();
        let last = (COUNT - 8..COUNT).filter(is_there).count();
        let all = (0..COUNT).filter(is_there).count();
        offline.stop();
        assert!(last >= 7, "{name}: {last} of the last 8");
        assert!(all >= 150, "{name}: {all}");
    }
}

/// A mount that is idle closes what others have evicted, and what cannot be in the cache at all leaves it.
#[test]
#[ignore = "needs /dev/fuse"]
fn nothing_evicted_stays() {
    let case = Case::new(1);
    let cache = case.scratch.path("idle");
    let idle = case.mount(&cache, "mnt", &[&case.hot]);
    for number in 0..case.count {
        read_anew(&idle.at(&number.to_string()));
    }
    case.scan(0, &cache, &[], pause);
    support::succeeded(&support::output(case.command(&cache, &["resize", "16MiB"])));
    let entries = |name: &str| fs::read_dir(cache.join(name)).unwrap().count();
    support::eventually("the idle mount closes them", || entries("condemned") == 0);
    assert!(entries("data") > 0);
    // A log that is larger than all of it.
    File::create(cache.join("castore.log"))
        .unwrap()
        .set_len(20 << 20)
        .unwrap();
    support::succeeded(&support::output(case.command(&cache, &["status"])));
    support::eventually("all is gone", || {
        entries("data") == 0 && entries("condemned") == 0
    });
    idle.stop();
}
