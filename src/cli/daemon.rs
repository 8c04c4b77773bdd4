use std::{
    env,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{
        fd::{BorrowedFd, RawFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FileType,
};

use super::registry;

/// Set for the process that goes to the background.
const VARIABLE: &str = "CASTORE_BACKGROUND_PROCESS";
/// What the background process writes to its parent once the mount answers.
const READY: &str = "ready";
/// A log that has grown beyond this, in bytes, is started anew; the old one is kept beside it.
const LOG_MAX: u64 = 4 << 20;

/// Runs this program again in the background, with the same arguments, and waits until it says how the mount went.
/// Starting anew instead of forking means that no thread, runtime or database handle is carried over.
///
/// Descriptors of the caller, such as the one that holds a lock or the end of a pipe, are not handed on: it waits for their
/// end, and the mount may live for months.
pub(super) fn start() -> anyhow::Result<()> {
    close_on_exec()?;
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the background process cannot be started")?;
    let mut said = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut said)?;
    }
    match said.trim() {
        READY => Ok(()),
        "" => {
            let status = child.wait()?;
            bail!(
                "the background process ended without a word ({status}); see its log in the cache directory"
            )
        }
        reason => bail!("{reason}"),
    }
}

/// Marks all descriptors but those of stdin, stdout and stderr.
fn close_on_exec() -> anyhow::Result<()> {
    let fds: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in fds.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: a descriptor of this process, used for one system call. One that is not open any more, such as that of the
        // directory which was read, gives an error.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Whether this process is the one that [`start`] has started.
pub(super) fn was_started() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Whether this process is the one that [`start`] has started. Leaves the terminal's session when it is.
pub(super) fn is_background() -> bool {
    let was_started = was_started();
    if was_started {
        let _ = rustix::process::setsid();
    }
    was_started
}

/// Ends this process when whoever waits for it goes away before the mount answers: an interrupted `castore mount` leaves
/// nothing that still tries.
pub(super) fn end_with_parent() {
    std::thread::spawn(|| {
        let stdout = rustix::stdio::stdout();
        // Until [`tell_ready`] puts something else there.
        let is_pipe = || {
            let stat = rustix::fs::fstat(stdout);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        };
        while is_pipe() {
            // A pipe that nobody reads is an error, which is told unasked. For a moment only: while this waits, the pipe is
            // not closed, and the parent waits for that.
            let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
            let step = Timespec {
                tv_sec: 0,
                tv_nsec: 20_000_000,
            };
            let gone = rustix::event::poll(&mut pipe, Some(&step)).is_ok_and(|count| count > 0);
            if gone && is_pipe() {
                tracing::info!("whoever wanted this mount is gone");
                std::process::exit(1);
            }
        }
    });
}

/// Tells the parent that all is well, and lets go of what it handed over: an inherited pipe would hang `$(castore
/// mount …)`.
///
/// # Errors
/// When the parent is gone: nobody waits for this mount any more.
pub(super) fn tell_ready(log: &Log) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(READY.as_bytes())
        .and_then(|()| stdout.flush())
        .context("whoever wanted this mount is gone")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&*log.file())?;
    Ok(())
}

/// Tells the parent why there is no mount.
pub(super) fn tell_failure(error: &anyhow::Error) {
    let _ = write!(std::io::stdout(), "{error:#}");
}

/// The log of a background process, in its cache directory.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// The lock is held for one write.
    file: Mutex<File>,
}

const LOG_NAME: &str = "castore.log";

impl Log {
    pub(super) fn open(cache_dir: &Path) -> anyhow::Result<Arc<Self>> {
        let path = cache_dir.join(LOG_NAME);
        let (path, file) = match open_log(&path) {
            Ok(file) => (path, file),
            Err(error) => {
                // The cache may be one that can only be read.
                let Ok(dir) = registry::own_dir() else {
                    return Err(error);
                };
                let path = dir.join(LOG_NAME);
                let file = open_log(&path).map_err(|_| error)?;
                (path, file)
            }
        };
        let file = Mutex::new(file);
        Ok(Arc::new(Self { path, file }))
    }

    /// Opens the file anew: what rotates logs has renamed the old one.
    pub(super) fn reopen(&self) {
        match open_log(&self.path)
            .and_then(|file| Ok(rustix::stdio::dup2_stderr(&file).map(|()| file)?))
        {
            Ok(file) => *self.file() = file,
            Err(error) => tracing::error!("{error:#}"),
        }
    }

    fn file(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file().flush()
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        // A link may lead to a file of somebody else's choice, and a pipe would be waited for.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("the log {path:?} cannot be opened"))
}
