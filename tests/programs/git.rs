//! A work tree with its `.git` in a mount: git compares what `stat` says with what it noted.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Test,
    fixture::{Tree, paths, run_command},
    support::tree::file,
    watches::Watch,
};

pub const ALL: [Test; 2] = [
    ("status_is_empty", &["git"], status_is_empty),
    (
        "status_reads_what_changed",
        &["git"],
        status_reads_what_changed,
    ),
];

fn git(dir: &Path, index: Option<&Path>, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*", "-c", "gc.auto=0"]);
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]);
    command.args(["-c", "core.preloadIndex=false"]);
    command.args(args).current_dir(dir);
    command.env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_OPTIONAL_LOCKS", "0");
    if let Some(index) = index {
        command.env("GIT_INDEX_FILE", index);
    }
    run_command(command)
}

fn work_tree(root: &Path) {
    for number in 0..1000 {
        let name = format!("d{}/f{number}", number % 10);
        file(
            root,
            &name,
            format!("{:04}", number % 500).as_bytes(),
            false,
        );
    }
    file(root, "tool", b"#!/bin/sh\n", true);
    std::os::unix::fs::symlink("tool", root.join("link")).unwrap();
    git(root, None, &["init", "-q"]);
    git(root, None, &["add", "."]);
    git(root, None, &["commit", "-q", "-m", "all"]);
}

/// The commit was made elsewhere; git reads everything once and finds nothing.
fn status_is_empty() {
    let tree = Tree::of(&[], work_tree);
    assert_eq!(git(&tree.mount.path, None, &["status", "--porcelain"]), "");
    assert_eq!(git(&tree.mount.path, None, &["fsck", "--strict"]), "");
    tree.mount.stop();
}

/// The files that git opens for one `status`.
fn opened(tree: &Tree, index: &Path) -> (String, BTreeSet<PathBuf>) {
    let watch = Watch::new();
    let mut dirs = Vec::new();
    for path in paths(&tree.mount.path) {
        let inside = !path.starts_with(".git");
        if inside
            && fs::symlink_metadata(tree.mount.path.join(&path))
                .unwrap()
                .is_dir()
        {
            let number = watch.add(&tree.mount.path.join(&path), libc::IN_OPEN);
            dirs.push((number, path));
        }
    }
    let status = git(&tree.mount.path, Some(index), &["status", "--porcelain"]);
    let events = watch.events();
    let files = events.iter().filter(|(_, event, name)| {
        event & libc::IN_ISDIR == 0 && event & libc::IN_OPEN != 0 && !name.is_empty()
    });
    let path = |(number, _, name): &(i32, u32, String)| {
        let dir = dirs.iter().find(|(watched, _)| watched == number);
        dir.unwrap().1.join(name)
    };
    (status, files.map(path).collect())
}

/// After a switch to a tree of which one file has changed, with its length and time as they were, git reads that one. It
/// read all of them when numbers did not outlive a mount, and none of them when they were only those of paths.
fn status_reads_what_changed() {
    let tree = Tree::of(&[], work_tree);
    let index = tree.scratch.path("index");
    fs::copy(tree.source().join(".git/index"), &index).unwrap();
    git(
        &tree.mount.path,
        Some(&index),
        &["update-index", "-q", "--refresh"],
    );
    let (status, files) = opened(&tree, &index);
    assert_eq!((status.as_str(), files), ("", BTreeSet::new()));
    let changed = "d7/f17";
    fs::write(tree.source().join(changed), b"9999").unwrap();
    let digest = tree.scratch.import(&tree.source());
    let mountpoint = tree.mount.path.as_os_str();
    tree.scratch
        .ok(["switch".as_ref(), mountpoint, digest.as_ref()]);
    let (status, files) = opened(&tree, &index);
    assert_eq!(status, format!(" M {changed}\n"));
    assert_eq!(files, BTreeSet::from([PathBuf::from(changed)]));
    // A cache and a mount of their own have the same numbers.
    let Tree { mount, scratch, .. } = tree;
    mount.stop();
    scratch.clear_cache();
    let mount = scratch.mount([digest.as_str()]);
    let tree = Tree {
        mount,
        scratch,
        digest,
    };
    let (status, files) = opened(&tree, &index);
    assert_eq!(status, format!(" M {changed}\n"));
    assert_eq!(files, BTreeSet::from([PathBuf::from(changed)]));
    tree.mount.stop();
}
