//! What `stat` and listings say: one number for each path, the same everywhere.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{
    Test,
    fixture::{Tree, paths, twins},
    support::tree::file,
};

pub const ALL: [Test; 9] = [
    ("each_path_has_its_own", &[], each_path_has_its_own),
    ("they_fit_56_bits", &[], they_fit_56_bits),
    ("files_have_one_link", &[], files_have_one_link),
    ("listings_say_the_same", &[], listings_say_the_same),
    ("the_same_over_mounts", &[], the_same_over_mounts),
    ("one_file_of_1000_changes", &[], one_file_of_1000_changes),
    ("what_a_number_depends_on", &[], what_a_number_depends_on),
    ("inode32_folds", &[], inode32_folds),
    ("names_that_share_a_tree", &[], names_that_share_a_tree),
];

/// `st_ino` of everything below a directory, by path.
fn numbers(root: &Path) -> BTreeMap<PathBuf, u64> {
    let number = |path: &PathBuf| fs::symlink_metadata(root.join(path)).unwrap().ino();
    paths(root)
        .into_iter()
        .map(|path| (path.clone(), number(&path)))
        .collect()
}

fn assert_distinct(numbers: &BTreeMap<PathBuf, u64>) {
    let mut seen = HashMap::new();
    for (path, number) in numbers {
        if let Some(other) = seen.insert(number, path) {
            panic!("{path:?} and {other:?} are both {number}");
        }
    }
}

/// Equal files, symlinks and directories once had one `st_ino`.
fn each_path_has_its_own() {
    let tree = Tree::of_twins();
    assert_distinct(&numbers(&tree.mount.path));
    tree.mount.stop();
}

/// The numbers once had 64 bits, of which overlayfs needs the upper ones.
fn they_fit_56_bits() {
    let tree = Tree::of(&[], |root| {
        twins(root);
        for number in 0..200 {
            file(root, &format!("many/{number}"), b"equal\n", number % 2 == 0);
        }
    });
    for (path, number) in numbers(&tree.mount.path) {
        assert!(
            number > 1 && number < 1 << 56,
            "{path:?} has number {number:#x}"
        );
    }
    assert_eq!(fs::metadata(&tree.mount.path).unwrap().ino(), 1);
    tree.mount.stop();
}

/// More links than one have programs look for the other names.
fn files_have_one_link() {
    let tree = Tree::of_twins();
    for path in tree.paths() {
        let stat = fs::symlink_metadata(tree.mount.path.join(&path)).unwrap();
        if !stat.is_dir() {
            assert_eq!(stat.nlink(), 1, "{path:?}");
        }
    }
    tree.mount.stop();
}

