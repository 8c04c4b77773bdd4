//! The canonical encoding of a directory, as protobuf writes `tvix.castore.v1.Directory` (fields in the order of their numbers,
//! default values left out, numbers in their shortest form; <https://protobuf.dev/programming-guides/encoding/>).
//!
//! It is read by hand and not by `prost`, because entries are looked up in it where it lies: a directory of 300,000 entries
//! would take 50 ms and three times its memory to decode.

use super::{DirectoryError, Entry, EntryRef};
use crate::model::{Digest, Name, Node, NodeRef, Target};

/// The tags of the three lists, in their order: a field number, shifted by three, and the wire type LEN (2).
const DIRECTORIES: u8 = 1 << 3 | 2;
const FILES: u8 = 2 << 3 | 2;
const SYMLINKS: u8 = 3 << 3 | 2;
/// The tags within an entry; the name is the same in all three, and a symlink has its target in the place of the digest.
const NAME: u8 = 1 << 3 | 2;
const DIGEST: u8 = 2 << 3 | 2;
/// Wire type VARINT (0) from here on.
const SIZE: u8 = 3 << 3;
const EXECUTABLE: u8 = 4 << 3;

/// What reading an encoding once finds out.
pub(super) struct Parsed {
    pub(super) offsets: Box<[u32]>,
    pub(super) size: u64,
    pub(super) content: u64,
}

/// Encodes entries that are sorted by name.
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let (mut encoded, mut body) = (Vec::new(), Vec::new());
    for list in [DIRECTORIES, FILES, SYMLINKS] {
        for Entry { name, node } in entries {
            body.clear();
            put_bytes(&mut body, NAME, name.as_bytes());
            let of = match node {
                Node::Directory { digest, size } => {
                    put_bytes(&mut body, DIGEST, digest.as_bytes());
                    put_number(&mut body, SIZE, *size);
                    DIRECTORIES
                }
                Node::File {
                    digest,
                    size,
                    executable,
                } => {
                    put_bytes(&mut body, DIGEST, digest.as_bytes());
                    put_number(&mut body, SIZE, *size);
                    put_number(&mut body, EXECUTABLE, u64::from(*executable));
                    FILES
                }
                Node::Symlink { target } => {
                    put_bytes(&mut body, DIGEST, target.as_bytes());
                    SYMLINKS
                }
            };
            if of == list {
                put_bytes(&mut encoded, list, &body);
            }
        }
    }
    encoded
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A number; 0 is the default and left out.
fn put_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    if number != 0 {
        out.push(tag);
        put_varint(out, number);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Checks an encoding and finds its entries.
pub(super) fn parse(encoded: &[u8]) -> Result<Parsed, DirectoryError> {
    if u32::try_from(encoded.len()).is_err() {
        return Err(DirectoryError::TooLong);
    }
    let (mut size, mut snix_size, mut content) = (0_u64, 0_u64, 0_u64);
    let mut lists = [Vec::new(), Vec::new(), Vec::new()];
    let mut current = 0;
    let mut last: &[u8] = &[];
    let mut reader = Reader(encoded);
    while !reader.0.is_empty() {
        let offset = encoded.len() - reader.0.len();
        let list = match reader.0[0] {
            DIRECTORIES => 0,
            FILES => 1,
            SYMLINKS => 2,
            _ => return Err(DirectoryError::NotCanonical),
        };
        if list < current {
            return Err(DirectoryError::NotCanonical);
        }
        let entry = entry(&mut reader)?;
        if list > current {
            (current, last) = (list, &[]);
        }
        match entry.name.cmp(last) {
            std::cmp::Ordering::Greater => {}
            std::cmp::Ordering::Equal => return Err(DirectoryError::Duplicate(entry.to_name())),
            std::cmp::Ordering::Less => {
                return Err(DirectoryError::Unsorted {
                    list: ["directories", "files", "symlinks"][list],
                    name: entry.to_name(),
                });
            }
        }
        last = entry.name;
        let below = match entry.node {
            NodeRef::Directory { size, .. } => size,
            NodeRef::File { size, .. } => {
                content = content.saturating_add(size);
                0
            }
            NodeRef::Symlink { .. } => 0,
        };
        // Under the rule that counts more, so that both sums fit.
        snix_size = snix_size
            .checked_add(below)
            .and_then(|sum| sum.checked_add(2))
            .ok_or_else(|| DirectoryError::SizeOverflow(entry.to_name()))?;
        size += below + 1;
        // Fits: the length of the whole does.
        lists[list].push(u32::try_from(offset).unwrap_or(u32::MAX));
    }
    Ok(Parsed {
        offsets: merge(encoded, lists)?.into(),
        size,
        content,
    })
}

/// One list of three, in the order of names.
fn merge(encoded: &[u8], lists: [Vec<u32>; 3]) -> Result<Vec<u32>, DirectoryError> {
    let [directories, files, symlinks] = lists;
    merge_two(encoded, merge_two(encoded, directories, files)?, symlinks)
}

fn merge_two(encoded: &[u8], a: Vec<u32>, b: Vec<u32>) -> Result<Vec<u32>, DirectoryError> {
    if a.is_empty() {
        return Ok(b);
    }
    if b.is_empty() {
        return Ok(a);
    }
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        let (left, right) = (name_at(encoded, *left), name_at(encoded, *right));
        merged.extend(match left.cmp(right) {
            std::cmp::Ordering::Less => a.next(),
            std::cmp::Ordering::Greater => b.next(),
            std::cmp::Ordering::Equal => {
                return Err(DirectoryError::Duplicate(Name::of_valid(left)));
            }
        });
    }
    merged.extend(a);
    merged.extend(b);
    Ok(merged)
}

