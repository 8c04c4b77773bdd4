//! How the process behaves towards the machine and its other processes: what it inherits, what signals do, what is left
//! behind, and what commands do when it hangs. Each through real mounts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

mod fstab;
mod hanging;
mod inherited;
mod paths;
mod signals;
mod surroundings;
mod test_script;
#[cfg(all(feature = "virtiofs", target_os = "linux"))]
mod virtiofs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use castore::fs::fuse::mountinfo;
use support::{Scratch, detach, is_mounted, tree, within};

/// The longest that a command may take which must not wait for a mount: two seconds are promised, and the machine may be busy.
const HANGS: Duration = Duration::from_secs(10);

/// A scratch directory with an imported tree named `tree`.
fn prepared() -> Scratch {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let args = [
        "import".as_ref(),
        "--name".as_ref(),
        "tree".as_ref(),
        source.as_os_str(),
    ];
    scratch.ok(args);
    scratch
}

/// Runs a command that must end soon.
fn soon(command: Command) -> Output {
    let what = format!("{command:?}");
    within(HANGS, &what, || support::output(command))
}

/// A mount in the background of a scratch directory, the only one of its cache. Taken down also when the test fails.
struct Background {
    pid: i32,
    path: PathBuf,
    cache: PathBuf,
}

impl Background {
    fn start(scratch: &Scratch) -> Self {
        let mut command = scratch.command(["mount", "tree"]);
        command.arg(scratch.mnt());
        Self::by(scratch, command, &scratch.mnt())
    }

    /// By a command that mounts on a path.
    fn by(scratch: &Scratch, command: Command, path: &Path) -> Self {
        let output = support::output(command);
        // Made before anything is asserted, so that it is taken down.
        let cache = scratch.path("cache");
        let sockets = fs::read_dir(cache.join("mounts")).into_iter().flatten();
        let pid = sockets.flatten().find_map(|entry| {
            let pid = entry.path().file_stem()?.to_str()?.parse().ok()?;
            is_alive(pid).then_some(pid)
        });
        let mount = Self {
            pid: pid.unwrap_or_default(),
            path: path.to_owned(),
            cache,
        };
        support::succeeded(&output);
        assert!(mount.pid > 1, "no process has a socket");
        assert!(is_mounted(path), "it returned before the mount was there");
        mount
    }

    fn signal(&self, signal: i32) {
        assert!(self.is_alive());
        // SAFETY: a system call; the process is alive, and is the mount's.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    fn is_alive(&self) -> bool {
        is_alive(self.pid)
    }

    /// What registers it.
    fn registered(&self) -> Registered {
        let device = mountinfo::at(&self.path).unwrap().unwrap().device;
        let name = format!("{}.json", device.replace(':', "-"));
        Registered {
            file: Path::new("/run/castore").join(name),
            mountpoint: self.path.clone(),
        }
    }
}

/// The registration of a mount. The kernel gives the device of a mount that is gone to the next one, which may be another test's, and its
/// registration has the same name then.
struct Registered {
    file: PathBuf,
    mountpoint: PathBuf,
}

impl Registered {
    fn exists(&self) -> bool {
        let json = match fs::read(&self.file) {
            Ok(json) => json,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            Err(error) => panic!("{:?}: {error}", self.file),
        };
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        json["mountpoint"] == self.mountpoint.to_str().unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let socket = self.cache.join("mounts").join(format!("{}.sock", self.pid));
        if socket.exists() && self.is_alive() {
            // SAFETY: a system call; the socket says that the process is the mount's.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        detach(&self.path);
    }
}

/// Not a zombie, which its new parent has not waited for yet.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stat = String::from_utf8_lossy(&stat).into_owned();
    !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X ")
}

/// A file system that controls FUSE connections, on a directory.
struct Fusectl(PathBuf);

impl Fusectl {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "fusectl", "none"]).arg(&path);
        support::succeeded(&support::output(command));
        Self(path)
    }
}

impl Drop for Fusectl {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// Runs a script as an ordinary user, who finds the binary and a store with the tree in /tmp/home, which is the user's. In a mount namespace of its own, where all users may open /dev/fuse, and /tmp and /var/tmp are empty.
fn as_user(scratch: &Scratch, script: &str) -> Output {
    let script = format!(
        r#"set -eu
        umask 022
        mkdir {base}/user
        mount -t tmpfs -o mode=0755 tmpfs {base}/user
        cp {castore} {base}/user/castore
        mknod {base}/user/fuse c 10 229 && chmod 666 {base}/user/fuse
        mount --bind {base}/user/fuse /dev/fuse
        cp -r {store} {base}/user/store && chmod -R a+rX {base}/user/store
        # The scratch directory may be below what is hidden next.
        mount --move {base}/user /mnt
        mount -t tmpfs -o mode=1777 tmpfs /tmp
        mount -t tmpfs -o mode=1777 tmpfs /var/tmp
        mkdir /tmp/home
        mount --move /mnt /tmp/home
        cd /tmp/home
        cat > work <<'END'
set -eu
export CASTORE_REMOTE=objectstore+file:///tmp/home/store CASTORE_MIN_FREE=0 CASTORE_CACHE_SIZE=64MiB
{script}
END
        mkdir mnt
        chown 65534:65534 . mnt
        exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$PATH" HOME=/tmp/home sh work"#,
        base = scratch.dir.path().display(),
        store = scratch.path("store").display(),
        castore = env!("CARGO_BIN_EXE_castore"),
    );
    let mut command = Command::new("unshare");
    // Whatever the script leaves ends with the process namespace.
    command.args(["--mount", "--propagation", "private", "--pid", "--fork"]);
    command.args(["--mount-proc", "--kill-child", "sh", "-c", &script]);
    support::output(command)
}
