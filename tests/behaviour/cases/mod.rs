//! What holds over every view of a tree.
//!
//! - `attributes`: what `stat`, `statfs` and extended attributes say
//! - `names`: looking up, listing, symlinks
//! - `reads`: bytes
//! - `changes`: nothing can be written
//! - `programs`: what needs a kernel above: mappings, locks, working directories

mod attributes;
mod changes;
mod names;
mod programs;
mod reads;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::{support::tree, view::View};

/// A view, and the tree that it must be of.
pub struct Fixture<'a> {
    pub view: &'a dyn View,
    /// What `make_tree` has made, on a disk.
    pub source: &'a Path,
}

impl Fixture<'_> {
    /// A file's content as it must be.
    pub fn content(&self, path: &str) -> Vec<u8> {
        fs::read(self.source.join(path)).unwrap()
    }

    /// Where a path is mounted. For cases that no view without a kernel runs.
    pub fn at(&self, path: &str) -> PathBuf {
        self.view.mountpoint().unwrap().join(path)
    }
}

/// Fails by a panic.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Fixture),
}

/// Makes a case of each function, by its name.
macro_rules! cases {
    ($theme:literal: $($case:ident),+ $(,)?) => {
        pub const ALL: &[$crate::cases::Case] = &[$($crate::cases::Case {
            name: concat!($theme, "::", stringify!($case)),
            run: $case,
        }),+];
    };
}
use cases;

pub fn all() -> impl Iterator<Item = &'static Case> {
    // Mappings first: in a guest a file may be opened in another way before it was read once.
    let themes = [
        programs::ALL,
        attributes::ALL,
        names::ALL,
        reads::ALL,
        changes::ALL,
    ];
    themes.into_iter().flatten()
}

/// Entries of the directory `many`.
pub const MANY: usize = 3000;
/// Files in each of the directories below `sizes`.
pub const SIZES: [usize; 9] = [
    0,
    1,
    511,
    4095,
    4096,
    4097,
    128 << 10,
    (128 << 10) + 1,
    (1 << 20) + 1,
];

/// Makes the tree that all cases are about.
pub fn make_tree(root: &Path) {
    tree::sample(root);
    for number in 0..MANY {
        let name = format!("many/{number:04}-{}", "x".repeat(number % 200));
        tree::file(root, &name, number.to_string().as_bytes(), false);
    }
    for size in SIZES {
        let content = tree::noise(size as u64, size);
        tree::file(root, &format!("sizes/{size}"), &content, size % 2 == 1);
    }
    tree::file(root, "unread", &tree::noise(77, 3_000_001), false);
    let deep = ["a-directory-below"; 60].join("/");
    tree::file(root, &format!("{deep}/end"), b"deep down", false);
    symlink("x".repeat(4095), root.join("longest-link")).unwrap();
}
