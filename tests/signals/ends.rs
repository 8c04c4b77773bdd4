//! Signals that end a process end it at once, whatever came before them.

use libc::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGWINCH};

use crate::{
    Test,
    fixture::{Behind, CALLS, Caller, PAGES, waiting},
};

pub const ALL: [Test; 6] = [
    ("by_default", &[], by_default),
    ("reads_of_pages", &[], reads_of_pages),
    ("usr1_then_kill", &[], || then(SIGUSR1, true, SIGKILL)),
    ("winch_then_int", &[], || then(SIGWINCH, true, SIGINT)),
    ("tstp_then_kill", &[], || then(SIGTSTP, false, SIGKILL)),
    ("a_thread_that_blocks_term", &[], a_thread_that_blocks_term),
];

/// Every way to wait, every signal that ends a process.
fn by_default() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let signals = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGKILL];
        let mut callers = Vec::new();
        for (number, signal) in signals.into_iter().enumerate() {
            callers.push((waiting(&behind, call, number + 1, &[]), signal));
        }
        for (caller, signal) in &callers {
            caller.signal(*signal);
        }
        for (caller, signal) in &mut callers {
            assert_eq!(caller.ended_by(), *signal, "{call:?}");
        }
        assert!(behind.gate.waiting() > 0 || behind.gate.gone() > 0);
        behind.finish();
    }
}

/// The kernel itself waits for pages, and asks the daemon nothing.
fn reads_of_pages() {
    let behind = Behind::new(&[]);
    for call in PAGES {
        for (number, signal) in [SIGINT, SIGTERM, SIGUSR1, SIGKILL].into_iter().enumerate() {
            let mut caller = waiting(&behind, call, number + 1, &[]);
            caller.signal(signal);
            assert_eq!(caller.ended_by(), signal, "{call:?}");
        }
    }
    behind.finish();
}

/// The kernel interrupts a request once. The second signal, which ends the process, was never heard of: it stayed in `D`.
fn then(first: i32, catches: bool, second: i32) {
    let caught = format!("c={first}");
    for call in CALLS {
        let behind = Behind::new(&[]);
        let options = [caught.as_str()];
        let options = if catches { &options[..] } else { &[] };
        let mut caller = waiting(&behind, call, 1, options);
        caller.signal(first);
        caller.interrupted();
        caller.goes_on_waiting();
        caller.signal(second);
        assert_eq!(caller.ended_by(), second, "{call:?}");
        behind.finish();
    }
}

/// TERM is for the process; the thread that waits in the mount blocks it, and another one takes it.
fn a_thread_that_blocks_term() {
    let term = format!("b={SIGTERM}");
    let usr1 = format!("c={SIGUSR1}");
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &["m", &term]);
        caller.signal(SIGTERM);
        assert_eq!(caller.ended_by(), SIGTERM, "{call:?}");
        // The same after the one interrupt that there is.
        let mut caller = waiting(&behind, call, 2, &["m", &term, &usr1]);
        caller.signal_thread(SIGUSR1);
        caller.interrupted();
        caller.goes_on_waiting();
        caller.signal(SIGTERM);
        assert_eq!(caller.ended_by(), SIGTERM, "{call:?}");
        behind.finish();
    }
    // Nobody waits for a process that is gone.
    let behind = Behind::new(&[]);
    let mut caller = Caller::start("stat", &behind.mount.at("n1"), &["m", &term]);
    assert_eq!(caller.value(0), "9");
    behind.finish();
}
