use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::StatVfsMountFlags;

/// The owner of what belongs to nobody whom this user namespace knows, as the kernel has it by default.
const UNMAPPED: u32 = 65_534;
/// Filesystems on which `SQLite`'s locks and shared memory cannot be relied on, by the magic number of `statfs(2)`.
const REFUSED: [(i64, &str); 4] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
];

/// Why a directory cannot hold a cache.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuardError {
    #[error("the cache directory {path:?} cannot be made: {cause}")]
    Create {
        path: PathBuf,
        cause: Arc<io::Error>,
    },
    #[error(
        "the cache directory {path:?} cannot be written: {cause}; name another one with --cache-dir"
    )]
    Write {
        path: PathBuf,
        cause: Arc<io::Error>,
    },
    #[error(
        "the cache directory {path:?} belongs to the user with id {owner}, who decides what is in it and could not read what \
         is put there; run castore as that user, or name another directory with --cache-dir"
    )]
    Foreign {
        path: PathBuf,
        /// A user's id.
        owner: u32,
    },
    #[error(
        "everybody can write to the cache directory {path:?} (mode {mode:04o}), and so have others see what is not in their trees; \
         name a directory in it that is yours alone, such as --cache-dir {suggested:?}"
    )]
    Open {
        path: PathBuf,
        mode: u32,
        suggested: PathBuf,
    },
    #[error(
        "the cache directory {path:?} is on {kind}, where the index (SQLite) is not safe; \
         name one on a local disk with --cache-dir"
    )]
    Network { path: PathBuf, kind: &'static str },
}

/// Makes the directory (mode 0700) where it is not there, and checks that a cache can live in it. One that has a cache and cannot be
/// written is right too: it is read. Whoever can write to it can change what names stand for, so it belongs to the user or to root, and
/// nobody else may write to it.
///
/// # Errors
/// See [`GuardError`].
pub fn prepare(path: &Path) -> Result<PathBuf, GuardError> {
    let create_failed = |cause| GuardError::Create {
        path: path.to_owned(),
        cause: Arc::new(cause),
    };
    let write_failed = |cause| GuardError::Write {
        path: path.to_owned(),
        cause: Arc::new(cause),
    };
    if !path.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(create_failed)?;
        // The mode of `create` passes through the umask and is that of new parents too, so the last one is set here.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(create_failed)?;
    }
    let path = path.canonicalize().map_err(create_failed)?;
    check_owner(&path).map_err(|refused| match refused {
        Refused::Cause(cause) => write_failed(cause),
        Refused::Guard(error) => error,
    })?;
    let filesystem = rustix::fs::statfs(&path).map_err(|error| write_failed(error.into()))?;
    let magic = filesystem.f_type as i64;
    if let Some(kind) = refused(magic) {
        return Err(GuardError::Network { path, kind });
    }
    let writable = rustix::fs::access(
        &path,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .map_err(io::Error::from)
    .and_then(|()| fs::create_dir_all(path.join("data")));
    let can_be_read = || {
        let parts = ["index.sqlite", "data"].map(|name| path.join(name));
        let readable = |part| rustix::fs::access(part, rustix::fs::Access::READ_OK).is_ok();
        parts.iter().all(readable)
    };
    match writable {
        Err(error) if !can_be_read() => Err(write_failed(error)),
        Ok(()) | Err(_) => Ok(path),
    }
}

enum Refused {
    Cause(io::Error),
    Guard(GuardError),
}

impl From<io::Error> for Refused {
    fn from(cause: io::Error) -> Self {
        Self::Cause(cause)
    }
}

/// Refuses a directory whose content others decide on. One of the user's own that is as good as new is closed to them.
fn check_owner(path: &Path) -> Result<(), Refused> {
    let metadata = fs::metadata(path)?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let user = rustix::process::geteuid().as_raw();
    let filesystem = rustix::fs::statvfs(path).map_err(io::Error::from)?;
    let is_read_only = filesystem.f_flag.contains(StatVfsMountFlags::RDONLY);
    if owner != user && owner != 0 && !(is_read_only && owner == UNMAPPED) {
        return Err(Refused::Guard(GuardError::Foreign {
            path: path.to_owned(),
            owner,
        }));
    }
    if is_read_only || mode & 0o002 == 0 {
        return Ok(());
    }
    if owner == user && mode & 0o1000 == 0 && (is_new(path) || is_own_cache(path, user)) {
        tracing::warn!(
            ?path,
            "everybody could write to the cache directory; its mode is 0700 now"
        );
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        return Ok(());
    }
    Err(Refused::Guard(GuardError::Open {
        path: path.to_owned(),
        mode,
        suggested: path.join("castore"),
    }))
}

fn is_new(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether there is a cache that nobody else has put there.
fn is_own_cache(path: &Path, user: u32) -> bool {
    let is_own = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.uid() == user);
    let data = path.join("data");
    let Ok(files) = fs::read_dir(&data) else {
        return false;
    };
    is_own(&path.join("index.sqlite"))
        && is_own(&data)
        && files.flatten().all(|file| is_own(&file.path()))
}

/// The name of a filesystem that is refused.
fn refused(magic: i64) -> Option<&'static str> {
    let known = REFUSED.iter().find(|(number, _)| *number == magic);
    known.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of `statfs(2)`: `NFS_SUPER_MAGIC`, `V9FS_MAGIC`, `EXT4_SUPER_MAGIC`, `TMPFS_MAGIC`.
    #[test]
    fn network_filesystems_are_refused_with_a_suggestion() {
        assert_eq!(refused(0x6969), Some("NFS"));
        assert_eq!(refused(0x0102_1997), Some("9p"));
        assert_eq!(refused(0xef53), None);
        assert_eq!(refused(0x0102_1994), None);
        let error = GuardError::Network {
            path: "/net/cache".into(),
            kind: "NFS",
        };
        assert!(error.to_string().contains("--cache-dir"));
    }

    #[test]
    fn it_is_made_private_and_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/cache");
        let made = prepare(&path).unwrap();
        assert_eq!(
            fs::metadata(&made).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(prepare(&path).unwrap(), made);
    }

    #[test]
    fn others_cannot_write_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::create_dir(&path).unwrap();
        // As a volume of a container is made.
        set(0o777);
        prepare(&path).unwrap();
        assert_eq!(mode(), 0o700);
        fs::remove_dir(path.join("data")).unwrap();
        // As `/tmp` is, and one that is not the cache's alone.
        for (open, file) in [(0o1777, None), (0o777, Some("somebody's"))] {
            if let Some(name) = file {
                fs::write(path.join(name), "").unwrap();
            }
            set(open);
            let error = prepare(&path).unwrap_err();
            assert!(matches!(error, GuardError::Open { .. }), "{error}");
            assert_eq!(mode(), open);
        }
        // A group's is its own affair.
        set(0o770);
        prepare(&path).unwrap();
        assert_eq!(mode(), 0o770);
    }

    #[test]
    fn a_file_is_no_cache_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = prepare(file.path()).unwrap_err();
        assert!(matches!(error, GuardError::Create { .. }));
        assert!(matches!(
            prepare(Path::new("/proc/self/nothing")),
            Err(GuardError::Create { .. })
        ));
    }
}
