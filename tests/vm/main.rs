//! Back ends of vhost-user-fs under a real guest, which QEMU emulates.
//!
//! - `mounts`: what a guest sees of a tree
//! - `resets`: a guest that starts again without a word
//! - `machines`: one machine after the other
//! - `pauses`: a guest that is paused and goes on
//! - `remotes`: a tree that comes over a slow or silent line
//! - `deaths`: a back end that is killed
//!
//! Where QEMU, the guest's kernel or a back end is missing, its tests are reported as ignored, with the reason;
//! `contrib/test-vm.sh` gets the first two. Run by `make test-vm`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod deaths;
mod machines;
mod mounts;
mod pauses;
mod remotes;
mod resets;
#[path = "../support/mod.rs"]
mod support;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use support::guest::{
    back_end::{self, BackEnd, CASTORE},
    machine,
};

/// A test and its name, run once for each back end.
type Test = (&'static str, fn(&BackEnd));

fn trial(back_end: &'static BackEnd, theme: &str, (name, test): Test) -> Trial {
    let name = format!("{}::{theme}::{name}", back_end.name);
    Trial::ignorable_test(name, move || {
        match machine::missing().or_else(|| back_end.missing()) {
            None => {
                test(back_end);
                Ok::<_, Failed>(Completion::Completed)
            }
            Some(reason) => Ok(Completion::ignored_with(reason)),
        }
    })
}

fn main() {
    let mut args = Arguments::from_args();
    // An emulated guest has two processors, and each of them takes one of the machine's.
    args.test_threads = args.test_threads.or(Some(1));
    let themes: [(&str, &[Test]); 6] = [
        ("mounts", &mounts::ALL),
        ("machines", &machines::ALL),
        ("resets", &resets::ALL),
        ("pauses", &pauses::ALL),
        ("remotes", &remotes::ALL),
        ("deaths", &deaths::ALL),
    ];
    let trials = back_end::ALL.iter().flat_map(|back_end| {
        let suits = |theme: &str| match theme {
            "machines" => back_end.serves_the_next,
            "remotes" => back_end.name == CASTORE.name,
            _ => true,
        };
        let suiting = themes.iter().filter(move |(theme, _)| suits(theme));
        suiting.flat_map(move |(theme, tests)| {
            tests.iter().map(move |test| trial(back_end, theme, *test))
        })
    });
    let trials = trials.collect();
    libtest_mimic::run(&args, trials).exit();
}
