//! How long a call waits for a remote that does not answer, also where the kernel does not interrupt it and when the daemon dies.

use std::{
    fs,
    time::{Duration, Instant},
};

use libc::{SIGINT, SIGKILL, SIGTERM};

use crate::{
    Test,
    fixture::{Behind, CALLS, Caller, PAGES, waiting},
    support::{eventually, within},
};

pub const ALL: [Test; 7] = [
    (
        "a_silent_remote_is_an_error",
        &[],
        a_silent_remote_is_an_error,
    ),
    (
        "whoever_waits_when_it_dies",
        &[],
        whoever_waits_when_it_dies,
    ),
    ("an_outage_is_waited_for", &[], an_outage_is_waited_for),
    (
        "the_kernel_grants_less",
        &["unshare", "mount"],
        the_kernel_grants_less,
    ),
    ("pages_end_at_the_timeout", &[], pages_end_at_the_timeout),
    (
        "who_waits_for_the_same_name",
        &[],
        who_waits_for_the_same_name,
    ),
    (
        "the_same_name_ends_at_the_timeout",
        &[],
        the_same_name_ends_at_the_timeout,
    ),
];

const TIMEOUT: [&str; 2] = ["--timeout", "2s"];
/// What waits until `--timeout` has ended within this time; most of it is for a busy machine.
const ENDS: Duration = Duration::from_secs(20);
/// And not before this time: of the last try, which takes a third of the time-out, half may be over it, or else it is not begun.
const NOT_BEFORE: Duration = Duration::from_millis(1600);

/// The remote answers again, and it is found out.
fn comes_back(behind: Behind) {
    behind.gate.open();
    let path = behind.mount.at("n0/f7");
    eventually("the remote is back", || {
        let path = path.clone();
        within(ENDS, "a read", move || fs::read(path).is_ok())
    });
    behind.finish();
}

/// Every call gets EIO, not at once and not never.
fn a_silent_remote_is_an_error() {
    for call in CALLS {
        let behind = Behind::new(&TIMEOUT);
        let begun = Instant::now();
        let mut caller = waiting(&behind, call, 1, &[]);
        assert_eq!(caller.result(), "EIO after 0 EINTR, 0 signals", "{call:?}");
        let took = begun.elapsed();
        assert!(took > NOT_BEFORE && took < ENDS, "{call:?}: {took:?}");
        comes_back(behind);
    }
}

/// `--outage wait=` grants more than `--timeout`, and no more than that.
fn an_outage_is_waited_for() {
    let behind = Behind::new(&["--timeout", "1s", "--outage", "wait=7s"]);
    let begun = Instant::now();
    let mut caller = waiting(&behind, CALLS[1], 1, &[]);
    assert_eq!(caller.result(), "EIO after 0 EINTR, 0 signals");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(6) && took < ENDS, "{took:?}");
    comes_back(behind);
    let behind = Behind::new(&["--timeout", "1s", "--outage", "wait=10m"]);
    let mut caller = waiting(&behind, CALLS[1], 1, &[]);
    caller.goes_on_waiting();
    behind.gate.open();
    assert_eq!(caller.value(0), CALLS[1].3);
    behind.finish();
}

/// The kernel ends the connection of a daemon that leaves a request for longer than its limit, so the daemon answers before.
/// The limit is the daemon's alone here: it finds another file in the place of the kernel's.
fn the_kernel_grants_less() {
    let behind = Behind::with_another_proc(|scratch| {
        let limit = scratch.join("limit");
        fs::write(&limit, "5\n").unwrap();
        format!(
            "mount --bind {} /proc/sys/fs/fuse/max_request_timeout && exec \"$@\"",
            limit.display()
        )
    });
    let begun = Instant::now();
    let mut caller = waiting(&behind, CALLS[0], 1, &[]);
    assert_eq!(caller.result(), "EIO after 0 EINTR, 0 signals");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(4) && took < ENDS, "{took:?}");
    comes_back(behind);
}

/// The kernel waits for a page without asking anybody about caught signals; the daemon answers all the same.
fn pages_end_at_the_timeout() {
    let int = format!("c={SIGINT}");
    let behind = Behind::new(&TIMEOUT);
    let begun = Instant::now();
    let mut caller = waiting(&behind, PAGES[0], 1, &[&int]);
    caller.signal(SIGINT);
    // The kernel asks once more for the one page when what it has read ahead fails, and that request it interrupts.
    let line = caller.result();
    let ended = line == "EIO after 0 EINTR, 1 signals" || line == "EINTR after 1 EINTR, 1 signals";
    assert!(ended, "{line}");
    let took = begun.elapsed();
    assert!(took > NOT_BEFORE && took < ENDS, "{took:?}");
    comes_back(behind);
}

/// Starts a second caller for a name that the first one waits for. It sleeps so that no signal wakes it.
fn second_waiter(behind: &Behind, options: &[&str]) -> (Caller, Caller) {
    let first = waiting(behind, CALLS[0], 1, &[]);
    let second = Caller::start("stat", &behind.mount.at("n1"), options);
    eventually("the second waits", || second.state() == 'D');
    (first, second)
}

/// The kernel asks the daemon once for a name; whoever else wants it waits for the one that asks.
fn who_waits_for_the_same_name() {
    let int = format!("c={SIGINT}");
    let behind = Behind::new(&[]);
    let (mut first, mut second) = second_waiter(&behind, &[&int]);
    second.signal(SIGINT);
    second.goes_on_waiting();
    behind.gate.open();
    assert_eq!(second.result(), "9 after 0 EINTR, 1 signals");
    assert_eq!(first.result(), "9 after 0 EINTR, 0 signals");
    assert_eq!(behind.gate.asked_again(), []);
    behind.finish();
}

/// Not even a signal that ends a process wakes it.
fn the_same_name_ends_at_the_timeout() {
    for signal in [SIGTERM, SIGKILL] {
        let behind = Behind::new(&TIMEOUT);
        let begun = Instant::now();
        let (mut first, mut second) = second_waiter(&behind, &[]);
        second.signal(signal);
        assert_eq!(second.ended_within(ENDS), signal);
        let took = begun.elapsed();
        assert!(took > NOT_BEFORE, "{signal}: {took:?}");
        assert_eq!(first.result(), "EIO after 0 EINTR, 0 signals");
        comes_back(behind);
    }
}

/// The daemon is killed while they wait. They are told of another error than those who come later.
fn whoever_waits_when_it_dies() {
    for call in CALLS {
        let mut behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &[]);
        behind.mount.child.kill().unwrap();
        behind.mount.child.wait().unwrap();
        let line = caller.result();
        assert_eq!(line, "ECONNABORTED after 0 EINTR, 0 signals", "{call:?}");
        let error = fs::metadata(behind.mount.at("n2")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    }
}
