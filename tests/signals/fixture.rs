//! A mount whose remote answers when it is told to, and processes that wait in it.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    gate::Gate,
    support::{
        DEADLINE, Mount, Scratch, before, detach, eventually, output, succeeded, tree, wait, within,
    },
};

/// A process that is to end at once ends within this time; most of it is for a busy machine.
pub const AT_ONCE: Duration = Duration::from_secs(5);
/// So long a fault has to show itself while a remote is silent.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Names of the tree, each a first look-up of its own.
pub const NAMES: usize = 100;

/// Why a test cannot run here; `None`: it can.
pub fn missing(needs: &[&str]) -> Option<String> {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root".into());
    }
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
    if fuse.is_err() {
        return Some("/dev/fuse cannot be opened".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing = |need: &&&str| match **need {
        "freezer v1" => mounted_at("cgroup ", "freezer").is_none(),
        "freezer v2" => mounted_at("cgroup2 ", "").is_none(),
        program => !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()),
    };
    let missing = ["cc"].iter().chain(needs).find(is_missing)?;
    Some(format!("no {missing} here; see contrib/test-programs.sh"))
}

/// Where a filesystem of a type is mounted, with this option.
pub fn mounted_at(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = fs::read("/proc/self/mountinfo").unwrap();
    let mounts = String::from_utf8_lossy(&mounts);
    let ours = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let has_option = right.rsplit([',', ' ']).any(|word| word == option);
        let found = right.starts_with(kind) && (option.is_empty() || has_option);
        found.then(|| left.split(' ').nth(4).unwrap().into())
    };
    mounts.lines().find_map(ours)
}

/// Compiles `tests/signals/helpers/NAME.c`, once.
fn helper(name: &str, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/signals/helpers")
        .join(format!("{name}.c"));
    let mut command = Command::new("cc");
    command.args(["-Wall", "-Werror", "-O1", "-pthread", "-o"]);
    command.arg(program).arg(source);
    succeeded(&output(command));
}

/// The helpers' directory, which stays as long as the process.
pub fn helpers() -> &'static Path {
    static HELPERS: OnceLock<PathBuf> = OnceLock::new();
    HELPERS.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("signals-helpers");
        fs::create_dir_all(&dir).unwrap();
        for name in ["call", "trace"] {
            // Under another name first: another run may be using it.
            let new = dir.join(format!("{name}-{}", std::process::id()));
            helper(name, &new);
            fs::rename(new, dir.join(name)).unwrap();
        }
        dir
    })
}

/// All names (`n0` to `n99`) of one tree, mounted from a remote behind a gate.
pub struct Behind {
    pub mount: Mount,
    pub gate: Gate,
    /// What a test has mounted on the scratch directory, which goes before the directory does.
    pub bound: Option<Bound>,
    _scratch: Scratch,
}

/// A directory that is mounted on itself, so that what is mounted in it can be seen in other mount namespaces.
pub struct Bound(PathBuf);

