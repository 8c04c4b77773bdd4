//! Looking up, listing, symlinks.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use super::{Fixture, MANY, cases};
use crate::view::Entry;

cases! { "names":
    what_is_absent,
    names_too_long,
    the_wrong_kind,
    any_bytes_are_a_name,
    kinds_are_told_in_listings,
    a_long_listing_is_whole,
    a_listing_goes_on_from_its_positions,
    a_listing_is_the_same_each_time,
    targets_of_symlinks,
    a_deep_path,
}

fn list(on: &Fixture, path: &str, at_once: usize) -> Vec<Entry> {
    let listed = on.view.list(Path::new(path), at_once);
    listed.unwrap_or_else(|errno| panic!("{path}: {errno}"))
}

fn names(entries: &[Entry]) -> BTreeSet<&[u8]> {
    entries.iter().map(|entry| &entry.name[..]).collect()
}

fn what_is_absent(on: &Fixture) {
    for path in ["absent", "deep/absent", "absent/below", "Hello", "hello "] {
        // The second time out of a cache, where there is one.
        for _ in 0..2 {
            assert_eq!(on.view.stat(Path::new(path)), Err(libc::ENOENT), "{path}");
        }
    }
    let opened = on.view.open(Path::new("absent"), libc::O_RDONLY);
    assert_eq!(opened.err(), Some(libc::ENOENT));
    assert_eq!(on.view.list(Path::new("absent"), 9), Err(libc::ENOENT));
    assert_eq!(on.view.read_link(Path::new("absent")), Err(libc::ENOENT));
}

fn names_too_long(on: &Fixture) {
    let name = |length| on.view.stat(Path::new(&"n".repeat(length)));
    // That of 255 bytes is there.
    assert!(name(255).is_ok());
    assert_eq!(name(254), Err(libc::ENOENT));
    assert_eq!(name(256), Err(libc::ENAMETOOLONG));
}

fn the_wrong_kind(on: &Fixture) {
    let view = on.view;
    assert_eq!(view.stat(Path::new("hello/x")), Err(libc::ENOTDIR));
    assert_eq!(view.list(Path::new("hello"), 9), Err(libc::ENOTDIR));
    assert_eq!(view.read_link(Path::new("hello")), Err(libc::EINVAL));
    assert_eq!(view.read_link(Path::new("deep")), Err(libc::EINVAL));
    // A directory may be opened, by open(2) too, and not read.
    let read = view.open(Path::new("deep"), libc::O_RDONLY);
    let read = read.and_then(|file| file.read_at(0, 10));
    assert_eq!(read, Err(libc::EISDIR));
}

fn any_bytes_are_a_name(on: &Fixture) {
    let odd = OsStr::from_bytes(b"odd \xff\xfe name \n \"quoted\" \xc3\xa9");
    let path = Path::new(odd);
    assert_eq!(on.view.stat(path).unwrap().size, 3);
    let file = on.view.open(path, libc::O_RDONLY).unwrap();
    assert_eq!(file.read_at(0, 10).unwrap(), b"odd");
    assert!(names(&list(on, "", usize::MAX)).contains(odd.as_bytes()));
}

fn kinds_are_told_in_listings(on: &Fixture) {
    for dir in ["", "deep", "deep/er", "empty", "sizes"] {
        let found: BTreeSet<_> = list(on, dir, usize::MAX)
            .into_iter()
            .map(|entry| (entry.name, entry.kind))
            .collect();
        let kind = |entry: fs::DirEntry| {
            let kind = match entry.file_type().unwrap() {
                kind if kind.is_dir() => libc::DT_DIR,
                kind if kind.is_symlink() => libc::DT_LNK,
                kind => {
                    assert!(kind.is_file() && !kind.is_fifo());
                    libc::DT_REG
                }
            };
            (entry.file_name().as_bytes().to_vec(), kind)
        };
        let expected = fs::read_dir(on.source.join(dir)).unwrap();
        let expected: BTreeSet<_> = expected.map(|entry| kind(entry.unwrap())).collect();
        assert_eq!(found, expected, "{dir:?}");
    }
}

fn a_long_listing_is_whole(on: &Fixture) {
    for _ in 0..2 {
        let entries = list(on, "many", usize::MAX);
        assert_eq!(entries.len(), MANY);
        assert_eq!(names(&entries).len(), MANY);
    }
}

fn a_listing_goes_on_from_its_positions(on: &Fixture) {
    let whole = list(on, "many", usize::MAX);
    for at_once in [3, 100, 1024] {
        let found = list(on, "many", at_once);
        assert!(found == whole, "{at_once} at once: {} entries", found.len());
    }
    // Also where every entry, `.` and `..` among them, is the last of its part.
    assert_eq!(list(on, "deep", 1), list(on, "deep", usize::MAX));
}

fn a_listing_is_the_same_each_time(on: &Fixture) {
    let first = list(on, "", usize::MAX);
    for _ in 0..3 {
        on.view.drop_caches();
        assert_eq!(list(on, "", usize::MAX), first);
        // What was looked at in between changes nothing.
        let _ = on.view.stat(Path::new("deep/er"));
    }
}

fn targets_of_symlinks(on: &Fixture) {
    for path in ["link", "deep/link", "dangling", "longest-link"] {
        let expected = fs::read_link(on.source.join(path)).unwrap();
        let found = on.view.read_link(Path::new(path)).unwrap();
        assert_eq!(found, expected.as_os_str().as_bytes(), "{path}");
        let size = on.view.stat(Path::new(path)).unwrap().size;
        assert_eq!(
            size,
            fs::symlink_metadata(on.source.join(path)).unwrap().size()
        );
    }
}

fn a_deep_path(on: &Fixture) {
    let path = ["a-directory-below"; 60].join("/") + "/end";
    let file = on.view.open(Path::new(&path), libc::O_RDONLY).unwrap();
    assert_eq!(file.read_at(0, 100).unwrap(), b"deep down");
}
