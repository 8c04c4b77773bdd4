//! Paths that are not UTF-8.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Duration,
};

use super::{Background, as_user, prepared};
use crate::support::{self, Mount, eventually, is_mounted, succeeded};

fn odd() -> &'static OsStr {
    OsStr::from_bytes(b"m\xffn t")
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_point_of_any_bytes() {
    let scratch = prepared();
    let mnt = scratch.dir.path().join(odd());
    fs::create_dir(&mnt).unwrap();
    let mut command = scratch.command(["mount", "tree"]);
    command.arg(&mnt);
    let mount = Background::by(&scratch, command, &mnt);
    assert_eq!(fs::read(mnt.join("hello")).unwrap(), b"Hello World");
    scratch.ok(["status"]);
    let json: serde_json::Value = serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    let shown = &json["mounts"][0]["mountpoint"];
    assert!(shown["escaped"].as_str().unwrap().ends_with(r"/m\xffn t"));
    let bytes = data_encoding::BASE64.decode(shown["base64"].as_str().unwrap().as_bytes());
    assert_eq!(bytes.unwrap(), mnt.as_os_str().as_bytes());
    scratch.ok(["switch".as_ref(), mnt.as_os_str(), "tree".as_ref()]);
    scratch.ok(["unmount".as_ref(), mnt.as_os_str()]);
    assert!(!is_mounted(&mnt) && !mount.is_alive());
}

#[test]
#[ignore = "needs /dev/fuse"]
fn such_a_mount_is_taken_down_at_its_end() {
    let scratch = prepared();
    let mnt = scratch.dir.path().join(odd());
    fs::create_dir(&mnt).unwrap();
    let mut command = scratch.command(["mount", "--foreground", "tree"]);
    command.arg(&mnt);
    let mut mount = Mount::start(command, &mnt);
    fs::read(mnt.join("hello")).unwrap();
    support::signal(&mount.child, libc::SIGTERM);
    let status = support::wait(&mut mount.child, Duration::from_secs(20));
    assert!(status.unwrap().success() && !is_mounted(&mnt));
    // What `status` says of a dead one can be pasted into a shell.
    let mut command = scratch.command(["mount", "tree"]);
    command.arg(&mnt);
    let mount = Background::by(&scratch, command, &mnt);
    mount.signal(libc::SIGKILL);
    eventually("the process is gone", || !mount.is_alive());
    let text = scratch.ok(["status"]);
    let (_, mend) = text.split_once("`castore ").unwrap();
    let (mend, _) = mend.split_once('`').unwrap();
    assert!(mend.contains(r"m\377n t'"), "{mend}");
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &format!("{} {mend}", env!("CARGO_BIN_EXE_castore"))]);
    succeeded(&support::output(shell));
    assert!(!is_mounted(&mnt));
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_point_of_any_bytes_of_an_ordinary_user() {
    let output = as_user(
        &prepared(),
        r#"
        odd=$(printf 'm\377n')
        mkdir "$odd"
        ./castore mount tree "$odd"
        cat "$odd/hello"
        ./castore status >/dev/null
        ./castore unmount "$odd"
        ./castore mount tree "$odd"
        pid=$(echo .cache/castore/mounts/*.sock); pid=${pid##*/}; pid=${pid%.sock}
        kill -TERM $pid
        for i in $(seq 300); do grep -qa ' /tmp/home/m.n ' /proc/self/mounts || exit 0; sleep 0.1; done
        exit 3
        "#,
    );
    assert_eq!(succeeded(&output), "Hello World");
}

#[test]
fn names_of_any_bytes_are_listed_and_read() {
    let scratch = prepared();
    let source = scratch.path("odd");
    fs::create_dir_all(source.join(odd())).unwrap();
    fs::write(source.join(odd()).join(odd()), b"odd").unwrap();
    let digest = scratch.import(&source);
    let at = |path: &Path| {
        let mut text = OsString::from(&digest);
        text.push("/");
        text.push(path);
        text
    };
    let directory = at(Path::new(odd()));
    let file = at(&Path::new(odd()).join(odd()));
    let listed = scratch.run(["ls".as_ref(), &*directory]);
    assert_eq!(listed.stdout, [odd().as_bytes(), b"\n"].concat());
    let listed = scratch.run(["ls".as_ref(), &*file]);
    assert_eq!(listed.stdout, [odd().as_bytes(), b"\n"].concat());
    assert_eq!(scratch.ok(["cat".as_ref(), &*file]), "odd");
    let absent = at(Path::new(OsStr::from_bytes(b"\xfe")));
    let error = scratch.fails(["cat".as_ref(), &*absent]);
    assert!(error.contains(r"\xfe"), "{error}");
}
