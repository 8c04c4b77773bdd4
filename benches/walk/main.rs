//! Walks over large trees: castore beside a server that does nothing and gives the same replies, and beside a local disk. `cargo bench
//! --bench walk`, as root. Medians of alternating rounds in one run; only the ratios mean something on a shared machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a benchmark stops by panicking, and its modules are for each other"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod costs;
mod mounted;
mod null;
mod trees;
mod walks;

use std::{path::Path, time::Duration};

use support::Scratch;
use trees::Shape;

fn median<T: Copy + PartialOrd>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

fn seconds(times: &[Duration]) -> f64 {
    median(&mut times.to_vec()).as_secs_f64()
}

/// Puts trees into the store of a scratch directory, and their directories into its cache.
fn put(scratch: &Scratch, shapes: &[Shape]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for shape in shapes {
        runtime.block_on(shape.put(&scratch.remote()));
        let mount = mounted::Mounted::castore(scratch, &[], *shape);
        walks::run("find", mount.path());
        mount.stop();
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    // `cargo test --benches` passes --test; there is nothing to test here.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    if let [_, command, path, directories, files] = &arguments[..]
        && command == "null-server"
    {
        let shape = Shape::new(directories.parse().unwrap(), files.parse().unwrap());
        return null::serve(Path::new(path), shape, mounted::THREADS);
    }
    let wanted = |part: &str| {
        let named = arguments[1..].iter().any(|argument| argument == part);
        named || arguments[1..].iter().all(|argument| argument == "--bench")
    };
    if wanted("costs") {
        costs::requests();
    }
    if wanted("memory") {
        costs::memory();
    }
    if wanted("inodes") {
        walks::who_looks();
    }
    if wanted("walks") {
        walks::table();
    }
}
