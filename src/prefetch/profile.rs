use std::{collections::HashSet, fmt::Write, ops::Range};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use crate::model::Digest;

/// The first line of a profile as text.
const HEADER: &str = "castore-profile 1";
/// What is not written as it is in a path; bytes that are no ASCII never are.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
/// The most that one has.
pub(super) const ENTRIES: usize = 1 << 15;
/// The longest path, in bytes.
const PATH: usize = 64 << 10;

/// What was read of a tree, in order.
///
/// As text, one line each: a header, the tree, the name it was mounted by, and then for each part of a file its bytes
/// (`START-END`, the end not among them), the file's digest, its size and its path, percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// The root's digest as text, or `all` or `nix`.
    pub tree: String,
    pub name: Option<String>,
    pub entries: Vec<Entry>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From the root, names with `/` between.
    pub path: Vec<u8>,
    pub digest: Digest,
    /// Of the file, in bytes.
    pub size: u64,
    /// In bytes, never empty.
    pub range: Range<u64>,
}

/// Why a text is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("the first line is not {HEADER:?}: this is no profile, or one of another version")]
    Header,
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        what: &'static str,
    },
    #[error("more than {ENTRIES} entries")]
    TooLong,
}

impl Profile {
    /// Reads what [`Profile::to_text`] writes.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        if lines.next().map(|(_, line)| line) != Some(HEADER) {
            return Err(ProfileError::Header);
        }
        let mut profile = Self::default();
        for (line, text) in lines.filter(|(_, line)| !line.is_empty()) {
            if let Some(tree) = text.strip_prefix("tree ") {
                tree.clone_into(&mut profile.tree);
            } else if let Some(name) = text.strip_prefix("name ") {
                profile.name = Some(name.to_owned());
            } else {
                let wrong = |what| ProfileError::Line { line, what };
                profile.entries.push(entry(text).map_err(wrong)?);
                if profile.entries.len() > ENTRIES {
                    return Err(ProfileError::TooLong);
                }
            }
        }
        if profile.tree.is_empty() {
            let what = "the line `tree …` is missing";
            return Err(ProfileError::Line { line: 2, what });
        }
        Ok(profile)
    }

    /// As text, for people and for other machines.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\ntree {}\n", self.tree);
        if let Some(name) = &self.name {
            let _ = writeln!(text, "name {name}");
        }
        for entry in &self.entries {
            let _ = writeln!(
                text,
                "{}-{} {} {} {}",
                entry.range.start,
                entry.range.end,
                entry.digest,
                entry.size,
                percent_encode(&entry.path, ESCAPED)
            );
        }
        text
    }

    /// How many files its entries name.
    #[must_use]
    pub fn files(&self) -> usize {
        let paths = self.entries.iter().map(|entry| &entry.path);
        paths.collect::<HashSet<_>>().len()
    }

    /// Bytes that its entries name.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let lengths = self
            .entries
            .iter()
            .map(|entry| entry.range.end - entry.range.start);
        lengths.fold(0, u64::saturating_add)
    }
}

fn entry(line: &str) -> Result<Entry, &'static str> {
    let mut fields = line.splitn(4, ' ');
    let mut next = || fields.next().ok_or("it has less than four fields");
    let (start, end) = next()?
        .split_once('-')
        .ok_or("the bytes are no START-END")?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| "a number is none");
    let range = number(start)?..number(end)?;
    let digest = next()?.parse().map_err(|_| "the digest is none")?;
    let size = number(next()?)?;
    let path: Vec<u8> = percent_decode_str(next()?).collect();
    if range.is_empty() || range.end > size {
        return Err("the bytes are not within the file");
    }
    if path.is_empty() || path.len() > PATH {
        return Err("the path is empty or too long");
    }
    Ok(Entry {
        path,
        digest,
        size,
        range,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_profile_is_refused() {
        assert_eq!(Profile::parse(""), Err(ProfileError::Header));
        assert_eq!(
            Profile::parse("castore-profile 2\n"),
            Err(ProfileError::Header)
        );
        let digest = Digest::of(b"x");
        for line in [
            "nonsense".to_owned(),
            format!("0-0 {digest} 5 path"),
            format!("0-6 {digest} 5 path"),
            format!("0-5 {digest} 5"),
            format!("0-5 {digest} 5 "),
            "0-5 b3:x 5 path".to_owned(),
        ] {
            let text = format!("{HEADER}\ntree b3:x\n{line}\n");
            let error = Profile::parse(&text).unwrap_err();
            assert!(
                matches!(error, ProfileError::Line { line: 3, .. }),
                "{line}"
            );
        }
        assert!(Profile::parse(&format!("{HEADER}\n0-5 {digest} 5 path")).is_err());
    }

    proptest! {
        #[test]
        fn it_reads_back(
            name in proptest::option::of("[a-z]{1,9}"),
            entries in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 1..30), any::<[u8; 32]>(), 0..u64::MAX / 2, 1..u64::MAX / 2),
                0..20,
            ),
        ) {
            let entries = entries.into_iter().map(|(path, digest, start, len)| Entry {
                path,
                digest: Digest::try_from(&digest[..]).unwrap(),
                size: start + len,
                range: start..start + len,
            });
            let profile = Profile { tree: "all".to_owned(), name, entries: entries.collect() };
            prop_assert_eq!(Profile::parse(&profile.to_text()), Ok(profile));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = Profile::parse(&text);
            let _ = Profile::parse(&format!("{HEADER}\n{text}"));
        }
    }
}
