//! The guest's second serial line: scripts get in, their output gets out. `init.sh` is the other end.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Of a UUID.
const BOOT_ID_LENGTH: usize = 36;

/// What a script has done.
#[derive(Debug)]
pub struct Output {
    /// 128 and more: ended by a signal.
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Silence {
    #[error("no answer in time")]
    Late,
    #[error("QEMU has closed the line")]
    Closed,
    #[error("the guest has started again by itself")]
    Restarted,
    #[error("not an answer: {0:?}")]
    Nonsense(String),
}

pub struct Serial {
    stream: UnixStream,
    /// Received and not yet looked at.
    received: Vec<u8>,
}

impl Serial {
    pub fn new(stream: UnixStream) -> Self {
        let received = Vec::new();
        Self { stream, received }
    }

    /// Waits until a guest is ready, other than the one with this boot id; gives its own boot id.
    pub fn ready(&mut self, before: &str, deadline: Instant) -> Result<String, Silence> {
        loop {
            // What the old guest was about to say, and what firmware says, is no part of it.
            let line = self.line(deadline)?;
            if let Some((_, id)) = line.split_once("ready ")
                && id.len() == BOOT_ID_LENGTH
                && id != before
            {
                return Ok(id.to_owned());
            }
        }
    }

    pub fn run(&mut self, script: &str, deadline: Instant) -> Result<Output, Silence> {
        let token = format!("{:016x}", RandomState::new().build_hasher().finish());
        let script = data_encoding::BASE64.encode(script.as_bytes());
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_write_timeout(Some(at_least(left))).unwrap();
        let sent = writeln!(self.stream, "{token} {script}");
        sent.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Silence::Late,
            _ => Silence::Closed,
        })?;
        loop {
            let line = self.line(deadline)?;
            if line.starts_with("ready ") {
                return Err(Silence::Restarted);
            }
            // The answer to an earlier script that was late comes with another token.
            let Some(answer) = line.strip_prefix(&token) else {
                continue;
            };
            let numbers: Result<Vec<usize>, _> =
                answer.split_whitespace().map(str::parse).collect();
            let Ok([status, stdout, stderr]) = numbers.as_deref() else {
                return Err(Silence::Nonsense(line));
            };
            return Ok(Output {
                status: i32::try_from(*status).unwrap(),
                stdout: self.bytes(*stdout, deadline)?,
                stderr: self.bytes(*stderr, deadline)?,
            });
        }
    }

    fn line(&mut self, deadline: Instant) -> Result<String, Silence> {
        let mut searched = 0;
        let end = loop {
            let rest = &self.received[searched..];
            if let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                break searched + at;
            }
            searched = self.received.len();
            self.receive(deadline)?;
        };
        let line: Vec<_> = self.received.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn bytes(&mut self, count: usize, deadline: Instant) -> Result<Vec<u8>, Silence> {
        while self.received.len() < count {
            self.receive(deadline)?;
        }
        Ok(self.received.drain(..count).collect())
    }

    fn receive(&mut self, deadline: Instant) -> Result<(), Silence> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Silence::Late);
        }
        self.stream.set_read_timeout(Some(at_least(left))).unwrap();
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(Silence::Closed),
            Ok(count) => {
                self.received.extend_from_slice(&bytes[..count]);
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Err(Silence::Late),
                ErrorKind::Interrupted => Ok(()),
                _ => Err(Silence::Closed),
            },
        }
    }
}

/// A time-out of zero would be none.
fn at_least(left: Duration) -> Duration {
    left.max(Duration::from_millis(1))
}