/// The name of an entry that [`parse`] has checked. Called for each step of a search, so it reads what it must and no more.
pub(super) fn name_at(encoded: &[u8], offset: u32) -> &[u8] {
    // The tag of the list, the length of the entry, the tag of the name, its length.
    let mut reader = Reader(encoded.get(offset as usize + 1..).unwrap_or_default());
    reader.skip_varint();
    reader.0 = reader.0.get(1..).unwrap_or_default();
    match *reader.0 {
        [len, ref rest @ ..] if len < 0x80 => rest.get(..usize::from(len)),
        // A name of 128 to 255 bytes.
        [low, 1, ref rest @ ..] => rest.get(..usize::from(low)),
        _ => None,
    }
    .unwrap_or_default()
}

/// An entry that [`parse`] has checked.
pub(super) fn entry_at(encoded: &[u8], offset: u32) -> EntryRef<'_> {
    const IMPOSSIBLE: EntryRef<'static> = EntryRef {
        name: &[],
        node: NodeRef::Symlink { target: &[] },
    };
    let mut reader = Reader(encoded.get(offset as usize..).unwrap_or_default());
    let Ok(fields) = fields(&mut reader) else {
        return IMPOSSIBLE;
    };
    let node = match (fields.tag, Digest::try_from(fields.value)) {
        (SYMLINKS, _) => NodeRef::Symlink {
            target: fields.value,
        },
        (_, Err(_)) => return IMPOSSIBLE,
        (DIRECTORIES, Ok(digest)) => NodeRef::Directory {
            digest,
            size: fields.size,
        },
        (_, Ok(digest)) => NodeRef::File {
            digest,
            size: fields.size,
            executable: fields.executable,
        },
    };
    EntryRef {
        name: fields.name,
        node,
    }
}

/// An entry as it stands in the encoding.
struct Fields<'a> {
    tag: u8,
    name: &'a [u8],
    /// The digest, or the target of a symlink.
    value: &'a [u8],
    size: u64,
    executable: bool,
}

/// Why an encoding cannot be read.
enum Unreadable {
    Truncated,
    NotCanonical,
}

impl From<Unreadable> for DirectoryError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Truncated => Self::Truncated,
            Unreadable::NotCanonical => Self::NotCanonical,
        }
    }
}

fn fields<'a>(reader: &mut Reader<'a>) -> Result<Fields<'a>, Unreadable> {
    let (tag, body) = reader.tagged()?;
    let mut body = Reader(body);
    let (name, value) = (body.field(NAME)?, body.field(DIGEST)?);
    let mut fields = Fields {
        tag,
        name,
        value,
        size: 0,
        executable: false,
    };
    if tag != SYMLINKS {
        fields.size = body.number(SIZE)?;
    }
    if tag == FILES {
        fields.executable = match body.number(EXECUTABLE)? {
            0 => false,
            1 => true,
            _ => return Err(Unreadable::NotCanonical),
        };
    }
    match body.0 {
        [] => Ok(fields),
        _ => Err(Unreadable::NotCanonical),
    }
}

