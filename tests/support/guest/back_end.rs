//! The daemons that serve a tree to a guest, and a tree with its daemon and its guest.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{DEADLINE, Scratch, servers::spawn, signal, wait},
    machine::{Guest, GuestOptions},
};

/// Of the times in /proc: Linux tells them in `USER_HZ`, which is 100.
const MILLISECONDS_PER_TICK: u64 = 10;

/// A daemon that serves a directory over vhost-user.
pub struct BackEnd {
    pub name: &'static str,
    /// Beside the one of high priority.
    pub request_queues: u32,
    /// Whether it waits for the next machine when one has gone; otherwise it ends.
    pub serves_the_next: bool,
    /// The program, or why there is none here.
    pub find: fn() -> Result<PathBuf, String>,
    /// The program's command for the directory `source` of a scratch directory and a socket.
    pub command: fn(PathBuf, &Scratch, &Path) -> Command,
}

pub const CASTORE: BackEnd = BackEnd {
    name: "castore",
    request_queues: 2,
    serves_the_next: true,
    find: find_castore,
    command: castore,
};

/// The reference daemon, the one that is written in Rust.
pub const VIRTIOFSD: BackEnd = BackEnd {
    name: "virtiofsd",
    request_queues: 1,
    serves_the_next: false,
    find: find_virtiofsd,
    command: virtiofsd,
};

pub const ALL: [BackEnd; 2] = [CASTORE, VIRTIOFSD];

impl BackEnd {
    /// Why it cannot be tested here; `None`: it can.
    pub fn missing(&self) -> Option<String> {
        (self.find)().err()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "other back ends may not be there")]
fn find_castore() -> Result<PathBuf, String> {
    Ok(env!("CARGO_BIN_EXE_castore").into())
}

/// Imports the directory and serves that.
pub fn castore(_: PathBuf, scratch: &Scratch, socket: &Path) -> Command {
    let root = scratch.import(&scratch.path("source"));
    let mut command = scratch.command(["virtiofs", &root]);
    command.arg(socket);
    command
}

fn find_virtiofsd() -> Result<PathBuf, String> {
    if let Some(program) = std::env::var_os("VIRTIOFSD") {
        return Ok(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path)
        // Where Debian 13 has it.
        .chain(["/usr/libexec".into()])
        .map(|dir| dir.join("virtiofsd"))
        .find(|program| program.is_file());
    program.ok_or_else(|| "no virtiofsd in PATH or VIRTIOFSD: cargo install virtiofsd".into())
}

fn virtiofsd(program: PathBuf, scratch: &Scratch, socket: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--shared-dir").arg(scratch.path("source"));
    command.arg("--socket-path").arg(socket);
    // As castore, which knows that nothing changes.
    command.args(["--sandbox", "none", "--cache", "always"]);
    command
}

/// A back end that runs. It is killed, and its socket removed, when this is dropped.
pub struct Daemon {
    child: Child,
    /// Its socket and its log.
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts it; returns when its socket is there.
    pub fn start(back_end: &BackEnd, scratch: &Scratch) -> Self {
        // Not in the scratch directory: a socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("castore-vm-")
            .tempdir()
            .unwrap();
        let child = launch(back_end, scratch, dir.path());
        Self { child, dir }
    }

    pub fn socket(&self) -> PathBuf {
        socket(self.dir.path())
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        if wait(&mut self.child, Duration::ZERO).is_none() {
            signal(&self.child, libc::SIGKILL);
            assert!(wait(&mut self.child, DEADLINE).is_some(), "it does not end");
        }
        let _ = fs::remove_file(self.socket());
    }

    /// Ends it by a signal; how it ended.
    pub fn end(&mut self, by: i32) -> ExitStatus {
        signal(&self.child, by);
        let ended = wait(&mut self.child, DEADLINE);
        ended.unwrap_or_else(|| panic!("it does not end: {}", self.log()))
    }

    /// Starts it again on the same socket; it must have ended.
    pub fn restart(&mut self, back_end: &BackEnd, scratch: &Scratch) {
        self.child = launch(back_end, scratch, self.dir.path());
    }

    /// Whether it has neither ended nor said that it panicked.
    pub fn is_well(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none() && !self.log().contains("panicked")
    }

    pub fn log(&self) -> String {
        log(self.dir.path())
    }

    /// Parts of guests' memory that it has mapped.
    pub fn guest_mappings(&self) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        maps.lines().filter(|line| line.contains("/memfd:")).count()
    }

    /// Of all its threads, those that have ended among them.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may have spaces.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let mut ticks = fields.split_whitespace().skip(11);
        let mut tick = || ticks.next().unwrap().parse::<u64>().unwrap();
        let ticks = tick() + tick();
        Duration::from_millis(ticks * MILLISECONDS_PER_TICK)
    }

    /// In KiB, its own memory: without the pages of the guest's that it has touched.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the back end's log:\n{}", self.log());
        }
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("socket")
}

fn log(dir: &Path) -> String {
    let log = fs::read(dir.join("log")).unwrap_or_default();
    String::from_utf8_lossy(&log).into_owned()
}

fn launch(back_end: &BackEnd, scratch: &Scratch, dir: &Path) -> Child {
    let program = (back_end.find)().unwrap();
    let mut command = (back_end.command)(program, scratch, &socket(dir));
    let mut appending = File::options();
    let file = appending.create(true).append(true).open(dir.join("log"));
    let file = file.unwrap();
    command.stdin(Stdio::null());
    command.stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = spawn(command);
    let deadline = Instant::now() + DEADLINE;
    while !socket(dir).exists() {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let _ = wait(&mut child, DEADLINE);
            panic!("{} does not start ({ended:?}): {}", back_end.name, log(dir));
        }
        thread::sleep(Duration::from_millis(10));
    }
    child
}

/// A tree, the back end that serves it, and a guest, which goes first.
pub struct Served {
    pub guest: Guest,
    pub daemon: Daemon,
    pub scratch: Scratch,
}

impl Served {
    /// Serves what `make` makes to a guest that has the usual size.
    pub fn start(back_end: &BackEnd, make: impl FnOnce(&Path)) -> Self {
        Self::with(back_end, make, |_| {})
    }

    /// The same with other options.
    pub fn with(
        back_end: &BackEnd,
        make: impl FnOnce(&Path),
        change: impl FnOnce(&mut GuestOptions),
    ) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        make(&source);
        let daemon = Daemon::start(back_end, &scratch);
        let mut options = GuestOptions::new(&daemon.socket());
        options.request_queues = back_end.request_queues;
        change(&mut options);
        let guest = Guest::boot(&options);
        Self {
            guest,
            daemon,
            scratch,
        }
    }

    /// Switches the machine off, and another one on, which the same daemon serves.
    pub fn next_machine(self, back_end: &BackEnd) -> Self {
        let Self {
            guest,
            daemon,
            scratch,
        } = self;
        guest.power_off();
        let mut options = GuestOptions::new(&daemon.socket());
        options.request_queues = back_end.request_queues;
        let guest = Guest::boot(&options);
        Self {
            guest,
            daemon,
            scratch,
        }
    }
}
