//! Import, and reading back without a mount.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use castore::model::Digest;
use support::{Scratch, tree};

fn source(scratch: &Scratch, make: impl Fn(&Path)) -> std::path::PathBuf {
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    make(&source);
    source
}

#[test]
fn twice_is_the_same_and_writes_nothing() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    let import = || {
        let args = [
            "import".as_ref(),
            "--name".as_ref(),
            "x".as_ref(),
            source.as_os_str(),
        ];
        scratch.ok(args)
    };
    let first = import();
    assert!(
        first.starts_with("b3:") && first.len() == 3 + 44 + 1,
        "{first:?}"
    );
    let before = tree::files_and_times(&scratch.path("store"));
    assert!(before.len() > 30);
    assert_eq!(import(), first);
    assert_eq!(tree::files_and_times(&scratch.path("store")), before);
}

#[test]
fn the_digest_is_that_of_the_content_alone() {
    let (a, b) = (Scratch::new(), Scratch::new());
    let one = source(&a, tree::sample);
    let two = source(&b, |root| {
        // The same in another order, with other times, owners and group bits.
        tree::file(root, "zzz", b"", false);
        tree::sample(root);
        fs::remove_file(root.join("zzz")).unwrap();
        let hello = root.join("hello");
        fs::set_permissions(&hello, fs::Permissions::from_mode(0o600)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        File::options()
            .write(true)
            .open(&hello)
            .unwrap()
            .set_modified(old)
            .unwrap();
    });
    if rustix_is_root() {
        std::os::unix::fs::chown(two.join("one"), Some(1000), Some(1000)).unwrap();
    }
    assert_eq!(a.import(&one), b.import(&two));
}

fn rustix_is_root() -> bool {
    // SAFETY: a system call without arguments.
    unsafe { libc::geteuid() == 0 }
}

/// The digests were computed with the `blake3` package of Python from hand-encoded bytes; see the comments.
#[test]
fn golden_digests() {
    let scratch = Scratch::new();
    let source = source(&scratch, |root| {
        tree::file(root, "a", b"x", false);
        symlink("a", root.join("l")).unwrap();
    });
    // 12 27 0a 01 61 12 20 <b3 of "x"> 18 01, 1a 06 0a 01 6c 12 01 61
    let root = "c2b95e6129f4e7ebb8b9a37ee818788ef2398acf68d77acc4f9238a0c017ccd5";
    let args = ["import".as_ref(), "--hex".as_ref(), source.as_os_str()];
    assert_eq!(scratch.ok(args).trim(), root);
    // Its parent, which has it as "d": 0a 27 0a 01 64 12 20 <digest> 18 02, or 18 04 as tvix and snix count.
    let parent = scratch.path("parent");
    fs::create_dir(&parent).unwrap();
    fs::rename(&source, parent.join("d")).unwrap();
    let encoded = |size: u8| {
        let digest: Digest = root.parse().unwrap();
        let mut bytes = vec![0x0a, 39, 0x0a, 1, b'd', 0x12, 32];
        bytes.extend(digest.as_bytes());
        bytes.extend([0x18, size]);
        Digest::of(&bytes).to_string()
    };
    assert_eq!(scratch.import(&parent), encoded(2));
    let args = [
        "import".as_ref(),
        "--compat".as_ref(),
        "snix".as_ref(),
        parent.as_os_str(),
    ];
    assert_eq!(scratch.ok(args).trim(), encoded(4));
}

#[test]
fn the_store_has_the_layout_of_tvix_and_snix() {
    let scratch = Scratch::new();
    let source = source(&scratch, |root| {
        tree::file(root, "hello", b"Hello World", false);
        tree::file(root, "large", &tree::noise(7, 2 << 20), false);
    });
    let digest: Digest = scratch.import(&source).parse().unwrap();
    let hello = "41f8/41f8394111eb713a22165c46c90ab8f0fd9399c92028fd6d288944b23ff5bf76";
    let store = scratch.path("store");
    // A blob of one chunk has an empty chunk list, and its chunk is under the blob's own digest.
    assert_eq!(fs::read(store.join("blobs/b3").join(hello)).unwrap(), b"");
    let chunk = fs::read(store.join("chunks/b3").join(hello)).unwrap();
    assert_eq!(zstd::decode_all(&chunk[..]).unwrap(), b"Hello World");
    let hex = digest.to_hex();
    let closure = fs::read(store.join(format!("dirs/b3/{}/{hex}", &hex[..4]))).unwrap();
    let records = zstd::decode_all(&closure[..]).unwrap();
    let len = u32::from_be_bytes(records[..4].try_into().unwrap()) as usize;
    assert_eq!(Digest::of(&records[4..]), digest);
    assert_eq!(records.len(), 4 + len);
    let large = Digest::of(&tree::noise(7, 2 << 20)).to_hex();
    let manifest = fs::read(store.join(format!("blobs/b3/{}/{large}", &large[..4]))).unwrap();
    let manifest = castore::proto::decode_manifest(&manifest).unwrap().unwrap();
    assert_eq!(manifest.size(), 2 << 20);
    for chunk in &manifest.chunks()[..manifest.chunks().len() - 1] {
        assert!((128 << 10..=512 << 10).contains(&chunk.size));
    }
}

#[test]
fn ls_and_cat_read_it_back() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    scratch.ok([
        "import".as_ref(),
        "--name".as_ref(),
        "tree".as_ref(),
        source.as_os_str(),
    ]);
    let digest = scratch.import(&source);
    for root in ["tree", &digest] {
        let listed = scratch.run(["ls".to_owned(), root.to_owned()]).stdout;
        let text = String::from_utf8_lossy(&listed).into_owned();
        assert!(text.contains("hello\nhello-exec\nhello-too\n"), "{text}");
        let large = scratch
            .run(["cat".to_owned(), format!("{root}/large")])
            .stdout;
        assert!(large == tree::noise(3, 5_000_001));
        assert_eq!(
            scratch.ok(["cat".to_owned(), format!("{root}/nothing")]),
            ""
        );
        let inner = scratch.ok(["ls".to_owned(), format!("{root}/same-a/inner")]);
        assert_eq!(inner, "file\n");
        let long = scratch.ok(["ls".to_owned(), "-l".to_owned(), format!("{root}/deep")]);
        assert!(long.contains("link -> ../hello"), "{long}");
    }
    assert!(
        scratch
            .fails(["cat", "tree/deep"])
            .contains("is a directory")
    );
    assert!(
        scratch
            .fails(["cat", "tree/absent"])
            .contains("has no entry \"absent\"")
    );
    assert!(
        scratch
            .fails(["ls", "tree/hello/x"])
            .contains("not a directory")
    );
    assert!(scratch.fails(["ls", "unknown"]).contains("not known"));
    assert!(scratch.fails(["ls", "b3:short"]).contains("not a digest"));
}

