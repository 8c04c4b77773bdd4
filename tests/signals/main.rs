//! Signals that meet a process while it waits for a remote, over real mounts.
//!
//! - `gate`: a remote that answers when it is told to, and counts what it is asked
//! - `fixture`: a mount of it, and processes that wait in the mount
//! - `retries`: what was begun goes on, and whoever calls again joins it
//! - `ends`: signals that end a process end it at once
//! - `caught`: signals that are caught, ignored or blocked
//! - `stops`: stops, debuggers and freezers, after which an innocent process goes on
//! - `hidden`: callers that the daemon cannot see
//! - `timeouts`: how long a call waits for a remote that does not answer
//!
//! A test whose program or kernel facility is not there is reported as ignored, with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod caught;
mod ends;
mod fixture;
mod gate;
mod hidden;
mod retries;
mod stops;
#[path = "../support/mod.rs"]
mod support;
mod timeouts;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// A test, with its name and what it needs beside a C compiler.
type Test = (&'static str, &'static [&'static str], fn());

fn trial(theme: &str, (name, needs, test): Test) -> Trial {
    let trial = Trial::ignorable_test(format!("{theme}::{name}"), move || {
        match fixture::missing(needs) {
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
    // They wait more than they work.
    args.test_threads = args.test_threads.or(Some(6));
    let themes: [(&str, &[Test]); 6] = [
        ("retries", &retries::ALL),
        ("ends", &ends::ALL),
        ("caught", &caught::ALL),
        ("stops", &stops::ALL),
        ("hidden", &hidden::ALL),
        ("timeouts", &timeouts::ALL),
    ];
    let trials = themes
        .iter()
        .flat_map(|(theme, tests)| tests.iter().map(|test| trial(theme, *test)));
    let trials = trials.collect();
    let conclusion = libtest_mimic::run(&args, trials);
    fixture::clean();
    conclusion.exit();
}
