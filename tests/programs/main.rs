//! Programs over real mounts of trees that hold the same content under many names: each path is a file of its own.
//!
//! - `fixture`: a mounted tree, commands with a deadline, compiled helpers
//! - `numbers`: what `stat` and listings say, over mounts, caches and a switch
//! - `copies`: programs that copy, count and compare trees
//! - `overlay`: overlayfs and fuse-overlayfs above a mount
//! - `compile`: compilers, the dynamic linker, Python and programs without large-file support
//! - `watches`: locks, watches and working directories
//! - `git`: a mounted work tree
//! - `indexers`: programs that walk the whole machine
//! - `limits`: how little memory is enough
//!
//! A test whose program is not installed here is reported as ignored, with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod compile;
mod copies;
mod fixture;
mod git;
mod indexers;
mod limits;
mod numbers;
mod overlay;
#[path = "../support/mod.rs"]
mod support;
mod watches;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A test, with its name and the programs that it runs.
type Test = (&'static str, &'static [&'static str], fn());

fn trial(theme: &str, (name, programs, test): Test) -> Trial {
    let trial = Trial::ignorable_test(format!("{theme}::{name}"), move || {
        match fixture::missing(programs) {
            None => {
                test();
                Ok::<_, Failed>(Completion::Completed)
            }
            Some(reason) => Ok(Completion::ignored_with(reason)),
        }
    });
    // As in the other tests that mount: run by `make test`, with --include-ignored.
    trial.with_ignored_flag(true)
}

fn main() {
    let mut args = Arguments::from_args();
    // Daemons and what runs over them share few processors; more at once only makes each wait.
    args.test_threads = args.test_threads.or(Some(4));
    let themes: [(&str, &[Test]); 8] = [
        ("numbers", &numbers::ALL),
        ("copies", &copies::ALL),
        ("overlay", &overlay::ALL),
        ("compile", &compile::ALL),
        ("watches", &watches::ALL),
        ("git", &git::ALL),
        ("indexers", &indexers::ALL),
        ("limits", &limits::ALL),
    ];
    let trials = themes
        .iter()
        .flat_map(|(theme, tests)| tests.iter().map(|test| trial(theme, *test)));
    let trials = trials.collect();
    libtest_mimic::run(&args, trials).exit();
}
