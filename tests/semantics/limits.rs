//! Lengths of names, paths and targets, and descriptors of the daemon.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
    },
    path::{Path, PathBuf},
};

use castore::model::{Digest, Directory, Entry, Name, Node};

use crate::support::{Mount, Scratch, before, eventually, tree};

/// The error of looking at a path.
fn error_of(path: &Path) -> Option<i32> {
    fs::symlink_metadata(path).err()?.raw_os_error()
}

#[test]
#[ignore = "needs /dev/fuse"]
fn the_longest_name_path_and_target() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    let name = "n".repeat(255);
    tree::file(&source, &name, b"long", false);
    let target = "t".repeat(4095);
    symlink(&target, source.join("link")).unwrap();
    let mount = scratch.mount([scratch.import(&source)]);
    assert_eq!(fs::read(mount.at(&name)).unwrap(), b"long");
    for long in [256, 1000] {
        let too_long = mount.at(&"n".repeat(long));
        assert_eq!(error_of(&too_long), Some(libc::ENAMETOOLONG), "{long}");
    }
    assert_eq!(fs::read_link(mount.at("link")).unwrap(), Path::new(&target));
    // A path with its end has 4,096 bytes at most; slashes make one as long as it has to be.
    let padded = |len: usize| {
        let slashes = "/".repeat(len - mount.path.as_os_str().len() - name.len());
        PathBuf::from(format!("{}{slashes}{name}", mount.path.display()))
    };
    assert_eq!(padded(4095).as_os_str().as_bytes().len(), 4095);
    assert_eq!(error_of(&padded(4095)), None);
    assert_eq!(error_of(&padded(4096)), Some(libc::ENAMETOOLONG));
    mount.stop();
}

/// What the encoding of a directory, of at most 4 GiB, has for each entry.
#[test]
fn an_entry_has_some_60_bytes() {
    let entry = |number: u64| Entry {
        name: Name::new(format!("a-usual-name-{number:07}.c")).unwrap(),
        node: Node::File {
            digest: Digest::of(&number.to_le_bytes()),
            size: number,
            executable: false,
        },
    };
    let directory = Directory::new((0..100_000).map(entry).collect()).unwrap();
    let each = directory.encoded().len() / 100_000;
    assert!((50..=70).contains(&each), "{each} bytes");
}

/// What the descriptors of a daemon are of, and how many there are of each: data files of its cache, and others.
fn descriptors(scratch: &Scratch, pid: u32) -> (usize, BTreeMap<PathBuf, usize>) {
    let data = scratch.path("cache/data").canonicalize().unwrap();
    let mut others = BTreeMap::new();
    let mut of_data = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // One that was closed meanwhile counts no more.
        let Ok(target) = fs::read_link(entry.unwrap().path()) else {
            continue;
        };
        match target.parent() == Some(&data) {
            true => of_data += 1,
            false => *others.entry(target).or_default() += 1,
        }
    }
    (of_data, others)
}

/// Files of 1 MiB, each of which has a data file of its own in the cache.
fn of_large_files(scratch: &Scratch, count: u64) -> String {
    let source = scratch.path("source");
    for number in 0..count {
        let content = tree::noise(number, 1 << 20);
        tree::file(&source, &format!("{number}"), &content, false);
    }
    let digest = scratch.import(&source);
    scratch.clear_cache();
    digest
}

#[test]
#[ignore = "needs /dev/fuse"]
fn open_files_cost_no_descriptors() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    for number in 0..400 {
        tree::file(
            &source,
            &format!("{number}"),
            format!("{number}").as_bytes(),
            false,
        );
    }
    let mount = scratch.mount([scratch.import(&source)]);
    let count = || {
        let (of_data, others) = descriptors(&scratch, mount.child.id());
        (of_data, others.values().sum::<usize>(), others)
    };
    fs::read(mount.at("0")).unwrap();
    // All are in one data file, which is open for reading and for writing; while it is opened, there may be one more for a moment.
    let one_file = || eventually("few data files are open", || count().0 <= 2);
    one_file();
    let (_, before, of_what) = count();
    assert!(before < 40, "{of_what:?}");
    let files: Vec<_> = (0..400)
        .map(|number| File::open(mount.at(&format!("{number}"))).unwrap())
        .collect();
    for (number, file) in files.iter().enumerate() {
        let mut bytes = vec![0; number.to_string().len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, number.to_string().as_bytes());
    }
    let dirs: Vec<_> = (0..100)
        .map(|_| fs::read_dir(&mount.path).unwrap())
        .collect();
    one_file();
    let (_, after, of_what) = count();
    // Threads of the runtime and connections of the index come and go.
    assert!(after <= before + 10, "{before} before, now {of_what:?}");
    drop((files, dirs));
    mount.stop();
}

/// A daemon that is allowed few descriptors closes data files instead of failing.
#[test]
#[ignore = "needs /dev/fuse"]
fn few_descriptors_are_enough() {
    const ALLOWED: usize = 160;
    // More than it could have open.
    const FILES: u64 = 200;
    let scratch = Scratch::new();
    let digest = of_large_files(&scratch, FILES);
    let inner = scratch.command(["mount", "--foreground", &digest]);
    let script = format!("ulimit -n {ALLOWED} && exec \"$@\"");
    let mut command = before("sh", ["-c", &script, "sh"], &inner);
    command.arg(scratch.mnt());
    let mount = Mount::start(command, &scratch.mnt());
    for _ in 0..2 {
        for number in 0..FILES {
            let bytes = fs::read(mount.at(&format!("{number}"))).unwrap();
            assert!(bytes == tree::noise(number, 1 << 20), "{number}");
        }
    }
    let (of_data, _) = descriptors(&scratch, mount.child.id());
    assert!((20..ALLOWED).contains(&of_data), "{of_data} data files");
    mount.stop();
}
