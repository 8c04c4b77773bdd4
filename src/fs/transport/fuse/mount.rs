use std::{fs::File, io, path::PathBuf};

use fuse_backend_rs::transport::FuseSession;

use super::{IoMode, mountinfo};

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

/// A mount of this process. It is taken down by [`Mounted::unmount`].
pub(super) struct Mounted {
    fuse: FuseSession,
    /// As the mount table has it, which tells our mount from a later one on the same path.
    device: Option<String>,
}

impl Mounted {
    /// Mounts, and returns the kernel's end of it.
    pub(super) fn mount(options: &MountOptions) -> Result<(Self, File), MountError> {
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
        let descriptor = fuse
            .get_fuse_file()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?
            .try_clone()?;
        // The crate polls; threads of this program wait in `read`, of which the kernel wakes one for each request.
        rustix::fs::fcntl_setfl(&descriptor, rustix::fs::OFlags::RDWR).map_err(io::Error::from)?;
        let device = mountinfo::at(path)?.map(|mounted| mounted.device);
        Ok((Self { fuse, device }, descriptor))
    }

    /// The device number in the mount table.
    pub(super) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Unmounts if nobody else has.
    pub(super) fn unmount(mut self) {
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
    }
}
