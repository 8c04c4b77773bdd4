//! Which signal ends a caller's wait.
//!
//! The kernel sends one INTERRUPT for a request, for any signal, and none for the signals after it: a caller that got SIGUSR1 first and
//! SIGKILL later waits for the answer in uninterruptible sleep. So from the INTERRUPT on the caller is looked at, again and again,
//! until its request is answered.

use std::time::Duration;

/// How often callers are looked at who were interrupted.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(150);
/// A caller that cannot be seen is given EINTR so long after the INTERRUPT.
pub(super) const UNSEEN_FOR: Duration = Duration::from_secs(1);

/// What the signals of a caller say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A signal waits for it that it cannot go on without: EINTR.
    End,
    /// None does: it goes on waiting for the answer.
    Wait,
    /// It is in another PID namespace, or hidden (`hidepid`).
    Unseen,
}

/// A set of signals, bit `n - 1` for signal `n`, as in `proc_pid_status(5)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Signals(u64);

/// The fields of `/proc/PID/status` that matter here.
#[derive(Debug, Clone, Copy, Default)]
struct Status {
    /// `SigPnd` and `ShdPnd`.
    pending: Signals,
    /// `SigBlk`.
    blocked: Signals,
    /// `SigIgn`.
    ignored: Signals,
    /// `SigCgt`.
    caught: Signals,
}

/// Signals whose default action does not end the process: they are ignored, or stop or continue it (`signal(7)`).
const HARMLESS: Signals = Signals::of(&[
    libc::SIGCHLD,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
]);
/// Signals by which a person or a supervisor asks a process to end: one that catches them wants to hear of it. All others that are
/// caught (timers, children, user signals) are answered after the call, as with a local disk.
const REQUESTS_TO_END: Signals =
    Signals::of(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]);

/// Whether `/proc` is of this process's PID namespace. In that of another one, the number of a caller is that of another process.
pub(super) fn can_look() -> bool {
    std::fs::read("/proc/self/status").is_ok_and(|status| is_of_one_namespace(&status))
}

/// Looks at a caller by its thread id.
pub(super) fn look(caller: u32) -> Verdict {
    if caller == 0 {
        return Verdict::Unseen;
    }
    // A thread has a directory there too, though it is not listed.
    match std::fs::read(format!("/proc/{caller}/status")) {
        Ok(status) => parse(&status).verdict(),
        // Not the caller's fault: no descriptor or no memory is left here.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
            ) =>
        {
            Verdict::Wait
        }
        Err(_) => Verdict::Unseen,
    }
}

/// `NSpid` has a number for the namespace of that `/proc` and for each one below it down to the process's own.
fn is_of_one_namespace(status: &[u8]) -> bool {
    let mut lines = status.split(|byte| *byte == b'\n');
    lines
        .find_map(|line| line.strip_prefix(b"NSpid:"))
        .is_some_and(|numbers| String::from_utf8_lossy(numbers).split_whitespace().count() == 1)
}

impl Signals {
    const fn of(numbers: &[i32]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < numbers.len() {
            set |= 1 << (numbers[at] - 1);
            at += 1;
        }
        Self(set)
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Status {
    const fn verdict(&self) -> Verdict {
        let deliverable = self.pending.without(self.blocked);
        let killed = self.pending.and(Signals::of(&[libc::SIGKILL]));
        let by_default = deliverable
            .without(HARMLESS)
            .without(self.caught)
            .without(self.ignored);
        let asked = deliverable.and(self.caught).and(REQUESTS_TO_END);
        if killed.or(by_default).or(asked).0 == 0 {
            Verdict::Wait
        } else {
            Verdict::End
        }
    }
}

fn parse(status: &[u8]) -> Status {
    let mut found = Status::default();
    for line in status.split(|byte| *byte == b'\n') {
        let Some((name, value)) = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once(':'))
        else {
            continue;
        };
        let Ok(value) = u64::from_str_radix(value.trim(), 16) else {
            continue;
        };
        match name {
            "SigPnd" | "ShdPnd" => found.pending.0 |= value,
            "SigBlk" => found.blocked.0 = value,
            "SigIgn" => found.ignored.0 = value,
            "SigCgt" => found.caught.0 = value,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pending: &[i32], blocked: &[i32], ignored: &[i32], caught: &[i32]) -> Verdict {
        Status {
            pending: Signals::of(pending),
            blocked: Signals::of(blocked),
            ignored: Signals::of(ignored),
            caught: Signals::of(caught),
        }
        .verdict()
    }

    #[test]
    fn what_ends_a_wait() {
        use libc::{SIGALRM, SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGTSTP, SIGUSR1, SIGWINCH};
        let (end, wait) = (Verdict::End, Verdict::Wait);
        assert_eq!(verdict(&[SIGKILL], &[], &[], &[]), end);
        assert_eq!(verdict(&[SIGINT], &[], &[], &[]), end);
        assert_eq!(verdict(&[SIGUSR1], &[], &[], &[]), end);
        for asks in [SIGINT, SIGTERM, SIGHUP, libc::SIGQUIT] {
            assert_eq!(verdict(&[asks], &[], &[], &[asks]), end);
            assert_eq!(verdict(&[asks], &[], &[asks], &[]), wait);
            assert_eq!(verdict(&[asks], &[asks], &[], &[]), wait);
        }
        // What runs a handler and goes on: SA_RESTART or not, local reads are not interrupted by it.
        assert_eq!(verdict(&[SIGALRM], &[], &[], &[SIGALRM]), wait);
        assert_eq!(verdict(&[SIGUSR1], &[], &[], &[SIGUSR1]), wait);
        assert_eq!(verdict(&[SIGWINCH, SIGTSTP], &[], &[], &[]), wait);
        assert_eq!(verdict(&[SIGUSR1, SIGKILL], &[], &[], &[SIGUSR1]), end);
        // A real-time signal ends by default.
        assert_eq!(verdict(&[40], &[], &[], &[]), end);
        assert_eq!(verdict(&[], &[], &[], &[]), wait);
    }

    #[test]
    fn the_status_of_a_process_is_read() {
        let status = parse(
            b"Name:\tsleep\nSigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\n\
              SigBlk:\t0000000000000004\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180000000\n",
        );
        assert_eq!(status.pending, Signals(0x102));
        assert_eq!(status.blocked, Signals(4));
        assert_eq!(status.ignored, Signals(0x1000));
        assert_eq!(status.caught, Signals(0x1_8000_0000));
        assert!(can_look());
        assert!(!is_of_one_namespace(b"Pid:\t7\nNSpid:\t7\t1\n"));
        assert!(!is_of_one_namespace(b""));
        assert_eq!(look(std::process::id()), Verdict::Wait);
        assert_eq!(look(0), Verdict::Unseen);
        assert_eq!(look(u32::MAX), Verdict::Unseen);
    }
}
