use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};

use super::{
    control::{self, MountStatus, Request},
    detach::{self, How},
    mountpoint,
    mounts::{self, Health, Mount},
    paths,
    process::{Handle, Life},
    raw_path::shell_word,
    registry,
};

/// The kernel takes a mount whose process answers away within this time.
const IDLE_WITHIN: Duration = Duration::from_secs(10);
/// The cache is synced within this time after the mount is gone.
const SYNC_WITHIN: Duration = Duration::from_secs(60);
/// All that --lazy and --force do ends within two seconds, in whatever state the mount is. This leaves a fifth of a second for
/// starting and ending.
const HURRY: Duration = Duration::from_millis(1800);
/// A process that lives answers within this part of it.
const ANSWER_WITHIN: Duration = Duration::from_millis(700);
/// One step of the rest, such as a system call which the kernel may not come back from.
const STEP: Duration = Duration::from_millis(350);

/// Unmount a tree
///
/// Returns when the mount is gone and its cache is synced.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore unmount /mnt/toolchain
  castore unmount --force /mnt/toolchain   when its process hangs")]
pub(super) struct Args {
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Detach a mount that is in use or whose process is gone: it ends with its last user
    #[arg(long, env = "CASTORE_LAZY")]
    lazy: bool,

    /// Take a mount away whose process hangs: reads under way fail, and the process is ended if it does not answer
    #[arg(long, env = "CASTORE_FORCE", conflicts_with = "lazy")]
    force: bool,

    /// Cache directory of the mount; needed only for one that this user's runtime directory does not name
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let path = mountpoint::absolute(&args.mountpoint)?;
    let mount = Mount::at(&path)?;
    let done = match (args.lazy, args.force) {
        (true, _) => lazily(&mount),
        (_, true) => by_force(&mount),
        _ => idle(args, &mount),
    };
    if let Some(registered) = &mount.registered
        && registered.process.life() == Life::Gone
        && !detach::is_there(&mount.mounted)
    {
        registry::forget_dead(registered);
    }
    done
}

/// Takes a mount away that is not in use, and waits for its process.
fn idle(args: &Args, mount: &Mount) -> anyhow::Result<()> {
    let path = &mount.mounted.mountpoint;
    let process = match mount.health() {
        Health::Silent => return Err(mount.silent()),
        Health::Answers(_) | Health::Denied => mount.process(),
        Health::Dead => None,
        Health::Unregistered => {
            let dir = args.cache_dir.clone().unwrap_or_else(paths::default_cache);
            mounts::by_cache(path, &dir).and_then(|(pid, _)| Handle::of(pid))
        }
    };
    match detach::unmount(path, How::Idle, IDLE_WITHIN) {
        Ok(()) => {}
        Err(error) if is(&error, libc::EBUSY) => {
            let word = shell_word(path);
            bail!(
                "{path:?} is in use: a program has a file open or its working directory there \
                 (`fuser -vm {word}` shows which); end it, or detach the mount with --lazy"
            );
        }
        Err(error) if is_timeout(&error) => bail!(
            "the kernel still waits for the process that serves {path:?}; `castore unmount --force {}` takes the mount away",
            shell_word(path)
        ),
        Err(error) => return Err(error).with_context(|| format!("{path:?} cannot be unmounted")),
    }
    if process.is_some_and(|process| !process.ends_within(SYNC_WITHIN)) {
        bail!("{path:?} is unmounted, but its process has not finished writing the cache");
    }
    Ok(())
}

/// Detaches a mount. Readers that have files open go on.
fn lazily(mount: &Mount) -> anyhow::Result<()> {
    let process = mount.process();
    let path = &mount.mounted.mountpoint;
    match detach::unmount(path, How::Lazily, STEP) {
        Err(error) if is_timeout(&error) => return by_force(mount),
        done => done.with_context(|| format!("{path:?} cannot be detached"))?,
    }
    // A detached mount that is in use lives on with its users.
    if let (Some(process), Some(registered)) = (process, &mount.registered)
        && !process.ends_within(Duration::from_secs(1))
        && registered.process.life() == Life::Stopped
    {
        let pid = registered.process.pid;
        eprintln!("castore: {path:?} is detached, but its process {pid} is stopped and lives on");
    }
    Ok(())
}

/// Takes a mount away in whatever state it and its process are.
fn by_force(mount: &Mount) -> anyhow::Result<()> {
    let deadline = Instant::now() + HURRY;
    let left = || STEP.min(deadline.saturating_duration_since(Instant::now()));
    let path = &mount.mounted.mountpoint;
    let process = mount.process();
    // One that answers is not killed: it still has a cache to write.
    let answers = mount.registered.as_ref().is_some_and(|registered| {
        control::ask::<MountStatus>(&registered.socket.0, &Request::Status, ANSWER_WITHIN).is_ok()
    });
    let kill = |why: &str| {
        if let (Some(process), Some(registered)) = (&process, &mount.registered) {
            let pid = registered.process.pid;
            match process.kill() {
                Ok(()) => eprintln!("castore: ended process {pid}, which {why}"),
                Err(error) => eprintln!("castore: process {pid} cannot be ended: {error}"),
            }
        }
    };
    if !detach::is_there(&mount.mounted) {
        // It has ended meanwhile, and its number may be that of another connection.
        return Ok(());
    }
    let aborted = detach::abort(&mount.mounted, left()).is_ok()
        || match detach::unmount(path, How::ByForce, left()) {
            // In use: the connection is aborted all the same.
            Err(error) => is(&error, libc::EBUSY),
            Ok(()) => true,
        };
    if !answers {
        kill("did not answer");
    } else if !aborted {
        kill("served the mount: only its end aborts what waits for it");
    }
    let detached = match detach::is_there(&mount.mounted) {
        true => detach::unmount(path, How::Lazily, left()),
        false => Ok(()),
    };
    if let Some(process) = &process {
        process.ends_within(left());
    }
    if detach::is_there(&mount.mounted) {
        return Err(detached
            .err()
            .unwrap_or_else(|| anyhow!("the kernel still shows it")))
        .with_context(|| format!("{path:?} cannot be taken away"));
    }
    Ok(())
}

fn is(error: &anyhow::Error, errno: i32) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.raw_os_error() == Some(errno))
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}
