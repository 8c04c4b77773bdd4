//! What a store daemon knows of Nix store paths.

use std::{fs, process::Command};

use castore::model::{Node, StorePath, Target};

use crate::support::{self, Scratch, plain::Plain};

fn path(basename: &str) -> StorePath {
    basename.parse().unwrap()
}

const HELLO: &str = "00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12";
const SHELL: &str = "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-shell-1.0";
const ONE: &str = "1111111111111111111111111111111a-one-file";
const LINK: &str = "2222222222222222222222222222222a-link";

/// A program that needs another store path to run.
fn daemon(package: &'static str, store: &std::path::Path) -> Plain {
    let daemon = Plain::start(package);
    let shell = daemon.blob(fs::read(fs::canonicalize("/bin/sh").unwrap()).unwrap());
    let bin = daemon.tree([("sh", shell)]);
    let shell = daemon.tree([("bin", bin)]);
    daemon.store_path(&path(SHELL), &shell, &[&path(SHELL)]);
    let script = format!(
        "#!{}/{SHELL}/bin/sh\necho hello from the store\n",
        store.display()
    );
    let bin = daemon.tree([("hello", daemon.blob(script.into_bytes()))]);
    let hello = daemon.tree([("bin", bin)]);
    daemon.store_path(&path(HELLO), &hello, &[&path(HELLO), &path(SHELL)]);
    daemon.store_path(&path(ONE), &daemon.blob(b"one".to_vec()), &[]);
    let link = Node::Symlink {
        target: Target::new(format!("{HELLO}/bin/hello")).unwrap(),
    };
    daemon.store_path(&path(LINK), &link, &[&path(HELLO)]);
    daemon
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_store_is_mounted_and_not_listed() {
    for package in ["tvix", "snix"] {
        let scratch = Scratch::new();
        let daemon = daemon(package, &scratch.mnt());
        let mount = scratch.mount(["--nix", "--remote", &daemon.address()]);
        let out = Command::new(mount.at(HELLO).join("bin/hello"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "hello from the store\n"
        );
        assert_eq!(fs::read_to_string(mount.at(ONE)).unwrap(), "one");
        let out = Command::new(mount.at(LINK)).output().unwrap();
        assert!(out.status.success());
        // Another name with the same hash, no such path, and what is no store path at all.
        let other = HELLO.replace("hello-2.12", "goodbye-1.0");
        for absent in [
            other.as_str(),
            "3333333333333333333333333333333a-x",
            "hello",
            ".Trash-0",
        ] {
            let error = fs::metadata(mount.at(absent)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{absent}");
        }
        let error = fs::read_dir(&mount.path)
            .and_then(|mut entries| entries.next().unwrap())
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        mount.stop();
        let mount = scratch.mount([
            "--nix",
            "--list-root",
            "true",
            "--remote",
            &daemon.address(),
        ]);
        let mut names: Vec<_> = fs::read_dir(&mount.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, [HELLO, SHELL, ONE, LINK]);
        mount.stop();
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_closure_is_fetched_and_runs_without_the_daemon() {
    let scratch = Scratch::new();
    let daemon = daemon("snix", &scratch.mnt());
    let address = daemon.address();
    let store_path = format!("/nix/store/{HELLO}");
    let said = scratch.ok(["fetch", "--closure", "--remote", &address, &store_path]);
    assert!(said.contains("2 files"), "{said}");
    assert!(
        scratch
            .fails(["fetch", "--closure", "--remote", &address, "name"])
            .contains("store path")
    );
    drop(daemon);
    scratch.ok(["verify", "--remote", &address, HELLO]);
    let mount = scratch.mount(["--nix", "--offline", "--remote", &address]);
    let out = Command::new(mount.at(HELLO).join("bin/hello"))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(out.stdout).unwrap(),
        "hello from the store\n"
    );
    // Never asked for, so not known here.
    let error = fs::metadata(mount.at(ONE)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    mount.stop();
    // One path alone, by its basename or with /nix/store, is a root everywhere.
    for root in [HELLO, &store_path] {
        let mount = scratch.mount(["--offline", "--remote", &address, root]);
        assert!(mount.at("bin/hello").exists());
        mount.stop();
        assert_eq!(
            scratch.ok(["ls", "--offline", "--remote", &address, root]),
            "bin\n"
        );
    }
}

#[test]
fn a_store_path_is_a_root_for_other_commands() {
    let scratch = Scratch::new();
    let daemon = daemon("tvix", &scratch.mnt());
    let address = daemon.address();
    let text = scratch.ok([
        "cat",
        "--remote",
        &address,
        &format!("/nix/store/{HELLO}/bin/hello"),
    ]);
    assert!(text.contains("hello from the store"));
    assert!(
        scratch
            .ok(["cat", "--remote", &address, ONE])
            .contains("one")
    );
    let unknown = "3333333333333333333333333333333a-x";
    let said = scratch.fails(["ls", "--remote", &address, unknown]);
    assert!(said.contains(unknown), "{said}");
    // Copied, it has its basename as a name.
    scratch.ok(["copy", HELLO, "--from", &address, "--to", &scratch.remote()]);
    assert!(scratch.ok(["roots"]).contains(HELLO));
    assert_eq!(scratch.ok(["ls", HELLO]), "bin\n");
    // A hub in between knows what its daemon knows.
    let hub = support::hub::Hub::start(&scratch, "hub", &address, [""; 0]);
    let other = scratch.path("other");
    let args = [
        "ls",
        "--cache-dir",
        other.to_str().unwrap(),
        "--remote",
        &hub.address,
        HELLO,
    ];
    assert_eq!(scratch.ok(args), "bin\n");
    hub.stop();
}

/// A daemon that says something else of a path: the next is asked, and it does not stay.
#[test]
fn a_wrong_path_info_does_not_stay() {
    let scratch = Scratch::new();
    let wrong = Plain::start("tvix");
    let other = HELLO.replace("hello-2.12", "goodbye-1.0");
    let node = wrong.tree([("wrong", wrong.blob(b"wrong".to_vec()))]);
    wrong.store_path(&path(&other), &node, &[]);
    // Under the hash of the one, that of the other.
    let right = daemon("tvix", &scratch.mnt());
    assert!(
        scratch
            .fails(["ls", "--remote", &wrong.address(), HELLO])
            .contains(HELLO)
    );
    let both = format!("{},{}", wrong.address(), right.address());
    assert_eq!(scratch.ok(["ls", "--remote", &both, HELLO]), "bin\n");
    scratch.ok(["fetch", "--remote", &right.address(), HELLO]);
    assert_eq!(
        scratch.ok(["ls", "--offline", "--remote", &right.address(), HELLO]),
        "bin\n"
    );
}
