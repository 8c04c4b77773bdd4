//! `castore virtiofs` as a process: its socket, its end, and callers that are no machine.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::prepared;
use crate::support::{self, DEADLINE, Scratch, eventually, servers::spawn, signal, wait};

/// A process that serves the tree of a scratch directory. Killed when it is dropped.
struct Served {
    child: Child,
    /// Short: a socket's path has at most 107 bytes.
    dir: tempfile::TempDir,
}

impl Served {
    fn start(scratch: &Scratch) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("castore-")
            .tempdir()
            .unwrap();
        let mut command = scratch.command(["virtiofs", "tree"]);
        command.arg(dir.path().join("socket"));
        Self::by(command, dir)
    }

    fn by(mut command: Command, dir: tempfile::TempDir) -> Self {
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log);
        let child = spawn(command);
        let served = Self { child, dir };
        eventually("it waits for a machine", || {
            served.log().contains("waiting for a machine")
        });
        served
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn connections(&self) -> usize {
        self.log().matches("the machine has gone").count()
    }

    fn descriptors(&self) -> usize {
        let list = fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        list.unwrap().count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = wait(&mut self.child, DEADLINE);
    }
}

fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).unwrap()
}

#[test]
fn signals_end_it_and_its_socket_goes() {
    let scratch = prepared();
    for sent in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT] {
        let mut served = Served::start(&scratch);
        // With somebody who has connected, and without.
        let caller = (sent != libc::SIGTERM).then(|| connect(&served.socket()));
        if caller.is_some() {
            eventually("it is noticed", || served.log().contains("has connected"));
        }
        signal(&served.child, sent);
        let ended = wait(&mut served.child, DEADLINE);
        assert!(
            ended.is_some_and(|status| status.success()),
            "{}",
            served.log()
        );
        assert!(!served.socket().exists());
    }
}

#[test]
fn a_signal_ends_it_before_it_has_found_its_tree() {
    let scratch = prepared();
    let dir = tempfile::Builder::new()
        .prefix("castore-")
        .tempdir()
        .unwrap();
    let socket = dir.path().join("socket");
    // A remote that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("grpc+http://{}", silent.local_addr().unwrap());
    let mut command = scratch.command(["virtiofs", "--remote", &remote, "absent"]);
    command
        .arg(&socket)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let mut child = spawn(command);
    eventually("it listens", || socket.exists());
    signal(&child, libc::SIGTERM);
    let ended = wait(&mut child, DEADLINE);
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert!(!socket.exists());
}

#[test]
fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
    let scratch = prepared();
    let served = Served::start(&scratch);
    let fails =
        |path: &Path| scratch.fails(["virtiofs".as_ref(), "tree".as_ref(), path.as_os_str()]);
    let message = fails(&served.socket());
    assert!(message.contains("in use by another process"), "{message}");
    assert!(served.socket().exists());
    let message = fails(&served.dir.path().join("log"));
    assert!(message.contains("no socket"), "{message}");
    let stale = served.dir.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let mut command = scratch.command(["virtiofs", "tree"]);
    let dir = tempfile::Builder::new()
        .prefix("castore-")
        .tempdir()
        .unwrap();
    command.arg(&stale);
    let replaced = Served::by(command, dir);
    connect(&stale);
    eventually("it has answered", || replaced.connections() == 1);
}

#[test]
fn what_does_not_suit_a_guest_is_refused() {
    let scratch = prepared();
    let socket = scratch.path("s");
    let fails = |options: &[&str]| {
        let options = options.iter().map(AsRef::as_ref);
        let words = ["virtiofs".as_ref()].into_iter().chain(options);
        scratch.fails(words.chain([socket.as_os_str()]))
    };
    assert!(fails(&["--trust", "stream", "tree"]).contains("--trust stream is not for guests"));
    assert!(fails(&["--socket-group", "no-such-group", "tree"]).contains("no such group"));
    assert!(!socket.exists());
    assert!(fails(&["absent"]).contains("absent"));
    assert!(fails(&[]).contains("a root and a socket are needed"));
    assert!(!socket.exists());
}

#[test]
fn a_group_may_connect() {
    let scratch = prepared();
    let dir = tempfile::Builder::new()
        .prefix("castore-")
        .tempdir()
        .unwrap();
    let socket = dir.path().join("socket");
    let mut command = scratch.command(["virtiofs", "--socket-group", "0", "tree"]);
    command.arg(&socket);
    let _served = Served::by(command, dir);
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

/// Each left five descriptors behind.
#[test]
fn callers_that_are_no_machine_leave_nothing() {
    let scratch = prepared();
    let served = Served::start(&scratch);
    let call = |number: usize| {
        drop(connect(&served.socket()));
        eventually("it has gone", || served.connections() == number);
    };
    call(1);
    let before = served.descriptors();
    for number in 2..=20 {
        call(number);
    }
    // Those of the next one may be there or not yet.
    eventually("nothing is left", || served.descriptors() <= before + 10);
}

#[test]
fn systemd_hands_a_socket_over() {
    let scratch = prepared();
    let dir = tempfile::Builder::new()
        .prefix("castore-")
        .tempdir()
        .unwrap();
    let path = dir.path().join("systemd");
    let listener = UnixListener::bind(&path).unwrap();
    // As with `NonBlocking=yes`.
    listener.set_nonblocking(true).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let castore = scratch.command(["virtiofs", "tree", "-"]);
    let script = format!(
        "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"",
        listener.as_raw_fd()
    );
    let command = support::before("bash", ["-c", &script, "bash"], &castore);
    let mut served = Served::by(command, dir);
    connect(&path);
    eventually("it has answered", || served.connections() == 1);
    signal(&served.child, libc::SIGTERM);
    assert!(support::wait(&mut served.child, DEADLINE).is_some());
    assert!(path.exists(), "it is systemd's");
}
