//! One suite of remote behaviour over every kind of remote, against real servers, and through a link that fails.
//!
//! - `kinds`: the kinds of remotes, and starting what they need
//! - `behaviour`: what every remote does
//! - `faults`: what a reader gets while the link or the server fails
//!
//! A kind whose server is not installed here is reported as ignored, with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod behaviour;
mod faults;
mod kinds;
#[path = "../support/mod.rs"]
mod support;

use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use kinds::{Fixture, KINDS, Kind};
use support::servers::Missing;

/// A kind and what runs of it, started when the first test needs it.
struct Lazy {
    kind: &'static Kind,
    fixture: OnceLock<Result<Fixture, Missing>>,
}

fn trial(lazy: &Arc<Lazy>, name: &str, test: fn(&Fixture, &str)) -> Trial {
    let lazy = Arc::clone(lazy);
    let place = name.replace('_', "-");
    Trial::ignorable_test(format!("{}::{name}", lazy.kind.name), move || {
        match lazy.fixture.get_or_init(lazy.kind.start) {
            Ok(fixture) => {
                test(fixture, &place);
                Ok::<_, Failed>(Completion::Completed)
            }
            Err(Missing(reason)) => Ok(Completion::ignored_with(reason)),
        }
    })
}

fn main() {
    let mut args = Arguments::from_args();
    // Servers and readers share few processors; more at once only makes each wait.
    args.test_threads = args.test_threads.or(Some(4));
    let kinds: Vec<_> = KINDS
        .iter()
        .map(|kind| {
            Arc::new(Lazy {
                kind,
                fixture: OnceLock::new(),
            })
        })
        .collect();
    let mut trials = Vec::new();
    for lazy in &kinds {
        for (name, test) in behaviour::ALL {
            trials.push(trial(lazy, name, test));
        }
        if lazy.kind.has_link {
            for (name, test) in faults::ALL {
                trials.push(trial(lazy, name, test));
            }
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    // Servers are ended and their data removed before the process is.
    drop(kinds);
    conclusion.exit();
}
