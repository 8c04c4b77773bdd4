use std::{borrow::Borrow, fmt};

use bytes::Bytes;

/// The longest name, in bytes.
const MAX_NAME: usize = 255;
/// The longest symlink target, in bytes.
const MAX_TARGET: usize = 4095;

/// The name of an entry: 1 to 255 bytes without `/` and NUL, and neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

/// Why bytes are not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name \"{}\" has {} bytes; a name has 1 to 255", .0.escape_ascii(), .0.len())]
    Length(Bytes),
    #[error("the name \"{}\" has a / or a NUL byte in it", .0.escape_ascii())]
    Byte(Bytes),
    #[error("\"{}\" is not a name for an entry", .0.escape_ascii())]
    Dots(Bytes),
}

impl Name {
    /// # Errors
    /// See [`NameError`]; the bytes are part of it, for the message.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, NameError> {
        let bytes = bytes.into();
        Self::check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Whether bytes are a name. Copies them for the message only.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn check(bytes: &[u8]) -> Result<(), NameError> {
        let copy = || Bytes::copy_from_slice(bytes);
        if bytes.is_empty() || bytes.len() > MAX_NAME {
            Err(NameError::Length(copy()))
        } else if bytes.iter().any(|byte| matches!(byte, 0 | b'/')) {
            Err(NameError::Byte(copy()))
        } else if matches!(bytes, b"." | b"..") {
            Err(NameError::Dots(copy()))
        } else {
            Ok(())
        }
    }

    /// A copy of bytes that were checked.
    pub(super) fn of_valid(bytes: &[u8]) -> Self {
        debug_assert!(Self::check(bytes).is_ok());
        Self(Bytes::copy_from_slice(bytes))
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Hashes and compares as its bytes do.
impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Where a symlink points: 1 to 4095 bytes without NUL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target(Bytes);

/// Why bytes are not a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("a symlink target of {0} bytes; it may have 1 to 4095")]
    Length(usize),
    #[error("a symlink target with a NUL byte in it")]
    Nul,
}

impl Target {
    /// # Errors
    /// See [`TargetError`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, TargetError> {
        let bytes = bytes.into();
        Self::check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Whether bytes are a target.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn check(bytes: &[u8]) -> Result<(), TargetError> {
        if bytes.is_empty() || bytes.len() > MAX_TARGET {
            Err(TargetError::Length(bytes.len()))
        } else if bytes.contains(&0) {
            Err(TargetError::Nul)
        } else {
            Ok(())
        }
    }

    /// A copy of bytes that were checked.
    pub(super) fn of_valid(bytes: &[u8]) -> Self {
        debug_assert!(Self::check(bytes).is_ok());
        Self(Bytes::copy_from_slice(bytes))
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_refused_for_each_reason() {
        assert!(matches!(Name::new(""), Err(NameError::Length(_))));
        assert!(matches!(
            Name::new(vec![b'a'; 256]),
            Err(NameError::Length(_))
        ));
        assert!(matches!(Name::new("a/b"), Err(NameError::Byte(_))));
        assert!(matches!(Name::new("a\0"), Err(NameError::Byte(_))));
        assert!(matches!(Name::new("."), Err(NameError::Dots(_))));
        assert!(matches!(Name::new(".."), Err(NameError::Dots(_))));
        assert!(Name::new(vec![b'a'; 255]).is_ok());
        assert!(Name::new("...").is_ok());
        assert!(Name::new(vec![0xff, 0xfe]).is_ok());
    }

    #[test]
    fn targets_are_refused_for_each_reason() {
        assert_eq!(Target::new(""), Err(TargetError::Length(0)));
        assert_eq!(
            Target::new(vec![b'a'; 4096]),
            Err(TargetError::Length(4096))
        );
        assert_eq!(Target::new("a\0b"), Err(TargetError::Nul));
        assert!(Target::new(vec![b'/'; 4095]).is_ok());
        assert!(Target::new("../x/y").is_ok());
    }

    proptest! {
        #[test]
        fn a_name_keeps_its_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = Name::new(bytes.clone()) {
                prop_assert_eq!(&name.as_bytes()[..], &bytes[..]);
            }
        }
    }
}
