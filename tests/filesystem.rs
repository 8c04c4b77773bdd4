//! Real mounts: options, large trees, what waits and what is damaged, and the defects of the ancestor. What holds on every mount
//! is in `behaviour`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, File},
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirEntryExt, FileExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::Path,
    process::Command,
    time::Duration,
};

use support::{Mount, Scratch, tree, within};

/// Imports the sample tree (or what `make` makes) and mounts it.
fn mounted(options: &[&str], make: impl Fn(&Path)) -> (Scratch, Mount) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    make(&source);
    let digest = scratch.import(&source);
    let mount = scratch.mount(options.iter().copied().chain([digest.as_str()]));
    (scratch, mount)
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn xattr(path: &Path, name: &str, size: usize) -> Result<Vec<u8>, i32> {
    let mut value = vec![0; size];
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: valid strings, and a buffer of the length that is given.
    let len = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            size,
        )
    };
    let Ok(len) = usize::try_from(len) else {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
    };
    if size == 0 {
        return Ok(vec![0; len]);
    }
    value.truncate(len);
    Ok(value)
}

fn xattr_names(path: &Path) -> Result<Vec<u8>, i32> {
    let mut value = vec![0; 4096];
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a valid string, and a buffer of the length that is given.
    let len = unsafe { libc::llistxattr(path.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let Ok(len) = usize::try_from(len) else {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
    };
    value.truncate(len);
    Ok(value)
}

fn statfs(path: &Path) -> libc::statfs {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a structure of plain numbers, and a valid string.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(path.as_ptr(), &raw mut stat), 0);
        stat
    }
}

fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_tree_comes_out_as_it_went_in() {
    for mode in ["small", "large"] {
        let (scratch, mount) = mounted(&["--io-mode", mode], tree::sample);
        tree::assert_equal(&scratch.path("source"), &mount.path);
        // Again, from the kernel's and our caches.
        tree::assert_equal(&scratch.path("source"), &mount.path);
        mount.stop();
        // Once more, from what is on disk alone.
        fs::rename(scratch.path("store"), scratch.path("away")).unwrap();
        let digest = scratch.import_digest();
        let mount = scratch.mount(["--io-mode", mode, digest.as_str()]);
        tree::assert_equal(&scratch.path("source"), &mount.path);
        mount.stop();
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn inode_numbers_fit_32_bits() {
    let (_scratch, mount) = mounted(&["--inode32"], tree::sample);
    let mut seen = BTreeSet::new();
    let mut dirs = vec![mount.path.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let stat = fs::symlink_metadata(entry.path()).unwrap();
            // d_ino of a listing is st_ino.
            assert_eq!(entry.ino(), stat.ino(), "{:?}", entry.path());
            assert!(stat.ino() > 1 && stat.ino() < 1 << 32);
            assert!(seen.insert(stat.ino()), "{:?}", entry.path());
            if stat.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    assert!(seen.len() > 20);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn attributes_are_off_by_default() {
    let blob = "user.tvix.castore.blob.digest";
    // The kernel asks for an attribute of each file that `ls -l` shows.
    let (_scratch, mount) = mounted(&[], tree::sample);
    for _ in 0..2 {
        assert_eq!(xattr(&mount.at("hello"), blob, 100), Err(libc::EOPNOTSUPP));
        assert_eq!(xattr_names(&mount.at("hello")), Err(libc::EOPNOTSUPP));
    }
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn hidden_attributes_tell_what_is_cached() {
    let (_scratch, mount) = mounted(&["--xattr"], tree::sample);
    let large = mount.at("large");
    let text = |name: &str| String::from_utf8(xattr(&large, name, 100).unwrap()).unwrap();
    assert_eq!(text("user.castore.cached"), "0/5000001");
    let chunks: u32 = text("user.castore.chunks").parse().unwrap();
    assert!((10..40).contains(&chunks), "{chunks}");
    // One byte brings one chunk at least, and readahead some more.
    File::open(&large).unwrap().read_exact(&mut [0]).unwrap();
    support::eventually("something is cached", || {
        let cached = text("user.castore.cached");
        let (bytes, total) = cached.split_once('/').unwrap();
        let bytes: u64 = bytes.parse().unwrap();
        total == "5000001" && bytes >= 128 << 10
    });
    fs::read(&large).unwrap();
    support::eventually("all is cached", || {
        text("user.castore.cached") == "5000001/5000001"
    });
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn two_reads_of_one_handle_do_not_wait_for_each_other() {
    // In the ancestor the second read of a handle waited for the first, which here never ends.
    let (scratch, mount) = mounted(&[], |root| {
        tree::file(root, "file", &tree::noise(9, 4 << 20), false);
    });
    let expected = fs::read(scratch.path("source/file")).unwrap();
    let chunks: Vec<_> = chunk_files(&scratch);
    assert!(chunks.len() > 4);
    // The chunk that the file begins with is replaced by a fifo: opening it waits for ever.
    let first = fs::read(scratch.path("source/file")).unwrap();
    let stuck = chunks
        .iter()
        .find(|path| {
            let bytes = zstd::decode_all(File::open(path).unwrap()).unwrap();
            first.starts_with(&bytes)
        })
        .unwrap();
    let kept = fs::read(stuck).unwrap();
    fs::remove_file(stuck).unwrap();
    fifo(stuck);
    let file = std::sync::Arc::new(File::open(mount.at("file")).unwrap());
    let waiting = {
        let file = std::sync::Arc::clone(&file);
        std::thread::spawn(move || file.read_at(&mut [0], 0))
    };
    std::thread::sleep(Duration::from_millis(200));
    assert!(!waiting.is_finished());
    let tail = within(
        Duration::from_secs(20),
        "a read beside a stuck one",
        move || {
            let mut tail = vec![0; 4096];
            file.read_exact_at(&mut tail, (4 << 20) - 4096).unwrap();
            tail
        },
    );
    assert!(tail[..] == expected[(4 << 20) - 4096..]);
    // And neither do a listing and a stat.
    let path = mount.path.clone();
    within(
        Duration::from_secs(20),
        "a listing beside a stuck read",
        move || {
            assert_eq!(fs::read_dir(path).unwrap().count(), 1);
        },
    );
    // The chunk comes back, and whoever waits at the fifo is let go: the reader gets its byte.
    let other_end = scratch.path("other-end");
    fs::hard_link(stuck, &other_end).unwrap();
    fs::write(scratch.path("back"), kept).unwrap();
    fs::rename(scratch.path("back"), stuck).unwrap();
    within(
        Duration::from_secs(20),
        "nobody reads the fifo",
        move || {
            File::options().write(true).open(other_end).unwrap();
        },
    );
    within(Duration::from_secs(20), "the stuck reader", move || {
        assert_eq!(waiting.join().unwrap().unwrap(), 1);
    });
    mount.stop();
}

/// The files of the store's chunks.
fn chunk_files(scratch: &Scratch) -> Vec<std::path::PathBuf> {
    tree::files_and_times(&scratch.path("store/chunks"))
        .into_keys()
        .map(|path| std::ffi::OsStr::from_bytes(&path).into())
        .collect()
}

fn fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a system call with a valid string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_waiting_reader_dies_of_ctrl_c() {
    let (scratch, mount) = mounted(&[], |root| {
        tree::file(root, "file", &tree::noise(9, 4 << 20), false);
    });
    for chunk in chunk_files(&scratch) {
        fs::remove_file(&chunk).unwrap();
        fifo(&chunk);
    }
    let mut reader = Command::new("cat")
        .arg(mount.at("file"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(reader.try_wait().unwrap().is_none());
    support::signal(&reader, libc::SIGINT);
    let status = support::wait(&mut reader, Duration::from_secs(1));
    if status.is_none() {
        let _ = reader.kill();
    }
    assert_eq!(status.expect("it did not die").signal(), Some(libc::SIGINT));
    drop(mount);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_waiting_lookup_is_interrupted() {
    // The name's object is a fifo, so a lookup below --all waits.
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "file", b"x", false);
    scratch.ok([
        "import".as_ref(),
        "--name".as_ref(),
        "known".as_ref(),
        source.as_os_str(),
    ]);
    let mount = scratch.mount(["--all"]);
    fifo(&scratch.path("store/roots/stuck"));
    for (program, args) in [("stat", vec!["stuck"]), ("ls", vec!["stuck/x"])] {
        let mut waiting = Command::new(program)
            .args(&args)
            .current_dir(&mount.path)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(
            waiting.try_wait().unwrap().is_none(),
            "{program} did not wait"
        );
        // Meanwhile others are served.
        let known = mount.at("known/file");
        let content = within(
            Duration::from_secs(10),
            "a read beside a stuck lookup",
            move || fs::read(known).unwrap(),
        );
        assert_eq!(content, b"x");
        support::signal(&waiting, libc::SIGINT);
        let ended = support::wait(&mut waiting, Duration::from_secs(1));
        if ended.is_none() {
            let _ = waiting.kill();
        }
        assert!(ended.is_some(), "{program} did not end");
    }
    drop(mount);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn all_names_are_entries_of_the_root() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let import = |name: &str, path: &Path| {
        scratch.ok([
            "import".as_ref(),
            "--name".as_ref(),
            name.as_ref(),
            path.as_os_str(),
        ]);
    };
    import("tree", &source);
    import("file", &source.join("hello"));
    import("link", &source.join("link"));
    let many = 500;
    let node = fs::read(scratch.path("store/roots/file")).unwrap();
    for number in 0..many {
        let name = format!("many-{number:04}-{}", "y".repeat(200));
        fs::write(scratch.path("store/roots").join(name), &node).unwrap();
    }
    let mount = scratch.mount(["--all"]);
    tree::assert_equal(&source, &mount.at("tree"));
    assert_eq!(fs::read(mount.at("file")).unwrap(), b"Hello World");
    assert_eq!(fs::read_link(mount.at("link")).unwrap(), Path::new("hello"));
    // Long enough for several replies: none is lost.
    let listed = || -> BTreeSet<_> {
        let entries = fs::read_dir(&mount.path).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(listed().len(), many + 3);
    // A miss is forgotten after a second, and so is a listing.
    assert_eq!(errno(fs::metadata(mount.at("later"))), libc::ENOENT);
    import("later", &source.join("one"));
    support::eventually("the new name is there", || {
        fs::read(mount.at("later")).is_ok()
    });
    assert!(listed().contains(std::ffi::OsStr::new("later")));
    scratch.ok(["roots", "--remove", "later"]);
    support::eventually("the name is gone", || {
        fs::metadata(mount.at("later")).is_err()
    });
    // A name that stands for something else from now on.
    import("file", &source.join("one"));
    support::eventually("the name moves", || {
        fs::read(mount.at("file")).unwrap() == b"1"
    });
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn with_listing_off_only_lookups_work() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    scratch.ok([
        "import".as_ref(),
        "--name".as_ref(),
        "tree".as_ref(),
        source.as_os_str(),
    ]);
    for root in ["--all", "tree"] {
        let mount = scratch.mount(["--list-root", "false", root]);
        let list = || fs::read_dir(&mount.path).and_then(|mut entries| entries.next().unwrap());
        assert_eq!(errno(list()), libc::EPERM);
        assert_eq!(errno(list()), libc::EPERM);
        let below = if root == "--all" { "tree/" } else { "" };
        let hello = mount.at(&format!("{below}hello"));
        assert_eq!(fs::read(hello).unwrap(), b"Hello World");
        let deep = mount.at(&format!("{below}deep"));
        assert_eq!(fs::read_dir(deep).unwrap().count(), 2);
        assert_eq!(errno(fs::metadata(mount.at("absent"))), libc::ENOENT);
        mount.stop();
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_root_that_is_a_file_or_a_symlink_has_its_name() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    for (name, file) in [("just-a-file", "hello-exec"), ("just-a-link", "link")] {
        let path = source.join(file);
        scratch.ok([
            "import".as_ref(),
            "--name".as_ref(),
            name.as_ref(),
            path.as_os_str(),
        ]);
        let mount = scratch.mount([name]);
        let names: Vec<_> = fs::read_dir(&mount.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [name]);
        let (ours, theirs) = (mount.at(name), path);
        if let Ok(target) = fs::read_link(&theirs) {
            assert_eq!(fs::read_link(ours).unwrap(), target);
        } else {
            assert_eq!(fs::read(&ours).unwrap(), fs::read(theirs).unwrap());
            assert_eq!(fs::metadata(ours).unwrap().mode(), 0o100_555);
        }
        mount.stop();
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn the_owner_is_that_of_everything() {
    // In the ancestor the override missed the root.
    let (_scratch, mount) = mounted(&["--owner", "1234:5678"], tree::sample);
    for name in ["", "hello", "deep", "link", "deep/er"] {
        let stat = fs::symlink_metadata(mount.at(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678), "{name:?}");
    }
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn inodes_are_forgotten() {
    let (scratch, mount) = mounted(&[], |root| {
        for dir in 0..50 {
            let dir = root.join(dir.to_string());
            fs::create_dir(&dir).unwrap();
            for file in 0..100 {
                fs::write(dir.join(file.to_string()), format!("{dir:?} {file}")).unwrap();
            }
        }
    });
    let inodes = || -> u64 {
        let status = scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["mounts"][0]["inodes"].as_u64().unwrap()
    };
    for entry in fs::read_dir(&mount.path).unwrap() {
        for file in fs::read_dir(entry.unwrap().path()).unwrap() {
            file.unwrap().metadata().unwrap();
        }
    }
    assert!(inodes() > 5000);
    support::eventually("the inodes are forgotten", || {
        drop_caches();
        inodes() < 100
    });
    // And everything is still there.
    assert_eq!(fs::read_dir(mount.at("7")).unwrap().count(), 100);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn statfs_answers_at_once() {
    let (_scratch, mount) = mounted(&[], tree::sample);
    let stat = statfs(&mount.path);
    let entries = fs::metadata(&mount.path).unwrap().size();
    assert_eq!(stat.f_files, entries);
    assert_eq!(stat.f_bavail, 0);
    let _ = tree::snapshot(&mount.path);
    let stat = statfs(&mount.path);
    let bytes = stat.f_blocks * u64::try_from(stat.f_bsize).unwrap();
    assert!(bytes > 5_000_001 + (3 << 20), "{bytes}");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_missing_can_be_seen_and_not_read() {
    let (scratch, mount) = mounted(&[], |root| {
        tree::file(root, "file", &tree::noise(4, 300_000), false);
        tree::file(root, "small", b"small", false);
        fs::create_dir(root.join("dir")).unwrap();
        tree::file(root, "dir/below", b"below", false);
    });
    fs::rename(scratch.path("store/chunks"), scratch.path("store/gone")).unwrap();
    fs::rename(scratch.path("store/blobs"), scratch.path("store/gone-too")).unwrap();
    assert_eq!(fs::metadata(mount.at("file")).unwrap().size(), 300_000);
    assert_eq!(fs::metadata(mount.at("small")).unwrap().size(), 5);
    assert_eq!(errno(fs::read(mount.at("file"))), libc::EIO);
    assert_eq!(errno(fs::read(mount.at("small"))), libc::EIO);
    // The errors are shown, with what to do.
    let status = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let errors = status["mounts"][0]["errors"].as_array().unwrap();
    let error = errors
        .iter()
        .find(|error| error["path"] == "/small")
        .unwrap();
    assert!(error["digest"].as_str().unwrap().starts_with("b3:"));
    assert!(
        error["remote"]
            .as_str()
            .unwrap()
            .starts_with("objectstore+file:")
    );
    assert!(error["remedy"].as_str().unwrap().contains("import"));
    // When it is back, it is read: a failure is not kept.
    fs::rename(scratch.path("store/gone"), scratch.path("store/chunks")).unwrap();
    fs::rename(scratch.path("store/gone-too"), scratch.path("store/blobs")).unwrap();
    // That nobody has it is remembered for seconds.
    support::eventually("read again", || fs::read(mount.at("small")).is_ok());
    support::eventually("read again", || fs::read(mount.at("file")).is_ok());
    assert_eq!(fs::read(mount.at("small")).unwrap(), b"small");
    assert_eq!(fs::read(mount.at("file")).unwrap(), tree::noise(4, 300_000));
    let log = mount.stop();
    assert!(log.contains("b3:"), "{log}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn corrupt_objects_are_eio_and_logged_by_digest() {
    let (scratch, mount) = mounted(&[], |root| {
        fs::create_dir(root.join("dir")).unwrap();
        tree::file(root, "dir/below", b"below", false);
        tree::file(root, "file", &tree::noise(4, 100_000), false);
    });
    mount.stop();
    // A directory whose entries are out of order, below a root that is right but for that.
    let file = |name: u8| {
        let mut entry = vec![0x12, 39, 0x0a, 1, name, 0x12, 32];
        entry.extend_from_slice(castore::model::Digest::of(b"x").as_bytes());
        entry.extend_from_slice(&[0x18, 1]);
        entry
    };
    let child = [file(b'b'), file(b'a')].concat();
    let child_digest = castore::model::Digest::of(&child);
    let mut root = vec![0x0a, 39, 0x0a, 1, b'd', 0x12, 32];
    root.extend_from_slice(child_digest.as_bytes());
    root.extend_from_slice(&[0x18, 2]);
    let digest = castore::model::Digest::of(&root);
    let mut records = Vec::new();
    for directory in [&root, &child] {
        records.extend(u32::try_from(directory.len()).unwrap().to_be_bytes());
        records.extend(directory);
    }
    let hex = digest.to_hex();
    let dir = scratch.path("store/dirs/b3").join(&hex[..4]);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(&hex), zstd::encode_all(&records[..], 3).unwrap()).unwrap();
    let mount = scratch.mount([digest.to_string()]);
    assert!(fs::metadata(mount.at("d")).unwrap().is_dir());
    assert_eq!(
        errno(fs::read_dir(mount.at("d")).and_then(|mut d| d.next().unwrap())),
        libc::EIO
    );
    assert_eq!(errno(fs::metadata(mount.at("d/a"))), libc::EIO);
    let log = mount.stop();
    assert!(
        log.contains(&child_digest.to_string()) && log.contains("not sorted"),
        "{log}"
    );
    // A chunk with other bytes than its digest says.
    let blob = castore::model::Digest::of(&tree::noise(4, 100_000));
    let hex = blob.to_hex();
    let chunk = scratch.path("store/chunks/b3").join(&hex[..4]).join(&hex);
    fs::write(
        chunk,
        zstd::encode_all(&tree::noise(5, 100_000)[..], 3).unwrap(),
    )
    .unwrap();
    let mount = scratch.mount([scratch.import_digest()]);
    assert_eq!(errno(fs::read(mount.at("file"))), libc::EIO);
    assert_eq!(fs::read(mount.at("dir/below")).unwrap(), b"below");
    let log = mount.stop();
    assert!(
        log.contains(&blob.to_string()) && log.contains("damaged"),
        "{log}"
    );
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_manifest_that_lies_is_found_out() {
    // Every chunk has the bytes of its digest, but together they are another blob.
    let (scratch, mount) = mounted(&[], |root| {
        tree::file(root, "file", &tree::noise(4, 2 << 20), false);
        tree::file(root, "other", &tree::noise(5, 2 << 20), false);
        tree::file(root, "right", &tree::noise(6, 2 << 20), false);
    });
    let object = |seed| {
        let hex = castore::model::Digest::of(&tree::noise(seed, 2 << 20)).to_hex();
        scratch.path("store/blobs/b3").join(&hex[..4]).join(hex)
    };
    fs::copy(object(5), object(4)).unwrap();
    assert_eq!(
        fs::read(mount.at("right")).unwrap(),
        tree::noise(6, 2 << 20)
    );
    let _ = fs::read(mount.at("file"));
    // What the kernel has kept of it goes too.
    support::eventually("the lie is found out", || {
        fs::read(mount.at("file")).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    });
    assert_eq!(
        fs::read(mount.at("other")).unwrap(),
        tree::noise(5, 2 << 20)
    );
    assert_eq!(
        fs::read(mount.at("right")).unwrap(),
        tree::noise(6, 2 << 20)
    );
    let log = mount.stop();
    let digest = castore::model::Digest::of(&tree::noise(4, 2 << 20)).to_string();
    assert!(log.contains(&digest) && log.contains("manifest"), "{log}");
    // It is remembered which manifest was right, and nothing is kept of the other.
    let index = rusqlite::Connection::open(scratch.path("cache/index.sqlite")).unwrap();
    let verified = |seed| -> Option<bool> {
        let digest = castore::model::Digest::of(&tree::noise(seed, 2 << 20));
        let query = "SELECT verified FROM blobs WHERE digest = ?";
        index
            .query_row(query, [digest.as_bytes()], |row| row.get(0))
            .ok()
    };
    assert_eq!((verified(6), verified(4)), (Some(true), None));
}

#[test]
#[ignore = "needs /dev/fuse"]
fn equal_directories_in_parallel() {
    // A node id that two directories share makes a parallel walk fail with ESTALE.
    let (scratch, mount) = mounted(&[], |root| {
        for a in 0..8 {
            for b in 0..8 {
                for c in 0..8 {
                    let dir = root.join(format!("{a}/{b}/{c}"));
                    fs::create_dir_all(&dir).unwrap();
                    fs::write(dir.join("same"), tree::noise(5, 200_000)).unwrap();
                    fs::write(dir.join("small"), b"small").unwrap();
                }
            }
        }
    });
    let expected = std::sync::Arc::new(tree::snapshot(&scratch.path("source")));
    for _ in 0..3 {
        let walkers: Vec<_> = (0..8)
            .map(|_| {
                let (path, expected) = (mount.path.clone(), std::sync::Arc::clone(&expected));
                std::thread::spawn(move || assert!(tree::snapshot(&path) == *expected))
            })
            .collect();
        let finders: Vec<_> = (0..8)
            .map(|_| {
                Command::new("find")
                    .arg(&mount.path)
                    .stdout(std::process::Stdio::piped())
                    .stderr(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for output in finders {
            let output = output.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let lines = output.stdout.split(|byte| *byte == b'\n').count() - 1;
            assert_eq!(lines, expected.len() + 1);
        }
        for walker in walkers {
            walker.join().unwrap();
        }
        drop_caches();
    }
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn on_tmpfs_too() {
    let shm = Path::new("/dev/shm");
    if !shm.is_dir() {
        return;
    }
    let scratch = Scratch::in_dir(shm);
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::sample(&source);
    let digest = scratch.import(&source);
    for _ in 0..2 {
        let mount = scratch.mount([digest.as_str()]);
        tree::assert_equal(&source, &mount.path);
        mount.stop();
    }
}
