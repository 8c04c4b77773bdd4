//! What was begun for a request goes on when that is interrupted, and whoever calls again joins it.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{
    Test,
    fixture::{AT_ONCE, Behind, CALLS, Caller, NAMES, SILENCE, waiting},
    support::{eventually, within},
};

pub const ALL: [Test; 6] = [
    ("under_a_timer", &[], under_a_timer),
    ("a_second_call_joins", &[], a_second_call_joins),
    ("another_process_joins", &[], another_process_joins),
    ("abandoned_fetches_end", &[], abandoned_fetches_end),
    ("few_are_abandoned_at_once", &[], few_are_abandoned_at_once),
    ("others_are_served", &[], others_are_served),
];

/// A call that goes on after each signal ends within this time once its remote has answered. It takes no longer than the remote;
/// the rest is for a busy machine.
const ENDS: Duration = Duration::from_secs(20);

/// A loop that calls again under a timer of 10 ms once got 1,381 EINTRs in 15 s and never a result; each began a fetch.
fn under_a_timer() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let begun = Instant::now();
        let mut caller = waiting(&behind, call, 1, &["t=10000", "r"]);
        caller.goes_on_waiting();
        // The remote is as slow as this; whatever it was asked for was asked for once.
        behind.gate.open();
        assert_eq!(caller.value(2), call.3, "{call:?}");
        assert!(begun.elapsed() < ENDS, "{call:?}: {:?}", begun.elapsed());
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        let of_part = |part: &str| behind.gate.requests(part);
        let fetched: usize = call.2.split(' ').map(of_part).sum();
        assert_eq!(fetched, 1, "{call:?}");
        behind.finish();
    }
}

/// A caught INT gives EINTR; the call after it once began from the start.
fn a_second_call_joins() {
    let int = format!("c={}", libc::SIGINT);
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &[&int, "2"]);
        caller.signal(libc::SIGINT);
        // Handled: the first call has ended, and the second waits.
        let handled = || {
            let status = fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap();
            let pending = status
                .lines()
                .filter(|line| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"));
            pending
                .into_iter()
                .all(|line| line.ends_with("0000000000000000"))
        };
        eventually("the first call has ended", handled);
        caller.waits();
        caller.goes_on_waiting();
        behind.gate.open();
        let line = caller.result();
        assert_eq!(
            line,
            format!("{} after 1 EINTR, 1 signals", call.3),
            "{call:?}"
        );
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        behind.finish();
    }
}

/// As when a build is interrupted and started again.
fn another_process_joins() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut first = waiting(&behind, call, 1, &[]);
        first.signal(libc::SIGINT);
        assert_eq!(first.ended_by(), libc::SIGINT);
        let path = behind.mount.at(&call.1.replace('N', "1"));
        let mut second = Caller::start(call.0, &path, &[]);
        second.goes_on_waiting();
        behind.gate.open();
        assert_eq!(second.value(0), call.3);
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        behind.finish();
    }
}

/// They would otherwise wait for a remote that nobody waits for any more.
fn abandoned_fetches_end() {
    let behind = Behind::new(&[]);
    let mut caller = waiting(&behind, CALLS[0], 1, &[]);
    caller.signal(libc::SIGKILL);
    assert_eq!(caller.ended_by(), libc::SIGKILL);
    eventually("the fetch is given up", || behind.gate.gone() == 1);
    assert_eq!(behind.gate.waiting(), 0);
    assert_eq!(behind.gate.requests("/roots/"), 1);
    behind.finish();
}

/// A program that is killed over and over must not fill the daemon with fetches.
fn few_are_abandoned_at_once() {
    let behind = Behind::new(&[]);
    behind.gate.hold(&["/roots/"]);
    let callers: Vec<_> = (1..NAMES)
        .map(|name| Caller::start("stat", &behind.mount.at(&format!("n{name}")), &[]))
        .collect();
    behind.gate.seen("/roots/", NAMES - 1);
    for caller in &callers {
        caller.signal(libc::SIGKILL);
    }
    for mut caller in callers {
        assert_eq!(caller.ended_by(), libc::SIGKILL);
    }
    eventually("no more than 64 are left", || behind.gate.waiting() <= 64);
    behind.finish();
}

/// Whoever is interrupted waits, and so once did the only thread that answers; and the kernel, told EAGAIN, asked again
/// 547,200 times in 2.5 s.
fn others_are_served() {
    let behind = Behind::new(&["--threads", "1"]);
    behind.warm("n0/f0");
    behind.gate.hold(&["/roots/"]);
    let callers: Vec<_> = (1..20)
        .map(|name| {
            let path = behind.mount.at(&format!("n{name}"));
            Caller::start("stat", &path, &["t=10000", "r"])
        })
        .collect();
    behind.gate.seen("/roots/", 19);
    let before = processor_time(&behind);
    for file in 1..8 {
        let path = behind.mount.at(&format!("n0/f{file}"));
        let size = within(AT_ONCE, "others", move || fs::metadata(path).unwrap().len());
        assert_eq!(size, 5000);
    }
    std::thread::sleep(SILENCE);
    let spent = processor_time(&behind).saturating_sub(before);
    assert!(spent < SILENCE / 2, "waiting has taken {spent:?}");
    behind.gate.open();
    for mut caller in callers {
        assert_eq!(caller.value(2), "9");
    }
    assert_eq!(behind.gate.asked_again(), []);
    behind.finish();
}

/// What the daemon has taken of the processors.
fn processor_time(behind: &Behind) -> Duration {
    let path = format!("/proc/{}/stat", behind.mount.child.id());
    let stat = fs::read_to_string(path).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    // Of user and kernel, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
