//! A mount that goes over to another tree: what changes at once, and what is not touched.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use crate::support::{Mount, Scratch, is_mounted, tree};

/// Two trees that differ in `d/changed`, `d/deeper/x` and what came and went.
fn two_trees(scratch: &Scratch) -> [String; 2] {
    ["old", "new"].map(|which| {
        let source = scratch.path(which);
        fs::create_dir(&source).unwrap();
        let same = [
            "same",
            "d/same",
            "d/deeper/same",
            "e/same",
            "e/f/same",
            "point/keep",
        ];
        for name in same {
            tree::file(&source, name, name.as_bytes(), false);
        }
        for name in ["d/changed", "d/deeper/x"] {
            tree::file(&source, name, which.as_bytes(), false);
        }
        tree::file(&source, &format!("d/only-{which}"), b"", false);
        // A name that is a directory in one tree and a file in the other.
        match which {
            "old" => tree::file(&source, "d/kind/inside", b"x", false),
            _ => tree::file(&source, "d/kind", b"a file", false),
        }
        scratch.import(&source)
    })
}

fn switch(scratch: &Scratch, root: &str) {
    let mnt = scratch.mnt();
    scratch.ok(["switch".as_ref(), mnt.as_os_str(), root.as_ref()]);
}

fn start() -> (Scratch, Mount, [String; 2]) {
    let scratch = Scratch::new();
    let roots = two_trees(&scratch);
    let mount = scratch.mount([&roots[0]]);
    (scratch, mount, roots)
}

#[test]
#[ignore = "needs /dev/fuse"]
fn changes_are_seen_at_once_at_any_depth() {
    let (scratch, mount, roots) = start();
    for round in 0..6 {
        // Everything is looked up and listed, and what is absent too.
        let (here, there) = [("old", "new"), ("new", "old")][round % 2];
        tree::assert_equal(&scratch.path(here), &mount.path);
        assert!(!mount.at(&format!("d/only-{there}")).exists());
        switch(&scratch, &roots[(round + 1) % 2]);
        assert_eq!(fs::read_to_string(mount.at("d/deeper/x")).unwrap(), there);
        assert!(mount.at(&format!("d/only-{there}")).exists());
        assert!(!mount.at(&format!("d/only-{here}")).exists());
        tree::assert_equal(&scratch.path(there), &mount.path);
    }
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_did_not_change_is_not_touched() {
    let (scratch, mount, roots) = start();
    let number = |name: &str| fs::symlink_metadata(mount.at(name)).unwrap().ino();
    let names = [
        "",
        "same",
        "d",
        "d/same",
        "d/changed",
        "d/deeper",
        "d/deeper/same",
        "e",
        "e/f/same",
    ];
    let before = names.map(number);
    let before_changed = number("d/changed");
    let requests = || {
        let status: serde_json::Value =
            serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
        let requests = status["mounts"][0]["requests"].as_array().unwrap().clone();
        let lookups = requests.iter().find(|pair| pair[0] == "LOOKUP");
        lookups.map_or(0, |pair| pair[1].as_u64().unwrap())
    };
    switch(&scratch, &roots[1]);
    let lookups = requests();
    // Known names in unchanged directories are not asked for again.
    for name in ["e/same", "e/f/same", "d/deeper/same"] {
        number(name);
    }
    number("e/f/same");
    assert!(requests() <= lookups + 3, "{} after {lookups}", requests());
    for (name, before) in names.iter().zip(before) {
        assert_eq!(number(name) == before, *name != "d/changed", "{name}");
    }
    assert_ne!(number("d/changed"), before_changed);
    mount.stop();
}

/// Taken down before the mount below it.
struct Bound(Vec<std::path::PathBuf>);
impl Drop for Bound {
    fn drop(&mut self) {
        for path in &self.0 {
            crate::support::detach(path);
        }
    }
}

/// It vanished: the whole of the root was looked up anew.
#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_mounted_on_an_unchanged_entry_stays() {
    let (scratch, mount, roots) = start();
    let other = scratch.path("other");
    tree::file(&other, "here", b"bound", false);
    let points = ["point", "d/deeper"];
    let bind = |point: &str| {
        let c = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
        let (from, to) = (c(&other), c(&mount.at(point)));
        // SAFETY: a system call with valid strings.
        let bound = unsafe {
            libc::mount(
                from.as_ptr(),
                to.as_ptr(),
                std::ptr::null(),
                libc::MS_BIND,
                std::ptr::null(),
            )
        };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    };
    let bound = Bound(points.map(|point| mount.at(point)).to_vec());
    for point in points {
        bind(point);
    }
    switch(&scratch, &roots[1]);
    for point in points {
        assert!(is_mounted(&mount.at(point)), "{point}");
        assert_eq!(
            fs::read(mount.at(&format!("{point}/here"))).unwrap(),
            b"bound"
        );
    }
    drop(bound);
    // What lies below is the new tree.
    tree::assert_equal(&scratch.path("new"), &mount.path);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn open_files_stay_and_directories_go_along() {
    let (scratch, mount, roots) = start();
    let file = fs::File::open(mount.at("d/changed")).unwrap();
    let number = file.metadata().unwrap().ino();
    let dir = fs::File::open(mount.at("d")).unwrap();
    switch(&scratch, &roots[1]);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut &file, &mut text).unwrap();
    assert_eq!(
        (text.as_str(), file.metadata().unwrap().ino()),
        ("old", number)
    );
    let below = format!(
        "/proc/self/fd/{}/changed",
        std::os::fd::AsRawFd::as_raw_fd(&dir)
    );
    assert_eq!(fs::read_to_string(below).unwrap(), "new");
    drop((file, dir));
    mount.stop();
}

/// It missed 365 of 1,500 entries: positions were indices of whatever the directory was by then.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_listing_goes_on_in_what_the_directory_was() {
    let scratch = Scratch::new();
    let roots = ["old", "new", "newer"].map(|which| {
        let source = scratch.path(which);
        for number in 0..4000 {
            // What comes first is taken away, and what comes last is added.
            let stays = number % 2 == 1;
            let comes = number >= 2000;
            if stays || comes == (which != "old") {
                tree::file(&source, &format!("d/{number:04}"), which.as_bytes(), false);
            }
        }
        scratch.import(&source)
    });
    let names = |which: &str| -> std::collections::BTreeSet<_> {
        let list = fs::read_dir(scratch.path(which).join("d")).unwrap();
        list.map(|entry| entry.unwrap().file_name()).collect()
    };
    for options in [&[][..], &["--inode32"]] {
        let mount = scratch.mount(options.iter().copied().chain([roots[0].as_str()]));
        let mut lists = vec![fs::read_dir(mount.at("d")).unwrap()];
        let mut seen = vec![Vec::new()];
        for root in &roots[1..] {
            for (list, seen) in lists.iter_mut().zip(&mut seen) {
                seen.extend(list.take(10).map(|entry| entry.unwrap().file_name()));
            }
            switch(&scratch, root);
            lists.push(fs::read_dir(mount.at("d")).unwrap());
            seen.push(Vec::new());
        }
        for (at, (list, mut seen)) in lists.into_iter().zip(seen).enumerate() {
            seen.extend(list.map(|entry| entry.unwrap().file_name()));
            let all: std::collections::BTreeSet<_> = seen.iter().cloned().collect();
            assert_eq!(all.len(), seen.len(), "nothing comes twice");
            assert_eq!(all, names(["old", "new", "newer"][at]));
        }
        mount.stop();
    }
}
