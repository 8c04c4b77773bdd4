//! What commands do with mounts whose process hangs or is gone. None of them may look at such a mount.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use super::{Background, Fusectl, as_user, prepared, soon};
use crate::support::{self, Scratch, eventually, failed, is_mounted, succeeded};

fn command(scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = scratch.command(args);
    command.arg(scratch.mnt());
    command
}

fn status(scratch: &Scratch) -> String {
    succeeded(&soon(scratch.command(["status"])))
}

fn status_json(scratch: &Scratch) -> serde_json::Value {
    let json = succeeded(&soon(scratch.command(["status", "--json"])));
    serde_json::from_str(&json).unwrap()
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_whose_process_is_stopped_is_named_and_not_waited_for() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let mnt = scratch.mnt();
    mount.signal(libc::SIGSTOP);
    let force = format!("castore unmount --force {}", mnt.display());
    let text = status(&scratch);
    for part in [
        &format!("mount {} does not answer", mnt.display()),
        &format!("process {} is stopped", mount.pid),
        &force,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = status_json(&scratch);
    assert_eq!(json["silent"][0]["pid"], mount.pid);
    assert_eq!(json["silent"][0]["mountpoint"], mnt.to_str().unwrap());
    assert!(json["silent"][0]["since"].as_u64().unwrap() > 0);
    assert!(json["silent"][0]["for_seconds"].is_u64());
    assert_eq!(json["mounts"].as_array().unwrap().len(), 0);
    let below = mnt.join("sub");
    let mut switch = scratch.command(["switch".as_ref(), mnt.as_os_str()]);
    switch.arg("tree");
    let mut mount_below = scratch.command(["mount", "tree"]);
    mount_below.arg(&below);
    let mut trace = scratch.command(["trace", "--for", "1s", "--output"]);
    trace.arg(scratch.path("trace.svg")).arg(&mnt);
    let all = [
        ("unmount", command(&scratch, &["unmount"])),
        ("mount", command(&scratch, &["mount", "tree"])),
        ("mount below", mount_below),
        ("switch", switch),
        ("trace", trace),
    ];
    for (what, command) in all {
        let error = failed(&soon(command));
        let pid = format!("process {}", mount.pid);
        assert!(
            error.contains(&force) && error.contains(&pid),
            "{what}: {error}"
        );
    }
    assert!(is_mounted(&mnt));
    // It has lost nothing by that.
    mount.signal(libc::SIGCONT);
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"Hello World");
    succeeded(&soon(command(&scratch, &["unmount"])));
    assert!(!is_mounted(&mnt) && !mount.is_alive());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_stopped_mount_is_detached_lazily() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    mount.signal(libc::SIGSTOP);
    let output = soon(command(&scratch, &["unmount", "--lazy"]));
    succeeded(&output);
    assert!(!is_mounted(&scratch.mnt()));
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        note.contains(&format!("process {} is stopped", mount.pid)),
        "{note}"
    );
    // It still is somewhere, so it is named, with another command.
    let text = status(&scratch);
    assert!(
        text.contains(&format!("kill -KILL {}", mount.pid)),
        "{text}"
    );
    mount.signal(libc::SIGCONT);
    eventually("the process ends", || !mount.is_alive());
}

