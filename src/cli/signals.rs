use std::{fs, io, sync::Arc};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::daemon::Log;

/// Number of HUP; the same on all architectures.
const HUP: u32 = 1;

/// What a mount does on signals. Their default would end the process and leave a dead mount.
pub(super) struct Signals {
    /// Each ends the mount.
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    /// `None`: the process was started with HUP ignored, as `nohup` does, and outlives its terminal.
    hangup: Option<Signal>,
    /// Taken, and nothing done.
    _ignored: [Signal; 3],
}

impl Signals {
    /// Must be called within a tokio runtime.
    pub(super) fn new(foreground: bool) -> io::Result<Self> {
        let outlives = foreground && is_ignored(HUP);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hangup: match outlives {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
            _ignored: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
                signal(SignalKind::alarm())?,
            ],
        })
    }

    /// Resolves when the mount is to end. HUP ends it when the terminal closes; a process in the background has left that, and
    /// opens its log anew.
    pub(super) async fn end(&mut self, log: Option<&Arc<Log>>) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.quit.recv() => return,
                () = hangup(self.hangup.as_mut()) => match log {
                    Some(log) => {
                        log.reopen();
                        tracing::info!("the log was opened anew");
                    }
                    None => return,
                }
            }
        }
    }
}

async fn hangup(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether this process was started with a signal ignored.
fn is_ignored(signal: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
