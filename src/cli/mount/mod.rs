use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use async_trait::async_trait;
use clap::{ArgAction, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::{CacheArgs, RemoteArgs},
    control::{Control, MountStatus, Mounted},
    daemon, mountpoint, open,
    paths::is_root,
    prefetch::PrefetchArgs,
    profile, runtime,
};
use crate::{
    cache::{self, Cache},
    fs::{
        Filesystem, Options, Root,
        fuse::{self, MountOptions, RootEntries, Session},
    },
    model::{Name, Node, RootRef},
    prefetch::{Trace, Tree},
    remote::parse_duration,
    serve::metrics::{self, Gauge},
};

/// Mount a tree
///
/// Goes to the background once the mount answers; its log is castore.log in the cache directory.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are switches on a command line"
)]
#[command(
    override_usage = "castore mount [OPTIONS] ROOT MOUNTPOINT\n       castore mount [OPTIONS] --all MOUNTPOINT\n       castore mount [OPTIONS] --nix MOUNTPOINT",
    after_help = "\
Examples:
  castore mount toolchain /mnt/toolchain
  castore mount b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI= /mnt/tree
  castore mount --all --list-root false /mnt/all
  castore mount --nix --remote grpc+http://localhost:8000 /nix/store
  castore mount --cache-dir /ssd/castore --cache-size 20GiB toolchain /mnt/toolchain

In /etc/fstab (with a link /sbin/mount.castore to castore):
  toolchain  /mnt/toolchain  castore  nofail,cache-size=20GiB  0  0"
)]
pub(super) struct Args {
    /// A digest, a name or a Nix store path, and the directory to mount on; with --all or --nix, the directory alone
    #[arg(value_name = "ROOT MOUNTPOINT", num_args = 1..=2)]
    positions: Vec<std::ffi::OsString>,

    /// Take root, mount point and options from this preset of castore.toml
    #[arg(long, env = "CASTORE_PRESET", value_name = "NAME")]
    preset: Option<String>,

    /// Mount all names, as entries of the root
    #[arg(long, env = "CASTORE_ALL")]
    all: bool,

    /// Mount what the remotes know of a Nix store, as /nix/store is
    #[arg(long, env = "CASTORE_NIX")]
    nix: bool,

    /// Whether the root can be listed; its entries can be looked up in any case [default: true, and false with --nix,
    /// where it may have millions]
    #[arg(long, env = "CASTORE_LIST_ROOT", value_name = "BOOL", action = ArgAction::Set)]
    list_root: Option<bool>,

    /// How long the kernel keeps an entry of a root that changes (--all, --nix), or that there is none
    #[arg(long, env = "CASTORE_NAMES_TTL", value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    names_ttl: Duration,

    /// Whether digests can be read as extended attributes
    #[arg(long, env = "CASTORE_XATTR", value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    xattr: bool,

    /// User and group that everything belongs to
    #[arg(
        long,
        env = "CASTORE_OWNER",
        value_name = "UID:GID",
        default_value = "0:0"
    )]
    owner: Owner,

    /// Let other users in; always on for root. Others need user_allow_other in /etc/fuse.conf
    #[arg(long, env = "CASTORE_ALLOW_OTHER")]
    allow_other: bool,

    /// Threads that answer the kernel [default: twice the processors, 4 to 16]
    #[arg(long, env = "CASTORE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// How files are opened: small is best for many small files, large answers each open
    #[arg(
        long,
        env = "CASTORE_IO_MODE",
        value_name = "MODE",
        default_value = "small"
    )]
    io_mode: IoMode,

    /// Serve /metrics (for Prometheus) and /healthz over HTTP at this address
    #[arg(long, env = "CASTORE_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,

    /// Stay in the foreground, log to stderr and tell systemd when the mount answers
    #[arg(long, env = "CASTORE_FOREGROUND")]
    foreground: bool,

    #[command(flatten)]
    prefetch: PrefetchArgs,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IoMode {
    Small,
    Large,
}

#[derive(Debug, Clone, Copy)]
struct Owner(u32, u32);

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(':')
            .and_then(|(user, group)| Some(Self(user.parse().ok()?, group.parse().ok()?)))
            .ok_or_else(|| "write two numbers, such as 1000:1000".to_owned())
    }
}

/// What to mount and where.
struct Request {
    what: What,
    mountpoint: PathBuf,
}

enum What {
    Root(RootRef),
    /// All names.
    Names,
    /// All Nix store paths.
    StorePaths,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => root.fmt(f),
            Self::Names => f.write_str("all"),
            Self::StorePaths => f.write_str("nix"),
        }
    }
}

