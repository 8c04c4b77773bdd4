use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use super::{
    profile::Profile, recorder::Recorder, replay::Replay, scheduler::Scheduler, tree::Tree,
};
use crate::cache::{Blob, Cache, now};

/// What has been recorded is written this often.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// A mount that has read less than three quarters of what an earlier one has read leaves its profile as it is, for a week.
const SHARE: (u64, u64) = (3, 4);
const GOOD_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// What was used in this time does not make room for a profile that somebody has given.
const LATELY: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// What was kept of it before: its bytes, and when it was recorded. The lock is held for a look only.
    before: Mutex<Option<(u64, u64)>>,
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
            let found = match &this.profiles {
                Profiles::Given(profile) => {
                    let lately = now().saturating_sub(LATELY.as_secs());
                    Some((Arc::clone(profile), lately))
                }
                Profiles::Auto => this.kept(&shown).await,
                Profiles::Off | Profiles::Record => None,
            };
            let Some((profile, recorded_at)) = found else {
                return;
            };
            if profile.tree == shown.tree.key() {
                *shown.before() = Some((profile.bytes(), recorded_at));
            }
            if this.replays {
                tracing::debug!(entries = profile.entries.len(), "replaying a profile");
                let Shown { replay, tree, .. } = &*shown;
                replay
                    .run(&this.cache, &this.scheduler, tree, &profile, recorded_at)
                    .await;
            }
        });
    }

    /// The mount shows something of which no profile is kept.
    pub(super) fn show_none(&self) {
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

    /// Chunks `first` to `last` of a file are read.
    pub(super) fn read(
        &self,
        blob: &Blob,
        first: usize,
        last: usize,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = &*shown {
            shown.recorder.note(blob, first, last, path);
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
        let is_less = |(bytes, recorded_at): (u64, u64)| {
            let age = now().saturating_sub(recorded_at);
            let share = u128::from(bytes) * u128::from(SHARE.0) / u128::from(SHARE.1);
            u128::from(profile.bytes()) < share && age < GOOD_FOR.as_secs()
        };
        if shown.before().is_some_and(is_less) {
            return;
        }
        let text = profile.to_text();
        self.cache.keep_profile(profile.tree, profile.name, &text);
    }

    /// The profile that was kept, and when it was recorded.
    async fn kept(&self, shown: &Shown) -> Option<(Arc<Profile>, u64)> {
        let found = self
            .cache
            .profile(shown.tree.key(), shown.name.clone())
            .await;
        let stored = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the profile cannot be read");
            None
        })?;
        let profile = Profile::parse(&stored.text).ok()?;
        Some((Arc::new(profile), stored.recorded_at))
    }
}

impl Shown {
    fn before(&self) -> std::sync::MutexGuard<'_, Option<(u64, u64)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn save_now_and_then(profiler: Weak<Profiler>) {
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        match profiler.upgrade() {
            // It blocks for as long as it takes to write some megabytes of text.
            Some(profiler) => {
                let _ = tokio::task::spawn_blocking(move || profiler.save()).await;
            }
            None => return,
        }
    }
}
