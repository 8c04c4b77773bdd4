//! Programs that copy, count and compare trees.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    Test,
    fixture::{Tree, paths, run, shell, twins},
    support::tree::{self, file},
};

pub const ALL: [Test; 9] = [
    ("cp_of_many", &["cp"], cp_of_many),
    ("cp_a", &["cp"], cp_a),
    ("cp_over_itself", &["cp", "cmp"], cp_over_itself),
    ("mv_out", &["mv"], mv_out),
    ("rsync_with_hard_links", &["rsync"], rsync_with_hard_links),
    ("tar_to_tar", &["tar"], tar_to_tar),
    ("du_counts_all", &["du"], du_counts_all),
    ("find_samefile", &["find"], find_samefile),
    ("test_ef", &["sh", "diff"], test_ef),
];

/// Every file of a copy is one by itself.
fn assert_no_hard_links(root: &Path) {
    for path in paths(root) {
        let stat = fs::symlink_metadata(root.join(&path)).unwrap();
        assert!(stat.is_dir() || stat.nlink() == 1, "{path:?} is linked");
    }
}

/// `cp -r MNT/* out/` once said "will not create hard link" and left the second of two equal directories out.
fn cp_of_many() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    let line = format!("cp -r ./* {}/", out.display());
    shell(&tree.mount.path, &line);
    tree::assert_equal(&tree.source(), &out);
    assert_no_hard_links(&out);
    let followed = tree.dir("followed");
    shell(
        &tree.mount.path,
        &format!("cp -rL ./* {}/", followed.display()),
    );
    assert_eq!(fs::read(followed.join("link-b")).unwrap(), b"equal\n");
    assert_eq!(
        fs::read(followed.join("to-same/inner/twin")).unwrap(),
        b"below\n"
    );
    assert_eq!(
        fs::read(followed.join("same-b/inner/twin")).unwrap(),
        b"below\n"
    );
    tree.mount.stop();
}

/// Keeps hard links where it believes in them.
fn cp_a() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    shell(&tree.mount.path, &format!("cp -a . {}/", out.display()));
    tree::assert_equal(&tree.source(), &out);
    assert_no_hard_links(&out);
    // The copies' directories are read-only, like the mount's.
    run("chmod", ["-R".as_ref(), "u+w".as_ref(), out.as_os_str()]);
    let many = tree.dir("many");
    let line = format!("cp -a same-a same-b one two {}/", many.display());
    shell(&tree.mount.path, &line);
    for name in ["same-a", "same-b"] {
        tree::assert_equal(&tree.source().join(name), &many.join(name));
    }
    assert_no_hard_links(&many);
    run("chmod", ["-R".as_ref(), "u+w".as_ref(), many.as_os_str()]);
    tree.mount.stop();
}

/// `cp one two` and `cat one >> two` once said "are the same file" of two files in a mount and its overlay.
fn cp_over_itself() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    // Both to one place, of which cp remembers where it came from.
    let line = format!("cp one two sub/three {}/ && cmp one two", out.display());
    shell(&tree.mount.path, &line);
    for name in ["one", "two", "three"] {
        assert_eq!(fs::read(out.join(name)).unwrap(), b"equal\n");
    }
    assert_no_hard_links(&out);
    tree.mount.stop();
}

/// `mv` between filesystems copies: equal files must not become links of each other.
fn mv_out() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    let mut command = std::process::Command::new("mv");
    command.args(["one", "two", "same-a", "same-b"]).arg(&out);
    let output = crate::support::output({
        command.current_dir(&tree.mount.path).env("LC_ALL", "C");
        command
    });
    let said = String::from_utf8_lossy(&output.stderr);
    // What it took cannot be removed; everything was copied all the same.
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(
        !said.contains("same file") && !said.contains("hard link"),
        "{said}"
    );
    for name in ["one", "two", "same-a/inner/twin", "same-b/inner/twin"] {
        assert!(out.join(name).exists(), "{name} is missing: {said}");
    }
    assert_no_hard_links(&out);
    run("chmod", ["-R".as_ref(), "u+w".as_ref(), out.as_os_str()]);
    tree.mount.stop();
}