pub(super) fn run(mut args: Args) -> anyhow::Result<()> {
    if args.foreground {
        runtime::log_to_stderr();
        return mount(&args, None);
    }
    if !daemon::is_background() {
        // A word that is not understood is told without starting anything.
        request(&args)?;
        return daemon::start();
    }
    daemon::end_with_parent();
    let result = background(&mut args);
    if let Err(error) = &result {
        tracing::error!("{error:#}");
        daemon::tell_failure(error);
        // The parent prints it.
        std::process::exit(1);
    }
    result
}

fn background(args: &mut Args) -> anyhow::Result<()> {
    // Relative paths are of the directory that this process leaves.
    let dir = cache::prepare(&std::path::absolute(args.cache.dir())?)?;
    args.cache.cache_dir = Some(dir.clone());
    args.prefetch.make_absolute()?;
    if let Some(last) = args.positions.last_mut() {
        *last = mountpoint::absolute(last.as_ref())?.into();
    }
    std::env::set_current_dir("/")?;
    let log = daemon::open_log(&dir)?;
    runtime::log_to(log.try_clone()?);
    mount(args, Some(&log))
}

fn request(args: &Args) -> anyhow::Result<Request> {
    let what = match (args.all, args.nix) {
        (true, false) => Some(What::Names),
        (false, true) => Some(What::StorePaths),
        (false, false) => None,
        (true, true) => bail!("--all and --nix exclude each other"),
    };
    match (&args.positions[..], what) {
        ([_], Some(what)) if args.prefetch.fills() => {
            bail!("--prefetch tree and paths are for one tree, and --{what} shows many")
        }
        ([mountpoint], Some(what)) => Ok(Request {
            what,
            mountpoint: mountpoint.into(),
        }),
        ([root, mountpoint], None) => {
            let root = root.to_str().context("the root is not valid UTF-8")?;
            Ok(Request {
                what: What::Root(RootRef::parse(root)?),
                mountpoint: mountpoint.into(),
            })
        }
        ([_, _], Some(what)) => bail!("--{what} takes a mount point and no root"),
        _ => bail!("a root and a mount point are needed: castore mount ROOT MOUNTPOINT"),
    }
}

/// `log` is where a background process logs to.
fn mount(args: &Args, log: Option<&std::fs::File>) -> anyhow::Result<()> {
    let Request { what, mountpoint } = request(args)?;
    // Made first: whether the mount point is inside it can only be said of a directory that is there.
    cache::prepare(&args.cache.dir())?;
    let mountpoint = mountpoint::prepare(&mountpoint, &args.cache.dir())?;
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        let served = serve(args, &what, mountpoint, &cache, log).await;
        let closing = Arc::clone(&cache);
        tokio::task::spawn_blocking(move || closing.close()).await?;
        served
    })
}

/// A mount, as `castore status` and `castore switch` meet it.
struct Served {
    cache: Arc<Cache>,
    fs: Arc<Filesystem>,
    /// Known once it is mounted.
    entries: OnceLock<RootEntries>,
    /// The lock is held for a look only.
    status: Mutex<MountStatus>,
    /// One switch at a time.
    switching: tokio::sync::Mutex<()>,
}

impl Served {
    fn status(&self) -> std::sync::MutexGuard<'_, MountStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Mounted for Served {
    fn status(&self) -> MountStatus {
        let counters = self.cache.stats().iter();
        MountStatus {
            inodes: self.fs.inode_count(),
            counters: counters
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            errors: self.fs.troubles(),
            remotes: self.cache.remote_status(),
            ..self.status().clone()
        }
    }

    fn trace(&self) -> u64 {
        self.fs.prefetch().trace()
    }

    fn traced(&self, number: u64) -> Option<Trace> {
        self.fs.prefetch().traced(number)
    }

    async fn switch(&self, root: &str) -> anyhow::Result<String> {
        let _one = self.switching.lock().await;
        let entries = self.entries.get().context("it is not mounted yet")?.clone();
        let root = RootRef::parse(root)?;
        let (shown, digest) = shown(&root, open::root(&self.cache, &root).await?)?;
        let tree = tree(&shown);
        let names = self.fs.switch(shown).await?;
        match tree {
            Some(tree) => self.fs.prefetch().show(tree, profile::name_of(&root)),
            None => self.fs.prefetch().show_none(),
        }
        // Waits for the kernel, which may wait for a look-up that waits for a remote.
        tokio::task::spawn_blocking(move || entries.forget(&names)).await?;
        let mut status = self.status();
        status.root = root.to_string();
        status.digest.clone_from(&digest);
        tracing::info!(%root, digest, "switched");
        Ok(digest.unwrap_or_else(|| root.to_string()))
    }
}

