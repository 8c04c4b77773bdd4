//! Nothing can be written.

use std::{collections::BTreeSet, path::Path};

use super::{Fixture, cases};

cases! { "changes":
    nothing_can_be_written,
    nothing_is_left_of_them,
}

/// The least that a view must try.
const TRIED: [&str; 20] = [
    "open to write",
    "open to append",
    "open and truncate",
    "create",
    "create, or fail",
    "a file without a name",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "renameat2",
    "link",
    "symlink",
    "chmod",
    "chown",
    "truncate",
    "utimensat",
    "mkfifo",
    "setxattr",
    "removexattr",
];

fn nothing_can_be_written(on: &Fixture) {
    let results = on.view.changes();
    for (name, result) in &results {
        assert_eq!(*result, Err(libc::EROFS), "{name}");
    }
    let tried: BTreeSet<_> = results.iter().map(|(name, _)| *name).collect();
    assert_eq!(tried, BTreeSet::from(TRIED));
}

fn nothing_is_left_of_them(on: &Fixture) {
    let listed = || on.view.list(Path::new(""), usize::MAX).unwrap();
    let stat = || on.view.stat(Path::new("hello")).unwrap();
    let before = (listed(), stat());
    on.view.changes();
    assert_eq!((listed(), stat()), before);
    assert_eq!(on.view.stat(Path::new("new")), Err(libc::ENOENT));
    on.view.drop_caches();
    assert_eq!((listed(), stat()), before);
    let file = on.view.open(Path::new("hello"), libc::O_RDONLY).unwrap();
    assert_eq!(file.read_at(0, 100).unwrap(), b"Hello World");
}
