//! Locks, watches and working directories: what the kernel keeps by inode.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    Test,
    fixture::{Tree, paths, run_command},
    support::{DEADLINE, wait},
};

pub const ALL: [Test; 5] = [
    ("a_lock_is_of_one_file", &["flock"], a_lock_is_of_one_file),
    (
        "reads_of_the_other_are_not_seen",
        &[],
        reads_of_the_other_are_not_seen,
    ),
    (
        "inotifywait_sees_one",
        &["inotifywait"],
        inotifywait_sees_one,
    ),
    ("a_directory_to_stand_in", &["sh"], a_directory_to_stand_in),
    ("open_directories_stay", &[], open_directories_stay),
];

/// `flock` on x.lock once blocked y.lock, which is as empty.
fn a_lock_is_of_one_file() {
    let tree = Tree::of_twins();
    let held = File::open(tree.at("x.lock")).unwrap();
    held.lock().unwrap();
    let flock = |name: &str| {
        let mut command = Command::new("flock");
        command.arg("-n").arg(tree.at(name)).args(["echo", "got"]);
        crate::support::output(command).status.success()
    };
    assert!(!flock("x.lock"), "a lock that is held was got");
    for other in ["y.lock", "pkg/__init__.py", "lib/__init__.py"] {
        assert!(flock(other), "the lock on x.lock blocks {other}");
    }
    // Closing it is not enough: another test's child may have the descriptor too until it executes its program.
    held.unlock().unwrap();
    drop(held);
    assert!(flock("x.lock"), "a lock that was given up is held");
    tree.mount.stop();
}

/// An inotify instance.
pub struct Watch(File);

impl Watch {
    pub fn new() -> Self {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: it is new and nobody else's.
        Self(unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }

    pub fn add(&self, path: &Path, events: u32) -> i32 {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a system call with a valid string.
        let watch = unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), path.as_ptr(), events) };
        assert!(watch >= 0, "{}", std::io::Error::last_os_error());
        watch
    }

    /// What has happened since the last call: watch, events, name in a watched directory.
    pub fn events(&self) -> Vec<(i32, u32, String)> {
        const HEADER: usize = size_of::<libc::inotify_event>();
        let mut events = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len) = std::io::Read::read(&mut &self.0, &mut buffer) {
            let mut rest = &buffer[..len];
            while let Some((header, after)) = rest.split_at_checked(HEADER) {
                let number = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
                let (name, after) = after.split_at(number(12) as usize);
                let end = name.iter().position(|byte| *byte == 0);
                let name = String::from_utf8_lossy(&name[..end.unwrap_or(name.len())]);
                events.push((number(0).cast_signed(), number(4), name.into_owned()));
                rest = after;
            }
        }
        events
    }
}

/// A watch on one file once reported what happened to the other.
fn reads_of_the_other_are_not_seen() {
    let tree = Tree::of_twins();
    let watch = Watch::new();
    let one = watch.add(&tree.at("one"), libc::IN_OPEN | libc::IN_ACCESS);
    let lock = watch.add(&tree.at("x.lock"), libc::IN_OPEN | libc::IN_ACCESS);
    let dir = watch.add(&tree.at("same-a/inner"), libc::IN_OPEN | libc::IN_ACCESS);
    // A second watch on an inode that is watched has the number of the first.
    let distinct = [
        one,
        lock,
        dir,
        watch.add(&tree.at("two"), libc::IN_DELETE_SELF),
    ];
    for (at, number) in distinct.iter().enumerate() {
        assert!(!distinct[..at].contains(number), "{distinct:?}");
    }
    for name in ["two", "sub/three", "y.lock", "same-b/inner/file"] {
        fs::read(tree.at(name)).unwrap();
    }
    fs::read_dir(tree.at("same-b/inner")).unwrap().count();
    assert_eq!(watch.events(), []);
    fs::read(tree.at("one")).unwrap();
    fs::read(tree.at("same-a/inner/twin")).unwrap();
    let events = watch.events();
    assert!(
        events.iter().any(|(number, ..)| *number == one),
        "{events:?}"
    );
    let below = |(number, _, name): &(i32, u32, String)| *number == dir && name == "twin";
    assert!(events.iter().any(below), "{events:?}");
    tree.mount.stop();
}

/// The same by the program that people use.
fn inotifywait_sees_one() {
    let tree = Tree::of_twins();
    let mut command = Command::new("inotifywait");
    command.args(["-m", "-e", "open", "--format", "%w", "one", "two"]);
    command.current_dir(&tree.mount.path);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("established") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it has ended");
    }
    fs::read(tree.at("two")).unwrap();
    fs::read(tree.at("one")).unwrap();
    let mut seen = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = [seen.next().unwrap().unwrap(), seen.next().unwrap().unwrap()];
    child.kill().unwrap();
    wait(&mut child, DEADLINE).expect("inotifywait does not end");
    assert_eq!(seen, ["two", "one"]);
    tree.mount.stop();
}

/// A directory moves under the process that stands in it when the kernel is told that another one is the same.
fn a_directory_to_stand_in() {
    let tree = Tree::of_twins();
    let mut command = Command::new("sh");
    let line = "echo ready; read go; pwd -P; cat file; cd ..; pwd -P; cat link; read go";
    command.args(["-c", line]);
    let mut child = command
        .current_dir(tree.at("same-a/inner"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(says.next().unwrap().unwrap(), "ready");
    for _ in 0..3 {
        // Everything is looked up, and all that nobody stands in forgotten.
        assert_eq!(paths(&tree.mount.path), tree.paths());
        fs::metadata(tree.at("same-b/inner/file")).unwrap();
        fs::metadata(tree.at("sub/same-a/inner/file")).unwrap();
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        let cwd = fs::read_link(format!("/proc/{}/cwd", child.id())).unwrap();
        assert_eq!(cwd, tree.at("same-a/inner"));
    }
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"go\n").unwrap();
    let said: Vec<_> = (0..4).map(|_| says.next().unwrap().unwrap()).collect();
    let place = tree.at("same-a").display().to_string();
    let inner = tree.at("same-a/inner").display().to_string();
    assert_eq!(said, [&inner, "below", &place, "below"]);
    stdin.write_all(b"end\n").unwrap();
    wait(&mut child, DEADLINE).expect("the shell does not end");
    tree.mount.stop();
}

/// Handles on two equal directories are of two directories.
fn open_directories_stay() {
    let tree = Tree::of_twins();
    let handles = ["same-a", "same-b", "sub/same-a"]
        .map(|name| (name, File::open(tree.at(name).join("inner")).unwrap()));
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    for (name, handle) in &handles {
        let shown = fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap();
        assert_eq!(shown, tree.at(name).join("inner"));
        let mut command = Command::new("realpath");
        command.arg(format!(
            "/proc/{}/fd/{}/..",
            std::process::id(),
            handle.as_raw_fd()
        ));
        let above = run_command(command);
        assert_eq!(Path::new(above.trim()), tree.at(name));
    }
    drop(handles);
    tree.mount.stop();
}
