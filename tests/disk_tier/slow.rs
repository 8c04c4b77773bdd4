//! A disk that takes no writes or no syncs for a while, or fails to sync: `slow_disk.c` stands between the program and the C library.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use crate::support::{self, Mount, Scratch, tree};

/// Longer than all is read in, on a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(120);
const FILES: u64 = 24;
/// More files than a process may have open that is allowed so many descriptors.
const MANY: u64 = 150;
const DESCRIPTORS: u64 = 120;
/// Bytes of a file. Together, they are more than what may be in flight.
const LEN: usize = 1 << 20;
const MEMORY: &str = "--memory=32MiB";

fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let of = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk_tier/slow_disk.c");
        let name = format!("slow_disk-{}.so", std::process::id());
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(of);
        compiler.arg("-ldl");
        support::succeeded(&support::output(compiler));
        shim
    })
}

/// A tree that is in the store, and nothing of it in the cache.
struct Case {
    scratch: Scratch,
    digest: String,
    files: u64,
}

impl Case {
    fn new() -> Self {
        Self::of(FILES)
    }

    fn of(files: u64) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        for number in 0..files {
            let name = format!("large-{number}");
            tree::file(&source, &name, &tree::noise(number, LEN), false);
            let name = format!("small-{number}");
            tree::file(&source, &name, name.as_bytes(), false);
        }
        let digest = scratch.import(&source);
        scratch.clear_cache();
        Self {
            scratch,
            digest,
            files,
        }
    }

    /// While it exists, the disk does what the variable says.
    fn fault(&self) -> PathBuf {
        self.scratch.path("fault")
    }

    fn begin(&self) {
        File::create(self.fault()).unwrap();
    }

    fn end(&self) {
        fs::remove_file(self.fault()).unwrap();
    }

    fn command(&self, variable: &str, args: &[&str]) -> Command {
        let mut command = self.scratch.command(args);
        command.env("LD_PRELOAD", shim());
        command.env(variable, self.fault());
        command
    }

    fn mount(&self, variable: &str) -> Mount {
        let mnt = self.scratch.mnt();
        let args = ["mount", "--foreground", MEMORY, &self.digest];
        let mut mount = self.command(variable, &args);
        mount.arg(&mnt);
        Mount::start(mount, &mnt)
    }

    /// That each file below a directory has its bytes.
    fn is_read(&self, dir: &Path) {
        let (dir, files) = (dir.to_owned(), self.files);
        support::within(DEADLINE, "reading", move || {
            for number in 0..files {
                let bytes = fs::read(dir.join(format!("large-{number}"))).unwrap();
                assert!(bytes == tree::noise(number, LEN), "{number}");
                let name = format!("small-{number}");
                assert_eq!(fs::read(dir.join(&name)).unwrap(), name.as_bytes());
            }
        });
    }

    /// That all of it is in the cache.
    fn is_kept(&self) {
        let second = self.scratch.path("second");
        fs::create_dir(&second).unwrap();
        let mut mount = self.scratch.command(["mount", "--foreground", "--offline"]);
        mount.arg(&self.digest).arg(&second);
        let mount = Mount::start(mount, &second);
        self.is_read(&mount.path);
        mount.stop();
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // What hangs must not hang the end of the test.
        let _ = fs::remove_file(self.fault());
    }
}

/// Bytes that were fetched waited for the disk, and readers for them.
#[test]
#[ignore = "needs /dev/fuse"]
fn readers_wait_for_no_write() {
    let case = Case::new();
    let mount = case.mount("WRITES_HANG");
    case.begin();
    case.is_read(&mount.path);
    case.end();
    mount.stop();
    // It is an ordinary cache afterwards.
    case.scratch.ok(["fetch", &case.digest]);
    case.is_kept();
}

/// Whoever unmounted waited for ever.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_ends_while_writes_hang() {
    let case = Case::new();
    let mount = case.mount("WRITES_HANG");
    case.begin();
    case.is_read(&mount.path);
    let told = mount.stop();
    assert!(told.contains("hangs"), "{told}");
}

/// Each commit waited for a sync, and whoever wanted to be cached for it.
#[test]
#[ignore = "needs /dev/fuse"]
fn nothing_waits_for_a_sync() {
    let case = Case::new();
    let mount = case.mount("SYNCS_HANG");
    case.begin();
    case.is_read(&mount.path);
    // It is in the index too: other processes find it.
    let chunks = tree::files_and_times(&case.scratch.path("store/chunks")).len();
    support::eventually("all is kept", || {
        let status = case.scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["cache"]["chunks"].as_u64() == Some(chunks as u64)
    });
    case.is_kept();
    case.end();
    mount.stop();
}

/// Files that waited for a sync stayed open, until readers had no descriptors left.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_waits_for_a_sync_takes_few_descriptors() {
    let case = Case::of(MANY);
    let inner = case.command("SYNCS_HANG", &["mount", "--foreground", &case.digest]);
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$@\"");
    let mut mount = support::before("sh", ["-c", &script, "sh"], &inner);
    mount.arg(case.scratch.mnt());
    let mount = Mount::start(mount, &case.scratch.mnt());
    case.begin();
    case.is_read(&mount.path);
    case.end();
    mount.stop();
}

/// The second sync of a file says that all is well, whatever became of its bytes.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_cannot_be_synced_is_not_said_to_be_there() {
    for (fault, told) in [
        ("DATA_SYNCS_FAIL", "were not kept"),
        ("INDEX_SYNCS_FAIL", "index.sqlite"),
    ] {
        let case = Case::new();
        case.scratch.ok(["ls", &case.digest]);
        case.begin();
        let fetch = support::output(case.command(fault, &["fetch", &case.digest]));
        let error = support::failed(&fetch);
        assert!(error.contains(told), "{error}");
        case.end();
        case.scratch.ok(["fetch", &case.digest]);
        case.is_kept();
    }
}
