use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use super::{
    profile::{Entry, Profile},
    recorder::Recorder,
    replay::{Replay, Tree},
    scheduler::Scheduler,
};
use crate::cache::{Blob, Cache, StoredProfile};

/// What has been recorded is written this often.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// A mount that has read less than this share of what the one before read leaves its profile as it is.
const SHARE: u64 = 4;

/// What is done with profiles.
#[derive(Debug, Clone, Default)]
pub enum Profiles {
    /// Nothing.
    Off,
    /// What is read is recorded, and what an earlier mount read is fetched ahead.
    #[default]
    Auto,
    /// What is read is recorded, in place of what was.
    Record,
    /// This is fetched ahead, and nothing recorded.
    Given(Arc<Profile>),
}

/// Records what a mount reads, and has fetched ahead what an earlier one read.
#[derive(Debug)]
pub(super) struct Profiler {
    cache: Arc<Cache>,
    scheduler: Arc<Scheduler>,
    profiles: Profiles,
    /// Whether it is fetched ahead at all.
    replays: bool,
    /// What is shown now. The lock is held for a look only.
    shown: RwLock<Option<Arc<Shown>>>,
}

#[derive(Debug)]
struct Shown {
    tree: Tree,
    name: Option<String>,
    recorder: Recorder,
    replay: Replay,
    /// What was kept of it before. The lock is held for a look only.
    before: Mutex<Option<Arc<Profile>>>,
}

impl Profiler {
    /// Must be called within a tokio runtime.
    pub(super) fn start(
        cache: Arc<Cache>,
        scheduler: Arc<Scheduler>,
        profiles: Profiles,
        replays: bool,
    ) -> Arc<Self> {
        let profiler = Arc::new(Self {
            cache,
            scheduler,
            profiles,
            replays,
            shown: RwLock::default(),
        });
        let weak = Arc::downgrade(&profiler);
        profiler.scheduler.runtime().spawn(save_now_and_then(weak));
        profiler
    }

    /// The mount shows a tree from now on.
    pub(super) fn show(self: &Arc<Self>, tree: Tree, name: Option<String>) {
        if matches!(self.profiles, Profiles::Off) {
            return;
        }
        self.save();
        let shown = Arc::new(Shown {
            tree,
            name,
            recorder: Recorder::default(),
            replay: Replay::default(),
            before: Mutex::default(),
        });
        let old = self
            .shown
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(Arc::clone(&shown));
        if let Some(old) = old {
            old.replay.stop(&self.scheduler);
        }
        let this = Arc::clone(self);
        self.scheduler.runtime().spawn(async move {
            let profile = match &this.profiles {
                Profiles::Given(profile) => Some(Arc::clone(profile)),
                Profiles::Auto => this.kept(&shown).await,
                Profiles::Off | Profiles::Record => None,
            };
            shown.set_before(profile.clone());
            if let Some(profile) = profile.filter(|_| this.replays) {
                tracing::debug!(entries = profile.entries.len(), "replaying a profile");
                let Profiler {
                    cache, scheduler, ..
                } = &*this;
                shown
                    .replay
                    .run(cache, scheduler, &shown.tree, &profile)
                    .await;
            }
        });
    }

    /// Chunks `first` to `last` of a file are read.
    pub(super) fn read(
        &self,
        inode: u64,
        blob: &Blob,
        first: usize,
        last: usize,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = &*shown
            && shown.recorder.note(inode, blob, first, last, path)
        {
            shown.replay.read(blob.digest(), &self.scheduler);
        }
    }

    /// Keeps what was recorded so far.
    pub(super) fn save(&self) {
        let shown = {
            let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
            match &*shown {
                Some(shown) => Arc::clone(shown),
                None => return,
            }
        };
        if matches!(self.profiles, Profiles::Off | Profiles::Given(_)) {
            return;
        }
        let Some(entries) = shown.recorder.take() else {
            return;
        };
        let profile = Profile {
            tree: shown.tree.key(),
            name: shown.name.clone(),
            entries,
        };
        let before = shown.before();
        if before.is_some_and(|before| profile.bytes() < before.bytes() / SHARE) {
            return;
        }
        self.cache.keep_profile(StoredProfile {
            text: profile.to_text(),
            tree: profile.tree,
            name: profile.name,
            recorded_at: 0,
        });
    }

    /// Nobody reads any more.
    pub(super) fn close(&self) {
        self.save();
        let shown = self
            .shown
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(shown) = shown {
            shown.replay.stop(&self.scheduler);
        }
    }

    async fn kept(&self, shown: &Shown) -> Option<Arc<Profile>> {
        let found = self
            .cache
            .profile(shown.tree.key(), shown.name.clone())
            .await;
        let stored = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the profile cannot be read");
            None
        })?;
        Profile::parse(&stored.text).ok().map(Arc::new)
    }
}

impl Shown {
    fn set_before(&self, profile: Option<Arc<Profile>>) {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = profile;
    }

    fn before(&self) -> Option<Arc<Profile>> {
        self.before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

async fn save_now_and_then(profiler: Weak<Profiler>) {
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        match profiler.upgrade() {
            Some(profiler) => profiler.save(),
            None => return,
        }
    }
}

/// The entries of a profile, for those who show it.
#[must_use]
pub fn summary(entries: &[Entry]) -> (usize, u64) {
    let files: std::collections::HashSet<_> = entries.iter().map(|entry| &entry.path).collect();
    let bytes = entries
        .iter()
        .map(|entry| entry.range.end - entry.range.start);
    (files.len(), bytes.sum())
}
