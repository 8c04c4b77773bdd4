//! What `mount(8)` passes on to `mount.castore`.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Output},
};

use castore::fs::fuse::mountinfo;

use super::{Background, as_user, prepared};
use crate::support::{self, Scratch, failed, is_mounted, succeeded, tree};

/// `mount.castore tree MOUNTPOINT` with more words.
fn called(scratch: &Scratch, words: &[&str]) -> Command {
    let link = scratch.path("mount.castore");
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_castore"), &link).unwrap();
    }
    let mut command = Command::new(&link);
    let castore = scratch.command([""; 0]);
    support::environment_of(&castore, &mut command);
    command.arg("tree").arg(scratch.mnt()).args(words);
    command
}

fn run(scratch: &Scratch, words: &[&str]) -> Output {
    support::output(called(scratch, words))
}

fn is_noexec(scratch: &Scratch) -> bool {
    mountinfo::at(&scratch.mnt()).unwrap().unwrap().noexec
}

#[test]
#[ignore = "needs /dev/fuse"]
fn all_that_mount_passes_on() {
    let scratch = prepared();
    let options = "rw,user=ada,users,owner,group,exec,nodiratime,lazytime,strictatime,dirsync,\
                   default_permissions,x-odd=1,context=system_u:object_r:x";
    let all = [
        "-n",
        "-v",
        "-r",
        "-w",
        "-t",
        "castore",
        "-N",
        "/proc/self/ns/mnt",
        "-o",
        options,
    ];
    let mount = Background::by(&scratch, called(&scratch, &all), &scratch.mnt());
    assert_eq!(
        fs::read(scratch.mnt().join("hello")).unwrap(),
        b"Hello World"
    );
    assert!(!is_noexec(&scratch));
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
    drop(mount);
    let error = failed(&run(&scratch, &["-o", "colour=red"]));
    assert!(error.contains("colour=red"), "{error}");
    // Sloppy.
    let _mount = Background::by(
        &scratch,
        called(&scratch, &["-s", "-o", "colour=red"]),
        &scratch.mnt(),
    );
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_fake_mount_is_none() {
    let scratch = prepared();
    succeeded(&run(&scratch, &["-fnv", "-o", "ro"]));
    assert!(!is_mounted(&scratch.mnt()));
    assert!(!scratch.path("cache/castore.log").exists());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_noexec_cannot_be_executed() {
    let scratch = prepared();
    let programs = scratch.path("programs");
    fs::create_dir(&programs).unwrap();
    tree::file(&programs, "script", b"#!/bin/sh\necho ran\n", true);
    let args = [
        "import".as_ref(),
        "--name".as_ref(),
        "tree".as_ref(),
        programs.as_os_str(),
    ];
    scratch.ok(args);
    let script = scratch.mnt().join("script");
    let execute = || Command::new(&script).output();
    let mount = Background::by(&scratch, called(&scratch, &["-o", "user"]), &scratch.mnt());
    assert!(is_noexec(&scratch));
    assert_eq!(execute().unwrap_err().raw_os_error(), Some(libc::EACCES));
    // Remounting changes what it can, and mounts nothing.
    succeeded(&run(&scratch, &["-o", "remount,ro,exec"]));
    assert!(!is_noexec(&scratch));
    assert_eq!(execute().unwrap().stdout, b"ran\n");
    succeeded(&run(&scratch, &["-o", "remount,noexec"]));
    assert_eq!(execute().unwrap_err().raw_os_error(), Some(libc::EACCES));
    succeeded(&run(&scratch, &["-o", "remount,rw"]));
    assert!(is_noexec(&scratch));
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
    assert!(!is_mounted(&scratch.mnt()), "it was mounted twice");
    drop(mount);
    let error = failed(&run(&scratch, &["-o", "remount,ro"]));
    assert!(error.contains("nothing is mounted"), "{error}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn noexec_of_an_ordinary_user() {
    let output = as_user(
        &prepared(),
        r"
        ./castore mount --noexec tree mnt
        grep -q ' /tmp/home/mnt ro,nosuid,nodev,noexec' /proc/self/mountinfo
        grep -q ' - fuse.castore ' /proc/self/mountinfo
        ./castore unmount mnt
        ",
    );
    succeeded(&output);
}
