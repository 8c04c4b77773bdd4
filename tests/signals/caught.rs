//! Signals that are caught, ignored or blocked: what a program asked to be told of ends its call, what comes by the way
//! does not.

use libc::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH};

use crate::{
    Test,
    fixture::{Behind, CALLS, waiting},
};

pub const ALL: [Test; 6] = [
    ("int_and_term_give_eintr", &[], int_and_term_give_eintr),
    ("others_do_not", &[], others_do_not),
    ("int_after_another", &[], int_after_another),
    ("blocked_term_does_not", &[], blocked_term_does_not),
    ("ignored_int_does_not", &[], ignored_int_does_not),
    ("another_thread_takes_it", &[], another_thread_takes_it),
];

/// A program that catches Ctrl-C hears of it while a remote is silent.
fn int_and_term_give_eintr() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        for (number, signal) in [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().enumerate() {
            let caught = format!("c={signal}");
            let mut caller = waiting(&behind, call, number + 1, &[&caught]);
            caller.signal(signal);
            let line = caller.result();
            assert_eq!(line, "EINTR after 1 EINTR, 1 signals", "{call:?} {signal}");
        }
        behind.finish();
    }
}

/// Timers, profilers and terminals that change their size once failed whatever waited.
fn others_do_not() {
    for call in CALLS {
        let behind = Behind::new(&[]);
        let signals = [SIGUSR1, SIGALRM, SIGWINCH, libc::SIGPROF, libc::SIGIO];
        let mut callers = Vec::new();
        for (number, signal) in signals.into_iter().enumerate() {
            let caught = format!("c={signal}");
            let caller = waiting(&behind, call, number + 1, &[&caught]);
            caller.signal(signal);
            caller.interrupted();
            callers.push(caller);
        }
        callers[0].goes_on_waiting();
        behind.gate.open();
        for mut caller in callers {
            let line = caller.result();
            assert_eq!(
                line,
                format!("{} after 0 EINTR, 1 signals", call.3),
                "{call:?}"
            );
        }
        assert_eq!(behind.gate.asked_again(), [], "{call:?}");
        behind.finish();
    }
}

/// The one interrupt of the kernel's was for USR1.
fn int_after_another() {
    let options = [format!("c={SIGUSR1}"), format!("c={SIGINT}")];
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &options.each_ref().map(String::as_str));
        caller.signal(SIGUSR1);
        caller.interrupted();
        caller.goes_on_waiting();
        caller.signal(SIGINT);
        let line = caller.result();
        assert_eq!(line, "EINTR after 1 EINTR, 2 signals", "{call:?}");
        behind.finish();
    }
}

/// Interrupts a caller by USR1 and sends it another signal, which must not matter.
fn goes_on(options: &[String], second: i32, signals: u32) {
    let options: Vec<_> = options.iter().map(String::as_str).collect();
    for call in CALLS {
        let behind = Behind::new(&[]);
        let mut caller = waiting(&behind, call, 1, &options);
        caller.signal_thread(SIGUSR1);
        caller.interrupted();
        caller.signal(second);
        caller.goes_on_waiting();
        behind.gate.open();
        let line = caller.result();
        let expected = format!("{} after 0 EINTR, {signals} signals", call.3);
        assert_eq!(line, expected, "{call:?}");
        behind.finish();
    }
}

/// A signal that is pending and blocked has not come yet.
fn blocked_term_does_not() {
    let options = [format!("c={SIGUSR1}"), format!("b={SIGTERM}")];
    goes_on(&options, SIGTERM, 1);
}

fn ignored_int_does_not() {
    let options = [format!("c={SIGUSR1}"), format!("i={SIGINT}")];
    goes_on(&options, SIGINT, 1);
}

/// The handler runs in a thread that does not wait, so that the one that waits has no reason to end.
fn another_thread_takes_it() {
    let [usr1, term] = [SIGUSR1, SIGTERM].map(|signal| format!("c={signal}"));
    goes_on(
        &[usr1, term, format!("b={SIGTERM}"), "m".into()],
        SIGTERM,
        2,
    );
}
