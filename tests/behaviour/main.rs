//! What holds wherever a tree is shown: the same cases over the filesystem in this process, over FUSE, and in a guest over
//! virtiofs.
//!
//! - `view`: what a case asks of a tree
//! - `cases`: the cases, and the tree that they are about
//! - `in_process`: messages to a filesystem of this process
//! - `kernel`: system calls on a mount, here and in the guest
//! - `inside`: how the cases get into the guest, and their results out of it
//!
//! A case that is not run over a view is in `LEFT_OUT`, with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks on what it tests"
)]

mod cases;
mod in_process;
mod inside;
mod kernel;
#[path = "../protocol/peer.rs"]
#[expect(dead_code, reason = "it speaks more than this needs")]
mod peer;
#[path = "../support/mod.rs"]
mod support;
mod view;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use cases::{Case, Fixture};
use support::{
    Mount, Scratch,
    guest::{machine, program},
};
use view::View;

/// Where the tree is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    InProcess,
    Fuse,
    Virtiofs,
}

impl Over {
    const ALL: [Self; 3] = [Self::InProcess, Self::Fuse, Self::Virtiofs];

    fn name(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Fuse => "fuse",
            Self::Virtiofs => "virtiofs",
        }
    }
}

const NO_KERNEL: &str = "what is asked is done by the kernel above a filesystem, and here is none";

/// A case, where it is not run, and why. A name that ends with `::` stands for all of its theme.
const LEFT_OUT: [(&str, Over, &str); 2] = [
    ("programs::", Over::InProcess, NO_KERNEL),
    (
        "names::names_too_long",
        Over::InProcess,
        "the kernel refuses them with the length that STATFS gives",
    ),
];

fn left_out(case: &str, over: Over) -> Option<&'static str> {
    let is_it = |name: &str| name == case || (name.ends_with("::") && case.starts_with(name));
    let found = LEFT_OUT
        .iter()
        .find(|(name, where_, _)| *where_ == over && is_it(name));
    found.map(|(_, _, why)| *why)
}

/// What the cases run over, made when the first of them needs it, and taken down when this is dropped.
#[derive(Default)]
struct Stage {
    in_process: Option<InProcess>,
    fuse: Option<Mounted>,
    virtiofs: Option<inside::Results>,
}

struct InProcess {
    view: in_process::InProcess,
    scratch: Scratch,
}

struct Mounted {
    view: kernel::Mounted,
    scratch: Scratch,
    mount: Mount,
}

fn made_tree() -> Scratch {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    cases::make_tree(&source);
    scratch
}

impl InProcess {
    fn start() -> Self {
        Self {
            view: in_process::InProcess::new(),
            scratch: made_tree(),
        }
    }
}

impl Mounted {
    fn start() -> Self {
        let scratch = made_tree();
        let digest = scratch.import(&scratch.path("source"));
        let mount = scratch.mount(["--xattr", "--owner", "0:0", digest.as_str()]);
        Self {
            view: kernel::Mounted::new(&mount.path),
            scratch,
            mount,
        }
    }
}

fn run(case: &Case, view: &dyn View, scratch: &Scratch) {
    let source = &scratch.path("source");
    (case.run)(&Fixture { view, source });
}

impl Stage {
    fn run(&mut self, case: &'static Case, over: Over) -> Result<Completion, Failed> {
        match over {
            Over::InProcess => {
                let stage = self.in_process.get_or_insert_with(InProcess::start);
                run(case, &stage.view, &stage.scratch);
            }
            Over::Fuse => {
                let stage = self.fuse.get_or_insert_with(Mounted::start);
                run(case, &stage.view, &stage.scratch);
            }
            Over::Virtiofs => {
                let results = self.virtiofs.get_or_insert_with(inside::run_all);
                return results.of(case.name);
            }
        }
        Ok(Completion::Completed)
    }

    /// Takes everything down, which must be possible in order.
    fn end(self) {
        if let Some(Mounted { mount, .. }) = self.fuse {
            mount.stop();
        }
    }
}

/// Why nothing can be run over this here.
fn missing(over: Over) -> Option<String> {
    match over {
        Over::InProcess => None,
        Over::Fuse => {
            let device = fs::File::options().write(true).open("/dev/fuse");
            device.err().map(|error| format!("/dev/fuse: {error}"))
        }
        Over::Virtiofs => machine::missing().or_else(program::missing),
    }
}

fn trial(stage: &Arc<Mutex<Stage>>, case: &'static Case, over: Over) -> Trial {
    let name = format!("{}::{}", over.name(), case.name);
    let stage = Arc::clone(stage);
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing(over) {
            return Ok(Completion::ignored_with(reason));
        }
        let mut stage: MutexGuard<'_, Stage> = stage.lock().unwrap_or_else(PoisonError::into_inner);
        stage.run(case, over)
    })
}

/// That each case is run over each view, but for those that the table names.
fn all_are_run(trials: usize) -> Result<(), Failed> {
    let names: Vec<_> = cases::all().map(|case| case.name).collect();
    let mut without = 0;
    for (name, over, _) in LEFT_OUT {
        let count = |case: &&&str| left_out(case, over).is_some() && case.starts_with(name);
        let left = names.iter().filter(count).count();
        if left == 0 {
            return Err(format!("there is no case {name}").into());
        }
        without += left;
    }
    let expected = names.len() * Over::ALL.len() - without;
    if trials != expected {
        return Err(format!("{trials} are run, and {expected} should be").into());
    }
    Ok(())
}

fn main() {
    // In the guest this very program runs the cases.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == inside::OPTION) {
        return inside::run_cases(words.next().unwrap().as_ref());
    }
    let mut args = Arguments::from_args();
    // They share what they run over, some of them drop the machine's caches.
    args.test_threads = args.test_threads.or(Some(1));
    let stage = Arc::new(Mutex::new(Stage::default()));
    let mut trials = Vec::new();
    for over in Over::ALL {
        let run = cases::all().filter(|case| left_out(case.name, over).is_none());
        trials.extend(run.map(|case| trial(&stage, case, over)));
    }
    let count = trials.len();
    trials.push(Trial::test("all_are_run", move || all_are_run(count)));
    let conclusion = libtest_mimic::run(&args, trials);
    let stage = std::mem::take(&mut *stage.lock().unwrap_or_else(PoisonError::into_inner));
    // Before the exit, which runs no destructors.
    let ended = catch_unwind(AssertUnwindSafe(|| stage.end()));
    if ended.is_err() {
        std::process::exit(101);
    }
    conclusion.exit();
}
