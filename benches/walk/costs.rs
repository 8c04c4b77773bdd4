//! What single requests and single inodes cost.

use std::{fs, io, os::fd::AsRawFd, path::Path, time::Duration};

use super::{
    median,
    mounted::{self, Mounted},
    put,
    support::{self, Scratch},
    trees::Shape,
};

const ROUNDS: usize = 5;
/// Requests of one measurement, at the least.
const REQUESTS: u64 = 100_000;

/// Looks each file of the only directory up once; the kernel asks for each.
fn look_up_all(root: &Path, shape: Shape) -> u64 {
    let directory = fs::File::open(root.join("dir000000")).unwrap();
    for file in 0..shape.files {
        let name = std::ffi::CString::new(format!("file{file:06}.txt")).unwrap();
        assert_eq!(
            access(&directory, &name),
            0,
            "{}",
            io::Error::last_os_error()
        );
    }
    shape.files
}

fn access(directory: &fs::File, name: &std::ffi::CStr) -> i32 {
    // SAFETY: a system call with a valid descriptor and a valid string.
    unsafe { libc::faccessat(directory.as_raw_fd(), name.as_ptr(), libc::F_OK, 0) }
}

/// Asks for attributes that the kernel must not take from its cache.
fn get_attributes(root: &Path, shape: Shape) -> u64 {
    let directory = fs::File::open(root.join("dir000000")).unwrap();
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    for request in 0..REQUESTS {
        let file = request * 7919 % shape.files.min(10_000);
        let name = std::ffi::CString::new(format!("file{file:06}.txt")).unwrap();
        let flags = libc::AT_STATX_FORCE_SYNC;
        // SAFETY: a valid descriptor, a valid string and a structure of the right size.
        let asked = unsafe {
            libc::statx(
                directory.as_raw_fd(),
                name.as_ptr(),
                flags,
                libc::STATX_BASIC_STATS,
                &raw mut found,
            )
        };
        assert_eq!(asked, 0);
    }
    REQUESTS
}

type Work = fn(&Path, Shape) -> u64;

/// Processor time of the daemon for one request, in microseconds.
fn cost(mount: &Mounted, shape: Shape, work: Work, warm: bool) -> f64 {
    if warm {
        work(mount.path(), shape);
    }
    let before = mount.cpu();
    let count = work(mount.path(), shape);
    mount.cpu().saturating_sub(before).as_secs_f64() * 1e6 / count as f64
}

pub fn requests() {
    let (large, small) = (Shape::new(1, 300_000), Shape::new(1, 1000));
    let scratch = Scratch::new();
    put(&scratch, &[large, small]);
    let other = Scratch::new();
    println!("processor time of the daemon for a request, medians of {ROUNDS} alternating rounds");
    println!(
        "{:<42} {:>10} {:>10} {:>8}",
        "request", "castore us", "null us", "ratio"
    );
    let rows: [(&str, Shape, Work, bool, &[&str]); 5] = [
        ("LOOKUP, 300,000 entries", large, look_up_all, false, &[]),
        ("LOOKUP, 1,000 entries", small, look_up_all, false, &[]),
        ("GETATTR, 300,000 entries", large, get_attributes, true, &[]),
        ("GETATTR, 1,000 entries", small, get_attributes, true, &[]),
        (
            "LOOKUP, 300,000 entries, --memory 16MiB",
            large,
            look_up_all,
            false,
            &["--memory", "16MiB"],
        ),
    ];
    for (name, shape, work, warm, options) in rows {
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            // A small directory is looked through on many fresh mounts, so that there is enough to measure.
            let mounts = if shape == small && !warm { 20 } else { 1 };
            let mut sums = [0.0, 0.0];
            for _ in 0..mounts {
                let mount = Mounted::castore(&scratch, options, shape);
                sums[0] += cost(&mount, shape, work, warm);
                mount.stop();
                let mount = Mounted::null(&other.mnt(), shape);
                sums[1] += cost(&mount, shape, work, warm);
                mount.stop();
            }
            for (costs, sum) in costs.iter_mut().zip(sums) {
                costs.push(sum / f64::from(mounts));
            }
        }
        let [castore, null] = costs.map(|mut costs| median(&mut costs));
        println!(
            "{name:<42} {castore:>10.2} {null:>10.2} {:>8.2}",
            castore / null
        );
    }
}

pub fn memory() {
    const COUNT: u64 = 1_000_000;
    let shape = Shape::new(100, COUNT / 100);
    let scratch = Scratch::new();
    put(&scratch, &[shape]);
    // What `--memory` bounds is not counted for the inodes, so it is small.
    let mount = Mounted::castore(&scratch, &["--memory", "16MiB"], shape);
    let look = |directory: u64| {
        let directory = mount.path().join(format!("dir{directory:06}"));
        let directory = fs::File::open(directory).unwrap();
        for file in 0..shape.files {
            let name = std::ffi::CString::new(format!("file{file:06}.txt")).unwrap();
            assert_eq!(access(&directory, &name), 0);
        }
    };
    // What is there once, whatever the number of inodes: threads, the memory tier, which directories fill.
    look(0);
    for directory in 1..shape.directories {
        let directory = mount.path().join(format!("dir{directory:06}"));
        fs::symlink_metadata(directory.join("file000000.txt")).unwrap();
    }
    let before = mount.anonymous();
    let known_before = mounted::inodes(&scratch);
    (1..shape.directories).for_each(look);
    let (with, known) = (mount.anonymous(), mounted::inodes(&scratch));
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    support::eventually("the kernel forgets", || {
        mounted::inodes(&scratch) < known / 50
    });
    std::thread::sleep(Duration::from_secs(1));
    let after = mount.anonymous();
    let count = known - known_before;
    println!(
        "memory: {:.1} bytes for each of {count} inodes; {:.1} MB more than before after forgetting all but {}",
        (with - before) as f64 / count as f64,
        (after as f64 - before as f64) / 1e6,
        mounted::inodes(&scratch)
    );
    mount.stop();
}
