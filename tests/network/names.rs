//! Names of several remotes, and roots that change under a mount.

use std::{fs, io::Read, time::Duration};

use crate::support::{self, Scratch, hub::Hub, tree, within};

fn source(scratch: &Scratch, name: &str, files: &[(&str, &str)]) -> String {
    let source = scratch.path(name);
    fs::create_dir_all(&source).unwrap();
    for (file, content) in files {
        tree::file(&source, file, content.as_bytes(), false);
    }
    scratch.import(&source)
}

fn names_in(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs /dev/fuse"]
fn names_come_and_go_under_a_mount() {
    let scratch = Scratch::new();
    let names = scratch.path("names-token");
    fs::write(&names, "t").unwrap();
    let args = ["--writable", "--names-token-file", names.to_str().unwrap()];
    let hub = Hub::start(&scratch, "hub", &scratch.remote(), args);
    let remote = format!("{}?names-token-file={}", hub.address, names.display());
    let first = source(&scratch, "a", &[("f", "first")]);
    let second = source(&scratch, "b", &[("f", "second"), ("g", "more")]);
    for ttl in ["1s", "0s"] {
        let args = ["--all", "--names-ttl", ttl, "--remote", &hub.address];
        let mount = scratch.mount(args);
        let file = mount.at("n/f");
        // Looked up before it is there, so that the kernel knows of no such name.
        assert!(!file.exists());
        assert!(names_in(&mount.path).is_empty());
        scratch.ok(["name", "--remote", &remote, "n", &first]);
        support::eventually("the name", || file.exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
        // The listing is never the kernel's.
        assert_eq!(names_in(&mount.path), ["n"]);
        scratch.ok(["name", "--remote", &remote, "n", &second]);
        scratch.ok(["name", "--remote", &remote, "m", &first]);
        assert_eq!(names_in(&mount.path), ["m", "n"]);
        support::eventually("the new tree", || {
            fs::read_to_string(&file).unwrap() == "second"
        });
        assert_eq!(names_in(&mount.at("n")), ["f", "g"]);
        scratch.ok([
            "roots", "--remote", &remote, "--remove", "n", "--remove", "m",
        ]);
        assert!(names_in(&mount.path).is_empty());
        support::eventually("no such name", || !mount.at("n").exists());
        mount.stop();
    }
    hub.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn all_shows_the_names_of_all_remotes() {
    let scratch = Scratch::new();
    let here = source(&scratch, "a", &[("f", "here")]);
    scratch.ok(["name", "here", &here]);
    scratch.ok(["name", "both", &here]);
    let there = format!("objectstore+file://{}", scratch.path("there").display());
    let other = scratch.path("b");
    fs::create_dir(&other).unwrap();
    tree::file(&other, "f", b"there", false);
    let other = other.to_str().unwrap();
    scratch.ok(["import", "--remote", &there, "--name", "there", other]);
    scratch.ok(["import", "--remote", &there, "--name", "both", other]);
    // One has no service for names, and one is away.
    let plain = support::plain::Plain::start("tvix");
    let remotes = format!(
        "{},{},{there},grpc+http://127.0.0.1:1",
        plain.address(),
        scratch.remote()
    );
    let mount = scratch.mount(["--all", "--timeout", "2s", "--remote", &remotes]);
    assert_eq!(names_in(&mount.path), ["both", "here", "there"]);
    assert_eq!(fs::read_to_string(mount.at("both/f")).unwrap(), "here");
    assert_eq!(fs::read_to_string(mount.at("there/f")).unwrap(), "there");
    assert!(!mount.at("nowhere").exists());
    mount.stop();
    // What a remote that is away had is what it said last, offline and not.
    fs::rename(scratch.path("there"), scratch.path("away")).unwrap();
    for more in [&["--timeout", "1s"][..], &["--offline"]] {
        let mount = scratch.mount([&["--all", "--remote", &remotes], more].concat());
        assert_eq!(names_in(&mount.path), ["both", "here", "there"]);
        mount.stop();
    }
    let said = scratch.ok(["roots", "--offline", "--remote", "grpc+http://127.0.0.1:1"]);
    assert!(said.contains(" there\n"), "{said}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_goes_over_to_a_new_release() {
    let scratch = Scratch::new();
    let old = source(
        &scratch,
        "old",
        &[
            ("same", "same"),
            ("changed", "old"),
            ("gone", "gone"),
            ("d/x", "old"),
            ("d/gone", "gone"),
        ],
    );
    let new = source(
        &scratch,
        "new",
        &[
            ("same", "same"),
            ("changed", "new"),
            ("added", "added"),
            ("d/x", "new"),
            ("d/added", "added"),
        ],
    );
    scratch.ok(["name", "release", &new]);
    let mount = scratch.mount([&old]);
    tree::assert_equal(&scratch.path("old"), &mount.path);
    assert!(!mount.at("added").exists());
    assert!(!mount.at("d/added").exists());
    let mut open = fs::File::open(mount.at("changed")).unwrap();
    let mut open_gone = fs::File::open(mount.at("d/gone")).unwrap();
    let open_dir = fs::File::open(mount.at("d")).unwrap();
    let mnt = scratch.mnt();
    let mnt = mnt.to_str().unwrap();
    assert_eq!(scratch.ok(["switch", mnt, "release"]).trim(), new);
    // At once, and all of it.
    tree::assert_equal(&scratch.path("new"), &mount.path);
    assert!(!mount.at("gone").exists());
    // A file that was open is what it was; a directory is the same one, with what is in it now.
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    open_gone.read_to_string(&mut text).unwrap();
    assert_eq!(text, "oldgone");
    let below = |name: &str| {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&open_dir);
        fs::read_to_string(format!("/proc/self/fd/{fd}/{name}"))
    };
    assert_eq!(below("x").unwrap(), "new");
    assert_eq!(below("added").unwrap(), "added");
    let status: serde_json::Value =
        serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    assert_eq!(status["mounts"][0]["root"], "release");
    assert_eq!(status["mounts"][0]["digest"], new.as_str());
    // And back, many times, under readers.
    let path = mount.at("changed");
    let reader = std::thread::spawn(move || {
        for _ in 0..2_000 {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text == "old" || text == "new", "{text}");
        }
    });
    for round in 0..20 {
        let root = if round % 2 == 0 { &old } else { &new };
        scratch.ok(["switch", mnt, root]);
    }
    within(Duration::from_secs(60), "the reader", || {
        reader.join().unwrap();
    });
    tree::assert_equal(&scratch.path("new"), &mount.path);
    // What cannot be is told, and the mount stays what it was.
    assert!(
        scratch
            .fails(["switch", mnt, "nonsense"])
            .contains("nonsense")
    );
    assert!(
        scratch
            .fails(["switch", "/nowhere", "release"])
            .contains("status")
    );
    tree::assert_equal(&scratch.path("new"), &mount.path);
    mount.stop();
    let all = scratch.mount(["--all"]);
    assert!(scratch.fails(["switch", mnt, "release"]).contains("--all"));
    all.stop();
}

#[test]
fn a_name_is_not_a_digest() {
    let scratch = Scratch::new();
    let root = source(&scratch, "a", &[("f", "f")]);
    for name in [root.as_str(), "b3:zzz", "", "a/b", ".."] {
        let said = scratch.fails(["name", name, &root]);
        assert!(said.contains("name") || said.contains("root"), "{said}");
    }
}
