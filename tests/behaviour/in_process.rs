//! The view of a kernel: messages to a filesystem in this process, over a socketpair. It walks paths and follows positions
//! as a kernel does, and keeps nothing.

use std::{
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use crate::{
    cases,
    peer::{
        Answered, FORGET, GETATTR, GETXATTR, INIT, LISTXATTR, LOOKUP, OPEN, OPENDIR, Peer, READ,
        READDIR, READLINK, RELEASE, RELEASEDIR, STATFS, init, open, u64_at,
    },
    view::{Entry, File, Result, Stat, StatFs, View},
};

const ROOT: u64 = 1;
/// The largest read that a kernel sends.
const LARGEST_READ: usize = 1 << 20;
/// Bytes before the name of an entry in a listing.
const ENTRY_HEADER: usize = 24;

pub struct InProcess {
    peer: Mutex<Peer>,
}

impl InProcess {
    pub fn new() -> Self {
        let mut peer = Peer::over(cases::make_tree, &["xattr"], |channel| channel);
        assert_eq!(peer.call(INIT, 0, &init(7, 45)).errno, 0);
        Self {
            peer: Mutex::new(peer),
        }
    }

    fn peer(&self) -> MutexGuard<'_, Peer> {
        // A case that failed is no reason for the next one to fail.
        self.peer
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn call(&self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        match self.peer().call(opcode, node, body) {
            Answered { errno: 0, body, .. } => Ok(body),
            Answered { errno, .. } => Err(errno),
        }
    }

    /// Looks a path up, entry by entry.
    fn walk(&self, path: &Path) -> Result<Walked<'_>> {
        let mut walked = Walked {
            view: self,
            looked_up: Vec::new(),
        };
        for name in path {
            let name = [name.as_bytes(), &[0]].concat();
            let entry = self.call(LOOKUP, walked.node(), &name)?;
            match u64_at(&entry, 0) {
                // An entry without a node says for how long the name is not there.
                0 => return Err(libc::ENOENT),
                node => walked.looked_up.push(node),
            }
        }
        Ok(walked)
    }

    /// Does something with the node of a path.
    fn on<T>(&self, path: &Path, operation: impl FnOnce(u64) -> Result<T>) -> Result<T> {
        let walked = self.walk(path)?;
        operation(walked.node())
    }

    /// The handle, where the filesystem wants to know of opens.
    fn opened(&self, opcode: u32, node: u64, flags: i32) -> Result<Option<u64>> {
        match self.call(opcode, node, &open(flags)) {
            Ok(body) => Ok(Some(u64_at(&body, 0))),
            // From then on a kernel opens by itself.
            Err(libc::ENOSYS) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn closed(&self, opcode: u32, node: u64, handle: Option<u64>) {
        if let Some(handle) = handle {
            let mut body = vec![0; 24];
            body[..8].copy_from_slice(&handle.to_ne_bytes());
            self.call(opcode, node, &body).unwrap();
        }
    }
}

/// A path whose nodes are known. They are forgotten when this is dropped.
struct Walked<'v> {
    view: &'v InProcess,
    looked_up: Vec<u64>,
}

impl Walked<'_> {
    /// The last.
    fn node(&self) -> u64 {
        self.looked_up.last().copied().unwrap_or(ROOT)
    }
}

impl Drop for Walked<'_> {
    fn drop(&mut self) {
        for node in &self.looked_up {
            self.view.peer().send(FORGET, *node, &1_u64.to_ne_bytes());
        }
    }
}

/// An open file.
struct Open<'v> {
    walked: Walked<'v>,
    handle: Option<u64>,
}

impl File for Open<'_> {
    fn read_at(&self, mut offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let asked = (len - bytes.len()).min(LARGEST_READ);
            let body = range(self.handle, offset, asked);
            let more = self.walked.view.call(READ, self.walked.node(), &body)?;
            offset += more.len() as u64;
            bytes.extend(&more);
            if more.len() < asked {
                break;
            }
        }
        Ok(bytes)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let node = self.walked.node();
        self.walked.view.closed(RELEASE, node, self.handle);
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn signed(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}

/// The body of READ and READDIR.
fn range(handle: Option<u64>, offset: u64, size: usize) -> Vec<u8> {
    let mut body = vec![0; 40];
    body[..8].copy_from_slice(&handle.unwrap_or_default().to_ne_bytes());
    body[8..16].copy_from_slice(&offset.to_ne_bytes());
    body[16..20].copy_from_slice(&u32::try_from(size).unwrap().to_ne_bytes());
    body
}