/// `-H` keeps hard links by device and number.
fn rsync_with_hard_links() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    let to = format!("{}/", out.display());
    shell(&tree.mount.path, &format!("rsync -aH --no-owner ./ {to}"));
    tree::assert_equal(&tree.source(), &out);
    assert_no_hard_links(&out);
    // Nothing is left to be done the second time, but for the modes of symlinks, which cannot be set.
    let again = shell(&tree.mount.path, &format!("rsync -aHi --no-owner ./ {to}"));
    let again: Vec<_> = again.lines().filter(|line| !line.contains("->")).collect();
    assert!(again.is_empty(), "{again:?}");
    run("chmod", ["-R".as_ref(), "u+w".as_ref(), out.as_os_str()]);
    tree.mount.stop();
}

/// tar writes the second name of a file as a link to the first.
fn tar_to_tar() {
    let tree = Tree::of_twins();
    let out = tree.dir("out");
    let to = out.display();
    shell(
        &tree.mount.path,
        &format!("tar cf - . | tar xf - --no-same-owner --delay-directory-restore -C {to}"),
    );
    tree::assert_equal(&tree.source(), &out);
    assert_no_hard_links(&out);
    let listed = shell(&tree.mount.path, "tar cf - . | tar tvf -");
    let links = listed.lines().filter(|line| line.starts_with('h')).count();
    assert_eq!(links, 0, "{listed}");
    run("chmod", ["-R".as_ref(), "u+w".as_ref(), out.as_os_str()]);
    tree.mount.stop();
}

/// du counts each number once, and once left out what was equal to something before it.
fn du_counts_all() {
    let tree = Tree::of(&[], |root| {
        twins(root);
        for name in ["large-a", "large-b", "sub/large"] {
            file(root, name, &tree::noise(9, 1_000_000), false);
        }
    });
    let expected: HashSet<_> = tree.paths().into_iter().collect();
    let listed = shell(&tree.mount.path, "du -a *");
    let path = |line: &str| PathBuf::from(line.split_once('\t').unwrap().1);
    let seen: HashSet<_> = listed.lines().map(path).collect();
    let missing: Vec<_> = expected.difference(&seen).collect();
    assert!(missing.is_empty(), "du left out {missing:?}");
    let count = |line: &str| -> usize {
        let said = shell(&tree.mount.path, line);
        let last = said.lines().last().unwrap();
        last.split('\t').next().unwrap().parse().unwrap()
    };
    assert_eq!(count("du --inodes -s ."), expected.len() + 1);
    assert_eq!(count("du --inodes -c *"), expected.len());
    assert!(count("du -bc large-a large-b sub/large") >= 3_000_000);
    tree.mount.stop();
}

/// Equal files were the same file.
fn find_samefile() {
    let tree = Tree::of_twins();
    for name in [
        "one",
        "tool-b",
        "y.lock",
        "link-b",
        "same-b",
        "same-b/inner",
    ] {
        let found = shell(&tree.mount.path, &format!("find . -samefile {name}"));
        assert_eq!(found.trim(), format!("./{name}"));
    }
    let number = fs::metadata(tree.at("two")).unwrap().ino();
    let found = shell(&tree.mount.path, &format!("find . -inum {number}"));
    assert_eq!(found.trim(), "./two");
    // Follows symlinks and looks for loops by number.
    let found = shell(&tree.mount.path, "find -L . -name twin | sort");
    let expected = [
        "./same-a/inner/twin",
        "./same-b/inner/twin",
        "./sub/same-a/inner/twin",
        "./to-same/inner/twin",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
    tree.mount.stop();
}

/// The shell's and diff's own ideas of the same file.
fn test_ef() {
    let tree = Tree::of_twins();
    let line =
        "for pair in one:two x.lock:y.lock same-a:same-b same-a/inner:same-b/inner tool-a:tool-b
        do if test \"${pair%:*}\" -ef \"${pair#*:}\"; then echo \"$pair\"; fi; done
        test one -ef ./one && test link-a -ef one && test to-same -ef same-a
        diff -r same-a same-b";
    assert_eq!(shell(&tree.mount.path, line), "");
    tree.mount.stop();
}
