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
    /// Whether programs cannot be executed from it.
    pub noexec: bool,
    /// The user who has mounted it, on FUSE filesystems.
    pub user_id: Option<u32>,
    /// Directories below an overlay.
    pub lower: Vec<PathBuf>,
}

impl Mounted {
    /// Whether it is of castore.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.kind == TYPE
    }

    /// Number of the connection below `/sys/fs/fuse/connections`.
    #[must_use]
    pub fn minor(&self) -> Option<u32> {
        self.device.split_once(':')?.1.parse().ok()
    }
}

/// All mounts that this process sees, those made later behind those made earlier. Does not touch them.
///
/// # Errors
/// When the table cannot be read.
pub fn table() -> io::Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// What is mounted on a path: the uppermost mount, where there are several. Does not touch the mount.
///
/// # Errors
/// When the table cannot be read.
pub fn at(path: &Path) -> io::Result<Option<Mounted>> {
    let table = table()?;
    Ok(table
        .into_iter()
        .rfind(|mounted| mounted.mountpoint == path))
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let own = options(fields.get(5)?);
    let options = options(fields.get(separator + 3)?);
    let user_id = options.iter().find_map(|option| {
        let id = option.strip_prefix(b"user_id=")?;
        std::str::from_utf8(id).ok()?.parse().ok()
    });
    let lower = options.iter().filter_map(|option| {
        ["lowerdir=", "lowerdir+="]
            .iter()
            .find_map(|name| option.strip_prefix(name.as_bytes()))
    });
    let lower = lower
        .flat_map(|dirs| dirs.split(|byte| *byte == b':'))
        .map(|dir| OsString::from_vec(dir.to_vec()).into())
        .collect();
    Some(Mounted {
        noexec: own.iter().any(|option| option == b"noexec"),
        user_id,
        lower,
        device: text(fields.get(2)?),
        mountpoint: OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: text(fields.get(separator + 1)?),
        source: text(fields.get(separator + 2)?),
    })
}

fn options(field: &[u8]) -> Vec<Vec<u8>> {
    let options = field.split(|byte| *byte == b',');
    options.map(unescape).collect()
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
                noexec: false,
                user_id: None,
                lower: Vec::new(),
            })
        );
        let line = br"1 2 0:39 / /m ro,noexec - fuse.castore x ro,user_id=7,allow_other";
        let fuse = parse(line).unwrap();
        assert_eq!(
            (fuse.minor(), fuse.user_id, fuse.noexec),
            (Some(39), Some(7), true)
        );
        let line = br"1 2 0:40 / /o rw - overlay overlay rw,lowerdir=/a\040b:/c,upperdir=/u";
        let overlay = parse(line).unwrap();
        assert_eq!(overlay.lower, [Path::new("/a b"), Path::new("/c")]);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3 - x"), None);
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().kind, "proc");
    }
}
