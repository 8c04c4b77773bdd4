//! Bytes.

use std::{path::Path, thread};

use super::{Fixture, SIZES, cases};
use crate::view::File;

cases! { "reads":
    a_tree_comes_out_as_it_went_in,
    reads_at_every_boundary,
    reads_past_the_end,
    reads_in_any_order,
    direct_reads,
    reads_of_one_handle_by_many,
    many_handles,
    a_handle_outlives_what_is_cached,
    zeros_are_zeros,
}

fn open<'v>(on: &Fixture<'v>, path: &str, flags: i32) -> Box<dyn File + 'v> {
    let opened = on.view.open(Path::new(path), libc::O_RDONLY | flags);
    opened.unwrap_or_else(|errno| panic!("{path}: {errno}"))
}

fn read(on: &Fixture, path: &str) -> Vec<u8> {
    let file = open(on, path, 0);
    file.read_at(0, 64 << 20).unwrap()
}

/// Each byte, with what is cached and without.
fn a_tree_comes_out_as_it_went_in(on: &Fixture) {
    fn compare(on: &Fixture, dir: &Path) -> usize {
        let entries = on.view.list(dir, usize::MAX).unwrap();
        let expected = std::fs::read_dir(on.source.join(dir)).unwrap();
        assert_eq!(entries.len(), expected.count(), "{dir:?}");
        let mut files = 0;
        for entry in entries {
            let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&entry.name);
            let path = dir.join(name);
            let source = on.source.join(&path);
            match entry.kind {
                libc::DT_DIR => files += compare(on, &path),
                libc::DT_REG => {
                    let expected = std::fs::read(source).unwrap();
                    let file = on.view.open(&path, libc::O_RDONLY).unwrap();
                    let found = file.read_at(0, expected.len() + 1).unwrap();
                    assert!(found == expected, "{path:?}");
                    files += 1;
                }
                _ => {}
            }
        }
        files
    }
    for _ in 0..2 {
        assert!(compare(on, Path::new("")) > super::MANY);
        on.view.drop_caches();
    }
}

fn reads_at_every_boundary(on: &Fixture) {
    for path in ["large", "block", "chunk", "one", "nothing", "zeros"] {
        let expected = on.content(path);
        let file = open(on, path, 0);
        let end = expected.len() as u64;
        let mut offsets = vec![0, 1, 4095, 4096, 131_071, 131_072, 262_144, 1 << 20, end];
        offsets.extend([end.saturating_sub(1), end + 1, end + 100_000]);
        for offset in offsets {
            for len in [1, 4096, 100_000, 2 << 20] {
                let found = file.read_at(offset, len).unwrap();
                let from = usize::try_from(offset).unwrap().min(expected.len());
                let to = (from + len).min(expected.len());
                assert!(found == expected[from..to], "{path} {offset} {len}");
            }
        }
    }
}

fn reads_past_the_end(on: &Fixture) {
    let file = open(on, "hello", 0);
    for offset in [11, 12, 4096, 1 << 32, 1 << 52, i64::MAX as u64 - 4096] {
        assert_eq!(file.read_at(offset, 100), Ok(Vec::new()), "{offset}");
    }
    assert_eq!(file.read_at(6, 100).unwrap(), b"World");
}

fn reads_in_any_order(on: &Fixture) {
    let expected = on.content("large");
    let file = open(on, "large", 0);
    let step = 300_007;
    let offsets: Vec<_> = (0..expected.len()).step_by(step).collect();
    let backwards = offsets.iter().rev().copied();
    let leaping = (0..offsets.len()).map(|at| offsets[at * 7 % offsets.len()]);
    for offset in backwards.chain(leaping) {
        let to = (offset + step).min(expected.len());
        let found = file.read_at(offset as u64, step).unwrap();
        assert!(found == expected[offset..to], "{offset}");
    }
}

/// Of any alignment and length: the kernel asks for none.
fn direct_reads(on: &Fixture) {
    for path in ["large", "block", "one", "nothing"] {
        let expected = on.content(path);
        let file = open(on, path, libc::O_DIRECT);
        for offset in [0, 1, 511, 4096, 5001, 1 << 20] {
            for len in [1, 512, 5000, 3 << 20] {
                let from = offset.min(expected.len());
                let to = (from + len).min(expected.len());
                let found = file.read_at(offset as u64, len).unwrap();
                assert!(found == expected[from..to], "{path} {offset} {len}");
            }
        }
    }
}

fn reads_of_one_handle_by_many(on: &Fixture) {
    let expected = on.content("large");
    let file = open(on, "large", 0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (file, expected) = (&file, &expected);
            scope.spawn(move || {
                for round in 0..20 {
                    let offset = (thread * 7919 + round * 104_729) * 31 % expected.len();
                    let to = (offset + 50_000).min(expected.len());
                    let found = file.read_at(offset as u64, 50_000).unwrap();
                    assert!(found == expected[offset..to], "{offset}");
                }
            });
        }
    });
}

fn many_handles(on: &Fixture) {
    let files: Vec<_> = (0..400).map(|_| open(on, "block", 0)).collect();
    let others = SIZES.map(|size| open(on, &format!("sizes/{size}"), 0));
    let expected = on.content("block");
    for file in &files {
        assert!(file.read_at(0, 5000).unwrap() == expected);
    }
    drop(files);
    for (file, size) in others.iter().zip(SIZES) {
        let expected = on.content(&format!("sizes/{size}"));
        assert!(file.read_at(0, size + 1).unwrap() == expected, "{size}");
    }
}

fn a_handle_outlives_what_is_cached(on: &Fixture) {
    let file = open(on, "large", 0);
    let expected = on.content("large");
    for round in 0..3 {
        on.view.drop_caches();
        assert!(read(on, "chunk") == on.content("chunk"));
        let offset = round * 1_000_000;
        let found = file.read_at(offset as u64, 10_000).unwrap();
        assert!(found == expected[offset..offset + 10_000], "{round}");
    }
}

fn zeros_are_zeros(on: &Fixture) {
    let found = read(on, "zeros");
    assert!(found.len() == 3 << 20 && found.iter().all(|byte| *byte == 0));
}
