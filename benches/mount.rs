//! Reads over the mount and native, side by side: `cargo bench --bench mount`. Medians of alternating rounds in one run;
//! only the ratios mean something on a shared machine.
//!
//! "fresh": a mount that was just made, over a filled cache, so that the kernel knows nothing yet. "again": the same
//! reads once more on that mount. "empty": a fresh mount over an empty cache, with the store on the same disk. Native
//! files are in the page cache throughout.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark stops by panicking"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    fs::{self, File},
    hint::black_box,
    io::Read,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use support::{Scratch, tree};

const ROUNDS: usize = 5;
const LARGE: usize = 512 << 20;
const RANDOM_READS: u64 = 4000;
const SMALL_FILES: usize = 20_000;

fn sequential(root: &Path) {
    let mut file = File::open(root.join("large")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            read => total += read,
        }
    }
    assert_eq!(total, LARGE);
}

fn random(root: &Path) {
    let file = File::open(root.join("large")).unwrap();
    let mut buffer = [0; 4096];
    let mut at = 1_u64;
    for _ in 0..RANDOM_READS {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let page = (at >> 33) % (LARGE as u64 / 4096);
        file.read_exact_at(&mut buffer, page * 4096).unwrap();
    }
}

fn mapped(root: &Path) {
    let file = File::open(root.join("large")).unwrap();
    // SAFETY: nobody writes to the file while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    let sum: u64 = map.iter().step_by(4096).map(|byte| u64::from(*byte)).sum();
    black_box(sum);
}

fn small_files(root: &Path) {
    let mut total = 0;
    for dir in fs::read_dir(root.join("small")).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            total += fs::read(file.unwrap().path()).unwrap().len();
        }
    }
    assert!(total > SMALL_FILES * 1000);
}

fn stat_walk(root: &Path) {
    let mut count = 0;
    for dir in fs::read_dir(root.join("small")).unwrap() {
        for file in fs::read_dir(dir.unwrap().path()).unwrap() {
            black_box(file.unwrap().metadata().unwrap().len());
            count += 1;
        }
    }
    assert_eq!(count, SMALL_FILES);
}

type Work = fn(&Path);

fn timed(work: Work, root: &Path) -> Duration {
    let start = Instant::now();
    work(root);
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    // `cargo test --benches` passes --test; there is nothing to test here.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("large"), tree::noise(1, LARGE)).unwrap();
    for number in 0..SMALL_FILES {
        let name = format!("small/{}/{number}", number % 200);
        let len = 500 + number * 37 % 8000;
        tree::file(&source, &name, &tree::noise(number as u64 + 2, len), false);
    }
    let digest = scratch.import(&source);
    let works: [(&str, Work); 5] = [
        ("sequential, 512 MiB", sequential),
        ("random 4 KiB, 4000 reads", random),
        ("mmap, 512 MiB", mapped),
        ("20,000 small files", small_files),
        ("stat walk of 20,000", stat_walk),
    ];
    println!(
        "{:<26} {:>10} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8}",
        "work (medians of 5)",
        "native ms",
        "empty ms",
        "fresh ms",
        "again ms",
        "empty x",
        "fresh x",
        "again x"
    );
    for (name, work) in works {
        let mut times: [Vec<Duration>; 4] = Default::default();
        work(&source);
        for _ in 0..ROUNDS {
            times[0].push(timed(work, &source));
            if scratch.path("cache").exists() {
                scratch.clear_cache();
            }
            let mount = scratch.mount([&digest]);
            times[1].push(timed(work, &mount.path));
            mount.stop();
            times[0].push(timed(work, &source));
            let mount = scratch.mount([&digest]);
            times[2].push(timed(work, &mount.path));
            times[3].push(timed(work, &mount.path));
            mount.stop();
        }
        let [native, empty, fresh, again] = times.map(|times| median(times).as_secs_f64() * 1000.0);
        println!(
            "{name:<26} {native:>10.1} {empty:>10.1} {fresh:>10.1} {again:>10.1} {:>8.2} {:>8.2} {:>8.2}",
            empty / native,
            fresh / native,
            again / native
        );
    }
}
