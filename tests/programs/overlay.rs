//! overlayfs and fuse-overlayfs above a mount. Both take what has one number for one file.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    Test,
    fixture::{Tree, paths, run, run_command, shell, twins},
    support::{DEADLINE, detach, eventually, is_mounted, output, tree::file, tree::snapshot, wait},
};

pub const ALL: [Test; 9] = [
    ("writes_stay_apart", &["mount"], || writes_stay_apart("")),
    ("writes_stay_apart_with_xino", &["mount"], || {
        writes_stay_apart(",xino=on");
    }),
    ("names_come_and_go", &["mount"], || names_come_and_go("")),
    ("names_come_and_go_with_xino", &["mount"], || {
        names_come_and_go(",xino=on");
    }),
    ("numbers_fit_xino", &["mount", "du"], numbers_fit_xino),
    ("read_only_with_xino", &["mount", "du"], read_only_with_xino),
    ("index_falls_back", &["mount"], index_falls_back),
    (
        "fuse_overlayfs_lists_both",
        &["fuse-overlayfs"],
        fuse_overlayfs_lists_both,
    ),
    (
        "fuse_overlayfs_writes_stay_apart",
        &["fuse-overlayfs"],
        fuse_overlayfs_writes_stay_apart,
    ),
];

/// A mount above a mount. However the test ends, it is gone afterwards.
struct Above {
    path: PathBuf,
    upper: PathBuf,
    /// What has to be unmounted too: a disk for the upper directory.
    disk: Option<PathBuf>,
    daemon: Option<Child>,
}

impl Above {
    /// overlayfs, with its upper directory on the disk of the tests, or on tmpfs where that cannot be one.
    fn overlay(tree: &Tree, options: &str) -> Self {
        Self::of(tree, &tree.mount.path, options)
    }

    /// The same above another directory than the mount.
    fn of(tree: &Tree, lower: &Path, options: &str) -> Self {
        let [path, disk] = ["merged", "disk"].map(|name| tree.dir(name));
        let mut above = Self {
            path: path.clone(),
            upper: disk.join("upper"),
            disk: None,
            daemon: None,
        };
        let mount = || {
            // The disk is another one at the second try.
            fs::create_dir_all(lower).unwrap();
            let [upper, work] = ["upper", "work"].map(|name| tree.dir(&format!("disk/{name}")));
            let options = format!(
                "lowerdir={},upperdir={},workdir={}{options}",
                lower.display(),
                upper.display(),
                work.display()
            );
            let mut command = Command::new("mount");
            command.args(["-t", "overlay", "overlay", "-o", &options]);
            command.arg(&path);
            output(command)
        };
        if !mount().status.success() {
            let args = ["-t", "tmpfs", "tmpfs"].map(AsRef::as_ref);
            run("mount", args.into_iter().chain([disk.as_os_str()]));
            above.disk = Some(disk);
            let mounted = mount();
            let said = String::from_utf8_lossy(&mounted.stderr);
            assert!(mounted.status.success(), "{said}");
        }
        above
    }

