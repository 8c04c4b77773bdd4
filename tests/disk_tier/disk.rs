//! A filesystem of the test's own, mounted in its scratch directory.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{detach, output, succeeded};

/// However the test ends, it is unmounted.
pub struct Disk {
    pub path: PathBuf,
    /// What `mount` needs to mount it.
    what: Vec<String>,
}

impl Disk {
    /// Of so many MiB, in memory.
    pub fn tmpfs(path: &Path, size: u32) -> Self {
        let what = ["-t", "tmpfs", "-o", &format!("size={size}M"), "tmpfs"];
        Self::new(path, &what)
    }

    /// Of so many MiB, in a file, over a loop device.
    pub fn ext4(path: &Path, image: &Path, size: u64) -> Self {
        File::create(image).unwrap().set_len(size << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F"]).arg(image);
        succeeded(&output(make));
        Self::new(path, &["-o", "loop", image.to_str().unwrap()])
    }

    fn new(path: &Path, what: &[&str]) -> Self {
        fs::create_dir(path).unwrap();
        let disk = Self {
            path: path.to_owned(),
            what: what.iter().map(|&word| word.to_owned()).collect(),
        };
        disk.mount();
        disk
    }

    pub fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(&self.what).arg(&self.path);
        succeeded(&output(mount));
    }

    pub fn unmount(&self) {
        let mut unmount = Command::new("umount");
        unmount.arg(&self.path);
        succeeded(&output(unmount));
    }

    pub fn make_read_only(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,ro"]).arg(&self.path);
        succeeded(&output(mount));
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut filler = File::create(self.path.join("filler")).unwrap();
        for size in [1 << 20, 4096, 1] {
            loop {
                match filler.write(&vec![1; size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        detach(&self.path);
    }
}
