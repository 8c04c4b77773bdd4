//! Odd users, directories and clocks.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Command,
};

use super::{Background, as_user, prepared};
use crate::support::{self, is_mounted, succeeded};

#[test]
#[ignore = "needs /dev/fuse"]
fn the_mount_of_an_ordinary_user_is_theirs() {
    let output = as_user(
        &prepared(),
        r"
        ./castore mount tree mnt
        stat -c %u:%g mnt mnt/hello
        ./castore unmount mnt
        ./castore mount --owner 1:2 tree mnt
        stat -c %u:%g mnt/hello
        ./castore unmount mnt
        ",
    );
    assert_eq!(succeeded(&output), "65534:65534\n65534:65534\n1:2\n");
    let scratch = prepared();
    let _mount = Background::start(&scratch);
    let metadata = fs::metadata(scratch.mnt().join("hello")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
}

/// git refuses a work tree that belongs to somebody else, as each mount of an ordinary user once was root's.
#[test]
#[ignore = "needs /dev/fuse"]
fn git_takes_the_mount_of_an_ordinary_user() {
    let scratch = prepared();
    let repository = scratch.path("repository");
    fs::create_dir(&repository).unwrap();
    let script = "git init -q . && echo tracked > file && git add file &&
        git -c user.name=n -c user.email=e commit -q -m message";
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(&repository);
    command.env("HOME", scratch.path("home"));
    succeeded(&support::output(command));
    let args = ["import", "--name", "repository"].map(AsRef::as_ref);
    scratch.ok(args.into_iter().chain([repository.as_os_str()]));
    let output = as_user(
        &scratch,
        r"
        ./castore mount repository mnt
        git -C mnt log --format=%s
        git -C mnt status --porcelain
        ./castore unmount mnt
        ./castore mount --owner 1:2 repository mnt
        if git -C mnt status 2>refused; then exit 3; fi
        grep -q 'dubious ownership' refused
        ./castore unmount mnt
        ",
    );
    assert_eq!(succeeded(&output), "message\n");
}

/// The owner of everything gets the error of a read-only filesystem too, and not one of permissions.
#[test]
#[ignore = "needs /dev/fuse"]
fn its_owner_cannot_write_either() {
    let output = as_user(
        &prepared(),
        r#"
        ./castore mount tree mnt
        for change in 'echo x >mnt/hello' 'echo x >>mnt/new' 'mkdir mnt/new' 'rm mnt/hello' 'rmdir mnt/empty'             'mv mnt/hello mnt/new' 'ln mnt/hello mnt/new' 'ln -s x mnt/new' 'chmod 600 mnt/hello' 'touch mnt/hello'; do
            if LC_ALL=C sh -c "$change" 2>refused </dev/null; then exit 3; fi
            grep -q 'Read-only file system' refused || { echo "$change"; cat refused; }
        done
        cat mnt/hello
        ./castore unmount mnt
        "#,
    );
    assert_eq!(succeeded(&output), "Hello World");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_hint_is_given_only_where_it_helps() {
    let output = as_user(
        &prepared(),
        r"
        if ./castore mount --allow-other tree mnt 2>refused; then exit 3; fi
        grep -q user_allow_other refused
        # A directory that the user may not write to cannot be mounted on.
        mkdir -p /tmp/home/locked && chmod 555 /tmp/home/locked
        if ./castore mount tree /tmp/home/locked 2>refused; then exit 4; fi
        if grep user_allow_other refused; then exit 5; fi
        cat refused
        ",
    );
    let text = succeeded(&output);
    assert!(text.contains("cannot mount"), "{text}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_user_without_a_home() {
    let output = as_user(
        &prepared(),
        r"
        for home in '' /nonexistent; do
            case $home in '') unset HOME;; *) export HOME=$home;; esac
            ./castore mount tree mnt
            cat mnt/hello
            ./castore status >/dev/null
            ./castore unmount mnt
        done
        test -e /var/tmp/castore-65534/castore/index.sqlite
        stat -c %a /var/tmp/castore-65534
        ",
    );
    assert_eq!(succeeded(&output), "Hello WorldHello World700\n");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_umask_that_takes_all() {
    let output = as_user(
        &prepared(),
        r"
        umask 777
        ./castore mount tree mnt
        cat mnt/hello
        ./castore status >/dev/null
        ./castore ls tree >/dev/null
        ./castore unmount mnt
        ./castore import --remote objectstore+file:///tmp/home/other /tmp/home/store >/dev/null
        ",
    );
    assert_eq!(succeeded(&output), "Hello World");
    // As root, and commands that are run for the user have the user's umask.
    let scratch = prepared();
    let mut command = scratch.command(["profile", "record", "tree", "--", "sh", "-c", "umask"]);
    // SAFETY: one system call between `fork` and `exec`.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o777);
            Ok(())
        });
    }
    let text = succeeded(&support::output(command));
    assert!(text.contains("0777"), "{text}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn root_of_a_user_namespace() {
    let output = as_user(
        &prepared(),
        r"
        export XDG_CACHE_HOME=/tmp/home/xdg
        mkdir xdg
        unshare --user --map-root-user --mount sh -eu -c '
            id -u
            ./castore mount tree mnt
            cat mnt/hello
            stat -c %u mnt/hello
            ./castore status >/dev/null
            ./castore unmount mnt
        '
        test -e xdg/castore/index.sqlite
        # Its registry is that of the user outside.
        test -d /tmp/castore-65534
        ",
    );
    assert_eq!(succeeded(&output), "0\nHello World0\n");
}

/// Gives a time before 1970 as the time of day.
const CLOCK: &str = r"
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec = -1000000;
    return result;
}
";

#[test]
#[ignore = "needs /dev/fuse"]
fn a_clock_before_1970() {
    let scratch = prepared();
    let (source, library) = (scratch.path("clock.c"), scratch.path("clock.so"));
    fs::write(&source, CLOCK).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    succeeded(&support::output(compiler));
    let command = |args: &[&str], path: &Path| {
        let mut command = scratch.command(args);
        command.arg(path).env("LD_PRELOAD", &library);
        command
    };
    let mnt = scratch.mnt();
    let mount = Background::by(&scratch, command(&["mount", "tree"], &mnt), &mnt);
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"Hello World");
    let json: serde_json::Value = serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    assert_eq!(json["mounts"][0]["since"], 0);
    succeeded(&support::output(command(&["unmount"], &mnt)));
    assert!(!is_mounted(&mnt) && !mount.is_alive());
}
