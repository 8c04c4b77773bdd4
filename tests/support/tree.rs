//! Trees to import, and comparing two of them.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};

/// Bytes that do not compress and are the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tree that has one of everything.
pub fn sample(root: &Path) {
    for dir in [
        "empty",
        "same-a/inner",
        "same-b/inner",
        "deep/er/and/deeper",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    file(root, "hello", b"Hello World", false);
    file(root, "hello-too", b"Hello World", false);
    file(root, "hello-exec", b"Hello World", true);
    file(root, "nothing", b"", false);
    file(root, "one", b"1", false);
    file(root, "block", &noise(1, 4096), false);
    file(root, "chunk", &noise(2, 128 << 10), false);
    file(root, "large", &noise(3, 5_000_001), false);
    file(root, "zeros", &vec![0; 3 << 20], false);
    file(root, "same-a/inner/file", b"equal", false);
    file(root, "same-b/inner/file", b"equal", false);
    file(root, "deep/er/and/deeper/end", b"the end", false);
    symlink("hello", root.join("link")).unwrap();
    symlink("../hello", root.join("deep/link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    let odd = OsStr::from_bytes(b"odd \xff\xfe name \n \"quoted\" \xc3\xa9");
    fs::write(root.join(odd), b"odd").unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
}

pub fn file(root: &Path, name: &str, content: &[u8], executable: bool) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What a tree holds, by path.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    Directory,
    /// Digest of the bytes, length, executable.
    File(blake3::Hash, usize, bool),
    Symlink(Vec<u8>),
}

pub type Snapshot = BTreeMap<Vec<u8>, Content>;

/// Reads every byte of a tree.
pub fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, dir: &Path, found: &mut Snapshot) {
    for entry in fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}")) {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() {
            walk(root, &path, found);
            Content::Directory
        } else if metadata.is_symlink() {
            Content::Symlink(fs::read_link(&path).unwrap().into_os_string().into_vec())
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            assert_eq!(bytes.len() as u64, metadata.len(), "{path:?}");
            let executable = metadata.permissions().mode() & 0o100 != 0;
            Content::File(blake3::hash(&bytes), bytes.len(), executable)
        };
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        found.insert(name.to_vec(), content);
    }
}

/// Fails with the first difference.
pub fn assert_equal(expected: &Path, actual: &Path) {
    let (expected, actual) = (snapshot(expected), snapshot(actual));
    for (path, content) in &expected {
        let path_text = path.escape_ascii();
        assert_eq!(actual.get(path), Some(content), "{path_text}");
    }
    assert_eq!(expected.len(), actual.len());
}

/// Every file below a directory with its length and modification time: whether anything was written.
pub fn files_and_times(root: &Path) -> BTreeMap<Vec<u8>, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if metadata.is_dir() {
                dirs.push(path);
            } else {
                let seen = (metadata.len(), metadata.modified().unwrap());
                found.insert(path.as_os_str().as_bytes().to_vec(), seen);
            }
        }
    }
    found
}
