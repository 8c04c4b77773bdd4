//! Cold reads through a far link: `make bench-prefetch`, or `cargo bench --bench prefetch`.
//!
//! Each row is a promise of what reading ahead must do, measured over our gRPC server and over S3 (`SeaweedFS`), both behind a
//! proxy that makes a far link of loopback, and where it applies over `rclone mount --vfs-cache-mode full` of the same files in
//! the same S3 server. What is compared is measured in the same run, in turns; medians of `CASTORE_BENCH_ROUNDS` rounds (1).
//! `CASTORE_BENCH_ROWS` and `CASTORE_BENCH_REMOTES` name some of the rows and remotes, with commas between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a benchmark stops by panicking, and its figures are for people"
)]

#[path = "../others/mod.rs"]
mod others;
#[path = "../../tests/support/mod.rs"]
mod support;

mod lab;
mod large;
mod programs;
mod small;
mod work;

use lab::{Lab, Remote};

/// A row: its name, what must come out, and how it is measured.
type Row = (&'static str, &'static str, fn(&Lab, &Remote) -> String);

const ROWS: &[Row] = &[
    ("sequential", "≥ 0.90 of the link", large::sequential),
    ("sequential-no-open", "≥ 0.85 of the link", large::no_open),
    ("sequential-mmap", "≥ 0.85 of the link", large::mapped),
    ("streams", "≥ 0.80 of the link", large::streams),
    ("files", "≥ 0.80 of the link", large::files),
    ("first-byte", "≤ 3 round trips", large::first_byte),
    ("overfetch", "≤ 1.02 of the bytes read", large::overfetch),
    ("random", "≤ 1.10 of the chunks touched", large::random),
    ("readers", "≤ 1.05 of the bytes needed", large::readers),
    ("memory", "≤ 64 MiB above the budget", large::memory),
    ("warm", "≤ 1.02 of the time without", large::warm),
    (
        "beside-tree",
        "≤ 1.3 of the latency alone",
        large::beside_tree,
    ),
    ("find", "≤ 20 round trips and the transfer", small::find),
    ("small-files", "≤ 1.5 of the fetch", small::cat),
    ("fetch", "≥ 0.7 of the link, or CPU", small::fetch),
    (
        "python",
        "≤ 1.3 of transfer and warm time",
        programs::python,
    ),
    ("rustc", "≤ 1.3 of transfer and warm time", programs::rustc),
];

fn main() {
    let lab = Lab::new();
    println!("| work | remote | target | measured | rclone mount |");
    println!("| --- | --- | --- | --- | --- |");
    for (name, target, measure) in ROWS {
        if !lab::wants("CASTORE_BENCH_ROWS", name) {
            continue;
        }
        for remote in &lab.remotes {
            let measured = measure(&lab, remote);
            println!("| {name} | {} | {target} | {measured} |", remote.name);
        }
    }
}
