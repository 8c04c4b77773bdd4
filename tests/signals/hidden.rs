//! Callers that the daemon cannot see, or would take for others.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use libc::{SIGKILL, SIGTERM, SIGUSR1};

use crate::{
    Test,
    fixture::{AT_ONCE, Behind, CALLS, Caller, call, waiting},
    support::{DEADLINE, before, eventually, output, succeeded, wait},
};

pub const ALL: [Test; 5] = [
    ("an_interrupt_ends", &["unshare"], an_interrupt_ends),
    (
        "hidepid",
        &["unshare", "nsenter", "setpriv", "mount"],
        hidepid,
    ),
    ("a_kill_ends", &["unshare"], a_kill_ends),
    (
        "numbers_of_others",
        &["unshare", "nsenter"],
        numbers_of_others,
    ),
    ("a_namespace_below", &["unshare"], a_namespace_below),
];

/// The daemon in a namespace of its own: callers outside of it have no number there, and no fate that it could look at.
fn hidden() -> Behind {
    Behind::by(&[], |daemon| {
        before("unshare", ["--pid", "--fork", "--kill-child"], &daemon)
    })
}

/// Takes away the capability that sees all processes in spite of `hidepid`. Containers have it seldom.
const WITHOUT_PTRACE: [&str; 3] = ["setpriv", "--bounding-set", "-sys_ptrace"];

/// The daemon with a `/proc` that hides the processes of others.
fn behind_hidepid() -> Behind {
    Behind::with_another_proc(|_| {
        // The group that sees all is root's unless another one is named.
        format!(
            "mount -t proc -o hidepid=2,gid=65534 proc /proc && exec {} \"$@\"",
            WITHOUT_PTRACE.join(" ")
        )
    })
}

/// Whether a process that is started as the daemon was finds another one in its `/proc`.
fn is_seen_by(behind: &Behind, pid: i32) -> bool {
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", behind.mount.child.id()));
    command.args(WITHOUT_PTRACE);
    command.args(["test", "-e", &format!("/proc/{pid}/status")]);
    output(command).status.success()
}

/// Of what is hidden it cannot be told which signal came, so that a call ends with EINTR a second after any.
fn hidepid() {
    let usr1 = format!("c={SIGUSR1}");
    for call in CALLS {
        let behind = behind_hidepid();
        let mut caller = waiting(&behind, call, 1, &[&usr1]);
        assert!(!is_seen_by(&behind, caller.pid), "the caller is not hidden");
        let signalled = Instant::now();
        caller.signal(SIGUSR1);
        assert_eq!(
            caller.result(),
            "EINTR after 1 EINTR, 1 signals",
            "{call:?}"
        );
        let after = signalled.elapsed();
        assert!(after >= Duration::from_millis(900), "{call:?}: {after:?}");
        let mut caller = waiting(&behind, call, 2, &[]);
        caller.signal(SIGTERM);
        assert_eq!(caller.ended_by(), SIGTERM, "{call:?}");
        // Nobody else is interrupted.
        let mut caller = waiting(&behind, call, 3, &[]);
        caller.goes_on_waiting();
        behind.gate.open();
        assert_eq!(caller.value(0), call.3, "{call:?}");
        behind.finish();
    }
}

/// `unshare` takes no TERM for its child.
fn finish(mut behind: Behind) {
    behind.check();
    let mut command = Command::new("umount");
    command.arg(&behind.mount.path);
    succeeded(&output(command));
    let ended = wait(&mut behind.mount.child, DEADLINE).expect("the daemon does not end");
    assert!(ended.success(), "{ended}");
}

/// The children of a process, as the outermost namespace has them.
fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// What cannot be looked at gets EINTR after a second, so that nothing hangs that might have been killed.
fn an_interrupt_ends() {
    let usr1 = format!("c={SIGUSR1}");
    for call in CALLS {
        let behind = hidden();
        let mut caller = waiting(&behind, call, 1, &[&usr1]);
        caller.signal(SIGUSR1);
        assert_eq!(
            caller.result(),
            "EINTR after 1 EINTR, 1 signals",
            "{call:?}"
        );
        finish(behind);
    }
    // And nobody else is interrupted.
    let behind = hidden();
    let mut caller = waiting(&behind, CALLS[0], 1, &[]);
    caller.goes_on_waiting();
    behind.gate.open();
    assert_eq!(caller.result(), "9 after 0 EINTR, 0 signals");
    finish(behind);
}

fn a_kill_ends() {
    let usr1 = format!("c={SIGUSR1}");
    let behind = hidden();
    for (number, signal) in [SIGTERM, SIGKILL].into_iter().enumerate() {
        let mut caller = waiting(&behind, CALLS[0], number + 1, &[]);
        caller.signal(signal);
        assert_eq!(caller.ended_by(), signal);
        let mut caller = waiting(&behind, CALLS[0], number + 3, &[&usr1]);
        caller.signal(SIGUSR1);
        caller.signal(signal);
        assert_eq!(caller.ended_by(), signal);
    }
    finish(behind);
}

/// Has a helper that was started by others be the caller: it is found below the process that was started.
fn below(mut command: Command, behind: &Behind, number: usize) -> Caller {
    let usr1 = format!("c={SIGUSR1}");
    let made = call("stat", &behind.mount.at(&format!("n{number}")), &[&usr1]);
    command.arg(made.get_program()).args(made.get_args());
    behind.gate.hold(&["/roots/"]);
    let before = behind.gate.requests("/roots/");
    let mut caller = Caller::run(command);
    assert!(caller.line().starts_with("tid "));
    eventually("it has a child", || !children(caller.pid).is_empty());
    let mut pid = caller.pid;
    while let Some(child) = children(pid).first() {
        pid = *child;
    }
    (caller.pid, caller.thread) = (pid, pid);
    behind.gate.seen("/roots/", before + 1);
    caller.waits();
    caller
}

/// A daemon in a namespace of its own may see the `/proc` of another one, where its caller's number is somebody else's:
/// what that one waits for says nothing.
fn numbers_of_others() {
    let behind = hidden();
    let daemon = i32::try_from(behind.mount.child.id()).unwrap();
    let inside = children(daemon)[0];
    let enter = || {
        let mut command = Command::new("nsenter");
        command.arg(format!("--pid=/proc/{inside}/ns/pid"));
        command
    };
    let caller = below(enter(), &behind, 1);
    caller.signal(SIGUSR1);
    caller.signal(SIGKILL);
    let gone = std::time::Instant::now() + AT_ONCE;
    while !matches!(caller.state(), 'X' | 'Z') {
        assert!(std::time::Instant::now() < gone, "it is not gone");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    drop(caller);
    finish(behind);
}

/// A caller in a namespace below the daemon's has a number there, and is as good as any.
fn a_namespace_below() {
    let behind = Behind::new(&[]);
    let enter = || {
        let mut command = Command::new("unshare");
        // A process 1 is told of fewer signals; so it is the shell.
        command.args([
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            "\"$@\"; exit",
            "sh",
        ]);
        command
    };
    let mut caller = below(enter(), &behind, 1);
    caller.signal(SIGUSR1);
    caller.interrupted();
    caller.goes_on_waiting();
    behind.gate.open();
    assert_eq!(caller.result(), "9 after 0 EINTR, 1 signals");
    let caller = below(enter(), &behind, 2);
    caller.signal(SIGUSR1);
    caller.interrupted();
    caller.signal(SIGKILL);
    eventually("it is gone", || matches!(caller.state(), 'X' | 'Z'));
    drop(caller);
    behind.finish();
}