#[test]
fn names_are_kept_in_the_store() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    let name = "odd #1 %41 näme";
    scratch.ok([
        "import".as_ref(),
        "--name".as_ref(),
        name.as_ref(),
        source.as_os_str(),
    ]);
    let digest = scratch.import(&source);
    scratch.ok(["name", "other", &digest]);
    scratch.ok(["name", "third", "other"]);
    let roots = format!("{digest} {name}\n{digest} other\n{digest} third\n");
    assert_eq!(scratch.ok(["roots"]), roots);
    // The cache only remembers them.
    scratch.clear_cache();
    assert_eq!(scratch.ok(["roots"]), roots);
    // And does so while the store is away.
    fs::rename(scratch.path("store"), scratch.path("away")).unwrap();
    assert_eq!(scratch.ok(["roots"]), roots);
    fs::rename(scratch.path("away"), scratch.path("store")).unwrap();
    scratch.ok(["roots", "--remove", name]);
    assert_eq!(
        scratch.ok(["roots"]),
        format!("{digest} other\n{digest} third\n")
    );
    assert!(
        scratch
            .fails(["roots", "--remove", name])
            .contains("not known")
    );
    assert!(scratch.fails(["name", "a/b", &digest]).contains("a/b"));
    let absent = Digest::of(b"absent").to_string();
    assert!(scratch.fails(["name", "x", &absent]).contains(&absent));
}

#[test]
fn a_file_needs_a_name() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    for file in ["hello", "link"] {
        let path = source.join(file);
        let error = scratch.fails(["import".as_ref(), path.as_os_str()]);
        assert!(error.contains("--name"), "{error}");
    }
    let path = source.join("hello");
    let printed = scratch.ok([
        "import".as_ref(),
        "--name".as_ref(),
        "h".as_ref(),
        path.as_os_str(),
    ]);
    assert_eq!(printed.trim(), Digest::of(b"Hello World").to_string());
}

