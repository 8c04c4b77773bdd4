use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, OnceLock},
};

use anyhow::{Context, anyhow};
use rustix::process::geteuid;

use super::{Args, IoMode, served::Served};
use crate::{
    cache::{self, Cache},
    cli::{
        control::{Control, MountStatus},
        daemon::{self, Log},
        detach,
        mountpoint::Mountpoint,
        open, profile,
        raw_path::RawPath,
        registry::{Registered, Registration},
        shown::{What, shown, tree},
        signals::Signals,
    },
    fs::{
        Filesystem, Root,
        fuse::{self, MountError, MountOptions, Session, mountinfo},
    },
    serve::metrics::{self, Gauge},
};

/// Mounts, serves the mount until it is to end, and unmounts.
pub(super) async fn serve(
    args: &Args,
    what: &What,
    mountpoint: Mountpoint,
    cache: &Arc<Cache>,
    log: Option<&Arc<Log>>,
) -> anyhow::Result<()> {
    let (shown, digest) = match what {
        What::Names => (Root::Names, None),
        What::StorePaths => (Root::StorePaths, None),
        What::Root(root) => shown(root, open::root(cache, root).await?)?,
    };
    let source = what.to_string();
    let options = args.shown.options(args.names_ttl)?;
    let mount_options = MountOptions {
        mountpoint: mountpoint.path.clone(),
        source: source.clone(),
        allow_other: args.allow_other || geteuid().is_root(),
        noexec: args.noexec,
        threads: args.threads.map_or_else(default_threads, usize::from),
        io_mode: match args.io_mode {
            IoMode::Small => fuse::IoMode::Small,
            IoMode::Large => fuse::IoMode::Large,
        },
    };
    let status = MountStatus {
        mountpoint: RawPath(mountpoint.path.clone()),
        pid: std::process::id(),
        root: source,
        digest,
        remotes: Vec::new(),
        since: cache::now(),
        inodes: 0,
        counters: Vec::new(),
        requests: Vec::new(),
        errors: Vec::new(),
    };
    let tree = tree(&shown);
    let fs = Arc::new(Filesystem::new(Arc::clone(cache), shown, options));
    let name = match what {
        What::Root(root) => profile::name_of(root),
        What::Names | What::StorePaths => None,
    };
    match tree {
        Some(tree) => {
            args.shown.prefetch.check(cache, &tree).await?;
            fs.prefetch().show(tree, name);
        }
        None => fs.prefetch().show_none(),
    }
    let following = Arc::clone(&fs);
    let metrics = match args.metrics {
        Some(at) => Some(serve_metrics(at, cache, &fs).await?),
        None => None,
    };
    let served = Arc::new(Served {
        cache: Arc::clone(cache),
        fs: Arc::clone(&fs),
        kernel: OnceLock::new(),
        status: Mutex::new(status),
        switching: tokio::sync::Mutex::default(),
    });
    let control = Control::start(cache.dir(), Arc::clone(&served) as _)
        .context("the socket for `castore status` cannot be made")?;
    let mut signals = Signals::new(log.is_none())?;
    let path = mountpoint.path.clone();
    let mut registration = announce(&path, cache, &control);
    let mounted = tokio::task::spawn_blocking(move || Session::mount(&fs, &mount_options)).await?;
    let session = mounted.map_err(|error| failed(args, &path, error))?;
    let device = session.device().map(str::to_owned);
    let _ = served.kernel.set(session.kernel());
    if let (Some(registration), Some(device)) = (&mut registration, &device)
        && let Err(error) = registration.settle(device)
    {
        tracing::warn!(%error, "the mount is registered by its path alone");
    }
    let made = match (args.noexec, log) {
        (true, _) if !has_noexec(&path) => Err(anyhow!("noexec cannot be set on {path:?}")),
        (_, Some(log)) => daemon::tell_ready(log),
        (_, None) => Ok(()),
    };
    if made.is_ok() {
        mountpoint.unlock();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(?path, "mounted");
        tokio::select! {
            () = session.unmounted() => {}
            () = signals.end(log) => {}
            () = beat(registration.as_ref()) => {}
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    }
    tokio::task::spawn_blocking(move || {
        session.close();
        if let Some(device) = device.filter(|_| mountpoint.lock()) {
            detach::leave_nothing(&mountpoint.path, &device);
        }
    })
    .await?;
    drop(registration);
    following.prefetch().close();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    drop(control);
    tracing::info!("unmounted");
    made
}

/// Why there is no mount, with a hint. Takes away what was mounted all the same: the path was free, and is locked.
fn failed(args: &Args, path: &Path, error: MountError) -> anyhow::Error {
    if let Ok(Some(mounted)) = mountinfo::at(path)
        && mounted.is_ours()
    {
        detach::leave_nothing(path, &mounted.device);
    }
    let refused = matches!(error, MountError::Mount { .. });
    let error = anyhow::Error::from(error);
    match refused && args.allow_other && !geteuid().is_root() {
        true => anyhow!("{error:#}; --allow-other needs user_allow_other in /etc/fuse.conf"),
        false => error,
    }
}

/// Registers the mount, so that other commands find its process. A mount that cannot be registered is a mount all the same.
fn announce(path: &Path, cache: &Cache, control: &Control) -> Option<Registration> {
    let announced = || {
        let dir = cache.dir().canonicalize()?;
        let socket = std::path::absolute(control.path())?;
        Registration::announce(&Registered::this(path, &dir, &socket)?)
    };
    announced()
        .inspect_err(|error| tracing::warn!("the mount is not registered: {error:#}"))
        .ok()
}

/// Never ends.
async fn beat(registration: Option<&Registration>) {
    match registration {
        Some(registration) => registration.beat().await,
        None => std::future::pending().await,
    }
}

/// Has programs on the mount not be executed. For an ordinary user, `fusermount3` has seen to that already.
fn has_noexec(path: &Path) -> bool {
    let has = || mountinfo::at(path).is_ok_and(|mounted| mounted.is_some_and(|found| found.noexec));
    has() || detach::set_noexec(path, true).is_ok_and(|()| has())
}

async fn serve_metrics(
    at: SocketAddr,
    cache: &Arc<Cache>,
    fs: &Arc<Filesystem>,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let (inodes, errors) = (Arc::clone(fs), Arc::clone(fs));
    let gauges = vec![
        Gauge {
            name: "mount_inodes",
            help: "Inodes that the kernel knows",
            value: Box::new(move || inodes.inode_count() as u64),
        },
        Gauge {
            name: "mount_errors",
            help: "Errors that readers have met, of those that are remembered",
            value: Box::new(move || errors.recent_errors().iter().map(|error| error.count).sum()),
        },
    ];
    let started = metrics::start(at, Arc::clone(cache), gauges).await;
    let (at, task) = started.with_context(|| format!("--metrics {at}"))?;
    tracing::info!("metrics at http://{at}/metrics");
    Ok(task)
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| (2 * cores.get()).clamp(4, 16))
}