/// Takes a mount away by force while a program reads from it and its process is stopped.
fn by_force(scratch: &Scratch) {
    let mount = Background::start(scratch);
    let registered = mount.registered();
    assert!(registered.exists());
    mount.signal(libc::SIGSTOP);
    let file = scratch.mnt().join("large");
    let reader = thread::spawn(move || fs::read(file).unwrap_err());
    let output = soon(command(scratch, &["unmount", "--force"]));
    succeeded(&output);
    assert!(!is_mounted(&scratch.mnt()));
    let error = support::within(super::HANGS, "a reader", move || reader.join().unwrap());
    let errno = error.raw_os_error().unwrap();
    // The last: it had not opened the file yet.
    let expected = [libc::ECONNABORTED, libc::ENOTCONN, libc::ENOENT];
    assert!(expected.contains(&errno), "{error}");
    eventually("the process is gone", || !mount.is_alive());
    // Nothing is left of it.
    assert!(!registered.exists());
    let json = status_json(scratch);
    for list in ["mounts", "silent", "dead"] {
        assert_eq!(json[list].as_array().unwrap().len(), 0, "{json}");
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_stopped_mount_is_taken_away_by_force() {
    by_force(&prepared());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_stopped_mount_is_taken_away_through_fusectl() {
    let scratch = prepared();
    let control = Fusectl::mount(scratch.path("control"));
    by_force(&scratch);
    drop(control);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_that_answers_is_taken_away_by_force_and_ends_by_itself() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let file = fs::File::open(scratch.mnt().join("large")).unwrap();
    let output = soon(command(&scratch, &["unmount", "--force"]));
    succeeded(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(!is_mounted(&scratch.mnt()));
    drop(file);
    eventually("the process ends", || !mount.is_alive());
    let log = fs::read_to_string(scratch.path("cache/castore.log")).unwrap();
    assert!(log.contains("unmounted"), "{log}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn an_ordinary_user_takes_a_stopped_mount_away_by_force() {
    // Neither fusectl nor MNT_FORCE is for such a user, so the process is ended.
    let output = as_user(
        &prepared(),
        r"
        ./castore mount tree mnt
        pid=$(echo .cache/castore/mounts/*.sock); pid=${pid##*/}; pid=${pid%.sock}
        test -e /tmp/castore-65534/0-*.json
        kill -STOP $pid
        timeout 10 ./castore status
        if timeout 10 ./castore unmount mnt; then exit 3; fi
        timeout 10 ./castore unmount --force mnt
        if grep ' /tmp/home/mnt ' /proc/self/mounts; then exit 4; fi
        if grep -v ') Z ' /proc/$pid/stat; then exit 5; fi
        if test -e /tmp/castore-65534/0-*.json; then exit 6; fi
        ",
    );
    let text = succeeded(&output);
    assert!(text.contains("does not answer"), "{text}");
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(note.contains("ended process"), "{note}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn status_names_the_command_that_mends_a_dead_mount() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let registered = mount.registered();
    mount.signal(libc::SIGKILL);
    eventually("the process is gone", || !mount.is_alive());
    let text = status(&scratch);
    let mend = format!("castore unmount --lazy {}", scratch.mnt().display());
    assert!(text.contains("is dead") && text.contains(&mend), "{text}");
    let json = status_json(&scratch);
    assert_eq!(json["dead"][0]["pid"], mount.pid);
    assert!(json["dead"][0]["mend"].as_str().unwrap().contains(&mend));
    // It does what it says.
    succeeded(&soon(command(&scratch, &["unmount", "--lazy"])));
    assert!(!is_mounted(&scratch.mnt()), "it is mounted");
    assert!(!registered.exists(), "it is registered");
    assert!(!status(&scratch).contains("dead"));
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_is_registered_while_it_is_there() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let registered = mount.registered();
    let json = fs::read(&registered.file).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["pid"], mount.pid);
    assert_eq!(json["mountpoint"], scratch.mnt().to_str().unwrap());
    let cache = scratch.path("cache").canonicalize().unwrap();
    assert_eq!(json["cache_dir"], cache.to_str().unwrap());
    // Without a word about the cache, and none about extended attributes.
    let mut switch = scratch.command(["switch".as_ref(), scratch.mnt().as_os_str()]);
    switch.arg("tree").env_remove("CASTORE_CACHE_DIR");
    succeeded(&support::output(switch));
    let mut all = scratch.command(["status"]);
    all.env_remove("CASTORE_CACHE_DIR");
    let text = succeeded(&support::output(all));
    assert!(text.contains(scratch.mnt().to_str().unwrap()), "{text}");
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
    assert!(!registered.exists());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_in_the_place_of_an_old_one_stays() {
    // The kernel gives the new mount the device number of the old one, whose process finds it when it goes on.
    let scratch = prepared();
    let mut old = scratch.mount(["tree"]);
    fs::read(old.at("hello")).unwrap();
    support::signal(&old.child, libc::SIGSTOP);
    support::detach(&scratch.mnt());
    // A process that is stopped in the middle of a write keeps the index of its cache locked.
    let cache = scratch.path("another-cache");
    let options = ["--cache-dir".as_ref(), cache.as_os_str(), "tree".as_ref()];
    let new = scratch.mount(options);
    support::signal(&old.child, libc::SIGCONT);
    let ended = support::wait(&mut old.child, support::DEADLINE);
    assert!(ended.is_some_and(|status| status.success()));
    assert_eq!(fs::read(new.at("large")).unwrap().len(), 5_000_001);
    new.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn switch_warns_of_an_overlay_above() {
    // An overlay keeps what it has seen of the directories below it.
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let (other, above) = (scratch.path("other"), scratch.path("above"));
    fs::create_dir(&other).unwrap();
    let switch = || {
        let mut switch = scratch.command(["switch".as_ref(), scratch.mnt().as_os_str()]);
        switch.arg("tree");
        let output = support::output(switch);
        succeeded(&output);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(switch(), "");
    let overlay = Overlay::mount(above, &scratch.mnt(), &other);
    let warning = switch();
    assert!(
        warning.contains("overlay") && warning.contains("above"),
        "{warning}"
    );
    drop((overlay, mount));
}

struct Overlay(PathBuf);

impl Overlay {
    fn mount(path: PathBuf, upper: &Path, lower: &Path) -> Self {
        fs::create_dir(&path).unwrap();
        let dirs = format!("ro,lowerdir={}:{}", upper.display(), lower.display());
        let mut command = Command::new("mount");
        command
            .args(["-t", "overlay", "overlay", "-o", &dirs])
            .arg(&path);
        succeeded(&support::output(command));
        Self(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        support::detach(&self.0);
    }
}