#[test]
fn special_files_stop_it() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    let fifo = source.join("deep/a-fifo");
    let path = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a system call with a valid string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let _socket = std::os::unix::net::UnixListener::bind(source.join("a-socket")).unwrap();
    let error = scratch.fails(["import".as_ref(), source.as_os_str()]);
    assert!(error.contains("--skip-special"), "{error}");
    assert!(
        error.contains("a-fifo") || error.contains("a-socket"),
        "{error}"
    );
    let output = scratch.run([
        "import".as_ref(),
        "--skip-special".as_ref(),
        source.as_os_str(),
    ]);
    let digest = support::succeeded(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("left out 2"));
    fs::remove_file(fifo).unwrap();
    fs::remove_file(source.join("a-socket")).unwrap();
    assert_eq!(digest.trim(), scratch.import(&source));
}

#[test]
fn what_is_not_kept_is_told() {
    let scratch = Scratch::new();
    let source = source(&scratch, |root| {
        tree::file(root, "setuid", b"", true);
        let mode = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(root.join("setuid"), mode).unwrap();
    });
    let output = scratch.run(["import".as_ref(), source.as_os_str()]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("setuid") && told.contains("modification times"),
        "{told}"
    );
    // And nothing of it on stdout.
    assert_eq!(support::succeeded(&output).lines().count(), 1);
}

#[test]
fn bad_paths_are_told() {
    let scratch = Scratch::new();
    let absent = scratch.path("absent");
    assert!(
        scratch
            .fails(["import".as_ref(), absent.as_os_str()])
            .contains("absent")
    );
    let args = [
        "import".as_ref(),
        "--name".as_ref(),
        "..".as_ref(),
        absent.as_os_str(),
    ];
    assert!(scratch.fails(args).contains("not a name"));
    let args = [
        "import".as_ref(),
        "--remote".as_ref(),
        "/a/path".as_ref(),
        absent.as_os_str(),
    ];
    fs::create_dir(&absent).unwrap();
    assert!(
        scratch
            .fails(args)
            .contains("objectstore+file:///absolute/path")
    );
}

