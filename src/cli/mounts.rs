use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{anyhow, bail};

use super::{
    control::{self, ANSWER_WITHIN, MountStatus, Request},
    process::{Handle, Life},
    raw_path::shell_word,
    registry::{self, Registered},
};
use crate::fs::fuse::mountinfo::{self, Mounted};

/// A castore mount of the mount table, and its registration. Nothing here looks at the mount itself: one whose process
/// hangs would never answer.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) mounted: Mounted,
    pub(super) registered: Option<Registered>,
}

/// Whether a mount answers.
#[derive(Debug)]
pub(super) enum Health {
    Answers(Box<MountStatus>),
    /// Its process is there and does not answer.
    Silent,
    /// It is another user's, and cannot be asked.
    Denied,
    /// Its process is gone.
    Dead,
    /// No process has registered it.
    Unregistered,
}

impl Mount {
    pub(super) fn new(mounted: Mounted) -> Self {
        let registered = match mounted.is_ours() {
            true => registry::find(&mounted),
            false => None,
        };
        Self {
            mounted,
            registered,
        }
    }

    /// The castore mount on a path.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn at(path: &Path) -> anyhow::Result<Self> {
        match mountinfo::at(path)? {
            None => bail!("nothing is mounted on {path:?}; `castore status` lists what is"),
            Some(mounted) if !mounted.is_ours() => bail!(
                "what is mounted on {path:?} is of type {}, not a castore mount",
                mounted.kind
            ),
            Some(mounted) => Ok(Self::new(mounted)),
        }
    }

    pub(super) fn is_registered_at(&self, path: &Path) -> bool {
        let registered = self.registered.as_ref();
        registered.is_some_and(|registered| registered.mountpoint.0 == path)
    }

    /// Asks it, for at most [`ANSWER_WITHIN`].
    pub(super) fn health(&self) -> Health {
        let registered = self.registered.as_ref();
        registered.map_or(Health::Unregistered, health)
    }

    /// The process that serves it, where that lives.
    pub(super) fn process(&self) -> Option<Handle> {
        self.registered.as_ref()?.process.open()
    }

    /// Says that its process does not answer, and what to do.
    pub(super) fn silent(&self) -> anyhow::Error {
        let path = &self.mounted.mountpoint;
        let silence = self.registered.as_ref().map(silence).unwrap_or_default();
        anyhow!(
            "the mount on {path:?} does not answer: {silence}; `castore unmount --force {}` takes it away",
            shell_word(path)
        )
    }

    /// Says that its process is gone, and what to do.
    pub(super) fn dead(&self) -> anyhow::Error {
        let path = &self.mounted.mountpoint;
        anyhow!(
            "the mount on {path:?} is dead: its process is gone; {} takes it away",
            mend(path)
        )
    }
}

/// The command that takes a dead mount away.
pub(super) fn mend(path: &Path) -> String {
    format!("`castore unmount --lazy {}`", shell_word(path))
}

/// Asks the mount that was registered.
pub(super) fn health(registered: &Registered) -> Health {
    if registered.process.life() == Life::Gone {
        return Health::Dead;
    }
    match control::ask(&registered.socket.0, &Request::Status, ANSWER_WITHIN) {
        Ok(status) => Health::Answers(Box::new(status)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Health::Denied,
        // It may have ended meanwhile.
        Err(_) if registered.process.life() == Life::Gone => Health::Dead,
        Err(_) => Health::Silent,
    }
}

/// Which process does not answer, in what state it is and for how long it has said nothing.
pub(super) fn silence(registered: &Registered) -> String {
    let state = match registered.process.life() {
        Life::Stopped => " is stopped and",
        Life::Running | Life::Gone | Life::Unknown => "",
    };
    let time = silent_for(registered).map_or(0, |time| time.as_secs());
    format!(
        "process {}{state} has said nothing for {time} s",
        registered.process.pid
    )
}

/// How long its process has not said that it lives.
pub(super) fn silent_for(registered: &Registered) -> Option<Duration> {
    SystemTime::now().duration_since(registered.beat?).ok()
}

/// Fails if a path leads through this mount and the mount is not known to answer.
pub(super) fn must_answer(mounted: &Mounted) -> anyhow::Result<()> {
    if !mounted.is_ours() {
        return Ok(());
    }
    let mount = Mount::new(mounted.clone());
    match mount.health() {
        Health::Answers(_) | Health::Denied => Ok(()),
        Health::Silent => Err(mount.silent()),
        Health::Dead => Err(mount.dead()),
        Health::Unregistered => bail!(
            "it is not known whether the mount on {:?} answers: no process has registered it",
            mounted.mountpoint
        ),
    }
}

/// The socket of the mount on a path, which has just answered. `cache_dir` is where else to look for one that is not
/// registered.
///
/// # Errors
/// When nothing is mounted there, or it does not answer.
pub(super) fn find(path: &Path, cache_dir: &Path) -> anyhow::Result<PathBuf> {
    let mount = Mount::at(path)?;
    match (mount.health(), &mount.registered) {
        (Health::Answers(_), Some(registered)) => Ok(registered.socket.0.clone()),
        (Health::Silent, _) => Err(mount.silent()),
        (Health::Dead, _) => Err(mount.dead()),
        (Health::Denied, _) => bail!("the mount on {path:?} is another user's"),
        (Health::Unregistered | Health::Answers(_), _) => match by_cache(path, cache_dir) {
            Some((_, socket)) => Ok(socket),
            None => bail!(
                "it is not known which process serves the mount on {path:?}: it is registered neither for this user nor in the \
                 cache {cache_dir:?}; --cache-dir names another cache"
            ),
        },
    }
}

/// The process and the socket of a mount that a cache knows to be on a path.
pub(super) fn by_cache(path: &Path, cache_dir: &Path) -> Option<(u32, PathBuf)> {
    let mut sockets = control::sockets_of(cache_dir).into_iter();
    sockets.find(|(_, socket)| {
        let status = control::ask::<MountStatus>(socket, &Request::Status, ANSWER_WITHIN);
        status.is_ok_and(|status| status.mountpoint.0 == path)
    })
}
