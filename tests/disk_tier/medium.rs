//! Bytes that change below the filesystem, which the stamp of a file cannot tell.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
};

use crate::{
    disk::Disk,
    support::{self, Scratch, tree},
};

const FILES: u64 = 40;

/// In the same boot, with stamps that fit: `verify` said that all was complete.
#[test]
#[ignore = "needs root and loop devices"]
fn verify_reads_every_byte() {
    let scratch = Scratch::new();
    let image = scratch.path("image");
    let disk = Disk::ext4(&scratch.path("disk"), &image, 64);
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for file in 0..FILES {
        let name = format!("f{file}");
        tree::file(&source, &name, &tree::noise(file, 30_000), false);
    }
    let digest = scratch.import(&source);
    let command = |args: &[&str]| {
        let mut command = scratch.command(args);
        command.env("CASTORE_CACHE_DIR", scratch.path("disk/cache"));
        support::output(command)
    };
    support::succeeded(&command(&["fetch", &digest]));
    support::succeeded(&command(&["verify", &digest]));
    disk.unmount();
    // One bit of every second file, in the middle of its bytes.
    let mut bytes = Vec::new();
    File::open(&image).unwrap().read_to_end(&mut bytes).unwrap();
    let writer = File::options().write(true).open(&image).unwrap();
    let begins = |file| u64::from_ne_bytes(tree::noise(file, 8).try_into().unwrap());
    let mut wanted: HashMap<u64, u64> = (0..FILES)
        .step_by(2)
        .map(|file| (begins(file), file))
        .collect();
    let mut flipped = 0;
    for place in 0..bytes.len() - 30_000 {
        let begin = u64::from_ne_bytes(bytes[place..place + 8].try_into().unwrap());
        if let Some(file) = wanted.get(&begin)
            && bytes[place..place + 30_000] == tree::noise(*file, 30_000)
        {
            wanted.remove(&begin);
            let place = place + 20_000;
            writer
                .write_all_at(&[bytes[place] ^ 4], place as u64)
                .unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, usize::try_from(FILES / 2).unwrap());
    writer.sync_all().unwrap();
    disk.mount();
    let damaged = command(&["verify", &digest]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let listed = String::from_utf8(damaged.stdout).unwrap();
    assert_eq!(listed.lines().count(), flipped, "{listed}");
    // They are fetched again.
    support::succeeded(&command(&["fetch", &digest]));
    support::succeeded(&command(&["verify", &digest]));
    disk.unmount();
}
