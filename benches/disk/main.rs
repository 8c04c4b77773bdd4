//! What the disk tier costs: filling it, and starting with one that is full. `make bench-disk`.
//!
//! `CASTORE_BENCH_BEFORE` names another castore, which takes turns with this one; medians of `CASTORE_BENCH_ROUNDS` rounds (3).
//! `CASTORE_BENCH_ROWS` names some of the rows, with commas between. Needs 20 GiB of disk. Only ratios mean something.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a benchmark stops by panicking, and its figures are for people"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rusqlite::{Connection, params};
use support::{Scratch, tree};

const GIB: u64 = 1 << 30;
const SMALL_FILES: u64 = 20_000;
const FULL: u64 = 1_000_000;

/// A row or some: its name, and how it is measured.
type Row = (&'static str, fn(&[Side]));

const ROWS: &[Row] = &[
    ("blobs", blobs),
    ("small", small),
    ("growth", growth),
    ("full", full),
];

/// A castore that is measured.
struct Side {
    name: &'static str,
    binary: PathBuf,
}

/// Seconds: those that passed, and those of processors.
#[derive(Clone, Copy)]
struct Cost {
    time: f64,
    processor: f64,
}

/// Processor time of all children that have ended, in seconds.
fn processor_time() -> f64 {
    // SAFETY: zeros are a value of it, which the call overwrites.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it writes to the structure, which lives until it returns.
    let done = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(done, 0);
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

impl Side {
    fn all() -> Vec<Self> {
        let ours = Self {
            name: "now",
            binary: env!("CARGO_BIN_EXE_castore").into(),
        };
        let before = env::var_os("CASTORE_BENCH_BEFORE").map(|binary| Self {
            name: "before",
            binary: binary.into(),
        });
        before.into_iter().chain([ours]).collect()
    }

    fn cache(&self, scratch: &Scratch) -> PathBuf {
        scratch.path(&format!("cache-{}", self.name))
    }

    fn command(&self, scratch: &Scratch, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args);
        support::environment_of(&scratch.command([""; 0]), &mut command);
        command.env("CASTORE_CACHE_DIR", self.cache(scratch));
        command
    }

    fn run(&self, scratch: &Scratch, args: &[&str]) -> Cost {
        let (begun, before) = (Instant::now(), processor_time());
        let output = support::output(self.command(scratch, args));
        assert!(output.status.success(), "{output:?}");
        Cost {
            time: begun.elapsed().as_secs_f64(),
            processor: processor_time() - before,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs some work of each side in turns, after what comes before it each time, and prints a row for each.
fn measure(title: &str, per: f64, sides: &[Side], mut work: impl FnMut(&Side) -> Cost) {
    let rounds = env::var("CASTORE_BENCH_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    let mut costs = vec![Vec::new(); sides.len()];
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let side = (round + turn) % sides.len();
            costs[side].push(work(&sides[side]));
        }
    }
    let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
    let medians: Vec<_> = costs
        .iter()
        .map(|costs| {
            (
                of(costs, |cost| cost.time),
                of(costs, |cost| cost.processor),
            )
        })
        .collect();
    for (side, (time, processor)) in sides.iter().zip(&medians) {
        println!(
            "| {title} | {} | {:.3} s | {:.3} s | {:.2} | {:.2} |",
            side.name,
            time / per,
            processor / per,
            time / medians[0].0,
            processor / medians[0].1,
        );
    }
}

/// Fetches a tree into an empty cache.
fn fill(title: &str, per: f64, sides: &[Side], make: impl FnOnce(&Path)) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    make(&source);
    let digest = scratch.import(&source);
    fs::remove_dir_all(&source).unwrap();
    measure(title, per, sides, |side| {
        let _ = fs::remove_dir_all(side.cache(&scratch));
        // Syncs of one are not to be paid by the other.
        rustix::fs::sync();
        side.run(&scratch, &["fetch", "--cache-size=40GiB", &digest])
    });
}

fn blobs(sides: &[Side]) {
    fill(
        "1 GiB in blobs of 1 MiB, for each GiB",
        1.0,
        sides,
        |root| {
            for number in 0..GIB >> 20 {
                let content = tree::noise(number, 1 << 20);
                tree::file(root, &format!("{}/{number}", number % 16), &content, false);
            }
        },
    );
}

fn small(sides: &[Side]) {
    fill("20,000 files of 8 KiB, for 10,000", 2.0, sides, |root| {
        for number in 0..SMALL_FILES {
            let content = tree::noise(number, 8 << 10);
            tree::file(root, &format!("{}/{number}", number % 100), &content, false);
        }
    });
}

/// The same for each GiB, however large the blob is.
fn growth(sides: &[Side]) {
    for gib in [1, 4] {
        let title = format!("a blob of {gib} GiB, for each GiB");
        fill(&title, gib as f64, sides, |root| {
            use std::io::Write;
            let mut file = fs::File::create(root.join("large")).unwrap();
            for number in 0..gib * (GIB >> 20) {
                file.write_all(&tree::noise(number, 1 << 20)).unwrap();
            }
        });
    }
}

/// Commands on a cache with a million rows, and on one with a few.
fn full(sides: &[Side]) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let digest = scratch.import(&source);
    let file = format!("{digest}/hello");
    let commands: [(&str, &[&str]); 3] = [
        ("ls", &["ls", &digest]),
        ("cat", &["cat", &file]),
        ("status", &["status"]),
    ];
    for rows in [0, FULL] {
        for side in sides {
            let _ = fs::remove_dir_all(side.cache(&scratch));
            side.run(&scratch, &["fetch", &digest]);
            add_rows(&side.cache(&scratch), rows);
        }
        for (name, args) in commands {
            let title = format!("`{name}` with {rows} more chunks");
            measure(&title, 1.0, sides, |side| side.run(&scratch, args));
        }
    }
}

/// Rows of chunks in files that are never opened.
fn add_rows(cache: &Path, rows: u64) {
    const IN_FILE: u64 = 1000;
    let mut index = Connection::open(cache.join("index.sqlite")).unwrap();
    let change = index.transaction().unwrap();
    for number in 0..rows {
        if number % IN_FILE == 0 {
            let insert = "INSERT INTO files (length, bytes, used_at) VALUES (1000, 1000, 0)";
            change.execute(insert, []).unwrap();
        }
        let digest = blake3::hash(&number.to_ne_bytes());
        change
            .prepare_cached("INSERT INTO chunks (digest, file, offset, size) SELECT ?, max(number), ?, 1 FROM files")
            .unwrap()
            .execute(params![
                &digest.as_bytes()[..],
                (number % IN_FILE).cast_signed()
            ])
            .unwrap();
    }
    change.commit().unwrap();
}

fn main() {
    // `cargo test --benches` passes --test; there is nothing to test here.
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted = env::var("CASTORE_BENCH_ROWS").unwrap_or_default();
    let sides = Side::all();
    println!("| what | castore | time | processor time | time / first | processor / first |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, row) in ROWS {
        if wanted.is_empty() || wanted.split(',').any(|wanted| wanted == *name) {
            row(&sides);
        }
    }
}
