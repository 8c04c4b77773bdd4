//! What the tests share: scratch directories, the binary with a deadline, mounts that are always taken down.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "each test binary uses a part of it, and servers run on threads of their own"
)]

pub mod guest;
pub mod hub;
pub mod plain;
pub mod proxy;
pub mod servers;
pub mod tree;

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use castore::fs::fuse::mountinfo;

/// Longer than anything here takes, shorter than anybody wants to wait.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// A mount that lives longer than this is taken for hung, and its process is killed: whatever waits in it gets an error.
const MOUNT_LIFE: Duration = Duration::from_secs(120);

/// A directory with a store, a cache and a mount point, that goes away at the end.
pub struct Scratch {
    pub dir: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        // Not /tmp: the disk of the target directory is a real one, tmpfs has its own test.
        Self::in_dir(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    pub fn in_dir(parent: &Path) -> Self {
        heed_interrupts();
        let dir = tempfile::Builder::new()
            .prefix("castore-")
            .tempdir_in(parent)
            .unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    pub fn remote(&self) -> String {
        format!("objectstore+file://{}", self.path("store").display())
    }

    /// The binary, with this scratch directory's store and cache.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_castore"));
        command
            .args(args)
            .env("HOME", self.path("home"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CACHE_HOME")
            .env("CASTORE_REMOTE", self.remote())
            .env("CASTORE_CACHE_DIR", self.path("cache"))
            .env("CASTORE_MIN_FREE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        output(self.command(args))
    }

    /// Runs the binary, which must succeed, and gives what it printed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        succeeded(&self.run(args))
    }

    /// Runs the binary, which must fail without a panic, and gives what it said.
    pub fn fails<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        failed(&self.run(args))
    }

    /// Imports a directory and gives its digest.
    pub fn import(&self, path: &Path) -> String {
        self.ok([OsStr::new("import"), path.as_os_str()])
            .trim()
            .to_owned()
    }

    /// The digest of the `source` directory, by a store of its own.
    pub fn import_digest(&self) -> String {
        let store = self.path("digest-store");
        let remote = format!("objectstore+file://{}", store.display());
        let source = self.path("source");
        let args = [
            "import".as_ref(),
            "--remote".as_ref(),
            remote.as_ref(),
            source.as_os_str(),
        ];
        self.ok(args).trim().to_owned()
    }

    /// Mounts a root in the foreground.
    pub fn mount<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Mount {
        let mut all = vec!["mount".into(), "--foreground".into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        all.push(self.mnt().into_os_string());
        Mount::start(self.command(all), &self.mnt())
    }

    /// A fresh cache.
    pub fn clear_cache(&self) {
        fs::remove_dir_all(self.path("cache")).unwrap();
    }
}

/// A program with the words of a command and its environment, and its own words before them.
pub fn before<S: AsRef<OsStr>>(
    program: &str,
    words: impl IntoIterator<Item = S>,
    inner: &Command,
) -> Command {
    let mut command = Command::new(program);
    command.args(words);
    command.arg(inner.get_program()).args(inner.get_args());
    environment_of(inner, &mut command);
    command
}

/// Gives a command what another one changes in its environment.
pub fn environment_of(inner: &Command, command: &mut Command) {
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

/// Runs a command with a deadline.
pub fn output(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let Some(status) = wait(&mut child, DEADLINE) else {
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("{command:?} does not end");
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

pub fn succeeded(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert!(!stderr.contains("panicked"), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn failed(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it succeeded: {stderr}");
    assert!(
        output.status.code().is_some(),
        "{}: {stderr}",
        output.status
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(
        stderr.contains("castore: ") || stderr.contains("error: "),
        "{stderr}"
    );
    stderr
}

/// `None` when the process has not ended in time.
pub fn wait(child: &mut Child, within: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something is so, and fails after a while.
pub fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs what may hang on a thread of its own, and fails when it does.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || sender.send(work()));
    receiver
        .recv_timeout(limit)
        .unwrap_or_else(|_| panic!("hangs or panicked: {what}"))
}

/// Whether something is mounted on a path. Does not touch the mount.
pub fn is_mounted(path: &Path) -> bool {
    mountinfo::at(path).unwrap().is_some()
}

/// Takes away whatever is mounted on a path, by force, and what a killed process has left in the registry.
pub fn detach(path: &Path) {
    let target = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    while is_mounted(path) {
        // SAFETY: a system call with a valid string.
        unsafe {
            // By force first: it ends whatever waits in the mount, the daemon itself among them.
            libc::umount2(target.as_ptr(), libc::MNT_FORCE);
            // The first may have done it all.
            if libc::umount2(target.as_ptr(), libc::MNT_DETACH) != 0 && is_mounted(path) {
                return;
            }
        }
    }
    let base64 = data_encoding::BASE64.encode(path.as_os_str().as_bytes());
    for entry in fs::read_dir("/run/castore").into_iter().flatten().flatten() {
        let json = fs::read(entry.path()).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
        let registered = &json["mountpoint"];
        let is_its = match path.to_str() {
            Some(path) => registered == path,
            None => registered["base64"] == *base64,
        };
        if is_its {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Has the processes that a test starts end at an interrupt and a hangup, also where these tests were started with those
/// ignored: in the background of a shell, or under `nohup`. What is ignored is inherited, what has a handler is not; and no
/// process has to be forked for that, which would hold the files of all threads open for a moment.
fn heed_interrupts() {
    extern "C" fn nothing(_: libc::c_int) {}
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
            let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
            // SAFETY: the handler does nothing, and what was there before is put back as it was.
            unsafe {
                let before = libc::signal(signal, handler);
                if before != libc::SIG_IGN {
                    libc::signal(signal, before);
                }
            }
        }
    });
}

pub fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: a system call; the process is ours and has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// A mount in the foreground of a child process. However the test ends, the mount is gone afterwards.
pub struct Mount {
    pub child: Child,
    pub path: PathBuf,
    log: thread::JoinHandle<String>,
    done: Arc<AtomicBool>,
}

impl Mount {
    pub fn start(mut command: Command, path: &Path) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        // Its own process group: a signal for the tests' terminal is not for the daemon.
        command.process_group(0);
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut log = Vec::new();
            let _ = pipe.read_to_end(&mut log);
            String::from_utf8_lossy(&log).into_owned()
        });
        let deadline = Instant::now() + DEADLINE;
        while !is_mounted(path) {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let _ = wait(&mut child, DEADLINE);
                panic!("no mount ({ended:?}): {}", log.join().unwrap());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let done = Arc::new(AtomicBool::new(false));
        watchdog(child.id(), path.to_owned(), Arc::clone(&done));
        Self {
            child,
            path: path.to_owned(),
            log,
            done,
        }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Unmounts by SIGTERM and gives the log; the process must end well and must not have panicked.
    pub fn stop(mut self) -> String {
        signal(&self.child, libc::SIGTERM);
        let status = wait(&mut self.child, DEADLINE).expect("the daemon does not end");
        self.take_down();
        assert!(!is_mounted(&self.path), "still mounted");
        let log = std::mem::replace(&mut self.log, thread::spawn(String::new));
        let log = log.join().unwrap();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }

    fn take_down(&mut self) {
        self.done.store(true, Ordering::SeqCst);
        let _ = self.child.kill();
        detach(&self.path);
        // Not for ever: a process that is stuck in its own mount would never be waited for.
        if wait(&mut self.child, DEADLINE).is_none() {
            eprintln!("the daemon on {:?} does not end", self.path);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.take_down();
        if thread::panicking() {
            let log = std::mem::replace(&mut self.log, thread::spawn(String::new));
            eprintln!("the daemon's log:\n{}", log.join().unwrap_or_default());
        }
    }
}

fn watchdog(pid: u32, path: PathBuf, done: Arc<AtomicBool>) {
    thread::spawn(move || {
        let deadline = Instant::now() + MOUNT_LIFE;
        while !done.load(Ordering::SeqCst) {
            if Instant::now() > deadline {
                eprintln!("the mount on {path:?} lives too long and is taken down");
                let pid = i32::try_from(pid).unwrap();
                // SAFETY: a system call; `done` is set before the process is waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                detach(&path);
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
}
