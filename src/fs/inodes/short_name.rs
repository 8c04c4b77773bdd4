use std::fmt;

/// Bytes that are kept in place; names of programs and libraries are seldom longer.
const INLINE: usize = 22;

/// A name in 24 bytes, with an allocation of its own where it is longer than [`INLINE`].
pub(super) enum ShortName {
    Inline(u8, [u8; INLINE]),
    Boxed(Box<[u8]>),
}

impl ShortName {
    pub(super) fn new(name: &[u8]) -> Self {
        let mut inline = [0; INLINE];
        match (inline.get_mut(..name.len()), u8::try_from(name.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(name);
                Self::Inline(len, inline)
            }
            _ => Self::Boxed(name.into()),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Boxed(bytes) => bytes,
        }
    }
}

impl fmt::Debug for ShortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_length_are_kept() {
        assert_eq!(size_of::<ShortName>(), 24);
        for len in 0..=255 {
            let name = vec![b'n'; len];
            assert_eq!(ShortName::new(&name).as_bytes(), name);
        }
    }
}