async fn serve(
    args: &Args,
    what: &What,
    mountpoint: mountpoint::Mountpoint,
    cache: &Arc<Cache>,
    log: Option<&std::fs::File>,
) -> anyhow::Result<()> {
    let (shown, digest) = match what {
        What::Names => (Root::Names, None),
        What::StorePaths => (Root::StorePaths, None),
        What::Root(root) => shown(root, open::root(cache, root).await?)?,
    };
    let source = what.to_string();
    let options = Options {
        list_root: args.list_root.unwrap_or(!args.nix),
        names_ttl: args.names_ttl,
        xattr: args.xattr,
        owner: (args.owner.0, args.owner.1),
        daemon: std::process::id().to_string(),
        prefetch: args.prefetch.settings()?,
        cache_dir: std::path::absolute(cache.dir())?.display().to_string(),
    };
    let mount_options = MountOptions {
        mountpoint: mountpoint.path.clone(),
        source: source.clone(),
        allow_other: args.allow_other || is_root(),
        threads: args.threads.map_or_else(default_threads, usize::from),
        io_mode: match args.io_mode {
            IoMode::Small => fuse::IoMode::Small,
            IoMode::Large => fuse::IoMode::Large,
        },
    };
    let status = MountStatus {
        mountpoint: mountpoint.path.clone(),
        pid: std::process::id(),
        root: source,
        digest,
        remotes: Vec::new(),
        since: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs(),
        inodes: 0,
        counters: Vec::new(),
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
            args.prefetch.check(cache, &tree).await?;
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
        entries: OnceLock::new(),
        status: Mutex::new(status),
        switching: tokio::sync::Mutex::default(),
    });
    let control = Control::start(cache.dir(), Arc::clone(&served) as _)
        .context("the socket for `castore status` cannot be made")?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let session =
        tokio::task::spawn_blocking(move || Session::mount(&fs, &mount_options)).await??;
    let _ = served.entries.set(session.root_entries());
    let told = match log {
        Some(log) => daemon::tell_ready(log),
        None => Ok(()),
    };
    if told.is_ok() {
        drop(mountpoint); // Gives the lock back.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(path = ?args.positions.last(), "mounted");
        tokio::select! {
            () = session.unmounted() => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    }
    tokio::task::spawn_blocking(move || session.close()).await?;
    following.prefetch().close();
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    drop(control);
    tracing::info!("unmounted");
    told
}

async fn serve_metrics(
    at: SocketAddr,
    cache: &Arc<Cache>,
    fs: &Arc<Filesystem>,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let (inodes, troubles) = (Arc::clone(fs), Arc::clone(fs));
    let gauges = vec![
        Gauge {
            name: "mount_inodes",
            help: "Inodes that the kernel knows",
            value: Box::new(move || inodes.inode_count() as u64),
        },
        Gauge {
            name: "mount_errors",
            help: "Errors that readers have met, of those that are remembered",
            value: Box::new(move || troubles.troubles().iter().map(|error| error.count).sum()),
        },
    ];
    let started = metrics::start(at, Arc::clone(cache), gauges).await;
    let (at, task) = started.with_context(|| format!("--metrics {at}"))?;
    tracing::info!("metrics at http://{at}/metrics");
    Ok(task)
}

/// What the mount's root shows, and the digest for `status`.
fn shown(root: &RootRef, node: Node) -> anyhow::Result<(Root, Option<String>)> {
    Ok(match node {
        Node::Directory { digest, size } => {
            (Root::Directory { digest, size }, Some(digest.to_string()))
        }
        node @ (Node::File { .. } | Node::Symlink { .. }) => {
            let digest = match &node {
                Node::File { digest, .. } => Some(digest.to_string()),
                _ => None,
            };
            let name = match root {
                RootRef::Name(name) => name.clone(),
                RootRef::StorePath(path) => path.basename().clone(),
                RootRef::Digest(digest) => Name::new(digest.to_hex())?,
            };
            (Root::Single { name, node }, digest)
        }
    })
}

/// What is shown, for those who fetch it ahead; `None`: a symlink.
fn tree(shown: &Root) -> Option<Tree> {
    match shown {
        Root::Directory { digest, .. } => Some(Tree::Directory(*digest)),
        Root::Names => Some(Tree::Names),
        Root::StorePaths => Some(Tree::StorePaths),
        Root::Single {
            node: Node::File { digest, size, .. },
            ..
        } => Some(Tree::File(*digest, *size)),
        Root::Single { .. } => None,
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| (2 * cores.get()).clamp(4, 16))
}
