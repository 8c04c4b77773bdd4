//! The mount table of this process.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// Type of a castore mount, in the mount table.
pub const TYPE: &str = "fuse.castore";

/// A line of `/proc/self/mountinfo` (see `proc(5)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Major and minor number, as `0:39`.
    pub device: String,
    pub mountpoint: PathBuf,
    pub kind: String,
    pub source: String,
}

/// What is mounted on a path: the uppermost mount, where there are several. Does not touch the mount.
///
/// # Errors
/// When the table cannot be read.
pub fn at(path: &Path) -> io::Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .rfind(|mounted| mounted.mountpoint == path))
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mounted {
        device: text(fields.get(2)?),
        mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: text(fields.get(separator + 1)?),
        source: text(fields.get(separator + 2)?),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.first_chunk::<3>().and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        if let (b'\\', Some(byte)) = (first, octal) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line =
            br"36 35 98:0 /a /mnt/a\040b\134 rw,noatime shared:1 - fuse.castore tool\040chain rw";
        assert_eq!(
            parse(line),
            Some(Mounted {
                device: "98:0".to_owned(),
                mountpoint: r"/mnt/a b\".into(),
                kind: TYPE.to_owned(),
                source: "tool chain".to_owned(),
            })
        );
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3 - x"), None);
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().kind, "proc");
    }
}
