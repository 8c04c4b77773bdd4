use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

/// A process that cannot be taken for a later one with the same number: the kernel uses numbers again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// When it was started, in clock ticks since the machine was (field 22 of `/proc/PID/stat`).
    started: u64,
    /// The namespace in which `pid` is its number, as `pid:[4026531836]`.
    namespace: String,
}

/// Whether a process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped by a signal or a debugger.
    Stopped,
    Gone,
    /// It was registered in another namespace, where its number means another process.
    Unknown,
}

impl Process {
    /// The calling process.
    pub(super) fn this() -> io::Result<Self> {
        let pid = std::process::id();
        let (_, started) = stat(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            pid,
            started,
            namespace: namespace(),
        })
    }

    pub(super) fn life(&self) -> Life {
        if self.namespace != namespace() {
            return Life::Unknown;
        }
        match stat(self.pid) {
            // A zombie has closed its files: its mount is dead.
            Some((state, started)) if started == self.started => match state {
                b'Z' | b'X' | b'x' => Life::Gone,
                b'T' | b't' => Life::Stopped,
                _ => Life::Running,
            },
            _ => Life::Gone,
        }
    }

    /// The user it belongs to.
    pub(super) fn owner(&self) -> Option<u32> {
        let metadata = fs::metadata(format!("/proc/{}", self.pid)).ok()?;
        Some(metadata.uid())
    }

    /// A handle to it; `None` when it has ended.
    pub(super) fn open(&self) -> Option<Handle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: the handle is of the process that has the number now.
        matches!(self.life(), Life::Running | Life::Stopped).then_some(Handle(handle))
    }
}

/// A handle that stays that of one process, also after its end.
#[derive(Debug)]
pub(super) struct Handle(OwnedFd);

impl From<OwnedFd> for Handle {
    fn from(handle: OwnedFd) -> Self {
        Self(handle)
    }
}

impl Handle {
    /// The process that has this number now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        handle.ok().map(Self)
    }

    /// Waits for its end; `false` when it goes on.
    pub(super) fn ends_within(&self, time: Duration) -> bool {
        let mut ended = [PollFd::new(&self.0, PollFlags::IN)];
        let timeout = Timespec::try_from(time).ok();
        rustix::event::poll(&mut ended, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.0, Signal::KILL)?)
    }
}

/// State and start time from `/proc/PID/stat`.
fn stat(pid: u32) -> Option<(u8, u64)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, which may have spaces and parentheses.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    // The state is the third field, the start time the 22nd.
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn namespace() -> String {
    let link = fs::read_link("/proc/self/ns/pid");
    link.map_or_else(|_| String::new(), |link| link.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_not_another_with_its_number() {
        let this = Process::this().unwrap();
        assert_eq!(this.life(), Life::Running);
        assert!(this.open().is_some());
        let other = Process {
            started: this.started + 1,
            ..this.clone()
        };
        assert_eq!(other.life(), Life::Gone);
        assert!(other.open().is_none());
        let elsewhere = Process {
            namespace: "pid:[1]".to_owned(),
            ..this
        };
        assert_eq!(elsewhere.life(), Life::Unknown);
    }
}