/// `ls -i` takes `d_ino` from the listing; programs compare it with `st_ino`.
fn listings_say_the_same() {
    let tree = Tree::of_twins();
    for io in 0..2 {
        let mut dirs = vec![tree.mount.path.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let stat = fs::symlink_metadata(entry.path()).unwrap();
                assert_eq!(entry.ino(), stat.ino(), "{:?}", entry.path());
                if stat.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        // Once more from a kernel that has forgotten what it knew.
        if io == 0 {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        }
    }
    tree.mount.stop();
}

/// Backups, `make` and `git` remember numbers from one mount to the next.
fn the_same_over_mounts() {
    let tree = Tree::of_twins();
    let digest = tree.digest.clone();
    let expected = numbers(&tree.mount.path);
    assert_distinct(&expected);
    // Another place and cache; each looks in another order.
    let second = tree.mount_again("second", &["--io-mode", "large", &digest]);
    for name in ["sub/same-a/inner/file", "same-b/link", "two"] {
        assert_eq!(
            fs::symlink_metadata(second.at(name)).unwrap().ino(),
            expected[Path::new(name)],
            "{name}"
        );
    }
    assert_eq!(numbers(&second.path), expected);
    second.stop();
    tree.mount.stop();
    let again = tree.scratch.mount([digest.as_str()]);
    assert_eq!(numbers(&again.path), expected);
    again.stop();
}

/// What is unchanged in a new release keeps its number, what has changed gets another one: length and time stay the
/// same, so that `git` and `make` see nothing else.
fn one_file_of_1000_changes() {
    let make = |root: &Path| {
        for number in 0..1000 {
            let name = format!("d{}/e{}/f{number}", number % 10, number % 7);
            file(
                root,
                &name,
                format!("{:04}", number % 500).as_bytes(),
                false,
            );
        }
    };
    let tree = Tree::of(&[], make);
    let before = numbers(&tree.mount.path);
    assert_distinct(&before);
    let changed = Path::new("d7/e3/f17");
    fs::write(tree.source().join(changed), b"9999").unwrap();
    let digest = tree.scratch.import(&tree.source());
    let mountpoint = tree.mount.path.as_os_str();
    tree.scratch
        .ok(["switch".as_ref(), mountpoint, digest.as_ref()]);
    assert_eq!(fs::read(tree.mount.path.join(changed)).unwrap(), b"9999");
    let after = numbers(&tree.mount.path);
    let differs =
        |(path, number): (&PathBuf, &u64)| (before[path] != *number).then(|| path.clone());
    let differing: Vec<_> = after.iter().filter_map(differs).collect();
    assert_eq!(differing, [changed], "of {} paths", after.len());
    let other = tree.mount_again("other", &[&digest]);
    assert_eq!(numbers(&other.path), after);
    other.stop();
    tree.mount.stop();
}

/// A file's number is that of its parent's number, name, content and mode; a directory's has no part of its content.
fn what_a_number_depends_on() {
    let tree = Tree::of_twins();
    let before = numbers(&tree.mount.path);
    let source = tree.source();
    file(&source, "tool-a", b"#!/bin/sh\necho \"$0\"\n", false);
    fs::remove_file(source.join("link-a")).unwrap();
    std::os::unix::fs::symlink("two", source.join("link-a")).unwrap();
    file(&source, "same-a/inner/new", b"new", false);
    fs::rename(source.join("same-b"), source.join("same-c")).unwrap();
    let digest = tree.scratch.import(&source);
    let other = tree.mount_again("other", &[&digest]);
    let after = numbers(&other.path);
    for changed in ["tool-a", "link-a"] {
        assert_ne!(before[Path::new(changed)], after[Path::new(changed)]);
    }
    for (path, number) in &after {
        let renamed = path.strip_prefix("same-c");
        match renamed {
            Ok(rest) => assert_ne!(before[&Path::new("same-b").join(rest)], *number, "{path:?}"),
            Err(_) if path.ends_with("tool-a") || path.ends_with("link-a") => {}
            Err(_) if path.ends_with("new") => {}
            Err(_) => assert_eq!(before[path], *number, "{path:?}"),
        }
    }
    other.stop();
    tree.mount.stop();
}

/// Programs without large-file support get EOVERFLOW for a number of more than 32 bits.
fn inode32_folds() {
    let tree = Tree::of(&["--inode32"], twins);
    let folded = numbers(&tree.mount.path);
    assert_distinct(&folded);
    for (path, number) in &folded {
        assert!(
            *number > 1 && u32::try_from(*number).is_ok(),
            "{path:?} has number {number:#x}"
        );
    }
    let again = tree.mount_again("again", &["--inode32", &tree.digest]);
    assert_eq!(numbers(&again.path), folded);
    again.stop();
    tree.mount.stop();
}

/// Two names of `--all` that stand for one tree are two trees to look at.
fn names_that_share_a_tree() {
    let tree = Tree::of_twins();
    for name in ["red", "blue"] {
        tree.scratch.ok(["name", name, &tree.digest]);
    }
    let all = tree.mount_again("all", &["--all"]);
    let both = numbers(&all.path);
    assert_distinct(&both);
    assert!(both.contains_key(Path::new("blue/same-b/inner/twin")));
    all.stop();
    tree.mount.stop();
}
