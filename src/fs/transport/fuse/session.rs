use std::{
    fs,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::mount::{MountError, MountOptions, Mounted};
use crate::fs::{
    Filesystem, Outdated,
    dispatch::{self, Agreement, Dispatcher, invalidate_wrong_blobs},
    transport::Channel,
};

/// Readahead of the kernel for a mount of root, in KiB. Around each fault of a mapping the kernel reads as much as that: at 1024, cold random
/// faults fetched 170 MiB where 36 were needed, at 256 they fetch 83, and reading in order is as fast (ARCHITECTURE, "Measured").
const READ_AHEAD_KIB: u32 = 256;
/// A mount that was just made answers within this time, or never.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The kernel ends the connection of a daemon that leaves a request unanswered for so many seconds, 0 for never: by default, and at the
/// most.
const REQUEST_TIMEOUTS: [&str; 2] = [
    "/proc/sys/fs/fuse/default_request_timeout",
    "/proc/sys/fs/fuse/max_request_timeout",
];

/// A mounted filesystem and the threads that serve it.
pub struct Session {
    mounted: Mounted,
    workers: Vec<JoinHandle<()>>,
    unmounted: watch::Receiver<bool>,
    dispatcher: Arc<Dispatcher>,
}

/// What the kernel keeps of a mount.
#[derive(Clone)]
pub struct Kernel(Weak<Dispatcher>);

impl Kernel {
    /// Has it drop what is outdated. Blocks until lookups under way have ended.
    pub fn drop_outdated(&self, outdated: &Outdated) {
        if let Some(dispatcher) = self.0.upgrade() {
            dispatcher.drop_outdated(outdated);
        }
    }

    /// How many requests it has sent of each operation, by its name in the protocol.
    #[must_use]
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        let dispatcher = self.0.upgrade();
        dispatcher.map_or_else(Vec::new, |dispatcher| dispatcher.requests().collect())
    }
}

impl Session {
    /// The device number of the mount in the mount table, as `0:39`.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.mounted.device()
    }

    /// The kernel's side of the mount.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        Kernel(Arc::downgrade(&self.dispatcher))
    }

    /// Mounts and starts to answer. Must be called within a tokio runtime, in which fetches run. Blocks until the mount
    /// answers.
    ///
    /// # Errors
    /// When the kernel or `fusermount3` refuses, or the mount does not answer.
    pub fn mount(fs: &Arc<Filesystem>, options: &MountOptions) -> Result<Self, MountError> {
        let (mounted, descriptor) = Mounted::mount(options)?;
        let channel = Arc::new(Channel::new(descriptor.into()));
        let settings = dispatch::Options {
            io_mode: options.io_mode,
            longest_wait: longest_wait(),
        };
        let dispatcher = Dispatcher::new(Arc::clone(fs), Arc::clone(&channel) as _, settings);
        tokio::spawn(invalidate_wrong_blobs(
            Arc::clone(fs),
            Arc::downgrade(&dispatcher),
        ));
        let (ended, unmounted) = watch::channel(false);
        let ended = Arc::new(ended);
        let workers = (0..options.threads.max(1))
            .map(|number| {
                let (channel, dispatcher) = (Arc::clone(&channel), Arc::clone(&dispatcher));
                let ended = Arc::clone(&ended);
                std::thread::Builder::new()
                    .name(format!("fuse-{number}"))
                    .spawn(move || {
                        channel.serve(&dispatcher);
                        ended.send_replace(true);
                    })
            })
            .collect::<Result<_, _>>()?;
        let session = Self {
            mounted,
            workers,
            unmounted,
            dispatcher,
        };
        // From then on the kernel sends requests, and the threads are there to answer. The mount itself must not be
        // looked at from here: a process that is killed while it waits for itself never ends.
        if !session.answers() {
            return Err(MountError::Silent(options.mountpoint.clone()));
        }
        if let Some(device) = session.mounted.device() {
            set_read_ahead(device);
        }
        Ok(session)
    }

    /// Waits for INIT.
    fn answers(&self) -> bool {
        let agreement = self.dispatcher.agreement();
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let now = *agreement.borrow();
            match now {
                Agreement::Reached => return true,
                Agreement::Failed => return false,
                Agreement::Open if Instant::now() > deadline => return false,
                // The kernel asks at once, so this is one turn or two.
                Agreement::Open => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Resolves when the filesystem has been unmounted, by whomever.
    pub fn unmounted(&self) -> impl Future<Output = ()> + use<> {
        let mut unmounted = self.unmounted.clone();
        async move {
            // An error means that all threads are gone, which is the same.
            let _ = unmounted.wait_for(|unmounted| *unmounted).await;
        }
    }

    /// Unmounts if that has not happened, and waits a little for requests under way. Blocks.
    pub fn close(self) {
        self.mounted.unmount();
        // With files still open elsewhere the kernel keeps the connection after the mount is gone; their readers get
        // ENOTCONN once this process ends.
        for _ in 0..20 {
            if self.workers.iter().all(JoinHandle::is_finished) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A tenth less than what the kernel grants.
fn longest_wait() -> Option<Duration> {
    let limits = REQUEST_TIMEOUTS.iter().filter_map(|path| {
        let seconds = fs::read_to_string(path).ok()?;
        seconds
            .trim()
            .parse::<u64>()
            .ok()
            .filter(|limit| *limit > 0)
    });
    Some(Duration::from_secs(limits.min()?) * 9 / 10)
}

/// Only root may; otherwise the kernel reads 128 KiB ahead. `device` is as the mount table has it.
fn set_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "the kernel's readahead stays as it is");
    }
}