impl Bound {
    pub fn shared(dir: &Path) -> Self {
        let mount = |how: &str, places: &[&Path]| {
            let mut command = Command::new("mount");
            command.arg(how).args(places);
            succeeded(&output(command));
        };
        mount("--bind", &[dir, dir]);
        let bound = Self(dir.to_owned());
        mount("--make-private", &[dir]);
        mount("--make-shared", &[dir]);
        bound
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// Where the kernel tells of FUSE mounts; mounted once, where the machine has not done so.
fn control() -> &'static Path {
    CONTROL.get_or_init(|| {
        mounted_at("fusectl ", "").unwrap_or_else(|| {
            let dir = helpers().join(format!("fusectl-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let mut command = Command::new("mount");
            command.args(["-t", "fusectl", "fusectl"]).arg(&dir);
            succeeded(&output(command));
            dir
        })
    })
}

static CONTROL: OnceLock<PathBuf> = OnceLock::new();

/// Takes away what all tests have shared.
pub fn clean() {
    if let Some(dir) = CONTROL.get()
        && dir.starts_with(helpers())
    {
        detach(dir);
        let _ = fs::remove_dir(dir);
    }
}

impl Behind {
    pub fn new(options: &[&str]) -> Self {
        Self::by(options, |command| command)
    }

    /// The same with the daemon started by another program.
    /// The same with a daemon in a mount namespace of its own, where a script has changed `/proc` first. The mount is seen outside. `script` is
    /// given the scratch directory.
    pub fn with_another_proc(script: impl FnOnce(&Path) -> String) -> Self {
        let mut bound = None;
        let mut behind = Self::by(&[], |daemon| {
            let mnt = Path::new(daemon.get_args().last().unwrap());
            let scratch = mnt.parent().unwrap();
            bound = Some(Bound::shared(scratch));
            let script = format!("mount --make-private /proc && {}", script(scratch));
            let propagation = ["--mount", "--propagation", "unchanged"];
            let words = propagation.into_iter().chain(["sh", "-c", &script, "sh"]);
            before("unshare", words, &daemon)
        });
        behind.bound = bound;
        behind
    }

    pub fn by(options: &[&str], wrap: impl FnOnce(Command) -> Command) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        for file in 0..8 {
            let content = tree::noise(file, 5000);
            tree::file(&source, &format!("f{file}"), &content, false);
        }
        tree::file(&source, "large", &tree::noise(99, 2_000_000), false);
        let args = ["import", "--name", "n0"].map(AsRef::as_ref);
        let mut command = scratch.command(args.into_iter().chain([source.as_os_str()]));
        // What is imported is cached, and the mount is to ask for it.
        command.env("CASTORE_CACHE_DIR", scratch.path("other-cache"));
        succeeded(&output(command));
        let roots = scratch.path("store/roots");
        for name in 1..NAMES {
            fs::copy(roots.join("n0"), roots.join(format!("n{name}"))).unwrap();
        }
        let gate = Gate::start(scratch.path("store"));
        let mut command =
            scratch.command(["mount", "--foreground", "--all", "--list-root", "false"]);
        // Nothing is asked for but what somebody waits for, so that it can be counted.
        command.args(["--prefetch", "off", "--profile", "off", "--names-ttl", "1h"]);
        // A part of it is what a remote may be silent; that of the tests is, and must not be asked again for that.
        if !options.contains(&"--timeout") {
            command.args(["--timeout", "300s"]);
        }
        command.args(options);
        command.arg(scratch.mnt());
        command.env("CASTORE_REMOTE", gate.address());
        let mount = Mount::start(wrap(command), &scratch.mnt());
        control();
        Self {
            mount,
            gate,
            bound: None,
            _scratch: scratch,
        }
    }

    /// Has the kernel and the cache know a path, so that only what comes after it waits.
    pub fn warm(&self, name: &str) {
        let path = self.mount.at(name);
        within(DEADLINE, "a look-up", move || fs::metadata(path).unwrap());
    }

    /// Requests that the kernel waits for.
    fn unanswered(&self) -> u64 {
        let device = fs::metadata(&self.mount.path).unwrap().dev();
        let number = libc::minor(device);
        let path = control().join(number.to_string()).join("waiting");
        let waiting = fs::read_to_string(path).unwrap();
        waiting.trim().parse().unwrap()
    }

    /// All is well afterwards: everything can be read, no request is left, and the mount ends as it should.
    pub fn finish(self) {
        self.check();
        self.mount.stop();
    }

    /// The same but for the end.
    pub fn check(&self) {
        self.gate.open();
        let path = self.mount.at("n0/f7");
        let bytes = within(DEADLINE, "a read", move || fs::read(path));
        assert!(bytes.unwrap() == tree::noise(7, 5000), "other bytes");
        eventually("no request is left", || self.unanswered() == 0);
    }
}

/// A process that waits in a mount. Killed when this is dropped.
pub struct Caller {
    child: Child,
    /// As the kernel outside of any namespace has it: of the process, of the thread that calls.
    pub pid: i32,
    pub thread: i32,
    /// The child that it has, if it was asked to have one.
    pub below: i32,
    lines: mpsc::Receiver<String>,
    what: String,
}

impl Caller {
    /// Runs `tests/signals/helpers/call.c`; returns when it is about to make its call.
    pub fn start(operation: &str, path: &Path, options: &[&str]) -> Self {
        let mut caller = Self::run(call(operation, path, options));
        let line = caller.line();
        let said = line
            .strip_prefix("tid ")
            .and_then(|ids| ids.split_once(' '));
        let (thread, child) = said.unwrap_or_else(|| panic!("{line}"));
        (caller.thread, caller.below) = (thread.parse().unwrap(), child.parse().unwrap());
        caller
    }

    /// Runs a program, which says what it wants to.
    pub fn run(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let what = format!("{command:?}");
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let pid = i32::try_from(child.id()).unwrap();
        Self {
            child,
            pid,
            thread: pid,
            below: 0,
            lines,
            what,
        }
    }

    /// The next line that it says; nothing when it has ended.
    pub fn line(&self) -> String {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) => String::new(),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} says nothing", self.what),
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a system call; the process is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    /// Has its child end.
    pub fn end_child(&self) {
        assert!(self.below > 0, "it has none");
        // SAFETY: a system call; the process is a child of ours, which does not wait for it.
        assert_eq!(unsafe { libc::kill(self.below, libc::SIGKILL) }, 0);
    }

    /// To the thread that calls alone.
    pub fn signal_thread(&self, signal: i32) {
        // SAFETY: a system call; the process is ours and has not been waited for.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, self.pid, self.thread, signal) };
        assert_eq!(sent, 0);
    }

    /// The letter of `ps` for the thread that calls; `X` when it is gone.
    pub fn state(&self) -> char {
        let path = format!("/proc/{}/task/{}/stat", self.pid, self.thread);
        let stat = fs::read_to_string(path).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        state.unwrap_or('X')
    }

    /// Waits until it waits.
    pub fn waits(&self) {
        let mut times = 0;
        let what = format!("{} waits", self.what);
        eventually(&what, || {
            times = match self.state() {
                'S' | 'D' => times + 1,
                'X' | 'Z' => panic!("{what}: {}", self.line()),
                _ => 0,
            };
            times > 3
        });
    }

    /// Waits until a signal has reached it: it sleeps so that only a fatal one would wake it, or has an answer.
    pub fn interrupted(&self) {
        eventually("it is interrupted", || self.state() != 'S');
    }

    /// Fails unless it goes on waiting for a while.
    pub fn goes_on_waiting(&mut self) {
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            if let Ok(line) = self.lines.try_recv() {
                panic!("it did not go on waiting: {line}");
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it has ended: {ended:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What came of it, when it ends well.
    pub fn result(&mut self) -> String {
        let line = self.line();
        let status = wait(&mut self.child, DEADLINE);
        let status = status.unwrap_or_else(|| panic!("{} does not end", self.what));
        assert!(status.success(), "{}: {status}: {line}", self.what);
        line
    }

    /// What came of it, EINTRs and signals taken away; at most so many EINTRs.
    pub fn value(&mut self, most: usize) -> String {
        let line = self.result();
        let (value, rest) = line.split_once(" after ").unwrap_or((&line, "0"));
        let interrupted: usize = rest.split(' ').next().unwrap().parse().unwrap();
        assert!(interrupted <= most, "{}: {line}", self.what);
        value.to_owned()
    }

    /// The signal that has ended it, at once.
    pub fn ended_by(&mut self) -> i32 {
        self.ended_within(AT_ONCE)
    }

    /// The signal that has ended it.
    pub fn ended_within(&mut self, limit: Duration) -> i32 {
        let status = wait(&mut self.child, limit);
        let status = status.unwrap_or_else(|| panic!("{} is not gone", self.what));
        let line = self.lines.recv_timeout(DEADLINE).unwrap_or_default();
        status
            .signal()
            .unwrap_or_else(|| panic!("{}: {status}: {line}", self.what))
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not for ever: what waits in the mount is ended by taking the mount down.
        let _ = wait(&mut self.child, Duration::from_secs(1));
    }
}

pub fn call(operation: &str, path: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(helpers().join("call"));
    command.arg(operation).arg(path).args(options);
    command
}

/// What the bytes of a file are made of.
const BYTES: &str = "/blobs/ /chunks/";

/// A way to wait in a mount: the operation, its path, what the remote is asked for, and what comes of it.
pub type Call = (&'static str, &'static str, &'static str, &'static str);

pub const CALLS: [Call; 5] = [
    ("stat", "nN", "/roots/", "9"),
    ("stat", "n0/fN", "/dirs/", "5000"),
    ("open", "n0/fN", "/dirs/", "0"),
    ("list", "n0", "/dirs/", "11"),
    ("direct", "n0/fN", BYTES, "4096"),
];
/// Those that wait for a page.
pub const PAGES: [Call; 2] = [("read", "n0/fN", BYTES, ""), ("map", "n0/fN", BYTES, "")];

/// Has a caller wait in one of these ways; the number makes its name one that nobody else waits for.
pub fn waiting(behind: &Behind, call: Call, number: usize, options: &[&str]) -> Caller {
    let (operation, path, parts, _) = call;
    let path = path.replace('N', &number.to_string());
    let parts: Vec<_> = parts.split(' ').collect();
    behind.gate.hold(&parts);
    // What comes before the wait is no part of it.
    match parts[0] {
        "/roots/" => {}
        "/dirs/" => behind.warm("n0"),
        _ => behind.warm(&path),
    }
    let caller = Caller::start(operation, &behind.mount.at(&path), options);
    caller.waits();
    eventually("the remote is asked", || behind.gate.waiting() > 0);
    caller
}
