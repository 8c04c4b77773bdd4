//! What the guest boots with: busybox, the drivers and the first process, as a cpio archive in the `newc` format.

use std::{
    fs,
    path::{Path, PathBuf},
};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// Makes it from what `contrib/test-vm.sh` has put into a directory, and from a test's own programs.
pub fn build(parts: &Path, programs: &[(String, PathBuf)]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("bin", DIRECTORY, b"");
    let busybox = fs::read(parts.join("bin/busybox")).unwrap();
    archive.add("bin/busybox", PROGRAM, &busybox);
    archive.add("modules", DIRECTORY, b"");
    // A kernel that has everything built in has no modules.
    for module in fs::read_dir(parts.join("modules")).into_iter().flatten() {
        let module = module.unwrap();
        let name = module.file_name().into_string().unwrap();
        let bytes = fs::read(module.path()).unwrap();
        archive.add(&format!("modules/{name}"), FILE, &bytes);
    }
    archive.add("programs", DIRECTORY, b"");
    for (name, path) in programs {
        let bytes = fs::read(path).unwrap();
        archive.add(&format!("programs/{name}"), PROGRAM, &bytes);
    }
    archive.add("init", PROGRAM, include_bytes!("init.sh"));
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).unwrap();
        let name_size = u32::try_from(name.len() + 1).unwrap();
        // Inode, mode, owner, group, links, modification time, size, two numbers of the device, two of the device that it
        // is, length of the name, check sum.
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Names and contents each begin at a multiple of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}
