//! Bytes that change below the filesystem, which the stamp of a file cannot tell.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    process::Command,
};

use crate::{
    disk::Disk,
    support::{self, Mount, Scratch, tree},
};

const FILES: u64 = 40;
/// Bytes of a file.
const LEN: usize = 30_000;

/// A cache that has a tree, and its filesystem, of which one bit of every second file is flipped.
struct Flipped {
    scratch: Scratch,
    digest: String,
    disk: Disk,
}

impl Flipped {
    fn new() -> Self {
        let scratch = Scratch::new();
        let image = scratch.path("image");
        let disk = Disk::ext4(&scratch.path("disk"), &image, 64);
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        for file in 0..FILES {
            let name = format!("f{file}");
            tree::file(&source, &name, &tree::noise(file, LEN), false);
        }
        let digest = scratch.import(&source);
        let flipped = Self {
            scratch,
            digest,
            disk,
        };
        flipped.ok(&["fetch", &flipped.digest]);
        flipped.ok(&["verify", &flipped.digest]);
        flipped.disk.unmount();
        let mut bytes = Vec::new();
        File::open(&image).unwrap().read_to_end(&mut bytes).unwrap();
        let writer = File::options().write(true).open(&image).unwrap();
        let begins = |file| u64::from_ne_bytes(tree::noise(file, 8).try_into().unwrap());
        let mut wanted: HashMap<u64, u64> = (0..FILES)
            .step_by(2)
            .map(|file| (begins(file), file))
            .collect();
        for place in 0..bytes.len() - LEN {
            let begin = u64::from_ne_bytes(bytes[place..place + 8].try_into().unwrap());
            if let Some(file) = wanted.get(&begin)
                && bytes[place..place + LEN] == tree::noise(*file, LEN)
            {
                wanted.remove(&begin);
                // In the middle of its bytes.
                let place = place + 20_000;
                writer
                    .write_all_at(&[bytes[place] ^ 4], place as u64)
                    .unwrap();
            }
        }
        assert!(wanted.is_empty(), "not found: {wanted:?}");
        writer.sync_all().unwrap();
        flipped.disk.mount();
        flipped
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.scratch.command(args);
        command.env("CASTORE_CACHE_DIR", self.scratch.path("disk/cache"));
        command
    }

    fn ok(&self, args: &[&str]) {
        support::succeeded(&support::output(self.command(args)));
    }

    fn mount(&self, mut command: Command) -> Mount {
        let path = self.scratch.mnt();
        command.arg(&path);
        Mount::start(command, &path)
    }

    /// How many files are right in a mount. The others are errors.
    fn right(mount: &Mount) -> u64 {
        let mut right = 0;
        for file in 0..FILES {
            match fs::read(mount.at(&format!("f{file}"))) {
                Ok(bytes) => {
                    assert!(bytes == tree::noise(file, LEN), "{file} is wrong");
                    right += 1;
                }
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
            }
        }
        right
    }
}

/// In the same boot, with stamps that fit: `verify` said that all was complete.
#[test]
#[ignore = "needs root and loop devices"]
fn verify_reads_every_byte() {
    let flipped = Flipped::new();
    let damaged = support::output(flipped.command(&["verify", &flipped.digest]));
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let listed = String::from_utf8(damaged.stdout).unwrap();
    assert_eq!(listed.lines().count() as u64, FILES / 2, "{listed}");
    // They are fetched again.
    flipped.ok(&["fetch", &flipped.digest]);
    flipped.ok(&["verify", &flipped.digest]);
    flipped.disk.unmount();
}

#[test]
#[ignore = "needs /dev/fuse, root and loop devices"]
fn no_wrong_byte_is_read_where_each_is_hashed() {
    let flipped = Flipped::new();
    let always = |args: &[&str]| {
        let args = [&["mount", "--foreground", "--verify=always"], args].concat();
        flipped.mount(flipped.command(&[&args[..], &[&flipped.digest]].concat()))
    };
    let mount = always(&["--offline"]);
    assert_eq!(Flipped::right(&mount), FILES / 2);
    // Mapped, too: a program that starts has its pages from there.
    let mapped = File::open(mount.at("f1")).unwrap();
    // SAFETY: nobody changes the file while it is mapped.
    let mapped = unsafe { memmap2::Mmap::map(&mapped) }.unwrap();
    assert!(mapped[..] == tree::noise(1, LEN));
    drop(mapped);
    mount.stop();
    // With its store, what is damaged is fetched again.
    let mount = always(&[]);
    assert_eq!(Flipped::right(&mount), FILES);
    mount.stop();
    let mount = always(&["--offline"]);
    assert_eq!(Flipped::right(&mount), FILES);
    mount.stop();
    flipped.disk.unmount();
}

/// What was hashed before the machine started is hashed once more.
#[test]
#[ignore = "needs root and loop devices"]
fn no_wrong_byte_is_read_after_a_reboot() {
    let flipped = Flipped::new();
    let boot = flipped.scratch.path("boot_id");
    fs::write(&boot, "01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
    // In a mount namespace of its own.
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let namespace = ["--mount", "sh", "-c", script, boot.to_str().unwrap()];
    let mut right = 0;
    for file in 0..FILES {
        let path = format!("{}/f{file}", flipped.digest);
        let cat = flipped.command(&["cat", "--offline", &path]);
        let cat = support::output(support::before("unshare", namespace, &cat));
        match cat.status.code() {
            Some(0) => {
                assert!(cat.stdout == tree::noise(file, LEN), "{file} is wrong");
                right += 1;
            }
            status => assert_eq!(status, Some(1), "{cat:?}"),
        }
    }
    assert_eq!(right, FILES / 2);
    flipped.disk.unmount();
}
