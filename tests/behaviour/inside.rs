//! How the cases get into the guest, and their results out of it: this very program and its libraries are files of the guest,
//! which runs all cases on its mount and prints a line for each.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Mutex,
    time::Duration,
};

use libtest_mimic::{Completion, Failed};

use crate::{
    Over,
    cases::{self, Case, Fixture},
    kernel, left_out,
    support::guest::{
        back_end::{self, BackEnd, Served},
        program,
    },
};

/// Makes this program run the cases in the directory that comes next.
pub const OPTION: &str = "--run-cases-on";
/// Where the guest has the tree to compare with, on a tmpfs.
const SOURCE: &str = "/tmp/source";
/// Many times what they take on an idle machine of two processors without KVM.
const LIMIT: Duration = Duration::from_secs(300);

/// What came of each case in the guest: nothing, or why it failed.
pub struct Results(BTreeMap<String, Option<String>>);

impl Results {
    pub fn of(&self, case: &str) -> Result<Completion, Failed> {
        match self.0.get(case) {
            Some(None) => Ok(Completion::Completed),
            Some(Some(why)) => Err(why.into()),
            None => Err("it was not run".into()),
        }
    }
}

/// With attributes that tell digests.
const WITH_XATTR: BackEnd = BackEnd {
    command: |program, scratch, socket| {
        let mut command = back_end::castore(program, scratch, socket);
        command.arg("--xattr");
        command
    },
    ..back_end::CASTORE
};

/// Boots a guest, and runs them there.
pub fn run_all() -> Results {
    let mut command = String::new();
    let mut served = Served::with(&WITH_XATTR, cases::make_tree, |options| {
        command = program::add_to(options);
        // The program is in it twice while it boots.
        options.memory = 1024;
    });
    served.guest.mount("/mnt");
    let script = format!("{command} {OPTION} /mnt");
    let output = served.guest.run_within(LIMIT, &script);
    let text = String::from_utf8_lossy(&output.stdout);
    let results = text.lines().map(|line| {
        let (case, result) = line.split_once(' ').unwrap_or_else(|| panic!("{output:?}"));
        let why = result.strip_prefix("failed: ").map(unescaped);
        assert!(why.is_some() || result == "ok", "{line}");
        (case.to_owned(), why)
    });
    let results = Results(results.collect());
    assert_eq!(output.status, 0, "{output:?}");
    assert!(served.daemon.is_well(), "{}", served.daemon.log());
    served.guest.power_off();
    results
}

fn unescaped(why: &str) -> String {
    why.replace("\\n", "\n")
}

/// In the guest: runs all cases, each in its turn.
pub fn run_cases(dir: &Path) {
    static MESSAGE: Mutex<String> = Mutex::new(String::new());
    fs::create_dir(SOURCE).unwrap();
    cases::make_tree(SOURCE.as_ref());
    std::panic::set_hook(Box::new(|info| {
        *MESSAGE.lock().unwrap() = info.to_string().replace('\n', "\\n");
    }));
    let view = kernel::Mounted::new(dir);
    for Case { name, run } in cases::all() {
        if left_out(name, Over::Virtiofs).is_some() {
            continue;
        }
        let (view, source) = (&view, SOURCE.as_ref());
        let ended = catch_unwind(AssertUnwindSafe(|| run(&Fixture { view, source })));
        match ended {
            Ok(()) => println!("{name} ok"),
            Err(_) => println!("{name} failed: {}", MESSAGE.lock().unwrap()),
        }
    }
}