impl View for InProcess {
    fn stat(&self, path: &Path) -> Result<Stat> {
        self.on(path, |node| {
            let body = self.call(GETATTR, node, &[0; 16])?;
            // Behind the time for which it holds.
            let attr = &body[16..];
            Ok(Stat {
                inode: u64_at(attr, 0),
                size: u64_at(attr, 8),
                blocks: u64_at(attr, 16),
                times: [signed(attr, 24), signed(attr, 32), signed(attr, 40)],
                nanoseconds: [48, 52, 56].map(|at| word(attr, at).into()),
                mode: word(attr, 60),
                links: word(attr, 64).into(),
                owner: (word(attr, 68), word(attr, 72)),
                block_size: word(attr, 80).into(),
            })
        })
    }

    fn list(&self, path: &Path, at_once: usize) -> Result<Vec<Entry>> {
        self.on(path, |node| {
            let (mut entries, mut position, mut taken) = (Vec::new(), 0, 0);
            let mut handle = self.opened(OPENDIR, node, libc::O_RDONLY)?;
            let result = loop {
                let body = match self.call(READDIR, node, &range(handle, position, 4096)) {
                    Ok(body) if body.is_empty() => break Ok(entries),
                    Ok(body) => body,
                    Err(errno) => break Err(errno),
                };
                let mut at = 0;
                while at < body.len() && taken < at_once {
                    let entry = &body[at..];
                    let length = word(entry, 16) as usize;
                    let name = &entry[ENTRY_HEADER..ENTRY_HEADER + length];
                    position = u64_at(entry, 8);
                    taken += 1;
                    at += (ENTRY_HEADER + length).next_multiple_of(8);
                    if name != b"." && name != b".." {
                        entries.push(Entry {
                            name: name.to_vec(),
                            inode: u64_at(entry, 0),
                            kind: u8::try_from(word(entry, 20)).unwrap(),
                        });
                    }
                }
                if taken == at_once {
                    taken = 0;
                    self.closed(RELEASEDIR, node, handle);
                    handle = self.opened(OPENDIR, node, libc::O_RDONLY)?;
                }
            };
            self.closed(RELEASEDIR, node, handle);
            result
        })
    }

    fn read_link(&self, path: &Path) -> Result<Vec<u8>> {
        self.on(path, |node| self.call(READLINK, node, &[]))
    }

    fn open<'v>(&'v self, path: &Path, flags: i32) -> Result<Box<dyn File + 'v>> {
        let walked = self.walk(path)?;
        let handle = self.opened(OPEN, walked.node(), flags)?;
        Ok(Box::new(Open { walked, handle }))
    }

    fn xattr(&self, path: &Path, name: &str, size: usize) -> Result<Vec<u8>> {
        let mut body = u32::try_from(size).unwrap().to_ne_bytes().to_vec();
        body.extend([0; 4]);
        body.extend([name.as_bytes(), &[0]].concat());
        let value = self.on(path, |node| self.call(GETXATTR, node, &body))?;
        Ok(match size {
            0 => vec![0; word(&value, 0) as usize],
            _ => value,
        })
    }

    fn xattr_names(&self, path: &Path) -> Result<Vec<u8>> {
        let mut body = 4096_u32.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        self.on(path, |node| self.call(LISTXATTR, node, &body))
    }

    fn statfs(&self) -> Result<StatFs> {
        let body = self.call(STATFS, ROOT, &[])?;
        let unit = u64::from(word(&body, 48));
        Ok(StatFs {
            size: u64_at(&body, 0) * unit,
            available: u64_at(&body, 16) * unit,
            files: u64_at(&body, 24),
            longest_name: word(&body, 44).into(),
        })
    }

    fn changes(&self) -> Vec<(&'static str, Result<()>)> {
        let tried = |(name, opcode): (&'static str, u32)| {
            let result = self.call(opcode, ROOT, &[0; 128]);
            (name, result.map(|_| ()))
        };
        let opened = |(name, flags): (&'static str, i32)| {
            let result = self.open(Path::new("hello"), flags);
            (name, result.map(|_| ()))
        };
        let opens = [
            ("open to write", libc::O_WRONLY),
            ("open to append", libc::O_WRONLY | libc::O_APPEND),
            ("open and truncate", libc::O_WRONLY | libc::O_TRUNC),
        ];
        let operations = [
            ("create", 35),
            ("create, or fail", 35),
            ("a file without a name", 51),
            ("mkdir", 9),
            ("unlink", 10),
            ("rmdir", 11),
            ("rename", 12),
            ("renameat2", 45),
            ("link", 13),
            ("symlink", 6),
            // All four are SETATTR.
            ("chmod", 4),
            ("chown", 4),
            ("truncate", 4),
            ("utimensat", 4),
            ("mkfifo", 8),
            ("setxattr", 21),
            ("removexattr", 24),
        ];
        let opens = opens.into_iter().map(opened);
        opens.chain(operations.into_iter().map(tried)).collect()
    }

    fn drop_caches(&self) {
        // Nothing is kept.
    }

    fn mountpoint(&self) -> Option<&Path> {
        None
    }
}
