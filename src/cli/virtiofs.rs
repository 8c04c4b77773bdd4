use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};

use super::{
    args::{CacheArgs, RemoteArgs},
    open, profile, runtime,
    shown::{ShownArgs, What, shown, tree},
    signals::Signals,
};
use crate::{
    cache::Cache,
    fs::{Filesystem, Root, virtiofs::Session},
};

/// How long a guest keeps an entry of a root that changes: nothing can take it back.
const NAMES_TTL: Duration = Duration::from_secs(1);

/// Serve a tree to a virtual machine, as a virtiofs device
///
/// QEMU, cloud-hypervisor or libvirt connect to the socket (vhost-user) and show the guest a device; the guest mounts it by its
/// tag: mount -t virtiofs TAG /mnt. One machine is served at a time, and the next one when it has gone. The log goes to stderr.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "castore virtiofs [OPTIONS] ROOT SOCKET\n       castore virtiofs [OPTIONS] --all SOCKET\n       castore virtiofs [OPTIONS] --nix SOCKET",
    after_help = "\
Examples:
  castore virtiofs toolchain /run/toolchain.sock
  castore virtiofs --nix --remote grpc+http://localhost:8000 --socket-group kvm /run/nix.sock

Complete command lines of QEMU, cloud-hypervisor and libvirt are in docs/virtiofs.md."
)]
pub(super) struct Args {
    /// A digest, a name or a Nix store path, and the socket to listen on; with --all or --nix, the socket alone. A socket that
    /// systemd hands over is named - (systemd.socket)
    #[arg(value_name = "ROOT SOCKET", num_args = 1..=2)]
    positions: Vec<OsString>,

    /// Request queues that a machine may use
    #[arg(long, env = "CASTORE_QUEUES", value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    queues: u16,

    /// Let the members of this group connect to the socket, by name or number
    #[arg(long, env = "CASTORE_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<String>,

    #[command(flatten)]
    shown: ShownArgs,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    let usage = "castore virtiofs ROOT SOCKET";
    let (what, socket) = args.shown.what(&args.positions, "a socket", usage)?;
    if args.cache.trusts_streams() {
        bail!(
            "--trust stream is not for guests: what turns out to be wrong cannot be taken out of their caches again"
        );
    }
    runtime::block_on(async {
        // From here on a signal does not leave the socket behind.
        let mut signals = Signals::new(true)?;
        let socket = Socket::listen(&socket, args.socket_group.as_deref())?;
        let cache = open::resized_cache(&args.cache, &args.remotes)?;
        let served = tokio::select! {
            prepared = prepare(args, &what, &cache) => match prepared {
                Ok(fs) => serve(args, &fs, socket, &mut signals).await,
                Err(error) => Err(error),
            },
            () = signals.end(None) => Ok(()),
        };
        let closing = Arc::clone(&cache);
        tokio::task::spawn_blocking(move || closing.close()).await?;
        served
    })
}

/// Finds what is to be shown, which may be asked of remotes.
async fn prepare(args: &Args, what: &What, cache: &Arc<Cache>) -> anyhow::Result<Arc<Filesystem>> {
    let options = args.shown.options(NAMES_TTL)?;
    let (root, name) = match what {
        What::Names => (Root::Names, None),
        What::StorePaths => (Root::StorePaths, None),
        What::Root(root) => {
            let (shown, _) = shown(root, open::root(cache, root).await?)?;
            (shown, profile::name_of(root))
        }
    };
    let tree = tree(&root);
    let fs = Arc::new(Filesystem::new(Arc::clone(cache), root, options));
    match tree {
        Some(tree) => {
            args.shown.prefetch.check(cache, &tree).await?;
            fs.prefetch().show(tree, name);
        }
        None => fs.prefetch().show_none(),
    }
    Ok(fs)
}

async fn serve(
    args: &Args,
    fs: &Arc<Filesystem>,
    socket: Socket,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let Socket { listener, path } = socket;
    let session = Arc::new(Session::new(fs, listener, args.queues.into()));
    let serving = Arc::clone(&session);
    // Waits for machines, which cannot be ended: it is left behind at the end.
    std::thread::Builder::new()
        .name("machines".to_owned())
        .spawn(move || serving.serve())?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("waiting for a machine");
    signals.end(None).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tokio::task::spawn_blocking(move || session.close()).await?;
    fs.prefetch().close();
    drop(path);
    Ok(())
}

/// A socket that is listened on.
struct Socket {
    listener: UnixListener,
    path: SocketPath,
}

/// Removed at the end, where it was made here and is still the same.
struct SocketPath(Option<(PathBuf, u64)>);

impl Drop for SocketPath {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.0
            && fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode)
        {
            let _ = fs::remove_file(path);
        }
    }
}

impl Socket {
    /// `-` stands for the one that systemd hands over.
    fn listen(path: &OsString, group: Option<&str>) -> anyhow::Result<Self> {
        if path == "-" {
            if group.is_some() {
                bail!(
                    "--socket-group is not for a socket of systemd's: write SocketGroup= into its unit"
                );
            }
            return Self::of_systemd();
        }
        let path = std::path::absolute(path)?;
        let about = || format!("the socket {path:?}");
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path).with_context(about)?;
        let inode = fs::symlink_metadata(&path).with_context(about)?.ino();
        // Made first, so that it is removed when the group is not there.
        let made = SocketPath(Some((path.clone(), inode)));
        if let Some(group) = group {
            give(&path, group).with_context(|| format!("--socket-group {group}"))?;
        }
        Ok(Self {
            listener,
            path: made,
        })
    }

    fn of_systemd() -> anyhow::Result<Self> {
        let mut handed = sd_notify::listen_fds()?;
        let descriptor = handed.next().context(
            "no socket was handed over (LISTEN_FDS); write its path, or start this by a systemd.socket unit",
        )?;
        // SAFETY: systemd has opened it for this process, and nobody else here takes it.
        let listener: UnixListener = unsafe { OwnedFd::from_raw_fd(descriptor) }.into();
        listener
            .set_nonblocking(false)
            .context("what systemd has handed over is no socket")?;
        Ok(Self {
            listener,
            path: SocketPath(None),
        })
    }
}

/// Removes a socket that nobody listens on any more.
fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let about = || format!("the socket {path:?}");
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(about),
    };
    if !found.file_type().is_socket() {
        bail!("{path:?} is there and no socket; choose another path");
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!(
            "the socket {path:?} is in use by another process; choose another path, or end that"
        ),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(about)
        }
        Err(error) => Err(error).with_context(about),
    }
}

/// Lets a group connect.
fn give(path: &Path, group: &str) -> anyhow::Result<()> {
    let number = match group.parse() {
        Ok(number) => number,
        Err(_) => group_of(group)?,
    };
    std::os::unix::fs::chown(path, None, Some(number))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(())
}

/// The number of a group, as the system's databases have it.
fn group_of(name: &str) -> anyhow::Result<u32> {
    let name = CString::new(name)?;
    let mut group = std::mem::MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    let mut buffer = vec![0; 1 << 16];
    // SAFETY: all pointers are valid for the call, and the buffer has the length that is given.
    let errno = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            group.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    match (errno, found.is_null()) {
        // SAFETY: the call has succeeded and found one, so it has filled it in.
        (0, false) => Ok(unsafe { group.assume_init() }.gr_gid),
        (0, true) => bail!("there is no such group"),
        (errno, _) => Err(io::Error::from_raw_os_error(errno).into()),
    }
}
