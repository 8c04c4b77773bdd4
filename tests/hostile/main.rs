//! Guests that do what no driver does, against `castore virtiofs` as it is run: chains that loop, addresses outside of memory, rings that
//! are cut off or run ahead, requests of any opcode, node and length. The process must live on, keep its memory, and serve the next guest.
//!
//! `corpus` has a script for each kind; `make fuzz` looks for more, by what they reach in the code.

#![cfg(all(feature = "virtiofs", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod front_end;
#[path = "../support/mod.rs"]
mod support;

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, path::Path, time::Instant};

use front_end::{FrontEnd, READ};
use proptest::{
    collection::vec,
    prelude::{Strategy, any},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use rustix::fs::{CWD, FileType, Mode};
use support::{
    Scratch,
    guest::back_end::{CASTORE, Daemon},
    tree,
};

/// Scripts that are made up.
const SCRIPTS: usize = 3000;
/// Most that the process may have more at the end than after the first scripts, in KiB.
const GROWTH: u64 = 8 << 10;

fn served() -> (Scratch, Daemon) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let daemon = Daemon::start(&CASTORE, &scratch);
    (scratch, daemon)
}

#[test]
fn each_script_of_the_corpus() {
    let (_scratch, mut daemon) = served();
    let mut machine = FrontEnd::connect(&daemon.socket());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    let mut count = 0;
    for script in fs::read_dir(corpus).unwrap() {
        let path = script.unwrap().path();
        eprintln!("{path:?}");
        machine.run(&fs::read(&path).unwrap());
        assert!(daemon.is_well(), "{path:?}: {}", daemon.log());
        count += 1;
    }
    assert!(count >= 10, "{count} scripts");
}

#[test]
fn scripts_that_are_made_up() {
    let (_scratch, mut daemon) = served();
    let mut machine = FrontEnd::connect(&daemon.socket());
    let mut runner = TestRunner::deterministic();
    // Bytes of any value, and mostly small ones, which are what rings, opcodes and nodes are.
    let small = vec(0..64_u8, 0..400);
    let scripts = proptest::prop_oneof![small, vec(any::<u8>(), 0..400)];
    let mut memory = None;
    for number in 0..SCRIPTS {
        let script = scripts.new_tree(&mut runner).unwrap().current();
        machine.run(&script);
        assert!(daemon.is_well(), "{script:?}: {}", daemon.log());
        if number == SCRIPTS / 5 {
            memory = Some(daemon.memory());
        }
    }
    let (before, after) = (memory.unwrap(), daemon.memory());
    assert!(after < before + GROWTH, "{before} KiB, then {after} KiB");
}

/// What waits for a store that never answers gets EIO, and the process ends.
#[test]
fn what_waits_is_answered_at_the_end() {
    for end in [libc::SIGTERM, libc::SIGINT] {
        let (scratch, mut daemon) = served();
        for chunk in tree::files_and_times(&scratch.path("store/chunks")).into_keys() {
            // Whoever opens it waits for ever.
            let chunk = Path::new(OsStr::from_bytes(&chunk));
            fs::remove_file(chunk).unwrap();
            rustix::fs::mknodat(CWD, chunk, FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        let mut machine = FrontEnd::connect(&daemon.socket());
        machine.mount();
        let node = machine.look_up("large");
        let mut range = [0; 40];
        range[16..20].copy_from_slice(&4000_u32.to_ne_bytes());
        let waiting = [(); 3].map(|()| machine.ask(READ, node, &range));
        // A ring is taken from in order, so those wait by now.
        machine.is_looked_at();
        assert!(waiting.iter().all(|asked| machine.answer(asked).is_none()));
        let begun = Instant::now();
        let status = daemon.end(end);
        eprintln!("it ends after {:?}", begun.elapsed());
        assert!(status.success(), "{status}: {}", daemon.log());
        for asked in &waiting {
            assert_eq!(machine.answer(asked), Some((-libc::EIO, Vec::new())));
        }
        assert!(!daemon.socket().exists());
    }
}

/// A machine that goes in the middle of anything leaves nothing to the next one.
#[test]
fn machines_that_go() {
    let (_scratch, mut daemon) = served();
    let mut runner = TestRunner::deterministic();
    for _ in 0..20 {
        let mut machine = FrontEnd::connect(&daemon.socket());
        machine.run(&vec(0..64_u8, 400).new_tree(&mut runner).unwrap().current());
        machine.leave(&vec(0..64_u8, 400).new_tree(&mut runner).unwrap().current());
        assert!(daemon.is_well(), "{}", daemon.log());
    }
    support::eventually("memory of guests is given back", || {
        daemon.guest_mappings() == 0
    });
}
