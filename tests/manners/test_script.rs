//! What `make test` runs the tests with: `contrib/test.sh`, and an environment in which signals are ignored.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::{Command, Output},
};

use super::soon;
use crate::support::{Scratch, output, succeeded};

/// Runs the script with a command of the shell in the place of cargo.
fn run(scratch: &Scratch, command: &str) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/test.sh");
    let mut shell = Command::new("sh");
    shell.args([script, "sh", "-c", command]);
    shell.env("CARGO_TARGET_DIR", scratch.path("target"));
    shell.current_dir(scratch.dir.path());
    soon(shell)
}

#[test]
fn failed_tests_are_named_last() {
    let scratch = Scratch::new();
    let said = [
        "     Running tests/one/main.rs (target/debug/deps/one-0123)",
        "test a::works ... ok",
        "test a::breaks ... FAILED",
        "     Running tests/two.rs (target/debug/deps/two-0123)",
        "test b::is_slow ... FAILED",
        "test b::is_left_out ... ignored",
        "",
    ];
    fs::write(scratch.path("said"), said.join("\n")).unwrap();
    let ended = run(&scratch, "cat said; exit 101");
    assert_eq!(ended.status.code(), Some(101));
    let text = String::from_utf8(ended.stdout).unwrap();
    let last: Vec<_> = text.lines().rev().take(2).collect();
    assert_eq!(
        last,
        [
            "  tests/two.rs: b::is_slow",
            "  tests/one/main.rs: a::breaks"
        ]
    );
    assert!(text.contains("test a::works ... ok"), "{text}");
    // Nothing of it where all is well.
    let text = succeeded(&run(&scratch, "echo test a::works ... ok"));
    assert!(text.ends_with("test a::works ... ok\n"), "{text}");
}

/// A daemon that a test had left held the output for minutes.
#[test]
fn it_ends_with_the_tests() {
    let scratch = Scratch::new();
    let text = succeeded(&run(&scratch, "sleep 300 & echo $! > left; echo ended"));
    assert!(text.ends_with("ended\n"), "{text}");
    let left = fs::read_to_string(scratch.path("left")).unwrap();
    let left = left.trim().parse().unwrap();
    // SAFETY: a system call; the process was just started, and lives for longer than this.
    assert_eq!(unsafe { libc::kill(left, libc::SIGKILL) }, 0);
}

/// `nohup` and a shell's background ignore signals for all that they start, and four tests failed.
#[test]
#[ignore = "needs /dev/fuse"]
fn tests_pass_where_signals_are_ignored() {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["--include-ignored", "--exact", "signals::what_ends_a_mount"]);
    // SAFETY: system calls alone, between `fork` and `exec`.
    unsafe {
        tests.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_IGN);
            }
            Ok(())
        });
    }
    let text = succeeded(&output(tests));
    assert!(text.contains("1 passed"), "{text}");
}
