//! A FUSE server that does nothing: trees of empty files whose names are numbers, so that each reply is a matter of arithmetic. What
//! it takes is what the kernel and the protocol take.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{IoSlice, Read, Write},
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    sync::Arc,
};

use super::trees::Shape;

const ROOT: u64 = 1;
const FOREVER: u64 = 1_000_000_000;
const EROFS: i32 = 30;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// Mounts and serves until it is unmounted.
pub fn serve(path: &Path, shape: Shape, threads: usize) {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let text = |text: &[u8]| CString::new(text).unwrap();
    let (target, options) = (text(path.as_os_str().as_bytes()), text(options.as_bytes()));
    let (source, kind) = (text(b"null"), text(b"fuse.null"));
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOATIME | libc::MS_RDONLY;
    // SAFETY: a system call with valid strings.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            options.as_ptr().cast(),
        )
    };
    assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
    let device = Arc::new(device);
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let device = Arc::clone(&device);
            std::thread::spawn(move || work(&device, shape))
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
}

fn work(mut device: &File, shape: Shape) {
    let mut message = vec![0; (1 << 20) + 4096];
    let mut out = Vec::with_capacity(1 << 20);
    loop {
        let len = match device.read(&mut message) {
            Ok(len) => len,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(_) => continue,
        };
        let u32_at = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (u32_at(4), u64_at(8), u64_at(16));
        out.clear();
        let error = match opcode {
            1 => shape.lookup(node, &message[40..len - 1], &mut out),
            3 => {
                out.extend(FOREVER.to_ne_bytes());
                out.extend([0; 8]);
                shape.attr(node, &mut out);
                0
            }
            17 => {
                out.resize(80, 0);
                0
            }
            26 => {
                init(&message[40..len], &mut out);
                0
            }
            28 | 44 => {
                shape.list(
                    node,
                    u64_at(48),
                    u32_at(56) as usize,
                    opcode == 44,
                    &mut out,
                );
                0
            }
            18 | 29 => 0,
            2 | 36 | 42 => continue,
            4 | 16 | 35 => EROFS,
            _ => ENOSYS,
        };
        let mut header = [0; 16];
        header[..4].copy_from_slice(&u32::try_from(16 + out.len()).unwrap().to_ne_bytes());
        header[4..8].copy_from_slice(&(-error).to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let _ = device.write_vectored(&[IoSlice::new(&header), IoSlice::new(&out)]);
    }
}

/// The same agreement as castore's.
fn init(body: &[u8], out: &mut Vec<u8>) {
    const FLAGS: u64 =
        1 | 1 << 13 | 1 << 17 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 30;
    let offered = u32::from_ne_bytes(body[12..16].try_into().unwrap());
    let mut answer = [0; 64];
    answer[0] = 7;
    answer[4] = 44;
    answer[8..12].copy_from_slice(&body[8..12]);
    let flags = u32::try_from(FLAGS).unwrap() & offered;
    answer[12..16].copy_from_slice(&flags.to_ne_bytes());
    answer[16..18].copy_from_slice(&1024_u16.to_ne_bytes());
    answer[18..20].copy_from_slice(&768_u16.to_ne_bytes());
    answer[20..24].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
    answer[24] = 1;
    answer[28..30].copy_from_slice(&256_u16.to_ne_bytes());
    out.extend(answer);
}

impl Shape {
    /// Node id of a directory, and of a file in it.
    const fn directory(number: u64) -> u64 {
        ROOT + 1 + number
    }

    const fn file(self, directory: u64, number: u64) -> u64 {
        ROOT + 1 + self.directories + directory * self.files + number
    }

    fn is_directory(self, node: u64) -> bool {
        node < ROOT + 1 + self.directories
    }

    fn attr(self, node: u64, out: &mut Vec<u8>) {
        let is_directory = self.is_directory(node);
        let size = if is_directory { self.files } else { 1000 };
        let mode: u32 = if is_directory { 0o40_555 } else { 0o100_444 };
        for long in [node, size, size.div_ceil(512), 0, 1, 0] {
            out.extend(long.to_ne_bytes());
        }
        for short in [0, 0, 0, mode, 1, 0, 0, 0, 128 << 10, 0] {
            out.extend(u32::to_ne_bytes(short));
        }
    }

    fn entry(self, node: u64, out: &mut Vec<u8>) {
        for long in [node, 0, FOREVER, FOREVER, 0] {
            out.extend(u64::to_ne_bytes(long));
        }
        self.attr(node, out);
    }

    fn lookup(self, parent: u64, name: &[u8], out: &mut Vec<u8>) -> i32 {
        let digits = name.iter().filter(|byte| byte.is_ascii_digit());
        let number = digits.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let node = match (parent, name.starts_with(b"dir"), name.starts_with(b"file")) {
            (ROOT, true, _) if number < self.directories => Self::directory(number),
            (_, _, true) if number < self.files => self.file(parent - ROOT - 1, number),
            _ => return ENOENT,
        };
        self.entry(node, out);
        0
    }

    fn list(self, node: u64, offset: u64, size: usize, plus: bool, out: &mut Vec<u8>) {
        let count = if node == ROOT {
            self.directories
        } else {
            self.files
        };
        let mut name = Vec::with_capacity(32);
        for at in offset..count + 2 {
            name.clear();
            let (child, kind) = match (at, node) {
                (0 | 1, _) => (node, 4),
                (_, ROOT) => (Self::directory(at - 2), 4),
                _ => (self.file(node - ROOT - 1, at - 2), 8),
            };
            match (at, node) {
                (0, _) => name.extend(b"."),
                (1, _) => name.extend(b".."),
                (_, ROOT) => write!(name, "dir{:06}", at - 2).unwrap(),
                _ => write!(name, "file{:06}.txt", at - 2).unwrap(),
            }
            let entry = if plus { 128 } else { 0 };
            let len = (24 + name.len()).next_multiple_of(8);
            if out.len() + entry + len > size {
                return;
            }
            match (plus, at) {
                (false, _) => {}
                (true, 0 | 1) => out.resize(out.len() + 128, 0),
                (true, _) => self.entry(child, out),
            }
            let end = out.len() + len;
            out.extend(child.to_ne_bytes());
            out.extend((at + 1).to_ne_bytes());
            out.extend(u32::try_from(name.len()).unwrap().to_ne_bytes());
            out.extend(u32::to_ne_bytes(kind));
            out.extend(&name);
            out.resize(end, 0);
        }
    }
}