fn tar(source: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(["-C".as_ref(), source.as_os_str()])
        .args(options)
        .args(["-cf", "-", "."])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Imports a tar stream from standard input.
fn import_tar(scratch: &Scratch, stream: &[u8]) -> std::process::Output {
    let file = scratch.path("stream.tar");
    fs::write(&file, stream).unwrap();
    let mut cat = Command::new("cat")
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut command = scratch.command(["import", "--tar", "-"]);
    command.stdin(cat.stdout.take().unwrap());
    let output = support::output(command);
    cat.wait().unwrap();
    output
}

#[test]
fn a_tar_stream_gives_the_same_digest() {
    let scratch = Scratch::new();
    let source = source(&scratch, tree::sample);
    fs::hard_link(source.join("hello"), source.join("hard")).unwrap();
    let digest = scratch.import(&source);
    for options in [&[][..], &["-z"], &["--format=pax"], &["--format=gnu"]] {
        let stream = tar(&source, options);
        let output = import_tar(&scratch, &stream);
        assert_eq!(support::succeeded(&output).trim(), digest, "{options:?}");
    }
    let zstd = zstd::encode_all(&tar(&source, &[])[..], 3).unwrap();
    assert_eq!(
        support::succeeded(&import_tar(&scratch, &zstd)).trim(),
        digest
    );
    let file = scratch.path("file.tar");
    fs::write(&file, tar(&source, &[])).unwrap();
    let args = ["import".as_ref(), "--tar".as_ref(), file.as_os_str()];
    assert_eq!(scratch.ok(args).trim(), digest);
}

/// An archive of files whose paths are written into the header as they are.
fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let is_file = kind.is_file();
        if !is_file {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        let data = if is_file { content.as_bytes() } else { b"" };
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn tar_entries_are_taken_in_order_and_refused_where_unsafe() {
    use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};
    let scratch = Scratch::new();
    let import = |entries: &[_]| {
        let output = import_tar(&scratch, &archive(entries));
        support::succeeded(&output).trim().to_owned()
    };
    let refused = |entries: &[_], parts: &[&str]| {
        let error = support::failed(&import_tar(&scratch, &archive(entries)));
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    // A later entry wins, also one of another kind; a directory that comes again keeps its entries.
    let plain = import(&[("d/a", Regular, "new"), ("b", Regular, "x")]);
    assert_eq!(
        import(&[
            ("d", Symlink, "elsewhere"),
            ("d/", Directory, ""),
            ("d/a", Regular, "old"),
            ("d/a", Symlink, "b"),
            ("./d/a", Regular, "new"),
            ("d/", Directory, ""),
            ("b", Regular, "x"),
        ]),
        plain
    );
    // A hard link is an equal file, as it was at that time.
    let linked = import(&[("a", Regular, "1"), ("b", Link, "a"), ("a", Regular, "2")]);
    assert_eq!(linked, import(&[("a", Regular, "2"), ("b", Regular, "1")]));
    refused(
        &[("/etc/passwd", Regular, "x")],
        &["/etc/passwd", "absolute"],
    );
    refused(&[("a/../../b", Regular, "x")], &["a/../../b", ".."]);
    refused(
        &[("l", Symlink, "/etc"), ("l/passwd", Regular, "x")],
        &["l/passwd", "earlier"],
    );
    refused(&[("b", Link, "absent")], &["hard link", "absent"]);
    refused(&[("b", Link, "../x")], &[".."]);
    refused(&[("pipe", Fifo, "")], &["pipe", "fifo", "--skip-special"]);
    // GNU tar's sparse files in the pax format are a map and data, not content.
    let sparse = scratch.path("sparse");
    fs::create_dir(&sparse).unwrap();
    let file = File::create(sparse.join("holes")).unwrap();
    file.set_len(1 << 20).unwrap();
    let pax = tar(&sparse, &["--sparse", "--format=posix"]);
    assert!(support::failed(&import_tar(&scratch, &pax)).contains("sparse"));
    let gnu = tar(&sparse, &["--sparse", "--format=gnu"]);
    let digest = scratch.import(&sparse);
    assert_eq!(
        support::succeeded(&import_tar(&scratch, &gnu)).trim(),
        digest
    );
    let cut = archive(&[("a", Regular, &"x".repeat(5000))]);
    let error = support::failed(&import_tar(&scratch, &cut[..2000]));
    assert!(
        error.contains("archive") || error.contains("cannot read"),
        "{error}"
    );
    assert!(
        support::failed(&import_tar(
            &scratch,
            b"this is no archive at all".repeat(100).as_slice()
        ))
        .contains("archive")
    );
}

#[test]
fn the_default_store_is_below_the_data_directory() {
    let scratch = Scratch::new();
    let source = source(&scratch, |root| tree::file(root, "a", b"x", false));
    let mut command = scratch.command(["import".as_ref(), source.as_os_str()]);
    command
        .env_remove("CASTORE_REMOTE")
        .env("XDG_DATA_HOME", scratch.path("data"));
    if rustix_is_root() {
        // Root's default is /var/lib/castore/store; as another user it is the one of that user.
        let home = tempfile::Builder::new()
            .prefix("castore-user-")
            .tempdir_in("/var/tmp")
            .unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_castore"), home.path().join("castore")).unwrap();
        fs::create_dir(home.path().join("tree")).unwrap();
        command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(home.path().join("castore"))
            .args(["import".as_ref(), home.path().join("tree").as_os_str()])
            .env_remove("CASTORE_REMOTE")
            .env_remove("CASTORE_CACHE_DIR")
            .env("XDG_DATA_HOME", home.path().join("data"));
        support::succeeded(&support::output(command));
        assert!(home.path().join("data/castore/store").is_dir());
        // Under sudo, a name that root does not know is looked for in the user's own store.
        return;
    }
    support::succeeded(&support::output(command));
    assert!(scratch.path("data/castore/store/dirs").is_dir());
}

#[test]
fn every_help_text_has_an_example() {
    let scratch = Scratch::new();
    for command in [
        "import", "mount", "unmount", "ls", "cat", "name", "roots", "status",
    ] {
        let help = scratch.ok([command, "--help"]);
        assert!(help.contains("Example"), "{command}: {help}");
        // Every option has its environment variable.
        for line in help
            .lines()
            .filter(|line| line.trim_start().starts_with("--"))
        {
            let option = line.trim().split([' ', '=', '[']).next().unwrap();
            let variable = format!("CASTORE_{}", option[2..].to_uppercase().replace('-', "_"));
            assert!(
                option == "--help" || help.contains(&variable),
                "{command} {option}"
            );
        }
    }
    assert!(scratch.ok(["--help"]).contains("castore import"));
    assert!(scratch.ok(["--version"]).starts_with("castore "));
    let _: Option<&OsStr> = None;
}
