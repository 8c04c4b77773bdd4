//! What `stat`, `statfs` and extended attributes say.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use castore::model::Digest;

use super::{Fixture, MANY, cases};
use crate::view::Stat;

cases! { "attributes":
    modes_sizes_and_times,
    the_root_is_a_directory,
    inode_numbers_are_those_of_the_path,
    equal_content_keeps_its_own_mode,
    a_directory_keeps_its_size_when_it_is_listed,
    numbers_stay_when_they_were_forgotten,
    the_filesystem_is_full,
    extended_attributes_tell_digests,
    short_buffers_for_extended_attributes,
    absent_extended_attributes,
}

const BLOB: &str = "user.tvix.castore.blob.digest";
const DIRECTORY: &str = "user.tvix.castore.directory.digest";

fn stat(on: &Fixture, path: &str) -> Stat {
    let found = on.view.stat(Path::new(path));
    found.unwrap_or_else(|errno| panic!("{path}: {errno}"))
}

fn modes_sizes_and_times(on: &Fixture) {
    let expected = [
        ("hello", 0o100_444, 11),
        ("hello-exec", 0o100_555, 11),
        ("nothing", 0o100_444, 0),
        ("large", 0o100_444, 5_000_001),
        ("link", 0o120_444, 5),
        ("longest-link", 0o120_444, 4095),
        ("empty", 0o040_555, 0),
        // Two directories and what is in them: inner, file.
        ("same-a", 0o040_555, 2),
        ("deep", 0o040_555, 5),
        ("many", 0o040_555, MANY as u64),
    ];
    for (path, mode, size) in expected {
        let found = stat(on, path);
        assert_eq!((found.mode, found.size), (mode, size), "{path}");
        assert_eq!((found.owner, found.links), ((0, 0), 1), "{path}");
        assert_eq!(found.times, [0, 1, 0], "{path}");
        assert_eq!(found.nanoseconds, [0; 3], "{path}");
        assert_eq!(found.blocks, size.div_ceil(512), "{path}");
        assert!(found.block_size >= 128 << 10, "{path}: {found:?}");
    }
}

fn the_root_is_a_directory(on: &Fixture) {
    let root = stat(on, "");
    assert_eq!((root.mode, root.inode), (0o040_555, 1));
    assert_eq!((root.owner, root.links, root.times[1]), ((0, 0), 1, 1));
}

fn inode_numbers_are_those_of_the_path(on: &Fixture) {
    let mut seen = BTreeSet::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in on.view.list(&dir, usize::MAX).unwrap() {
            let name = std::str::from_utf8(&entry.name);
            // One of two names that are not UTF-8 is as good as both.
            let Ok(name) = name else { continue };
            let path = dir.join(name);
            let found = on.view.stat(&path).unwrap();
            assert_eq!(entry.inode, found.inode, "{path:?}");
            assert!(found.inode > 1 && found.inode < 1 << 56, "{path:?}");
            assert!(seen.insert(found.inode), "{path:?} shares its number");
            if found.is_dir() {
                dirs.push(path);
            }
        }
    }
    assert!(seen.len() > MANY, "{}", seen.len());
}

fn equal_content_keeps_its_own_mode(on: &Fixture) {
    for first in ["hello", "hello-exec"] {
        on.view.drop_caches();
        stat(on, first);
        let modes = ["hello", "hello-exec"].map(|path| stat(on, path).mode & 0o777);
        assert_eq!(modes, [0o444, 0o555], "{first} first");
    }
    let inodes = ["hello", "hello-too", "hello-exec"].map(|path| stat(on, path).inode);
    assert_eq!(BTreeSet::from(inodes).len(), 3);
    let inodes = ["same-a", "same-b"].map(|path| stat(on, path).inode);
    assert_ne!(inodes[0], inodes[1]);
}

fn a_directory_keeps_its_size_when_it_is_listed(on: &Fixture) {
    let paths = ["", "deep", "same-a", "empty", "many"];
    let sizes = || BTreeMap::from(paths.map(|path| (path, stat(on, path).size)));
    let before = sizes();
    for path in paths {
        on.view.list(Path::new(path), usize::MAX).unwrap();
    }
    assert_eq!(sizes(), before);
    on.view.drop_caches();
    assert_eq!(sizes(), before);
}

fn numbers_stay_when_they_were_forgotten(on: &Fixture) {
    let paths = ["", "hello", "deep/er", "deep/link", "many"];
    let before = paths.map(|path| stat(on, path));
    for _ in 0..3 {
        on.view.drop_caches();
        assert_eq!(paths.map(|path| stat(on, path)), before);
    }
}

fn the_filesystem_is_full(on: &Fixture) {
    stat(on, "large");
    let found = on.view.statfs().unwrap();
    assert_eq!((found.available, found.longest_name), (0, 255));
    assert_eq!(found.files, stat(on, "").size);
    // A directory tells the sizes of its files once it was read.
    assert!(found.size >= 5_000_001, "{found:?}");
}

fn extended_attributes_tell_digests(on: &Fixture) {
    let value = |path: &str, name| on.view.xattr(Path::new(path), name, 100);
    let digest = |content: &[u8]| Digest::of(content).to_string().into_bytes();
    assert_eq!(value("hello", BLOB), Ok(digest(b"Hello World")));
    assert_eq!(value("nothing", BLOB), Ok(digest(b"")));
    assert_eq!(value("empty", DIRECTORY), Ok(digest(b"")));
    let names = |path: &str| on.view.xattr_names(Path::new(path));
    let named = |name: &str| Ok([name.as_bytes(), &[0]].concat());
    assert_eq!(names("hello"), named(BLOB));
    assert_eq!(names("empty"), named(DIRECTORY));
    assert_eq!(names(""), named(DIRECTORY));
    assert_eq!(names("link"), Ok(Vec::new()));
}

fn short_buffers_for_extended_attributes(on: &Fixture) {
    let hello = Path::new("hello");
    let len = Digest::empty().to_string().len();
    assert_eq!(on.view.xattr(hello, BLOB, 5), Err(libc::ERANGE));
    assert_eq!(on.view.xattr(hello, BLOB, len - 1), Err(libc::ERANGE));
    assert_eq!(on.view.xattr(hello, BLOB, 0), Ok(vec![0; len]));
    let whole = on.view.xattr(hello, BLOB, len).unwrap();
    assert_eq!(whole.len(), len);
}

fn absent_extended_attributes(on: &Fixture) {
    for (path, name) in [
        ("hello", DIRECTORY),
        ("empty", BLOB),
        ("link", "user.other"),
        ("hello", "user.other"),
        ("hello", "security.capability"),
    ] {
        let found = on.view.xattr(Path::new(path), name, 100);
        assert_eq!(found, Err(libc::ENODATA), "{path} {name}");
    }
}
