//! What the kernel keeps of files in its page cache, and what it asks the daemon for.

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use crate::support::{Mount, Scratch, tree};

const PAGE: usize = 4096;

/// How many READ requests the kernel has sent to the one mount of a scratch directory.
fn reads(scratch: &Scratch) -> u64 {
    let json = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let requests = status["mounts"][0]["requests"].as_array().unwrap();
    let reads = requests.iter().find(|pair| pair[0] == "READ");
    reads.map_or(0, |pair| pair[1].as_u64().unwrap())
}

/// How many pages of a file are in the page cache. A mapping alone reads none of them.
fn cached_pages(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut pages = vec![0_u8; len.div_ceil(PAGE)];
    // SAFETY: a new mapping at an address of the kernel's choice, of which nothing is read; `pages` has a byte for each page.
    unsafe {
        let mapped = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(mapped, libc::MAP_FAILED);
        assert_eq!(libc::mincore(mapped, len, pages.as_mut_ptr()), 0);
        assert_eq!(libc::munmap(mapped, len), 0);
    }
    pages.iter().filter(|page| **page & 1 != 0).count()
}

fn mounted(make: impl FnOnce(&Path)) -> (Scratch, Mount) {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    make(&source);
    let digest = scratch.import(&source);
    // What is imported is cached, and the mount is to fetch it.
    scratch.clear_cache();
    let mount = scratch.mount(["--prefetch", "off", "--profile", "off", digest.as_str()]);
    (scratch, mount)
}

/// A program that asks for the bytes twice gets them from the daemon twice, and leaves no page behind.
#[test]
#[ignore = "needs /dev/fuse"]
fn direct_reads_are_not_kept() {
    let (scratch, mount) = mounted(|root| tree::file(root, "page", &tree::noise(1, PAGE), false));
    let open = |flags| {
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(mount.at("page"));
        file.unwrap()
    };
    let read = |file: &File| {
        let mut bytes = vec![0; PAGE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == tree::noise(1, PAGE));
        reads(&scratch)
    };
    let (direct, buffered) = (open(libc::O_DIRECT), open(0));
    assert_eq!(reads(&scratch), 0);
    assert_eq!(read(&direct), 1);
    assert_eq!(read(&direct), 2);
    assert_eq!(cached_pages(&mount.at("page")), 0);
    assert_eq!(read(&buffered), 3);
    assert_eq!(cached_pages(&mount.at("page")), 1);
    assert_eq!(read(&buffered), 3);
    // A page that is cached is not used by a direct read either.
    assert_eq!(read(&direct), 4);
    drop((direct, buffered));
    mount.stop();
}

/// One blob in the cache and on its disk, two files for the kernel.
#[test]
#[ignore = "needs /dev/fuse"]
fn equal_files_are_cached_once_and_paged_twice() {
    const LEN: usize = 250 * PAGE;
    let (scratch, mount) = mounted(|root| {
        for name in ["one", "two"] {
            tree::file(root, name, &tree::noise(2, LEN), false);
        }
    });
    for name in ["one", "two"] {
        assert_eq!(cached_pages(&mount.at(name)), 0, "{name}");
        assert!(fs::read(mount.at(name)).unwrap() == tree::noise(2, LEN));
        assert_eq!(cached_pages(&mount.at(name)), LEN / PAGE, "{name}");
    }
    mount.stop();
    let json = scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let stored = status["cache"]["data_bytes"].as_u64().unwrap();
    // Data files are written in whole blocks of the disk, and have some for themselves.
    let once = LEN as u64..LEN as u64 * 3 / 2;
    assert!(once.contains(&stored), "{stored} bytes of {LEN}");
}