    fn fuse_overlayfs(tree: &Tree) -> Self {
        let [path, upper, work] = ["merged", "upper", "work"].map(|name| tree.dir(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            tree.mount.path.display(),
            upper.display(),
            work.display()
        );
        let mut command = Command::new("fuse-overlayfs");
        command.args(["-f", "-o", &options]).arg(&path);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let above = Self {
            daemon: Some(command.spawn().unwrap()),
            path,
            upper,
            disk: None,
        };
        eventually("fuse-overlayfs is mounted", || is_mounted(&above.path));
        above
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Writes over a file that is there, as an editor does that keeps the file.
    fn write(&self, name: &str, text: &str) {
        let file = File::options()
            .write(true)
            .truncate(true)
            .open(self.at(name));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// What was written lies apart.
    fn assert_upper_has_no_hard_links(&self) {
        let mut seen = HashSet::new();
        for path in paths(&self.upper) {
            let stat = fs::symlink_metadata(self.upper.join(&path)).unwrap();
            // A whiteout may be linked: it is a device without a number, and nobody writes to it.
            let whiteout = stat.mode() & libc::S_IFMT == libc::S_IFCHR && stat.rdev() == 0;
            if !stat.is_dir() && !whiteout {
                assert_eq!(stat.nlink(), 1, "{path:?} is linked in the upper directory");
                assert!(seen.insert(stat.ino()), "{path:?}");
            }
        }
    }
}

impl Drop for Above {
    fn drop(&mut self) {
        detach(&self.path);
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = wait(daemon, DEADLINE);
        }
        if let Some(disk) = &self.disk {
            detach(disk);
        }
    }
}

/// Everything but what is named has to be as it was.
fn assert_rest(above: &Above, tree: &Tree, changed: &[&str]) {
    let (expected, actual) = (snapshot(&tree.source()), snapshot(&above.path));
    let changed: HashSet<_> = changed.iter().map(|name| name.as_bytes()).collect();
    for (path, content) in &expected {
        if !changed.contains(&path[..]) {
            assert_eq!(actual.get(path), Some(content), "{}", path.escape_ascii());
        }
    }
    // And below, nothing has changed at all.
    assert!(snapshot(&tree.mount.path) == expected);
}

/// Writing `one` once changed `two`, which was equal; empty files and lock files changed together, executables and what
/// lies in equal directories too.
fn writes_stay_apart(options: &str) {
    let tree = Tree::of_twins();
    let above = Above::overlay(&tree, options);
    // All are looked up and one is open before the first write.
    let before = snapshot(&above.path);
    assert!(before == snapshot(&tree.source()));
    let mut open = File::open(above.at("sub/three")).unwrap();
    above.write("one", "CHANGED");
    assert_eq!(above.read("two"), "equal\n");
    assert_eq!(above.read("sub/three"), "equal\n");
    above.write("pkg/__init__.py", "import this");
    above.write("x.lock", "123");
    above.write("tool-a", "#!/bin/false\n");
    above.write("same-a/inner/file", "else");
    let appended = File::options().append(true).open(above.at("two"));
    appended.unwrap().write_all(b"more").unwrap();
    assert_eq!(above.read("one"), "CHANGED");
    assert_eq!(above.read("two"), "equal\nmore");
    assert_eq!(above.read("y.lock"), "");
    assert_eq!(above.read("same-a/inner/twin"), "below\n");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "equal\n");
    drop(open);
    let mut changed = vec!["one", "two", "pkg/__init__.py", "x.lock", "tool-a"];
    changed.push("same-a/inner/file");
    assert_rest(&above, &tree, &changed);
    above.assert_upper_has_no_hard_links();
    drop(above);
    tree.mount.stop();
}

fn names_come_and_go(options: &str) {
    let tree = Tree::of_twins();
    let above = Above::overlay(&tree, options);
    let before = snapshot(&above.path);
    assert!(before == snapshot(&tree.source()));
    fs::remove_file(above.at("one")).unwrap();
    assert_eq!(above.read("two"), "equal\n");
    fs::rename(above.at("two"), above.at("moved")).unwrap();
    fs::rename(above.at("x.lock"), above.at("lib/x.lock")).unwrap();
    fs::set_permissions(
        above.at("tool-a"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    above.write("moved", "other");
    above.write("lib/x.lock", "locked");
    fs::hard_link(above.at("sub/three"), above.at("linked")).unwrap();
    above.write("linked", "of both");
    fs::remove_dir_all(above.at("same-b")).unwrap();
    fs::write(above.at("same-a/inner/new"), "new").unwrap();
    let read = |name| above.read(name);
    assert_eq!(read("sub/three"), "of both");
    assert_eq!(read("y.lock"), "");
    assert_eq!(read("same-a/inner/twin"), "below\n");
    let gone = ["one", "two", "x.lock", "tool-a", "sub/three"];
    let below = [
        "same-b",
        "same-b/inner",
        "same-b/inner/file",
        "same-b/inner/twin",
    ];
    let more = ["same-b/empty", "same-b/link"];
    assert_rest(&above, &tree, &[&gone[..], &below, &more].concat());
    for name in ["one", "two", "x.lock", "same-b", "sub/same-a/inner/new"] {
        let error = fs::symlink_metadata(above.at(name)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}");
    }
    // A directory that was made anew, where an equal one is left.
    fs::create_dir(above.at("same-b")).unwrap();
    assert_eq!(fs::read_dir(above.at("same-b")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(above.at("sub/same-a/inner")).unwrap().count(),
        2
    );
    drop(above);
    tree.mount.stop();
}

/// The kernel's log from now on.
struct Log(File);

impl Log {
    fn new() -> Self {
        let mut log = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .unwrap();
        std::io::Seek::seek(&mut log, std::io::SeekFrom::End(0)).unwrap();
        Self(log)
    }

    fn read(&mut self) -> String {
        let mut text = String::new();
        let mut record = vec![0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(len) => text.push_str(&String::from_utf8_lossy(&record[..len])),
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return text,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Names that no other test has, as the log has the last two parts of a path.
fn probes(root: &Path) {
    twins(root);
    for number in 0..12 {
        let name = format!("xino-probe/probe-{number}");
        file(root, &name, format!("{number}").as_bytes(), false);
        file(
            root,
            &format!("xino-probe/d{number}/probe"),
            b"equal\n",
            false,
        );
    }
}

/// overlayfs keeps the layer in the upper bits: of numbers that need them the kernel says "inode number too big", and
/// `du -x` once showed 2 of 14 entries.
fn assert_fits(above: &Above, tree: &Tree, log: &mut Log) {
    let device = fs::metadata(&above.path).unwrap().dev();
    let mut numbers = BTreeMap::new();
    for path in tree.paths() {
        let stat = fs::symlink_metadata(above.path.join(&path)).unwrap();
        assert_eq!(stat.dev(), device, "{path:?} is on a device of its own");
        let other = numbers.insert(stat.ino(), path.clone());
        assert!(other.is_none(), "{path:?} and {other:?}");
    }
    let listed = shell(&above.path, "du -ax .");
    assert_eq!(listed.lines().count(), tree.paths().len() + 1, "{listed}");
    let found = shell(&above.path, "find . -xdev");
    assert_eq!(found.lines().count(), tree.paths().len() + 1, "{found}");
    let said = log.read();
    let ours = said
        .lines()
        .find(|line| line.contains("inode number too big") && line.contains("probe"));
    assert_eq!(ours, None);
}

fn numbers_fit_xino() {
    let mut log = Log::new();
    let tree = Tree::of(&[], probes);
    let above = Above::overlay(&tree, ",xino=on");
    assert_fits(&above, &tree, &mut log);
    // A copy that was made above keeps the number that it had.
    let number = |name| fs::metadata(above.at(name)).unwrap().ino();
    let (one, two) = (number("one"), number("two"));
    above.write("one", "CHANGED");
    assert_eq!((number("one"), number("two")), (one, two));
    drop(above);
    tree.mount.stop();
}

/// Two mounts as layers, nothing above them.
fn read_only_with_xino() {
    let mut log = Log::new();
    let tree = Tree::of(&[], probes);
    let second = tree.mount_again("second", &[&tree.digest]);
    let merged = tree.dir("merged");
    let above = Above {
        upper: tree.dir("unused"),
        path: merged.clone(),
        disk: None,
        daemon: None,
    };
    let options = format!(
        "lowerdir={}:{},xino=on",
        tree.mount.path.display(),
        second.path.display()
    );
    let mut command = Command::new("mount");
    command.args(["-t", "overlay", "overlay", "-o", &options]);
    command.arg(&merged);
    run_command(command);
    assert_fits(&above, &tree, &mut log);
    assert!(snapshot(&merged) == snapshot(&tree.source()));
    drop(above);
    second.stop();
    tree.mount.stop();
}

/// overlayfs keeps its index by file handles, which a mount has none of: it is mounted without one, and the kernel's log says so.
fn index_falls_back() {
    let mut log = Log::new();
    let tree = Tree::of_twins();
    let above = Above::overlay(&tree, ",index=on");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = format!(" {} overlay ", above.path.display());
    let options = mounts.lines().find(|line| line.contains(&path)).unwrap();
    assert!(!options.contains("index=on"), "{options}");
    let said = log.read();
    let lower = tree.mount.path.display().to_string();
    let ours = said.lines().find(|line| line.contains(&lower));
    let ours = ours.unwrap_or_else(|| panic!("the kernel says nothing: {said}"));
    assert!(
        ours.contains("does not support file handles") && ours.contains("index=off"),
        "{ours}"
    );
    // It is an overlay like any other.
    above.write("one", "CHANGED");
    assert_eq!(above.read("two"), "equal\n");
    drop(above);
    // Above a directory that has file handles the index stays on, so the kernel knows the option.
    let above = Above::of(&tree, &tree.scratch.path("disk/lower"), ",index=on");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let options = mounts.lines().find(|line| line.contains(&path)).unwrap();
    assert!(options.contains("index=on"), "{options}");
    drop(above);
    tree.mount.stop();
}

/// fuse-overlayfs once lost the second of two equal directories.
fn fuse_overlayfs_lists_both() {
    let tree = Tree::of_twins();
    let above = Above::fuse_overlayfs(&tree);
    assert_eq!(paths(&above.path), tree.paths());
    assert!(snapshot(&above.path) == snapshot(&tree.source()));
    drop(above);
    tree.mount.stop();
}

fn fuse_overlayfs_writes_stay_apart() {
    let tree = Tree::of_twins();
    let above = Above::fuse_overlayfs(&tree);
    for dir in ["same-a/inner", "same-b/inner", "sub/same-a/inner"] {
        assert_eq!(fs::read_dir(above.at(dir)).unwrap().count(), 2, "{dir}");
    }
    above.write("same-a/inner/file", "else");
    above.write("one", "CHANGED");
    above.write("x.lock", "123");
    fs::write(above.at("same-a/inner/new"), "new").unwrap();
    fs::remove_file(above.at("same-b/inner/twin")).unwrap();
    // Attributes are kept for a second.
    thread::sleep(Duration::from_millis(1100));
    let count = |dir: &str| fs::read_dir(above.at(dir)).unwrap().count();
    assert_eq!(count("same-a/inner"), 3);
    assert_eq!(count("same-b/inner"), 1);
    assert_eq!(count("sub/same-a/inner"), 2);
    assert_eq!(above.read("same-b/inner/file"), "below\n");
    assert_eq!(above.read("two"), "equal\n");
    assert_eq!(above.read("y.lock"), "");
    let changed = ["same-a/inner/file", "one", "x.lock", "same-b/inner/twin"];
    assert_rest(&above, &tree, &changed);
    above.assert_upper_has_no_hard_links();
    drop(above);
    tree.mount.stop();
}
