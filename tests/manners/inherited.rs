//! What the background process takes over from the one that started it.

use std::{fs, process::Command};

use super::{Background, prepared};
use crate::support::{self, Scratch, succeeded};

/// A shell script in the scratch directory, with its store and cache.
fn shell(scratch: &Scratch, script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(scratch.dir.path());
    let castore = scratch.command([""; 0]);
    support::environment_of(&castore, &mut command);
    command
}

const CASTORE: &str = env!("CARGO_BIN_EXE_castore");

#[test]
#[ignore = "needs /dev/fuse"]
fn a_lock_of_the_caller_is_given_back() {
    let scratch = prepared();
    let script = format!(
        "set -e; ( exec 9>lock; flock 9; {CASTORE} mount tree mnt ); flock -n lock echo free"
    );
    let mount = Background::by(&scratch, shell(&scratch, &script), &scratch.mnt());
    let output = support::output(shell(&scratch, "flock -n lock echo free"));
    assert_eq!(succeeded(&output), "free\n");
    // None but its own: what is open in the scratch directory is the mount point and in the cache.
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.pid)).unwrap();
    let base = scratch.dir.path().canonicalize().unwrap();
    for target in fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()) {
        let is_own = target.starts_with(base.join("cache")) || target == base.join("mnt");
        let is_foreign = target.starts_with(&base) && !is_own;
        assert!(!is_foreign, "{target:?}");
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_pipe_of_the_caller_is_closed() {
    let scratch = prepared();
    // `cat` ends when no process has the pipe any more.
    let script = format!("{{ {CASTORE} mount tree mnt; echo mounted >&3; }} 3>&1 | cat");
    let _mount = Background::by(&scratch, shell(&scratch, &script), &scratch.mnt());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn the_process_is_called_castore() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let name = fs::read_to_string(format!("/proc/{}/comm", mount.pid)).unwrap();
    assert_eq!(name, "castore\n");
    let words = fs::read(format!("/proc/{}/cmdline", mount.pid)).unwrap();
    assert!(words.starts_with(CASTORE.as_bytes()));
}