/// Reads one entry and checks it.
fn entry<'a>(reader: &mut Reader<'a>) -> Result<EntryRef<'a>, DirectoryError> {
    let Fields {
        tag,
        name,
        value,
        size,
        executable,
    } = fields(reader)?;
    Name::check(name)?;
    if tag == SYMLINKS {
        Target::check(value).map_err(|cause| DirectoryError::Target {
            name: Name::of_valid(name),
            cause,
        })?;
        let node = NodeRef::Symlink { target: value };
        return Ok(EntryRef { name, node });
    }
    let digest = Digest::try_from(value).map_err(|cause| DirectoryError::Digest {
        name: Name::of_valid(name),
        cause,
    })?;
    let node = match tag {
        DIRECTORIES => NodeRef::Directory { digest, size },
        _ => NodeRef::File {
            digest,
            size,
            executable,
        },
    };
    Ok(EntryRef { name, node })
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A tag, and the bytes of its length that follow.
    fn tagged(&mut self) -> Result<(u8, &'a [u8]), Unreadable> {
        let (tag, rest) = self.0.split_first().ok_or(Unreadable::Truncated)?;
        self.0 = rest;
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| Unreadable::Truncated)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Unreadable::Truncated)?;
        self.0 = rest;
        Ok((*tag, bytes))
    }

    /// The bytes of a field, none where it is left out.
    fn field(&mut self, tag: u8) -> Result<&'a [u8], Unreadable> {
        match self.0.first() {
            Some(next) if *next == tag => Ok(self.tagged()?.1),
            _ => Ok(&[]),
        }
    }

    /// A number, 0 where it is left out.
    fn number(&mut self, tag: u8) -> Result<u64, Unreadable> {
        match self.0.split_first() {
            Some((next, rest)) if *next == tag => {
                self.0 = rest;
                match self.varint()? {
                    0 => Err(Unreadable::NotCanonical),
                    number => Ok(number),
                }
            }
            _ => Ok(0),
        }
    }

    /// Goes on behind a number.
    fn skip_varint(&mut self) {
        let len = self.0.iter().position(|byte| *byte < 0x80);
        let len = len.map_or(self.0.len(), |last| last + 1);
        self.0 = self.0.get(len..).unwrap_or_default();
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Unreadable::Truncated)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Unreadable::NotCanonical);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero says that a shorter form was there.
                return match (byte, shift) {
                    (0, 1..) => Err(Unreadable::NotCanonical),
                    _ => Ok(number),
                };
            }
        }
        Err(Unreadable::NotCanonical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, tag, bytes);
        out
    }

    fn file(name: &[u8]) -> Vec<u8> {
        let digest = Digest::of(name);
        field(
            FILES,
            &[field(NAME, name), field(DIGEST, digest.as_bytes())].concat(),
        )
    }

    fn directory(name: &[u8], size: u64) -> Vec<u8> {
        let digest = Digest::of(name);
        let mut body = [field(NAME, name), field(DIGEST, digest.as_bytes())].concat();
        put_number(&mut body, SIZE, size);
        field(DIRECTORIES, &body)
    }

    fn symlink(name: &[u8], target: &[u8]) -> Vec<u8> {
        field(
            SYMLINKS,
            &[field(NAME, name), field(DIGEST, target)].concat(),
        )
    }

    fn refused(parts: &[Vec<u8>]) -> DirectoryError {
        parse(&parts.concat()).err().unwrap()
    }

    #[test]
    fn what_the_model_does_not_allow() {
        let named = |name: &str| Name::new(name.to_owned()).unwrap();
        assert_eq!(
            refused(&[file(b"b"), file(b"a")]),
            DirectoryError::Unsorted {
                list: "files",
                name: named("a")
            }
        );
        let a = named("a");
        for twice in [
            [file(b"a"), symlink(b"a", b"b")],
            [file(b"a"), file(b"a")],
            [directory(b"a", 0), file(b"a")],
        ] {
            assert_eq!(refused(&twice), DirectoryError::Duplicate(a.clone()));
        }
        for name in ["", ".", "..", "a/b", "a\0b"] {
            let error = refused(&[file(name.as_bytes())]);
            assert!(matches!(error, DirectoryError::Name(_)), "{name:?}");
        }
        for target in ["", "a\0b"] {
            let error = refused(&[symlink(b"l", target.as_bytes())]);
            assert!(error.to_string().contains("\"l\""), "{error}");
        }
        let short = field(
            FILES,
            &[field(NAME, b"short"), field(DIGEST, &[0; 31])].concat(),
        );
        assert!(refused(&[short]).to_string().contains("\"short\""));
        let half = u64::MAX / 2 + 1;
        assert_eq!(
            refused(&[directory(b"a", half), directory(b"b", half)]),
            DirectoryError::SizeOverflow(named("b"))
        );
    }

    #[test]
    fn only_the_canonical_encoding() {
        let body = [
            field(NAME, b"a"),
            field(DIGEST, Digest::of(b"a").as_bytes()),
        ]
        .concat();
        let with = |end: &[u8]| field(FILES, &[&body, end].concat());
        assert!(parse(&with(&[SIZE, 1, EXECUTABLE, 1])).is_ok());
        for (end, why) in [
            (&[EXECUTABLE, 0][..], "a default value"),
            (&[SIZE, 0], "a default value"),
            (&[EXECUTABLE, 2], "a flag that is no flag"),
            (&[EXECUTABLE, 1, SIZE, 1], "the wrong order"),
            (&[SIZE, 1, SIZE, 1], "twice"),
            (&[SIZE, 0x81, 0], "a number in a longer form"),
            (&[0x28, 1], "an unknown field"),
        ] {
            assert_eq!(refused(&[with(end)]), DirectoryError::NotCanonical, "{why}");
        }
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(
            refused(&[with(&[&[SIZE][..], &too_large].concat())]),
            DirectoryError::NotCanonical
        );
        assert_eq!(
            refused(&[symlink(b"l", b"a"), file(b"a")]),
            DirectoryError::NotCanonical
        );
        let mut cut = file(b"a");
        cut.pop();
        assert_eq!(refused(&[cut]), DirectoryError::Truncated);
        assert_eq!(refused(&[vec![0x20, 1]]), DirectoryError::NotCanonical);
    }
}
