use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    cli::{
        control::{self, ANSWER_WITHIN, MountStatus, Request},
        mounts::{self, Health, Mount},
        process::Life,
        raw_path::{RawPath, shell_word},
        registry::{self, Registered},
    },
    fs::fuse::mountinfo,
};

/// A mount that does not answer.
#[derive(Debug, Serialize)]
pub(super) struct Silent {
    pub(super) mountpoint: RawPath,
    pid: u32,
    /// When it was mounted, in seconds since 1970; 0: not known.
    pub(super) since: u64,
    /// Seconds since its process has last said that it lives.
    for_seconds: Option<u64>,
    /// Which process it is and for how long it has said nothing, for a person.
    #[serde(skip)]
    pub(super) silence: String,
    /// The command that takes it away.
    pub(super) mend: String,
}

/// A mount whose process is gone, or that no process has registered.
#[derive(Debug, Serialize)]
pub(super) struct Dead {
    pub(super) mountpoint: RawPath,
    pub(super) pid: Option<u32>,
    /// The command that takes it away.
    pub(super) mend: String,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) mounts: Vec<MountStatus>,
    pub(super) silent: Vec<Silent>,
    pub(super) dead: Vec<Dead>,
}

impl Survey {
    pub(super) const fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.silent.is_empty() && self.dead.is_empty()
    }

    pub(super) fn sort(&mut self) {
        self.mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        self.silent.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        self.dead.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    }
}

/// A mount that is to be asked.
enum Candidate {
    /// Of the mount table.
    Mount(Mount),
    /// Of the registry alone: detached and still in use, or in another mount namespace.
    Detached(Registered),
    /// Of a socket in the cache directory alone.
    Socket(u32, PathBuf),
}

/// Finds all mounts of this user and asks each, all at once: one that hangs costs the time of one. With `only`, those of the
/// cache alone.
pub(super) fn survey(cache_dir: &Path, only: bool) -> Survey {
    let cache_dir = fs::canonicalize(cache_dir).unwrap_or_else(|_| cache_dir.to_owned());
    let is_wanted = |registered: Option<&Registered>| {
        !only || registered.is_some_and(|registered| registered.cache_dir.0 == cache_dir)
    };
    let (mut devices, mut pids) = (HashSet::new(), HashSet::new());
    let mut candidates = Vec::new();
    let user = rustix::process::geteuid();
    for mounted in mountinfo::table().unwrap_or_default() {
        let is_mine = user.is_root() || mounted.user_id == Some(user.as_raw());
        // A mount that is bound elsewhere too is one mount.
        if mounted.is_ours() && is_mine && devices.insert(mounted.device.clone()) {
            let mount = Mount::new(mounted);
            pids.extend(mount.registered.as_ref().map(|found| found.process.pid));
            if is_wanted(mount.registered.as_ref()) {
                candidates.push(Candidate::Mount(mount));
            }
        }
    }
    for registered in registry::all() {
        if pids.insert(registered.process.pid) && is_wanted(Some(&registered)) {
            candidates.push(Candidate::Detached(registered));
        }
    }
    let sockets = control::sockets_of(&cache_dir).into_iter();
    candidates.extend(
        sockets
            .filter(|(pid, _)| !pids.contains(pid))
            .map(|(pid, socket)| Candidate::Socket(pid, socket)),
    );
    let mut found = Survey::default();
    std::thread::scope(|scope| {
        let asked: Vec<_> = candidates
            .into_iter()
            .map(|candidate| scope.spawn(move || ask(candidate)))
            .collect();
        for answer in asked {
            match answer.join() {
                Ok(Answer::Mount(status)) => found.mounts.push(*status),
                Ok(Answer::Silent(silent)) => found.silent.push(silent),
                Ok(Answer::Dead(dead)) => found.dead.push(dead),
                Ok(Answer::Nothing) | Err(_) => {}
            }
        }
    });
    // One that was being mounted has registered itself meanwhile.
    let answers = |dead: &Dead| {
        let mut mounts = found.mounts.iter();
        mounts.any(|mount| mount.mountpoint == dead.mountpoint)
    };
    found
        .dead
        .retain(|dead| dead.pid.is_some() || !answers(dead));
    found
}

enum Answer {
    Mount(Box<MountStatus>),
    Silent(Silent),
    Dead(Dead),
    Nothing,
}

fn ask(candidate: Candidate) -> Answer {
    match candidate {
        Candidate::Mount(mount) => {
            let path = &mount.mounted.mountpoint;
            let dead = |pid| {
                Answer::Dead(Dead {
                    mountpoint: RawPath(path.clone()),
                    pid,
                    mend: mounts::mend(path),
                })
            };
            match (mount.health(), &mount.registered) {
                (Health::Answers(status), _) => Answer::Mount(status),
                (Health::Silent, Some(registered)) => silent(
                    registered,
                    format!("`castore unmount --force {}`", shell_word(path)),
                ),
                (Health::Dead, Some(registered)) => dead(Some(registered.process.pid)),
                (Health::Unregistered | Health::Silent | Health::Dead, _) => dead(None),
                (Health::Denied, _) => Answer::Nothing,
            }
        }
        Candidate::Detached(registered) => match mounts::health(&registered) {
            Health::Answers(status) => Answer::Mount(status),
            Health::Silent if registered.process.life() != Life::Unknown => {
                let mend = format!("`kill -KILL {}`", registered.process.pid);
                silent(&registered, mend)
            }
            Health::Dead => {
                registry::forget_dead(&registered);
                Answer::Nothing
            }
            Health::Silent | Health::Denied | Health::Unregistered => Answer::Nothing,
        },
        Candidate::Socket(pid, socket) => {
            match control::ask::<MountStatus>(&socket, &Request::Status, ANSWER_WITHIN) {
                Ok(status) => Answer::Mount(Box::new(status)),
                // Its process is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = fs::remove_file(socket);
                    Answer::Nothing
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Answer::Silent(Silent {
                    mountpoint: RawPath(PathBuf::new()),
                    pid,
                    since: 0,
                    for_seconds: None,
                    silence: format!("process {pid}"),
                    mend: format!("`kill -KILL {pid}`"),
                }),
                Err(_) => Answer::Nothing,
            }
        }
    }
}

fn silent(registered: &Registered, mend: String) -> Answer {
    Answer::Silent(Silent {
        mountpoint: registered.mountpoint.clone(),
        pid: registered.process.pid,
        since: registered.since,
        for_seconds: mounts::silent_for(registered).map(|time| time.as_secs()),
        silence: mounts::silence(registered),
        mend,
    })
}
