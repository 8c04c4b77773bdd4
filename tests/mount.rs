//! Mounting, unmounting and everything around it: the command line as a user meets it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use support::{Scratch, detach, eventually, is_mounted, tree, within};

/// A scratch directory with an imported tree named `tree`, and its digest.
fn prepared() -> (Scratch, String) {
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
    let digest = scratch.ok(args).trim().to_owned();
    (scratch, digest)
}

/// A mount in the background. Taken down also when the test fails.
struct Background<'a> {
    scratch: &'a Scratch,
    pid: i32,
}

impl<'a> Background<'a> {
    fn start(scratch: &'a Scratch, args: &[&str]) -> Self {
        let mnt = scratch.mnt();
        let all = ["mount"].iter().chain(args).map(AsRef::as_ref);
        assert_eq!(scratch.ok(all.chain([mnt.as_os_str()])), "");
        assert!(is_mounted(&mnt), "it returned before the mount was there");
        let status = scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let pid = status["mounts"][0]["pid"].as_i64().unwrap();
        Self {
            scratch,
            pid: i32::try_from(pid).unwrap(),
        }
    }

    fn is_alive(&self) -> bool {
        // One that has ended and was not waited for by its new parent yet is a zombie.
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        let mounts = self.scratch.path("cache/mounts");
        if mounts.join(format!("{}.sock", self.pid)).exists() {
            // SAFETY: a system call; the socket says that the process is the mount's.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        detach(&self.scratch.mnt());
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn in_the_background() {
    let (scratch, digest) = prepared();
    let mount = Background::start(&scratch, &["tree"]);
    tree::assert_equal(&scratch.path("source"), &scratch.mnt());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mnt = scratch.mnt();
    let line = mounts
        .lines()
        .find(|line| line.contains(mnt.to_str().unwrap()))
        .unwrap();
    assert!(
        line.starts_with("tree ") && line.contains(" fuse.castore ro,nosuid,nodev"),
        "{line}"
    );
    // Root lets others in by default.
    assert!(line.contains("allow_other"), "{line}");
    let status = scratch.ok(["status"]);
    assert!(
        status.contains(&digest) && status.contains("of tree"),
        "{status}"
    );
    assert!(status.contains(&scratch.remote()), "{status}");
    // It does not hold the directory it was started in, nor a terminal.
    let cwd = fs::read_link(format!("/proc/{}/cwd", mount.pid)).unwrap();
    assert_eq!(cwd, Path::new("/"));
    scratch.ok(["unmount".as_ref(), mnt.as_os_str()]);
    assert!(!is_mounted(&mnt) && !mount.is_alive());
    assert!(scratch.path("cache/castore.log").exists());
    assert!(
        scratch
            .fails(["unmount".as_ref(), mnt.as_os_str()])
            .contains("nothing is mounted")
    );
}

#[test]
#[ignore = "needs /dev/fuse"]
fn command_substitution_does_not_hang() {
    let (scratch, _) = prepared();
    let mut command = scratch.command(Vec::<String>::new());
    let script = format!(
        "x=$({} mount tree mnt 2>&1); echo \"done$x\"",
        env!("CARGO_BIN_EXE_castore")
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(scratch.dir.path());
    shell.envs(
        command
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let _ = command.stdin(Stdio::null());
    let output = support::output(shell);
    assert_eq!(support::succeeded(&output), "done\n");
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn signals_unmount() {
    let (scratch, _) = prepared();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut mount = scratch.mount(["tree"]);
        fs::read(mount.at("hello")).unwrap();
        support::signal(&mount.child, signal);
        let status = support::wait(&mut mount.child, Duration::from_secs(20)).unwrap();
        assert!(status.success() && !is_mounted(&scratch.mnt()));
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn unmounting_from_outside_ends_the_process() {
    let (scratch, _) = prepared();
    for program in [&["umount"][..], &["fusermount3", "-u"]] {
        let mut mount = scratch.mount(["tree"]);
        fs::read(mount.at("hello")).unwrap();
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(&mount.path);
        support::succeeded(&support::output(command));
        let status = support::wait(&mut mount.child, Duration::from_secs(20));
        assert!(
            status.expect("the process goes on").success(),
            "{program:?}"
        );
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_busy_mount_is_told_and_can_be_detached() {
    let (scratch, _) = prepared();
    let mount = Background::start(&scratch, &["tree"]);
    let mnt = scratch.mnt();
    let file = fs::File::open(mnt.join("large")).unwrap();
    let error = scratch.fails(["unmount".as_ref(), mnt.as_os_str()]);
    assert!(
        error.contains("in use") && error.contains("--lazy"),
        "{error}"
    );
    assert!(is_mounted(&mnt));
    scratch.ok(["unmount".as_ref(), "--lazy".as_ref(), mnt.as_os_str()]);
    assert!(!is_mounted(&mnt));
    // Who still has a file open goes on reading.
    assert!(mount.is_alive());
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &file, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 5_000_001);
    drop(file);
    eventually("the process ends", || !mount.is_alive());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_dead_mount_is_replaced() {
    let (scratch, _) = prepared();
    let mut mount = scratch.mount(["tree"]);
    support::signal(&mount.child, libc::SIGKILL);
    support::wait(&mut mount.child, Duration::from_secs(20)).unwrap();
    // The kernel may still answer a `stat` by itself; whatever it has to ask for fails.
    let error = fs::read(mount.at("hello")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let mnt = scratch.mnt();
    let output = scratch.run(["mount".as_ref(), "tree".as_ref(), mnt.as_os_str()]);
    support::succeeded(&output);
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(note.contains("detached a dead mount"), "{note}");
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"Hello World");
    scratch.ok(["unmount".as_ref(), mnt.as_os_str()]);
    // A dead mount can also just be unmounted.
    let mut mount = scratch.mount(["tree"]);
    support::signal(&mount.child, libc::SIGKILL);
    support::wait(&mut mount.child, Duration::from_secs(20)).unwrap();
    scratch.ok(["unmount".as_ref(), mnt.as_os_str()]);
    assert!(!is_mounted(&mnt));
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_daemon_that_is_killed_while_it_mounts_ends() {
    // It once looked at its own mount to see whether that answers, and killed at that moment it never ended.
    let (scratch, _) = prepared();
    for _ in 0..10 {
        let mut mount = scratch.mount(["tree"]);
        support::signal(&mount.child, libc::SIGKILL);
        let ended = support::wait(&mut mount.child, Duration::from_secs(10));
        assert!(ended.is_some(), "it does not end");
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn an_old_mount_leaves_a_new_one_alone() {
    // Detached while in use, then mounted again on the same path: the old process must not unmount the new mount.
    let (scratch, _) = prepared();
    let mut old = scratch.mount(["tree"]);
    let file = fs::File::open(old.at("hello")).unwrap();
    let mnt = scratch.mnt();
    scratch.ok(["unmount".as_ref(), "--lazy".as_ref(), mnt.as_os_str()]);
    let new = scratch.mount(["tree"]);
    support::signal(&old.child, libc::SIGTERM);
    let ended = support::wait(&mut old.child, Duration::from_secs(20));
    assert!(ended.is_some_and(|status| status.success()));
    assert_eq!(fs::read(new.at("hello")).unwrap(), b"Hello World");
    drop(file);
    new.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn unmounting_waits_for_the_cache() {
    let (scratch, _) = prepared();
    let mount = Background::start(&scratch, &["tree"]);
    fs::read(scratch.mnt().join("large")).unwrap();
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
    assert!(!mount.is_alive());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn bad_mount_points_and_roots() {
    let (scratch, digest) = prepared();
    let mnt = scratch.mnt();
    let mnt = mnt.to_str().unwrap();
    let fails = |args: &[&str], parts: &[&str]| {
        let error = scratch.fails(["mount"].iter().chain(args));
        for part in parts {
            assert!(error.contains(part), "{args:?}: {error}");
        }
        let foreground = scratch.fails(["mount", "--foreground"].iter().chain(args));
        assert!(
            parts.iter().all(|part| foreground.contains(part)),
            "{foreground}"
        );
        assert!(!is_mounted(Path::new(mnt)));
    };
    let path = |name: &str| scratch.path(name).to_str().unwrap().to_owned();
    fails(&["tree", &path("absent")], &["absent", "does not exist"]);
    fails(&["tree", &path("no/such/parent")], &["no/such"]);
    fs::write(scratch.path("file"), b"").unwrap();
    fails(&["tree", &path("file")], &["not a directory"]);
    fails(&["tree", &path("source")], &["not empty"]);
    fs::create_dir_all(scratch.path("cache/inside")).unwrap();
    fails(
        &["tree", &path("cache/inside")],
        &["inside the cache directory"],
    );
    fails(
        &["tree", scratch.dir.path().to_str().unwrap()],
        &["below the mount point"],
    );
    fails(&["b3:abc", mnt], &["not a digest"]);
    fails(
        &["unknown", mnt],
        &["unknown", "not known", "castore roots"],
    );
    fails(&["tree/deep", mnt], &["path after the root"]);
    let absent = castore::model::Digest::of(b"absent").to_string();
    fails(
        &[&absent, mnt],
        &["there is no directory", &absent, "--remote"],
    );
    fails(
        &["--remote", "ftp://x", "tree", mnt],
        &["ftp://x", "objectstore+file"],
    );
    fails(&["tree"], &["a root and a mount point"]);
    fails(&["--all", "tree", mnt], &["--all takes a mount point"]);
    fails(&["--owner", "me", "tree", mnt], &["--owner"]);
    fails(
        &["--cache-size", "12 parsecs", "tree", mnt],
        &["not a size"],
    );
    fails(&["--cache-size", "1MiB", "tree", mnt], &["too small"]);
    // What cannot be written, even by root.
    fails(
        &["--cache-dir", "/proc/castore", "tree", mnt],
        &["/proc/castore"],
    );
    // A digest in any of its forms.
    let digest: castore::model::Digest = digest.parse().unwrap();
    let base64 = digest.to_string().replace("b3:", "blake3-");
    for root in [digest.to_hex(), base64] {
        let mount = scratch.mount([root]);
        assert_eq!(fs::read(mount.at("hello")).unwrap(), b"Hello World");
        // Two mounts on one point, and on one that is a symlink to it.
        symlink(mnt, scratch.path("to-mnt")).unwrap();
        let to_mnt = path("to-mnt");
        for again in [mnt, &to_mnt] {
            let error = scratch.fails(["mount", "tree", again]);
            assert!(
                error.contains("already") && error.contains("fuse.castore"),
                "{error}"
            );
        }
        fs::remove_file(to_mnt).unwrap();
        mount.stop();
    }
    // A name whose tree is not there, and a cache of a newer schema.
    fs::rename(scratch.path("store/dirs"), scratch.path("store/gone")).unwrap();
    scratch.clear_cache();
    fails(&["tree", mnt], &["stands for b3:", "not there"]);
    fs::rename(scratch.path("store/gone"), scratch.path("store/dirs")).unwrap();
    let index = rusqlite::Connection::open(scratch.path("cache/index.sqlite")).unwrap();
    index.pragma_update(None, "user_version", 1000).unwrap();
    fails(&["tree", mnt], &["newer castore", "1000", "upgrade"]);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn one_cache_for_two_processes() {
    let (scratch, digest) = prepared();
    let other = scratch.path("other");
    fs::create_dir(&other).unwrap();
    let first = scratch.mount([&digest]);
    let args = [
        "mount".as_ref(),
        "--foreground".as_ref(),
        digest.as_ref(),
        other.as_os_str(),
    ];
    let second = support::Mount::start(scratch.command(args), &other);
    let readers: Vec<_> = [&first.path, &second.path, &first.path, &second.path]
        .into_iter()
        .map(|path| {
            let (path, source) = (path.clone(), scratch.path("source"));
            std::thread::spawn(move || tree::assert_equal(&source, &path))
        })
        .collect();
    for reader in readers {
        reader.join().unwrap();
    }
    let status = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["mounts"].as_array().unwrap().len(), 2);
    assert_eq!(
        status["cache"]["counters"]["damaged_chunks"],
        serde_json::Value::Null
    );
    first.stop();
    tree::assert_equal(&scratch.path("source"), &second.path);
    second.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn as_mount_castore() {
    let (scratch, _) = prepared();
    let link = scratch.path("mount.castore");
    symlink(env!("CARGO_BIN_EXE_castore"), &link).unwrap();
    let envs = scratch.command(Vec::<String>::new());
    let mut command = Command::new(&link);
    command.envs(
        envs.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    command.arg("tree").arg(scratch.mnt());
    command.args([
        "-o",
        "rw,nofail,_netdev,x-systemd.automount,list_root=false,memory=64MiB",
    ]);
    support::succeeded(&support::output(command));
    assert_eq!(
        fs::read(scratch.mnt().join("hello")).unwrap(),
        b"Hello World"
    );
    let listed = fs::read_dir(scratch.mnt()).and_then(|mut entries| entries.next().unwrap());
    assert!(listed.is_err(), "list_root=false was not taken");
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn systemd_is_told() {
    // What `Type=notify` waits for.
    let (scratch, _) = prepared();
    let socket = std::os::unix::net::UnixDatagram::bind(scratch.path("notify")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut command = scratch.command(["mount", "--foreground", "tree"]);
    command
        .arg(scratch.mnt())
        .env("NOTIFY_SOCKET", scratch.path("notify"));
    let mount = support::Mount::start(command, &scratch.mnt());
    let receive = || {
        let mut message = [0; 100];
        let len = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    mount.stop();
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn an_ordinary_user() {
    // In a mount namespace of its own, /dev/fuse is one that anybody may open.
    let (scratch, digest) = prepared();
    let base = scratch.dir.path();
    fs::set_permissions(base, fs::Permissions::from_mode(0o777)).unwrap();
    // The target directory may be below a home that nobody else may enter, so the user gets what it needs elsewhere.
    let home = tempfile::Builder::new()
        .prefix("castore-user-")
        .tempdir_in("/var/tmp")
        .unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let script = format!(
        r#"set -eu
        mknod {home}/fuse c 10 229 && chmod 666 {home}/fuse && mount --bind {home}/fuse /dev/fuse
        cp -r {store} {home}/store && chmod -R a+rX {home}/store && cp {castore} {home}/castore
        mkdir {home}/mnt && chown 65534:65534 {home}/mnt
        cat > {home}/work <<'END'
        set -eu
        cd {home}
        ./castore mount --cache-size 64MiB --min-free 0 {digest} mnt
        grep -q ' {home}/mnt fuse.castore ro,nosuid,nodev' /proc/self/mounts
        if grep ' {home}/mnt ' /proc/self/mounts | grep allow_other; then exit 7; fi
        cat mnt/hello
        ./castore status
        ./castore unmount mnt
        if grep ' {home}/mnt ' /proc/self/mounts; then exit 8; fi
        if ./castore mount --allow-other {digest} mnt 2>error; then exit 9; fi
        cat error
END
        exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$PATH" HOME={home} XDG_RUNTIME_DIR={home} \
            CASTORE_REMOTE=objectstore+file://{home}/store sh {home}/work"#,
        home = home.path().display(),
        store = scratch.path("store").display(),
        castore = env!("CARGO_BIN_EXE_castore"),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let output = support::output(command);
    let text = support::succeeded(&output);
    assert!(text.starts_with("Hello World"), "{text}");
    assert!(text.contains("user_allow_other"), "{text}");
    // The cache is the user's own, where XDG says.
    assert!(home.path().join(".cache/castore/index.sqlite").exists());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn under_sudo_the_users_own_store_is_named() {
    // In a mount namespace of its own, /etc/passwd has a user whose home is the scratch directory.
    let (scratch, _) = prepared();
    let home = scratch.path("home");
    let store = home.join(".local/share/castore");
    fs::create_dir_all(&store).unwrap();
    fs::rename(scratch.path("store"), store.join("store")).unwrap();
    let passwd = format!(
        "root:x:0:0::/root:/bin/sh\nada:x:1000:1000::{}:/bin/sh\n",
        home.display()
    );
    fs::write(scratch.path("passwd"), passwd).unwrap();
    let script = format!(
        "mount --bind {passwd} /etc/passwd && exec {castore} mount tree {mnt}",
        passwd = scratch.path("passwd").display(),
        castore = env!("CARGO_BIN_EXE_castore"),
        mnt = scratch.mnt().display(),
    );
    let envs = scratch.command(Vec::<String>::new());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command.envs(
        envs.get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    command.env("SUDO_USER", "ada");
    fs::create_dir(scratch.path("store")).unwrap();
    let error = support::failed(&support::output(command));
    let remote = format!(
        "--remote objectstore+file://{}",
        store.join("store").display()
    );
    assert!(error.contains(&remote), "{error}");
}

#[test]
fn the_systemd_unit_is_valid() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/castore@.service");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(text.contains("Type=notify") && text.contains("mount --foreground"));
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        return;
    }
    // An instance of it whose program is there.
    let scratch = Scratch::new();
    let instance = scratch.path("castore@tree.service");
    fs::write(
        &instance,
        text.replace("/usr/local/bin/castore", env!("CARGO_BIN_EXE_castore")),
    )
    .unwrap();
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--man=no").arg(&instance);
    let output = support::output(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("castore@"))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_program_runs_from_the_mount() {
    let (scratch, _) = prepared();
    let source = scratch.path("programs");
    fs::create_dir(&source).unwrap();
    fs::copy("/bin/ls", source.join("ls")).unwrap();
    tree::file(&source, "script", b"#!/bin/sh\necho from a script\n", true);
    let digest = scratch.import(&source);
    let mount = scratch.mount([&digest]);
    let output = |name: &str| {
        let mut command = Command::new(mount.at(name));
        command.arg(&mount.path);
        support::succeeded(&support::output(command))
    };
    assert_eq!(output("ls"), "ls\nscript\n");
    assert_eq!(output("script"), "from a script\n");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_killed_mount_loses_nothing() {
    let (scratch, digest) = prepared();
    for round in 0..5 {
        let mut mount = scratch.mount([&digest]);
        let (path, source) = (mount.path.clone(), scratch.path("source"));
        let reader = std::thread::spawn(move || {
            let _ = std::panic::catch_unwind(|| tree::assert_equal(&source, &path));
        });
        std::thread::sleep(Duration::from_millis(20 + 60 * round));
        support::signal(&mount.child, libc::SIGKILL);
        support::wait(&mut mount.child, Duration::from_secs(20)).unwrap();
        drop(mount);
        within(Duration::from_secs(60), "a reader of a dead mount", || {
            reader.join().unwrap();
        });
    }
    let mount = scratch.mount([&digest]);
    tree::assert_equal(&scratch.path("source"), &mount.path);
    mount.stop();
    let status = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        status["cache"]["counters"]["damaged_chunks"],
        serde_json::Value::Null
    );
}

#[test]
#[ignore = "needs /dev/fuse"]
fn mounting_costs_the_same_however_full_the_cache_is() {
    // Nothing is scanned: a cache whose data files are all unreadable mounts at once. Counted in opened files, not in
    // time.
    let (scratch, digest) = prepared();
    let mount = scratch.mount([&digest]);
    tree::assert_equal(&scratch.path("source"), &mount.path);
    mount.stop();
    let mount = scratch.mount([&digest]);
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.child.id())).unwrap();
    let data = scratch.path("cache/data");
    let open_data = fds
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter(|target| target.parent() == Some(&data))
        .count();
    assert_eq!(open_data, 0);
    mount.stop();
}
