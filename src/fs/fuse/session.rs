use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Weak, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use fuse_backend_rs::{api::server::Server, transport::FuseSession};
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    device::{Device, Received},
    dispatch::Dispatcher,
    init::{IoMode, MAX_TRANSFER},
    mountinfo,
    pending::Pending,
    rest::Rest,
};
use crate::{
    fs::{Filesystem, root::ROOT_ID},
    model::Name,
};

/// Room for headers beside the largest transfer, in bytes.
const HEADERS: usize = 4096;
/// Readahead of the kernel for a mount of root, in KiB.
const READ_AHEAD_KIB: u32 = 1024;
/// A mount that was just made answers within this time, or never.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How a filesystem is mounted.
#[derive(Debug, Clone)]
pub struct MountOptions {
    pub mountpoint: PathBuf,
    /// What `mount` and `df` show as the source.
    pub source: String,
    pub allow_other: bool,
    /// Has `fusermount3` mount with `noexec`. A mount by the system call is left as it is.
    pub noexec: bool,
    /// Threads that answer requests.
    pub threads: usize,
    pub io_mode: IoMode,
}

/// Why a filesystem could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot mount on {path:?}: {cause}{}", hint(cause))]
    Mount { path: PathBuf, cause: String },
    #[error("the mount on {0:?} does not answer")]
    Silent(PathBuf),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn hint(cause: &str) -> &'static str {
    if cause.contains("No such file or directory") || cause.contains("NotFound") {
        "; see that the fuse3 package is installed (fusermount3, /dev/fuse)"
    } else if cause.contains("exit code") || cause.contains("Operation not permitted") {
        "; fusermount3 refused, its reason is above"
    } else if cause.contains("/dev/fuse") {
        "; see that /dev/fuse is there and may be opened"
    } else {
        ""
    }
}

/// A mounted filesystem and the threads that serve it.
pub struct Session {
    fuse: FuseSession,
    /// As the mount table has it, which tells our mount from a later one on the same path.
    device: Option<String>,
    workers: Vec<JoinHandle<()>>,
    unmounted: watch::Receiver<bool>,
    dispatcher: Arc<Dispatcher>,
}

/// Has the kernel forget entries of a mount's root.
#[derive(Clone)]
pub struct RootEntries(Weak<Dispatcher>);

impl RootEntries {
    /// Blocks until lookups in the root that are under way have ended.
    pub fn forget(&self, names: &[Name]) {
        let Some(dispatcher) = self.0.upgrade() else {
            return;
        };
        for name in names {
            dispatcher.device.invalidate_entry(ROOT_ID, name.as_bytes());
        }
        // Its size, and the listing that the kernel keeps.
        dispatcher.device.invalidate(ROOT_ID);
    }
}

impl Session {
    /// The device number of the mount in the mount table, as `0:39`.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The entries of the root, as the kernel knows them.
    #[must_use]
    pub fn root_entries(&self) -> RootEntries {
        RootEntries(Arc::downgrade(&self.dispatcher))
    }

    /// Mounts and starts to answer. Must be called within a tokio runtime, in which fetches run. Blocks until the mount
    /// answers.
    ///
    /// # Errors
    /// When the kernel or `fusermount3` refuses, or the mount does not answer.
    pub fn mount(fs: &Arc<Filesystem>, options: &MountOptions) -> Result<Self, MountError> {
        let path = &options.mountpoint;
        let refused = |cause: fuse_backend_rs::transport::Error| MountError::Mount {
            path: path.clone(),
            cause: cause.to_string(),
        };
        // A comma would end the option in which fusermount3 takes the source.
        let source = options.source.replace([',', '\\'], "_");
        // The crate's flags cannot be changed. What the system call would take for a type is the end of a list of options for
        // fusermount3, and the system call is refused before it looks at the type.
        let kind = match options.noexec && !rustix::process::geteuid().is_root() {
            true => "castore,noexec",
            false => "castore",
        };
        let mut fuse = FuseSession::new(path, &source, kind, true).map_err(refused)?;
        fuse.set_allow_other(options.allow_other);
        fuse.mount().map_err(refused)?;
        let device = fuse
            .get_fuse_file()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?
            .try_clone()?;
        // The crate polls; these threads wait in `read`, of which the kernel wakes one for each request.
        rustix::fs::fcntl_setfl(&device, rustix::fs::OFlags::RDWR).map_err(io::Error::from)?;
        let (agreed, agreement) = mpsc::channel();
        let dispatcher = Arc::new(Dispatcher {
            fs: Arc::clone(fs),
            device: Device::new(device),
            mode: options.io_mode,
            runtime: tokio::runtime::Handle::current(),
            pending: Pending::default(),
            agreed,
            server: Server::new(Rest { fs: Arc::clone(fs) }),
        });
        tokio::spawn(invalidate(Arc::clone(fs), Arc::downgrade(&dispatcher)));
        let (ended, unmounted) = watch::channel(false);
        let ended = Arc::new(ended);
        let workers = (0..options.threads.max(1))
            .map(|number| {
                let (dispatcher, ended) = (Arc::clone(&dispatcher), Arc::clone(&ended));
                std::thread::Builder::new()
                    .name(format!("fuse-{number}"))
                    .spawn(move || {
                        serve(&dispatcher);
                        ended.send_replace(true);
                    })
            })
            .collect::<Result<_, _>>()?;
        let device = mountinfo::at(path)?.map(|mounted| mounted.device);
        let session = Self {
            fuse,
            device,
            workers,
            unmounted,
            dispatcher,
        };
        // From then on the kernel sends requests, and the threads are there to answer. The mount itself must not be
        // looked at from here: a process that is killed while it waits for itself never ends.
        if agreement.recv_timeout(ANSWER_WITHIN) != Ok(true) {
            return Err(MountError::Silent(path.clone()));
        }
        if let Some(device) = &session.device {
            set_read_ahead(device);
        }
        Ok(session)
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
    pub fn close(mut self) {
        let path = self.fuse.mountpoint().to_owned();
        let there = mountinfo::at(&path).ok().flatten();
        if there.is_some_and(|mounted| Some(mounted.device) == self.device) {
            if let Err(error) = self.fuse.umount() {
                tracing::warn!(%error, "cannot be unmounted");
            }
        } else {
            // It is gone, and what may be there now is not ours: the crate would unmount it.
            std::mem::forget(self.fuse);
        }
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

/// Has the kernel forget what turned out to be wrong, for as long as there is a mount.
async fn invalidate(fs: Arc<Filesystem>, dispatcher: Weak<Dispatcher>) {
    let mut wrong = fs.cache().wrong_blobs();
    drop(fs);
    loop {
        let blob = match wrong.recv().await {
            Ok(blob) => Some(blob),
            // Some were missed: all go.
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        let Some(dispatcher) = dispatcher.upgrade() else {
            return;
        };
        let forget = tokio::task::spawn_blocking(move || {
            for node in dispatcher.fs.nodes_of(blob) {
                dispatcher.device.invalidate(node);
            }
        });
        let _ = forget.await;
    }
}

fn serve(dispatcher: &Arc<Dispatcher>) {
    let mut message = vec![0; MAX_TRANSFER as usize + HEADERS];
    let mut scratch = vec![0; 2 * HEADERS];
    loop {
        match dispatcher.device.receive(&mut message) {
            Received::Request(len) => dispatcher.handle(&mut message[..len], &mut scratch),
            Received::Again => {}
            Received::Unmounted => return,
        }
    }
}

/// Only root may; without it the kernel reads 128 KiB ahead. `device` is as the mount table has it.
fn set_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "the kernel's readahead stays as it is");
    }
}
