use std::{fmt, str::FromStr};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

/// A BLAKE3-256 digest, the name of a blob, a chunk or a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; Self::LEN]);

/// Why a text or a byte string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest has 32 bytes, not {0}")]
    Length(usize),
    #[error(
        "\"{0}\" is not a digest: write b3: and 44 characters of base64 (as castore prints it), \
         blake3- and base64, or 64 hexadecimal digits"
    )]
    Text(String),
}

impl Digest {
    /// Length in bytes.
    pub const LEN: usize = 32;
    /// Characters of base64 that follow `b3:`, padding included.
    pub const BASE64_LEN: usize = 44;

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of no bytes: of the empty blob and of the empty directory.
    #[must_use]
    pub fn empty() -> Self {
        Self::of(b"")
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The first eight bytes as a number. Good as a hash or as `st_ino`, never as an identity.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(prefix)
    }

    /// 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        HEXLOWER_PERMISSIVE.encode(&self.0)
    }

    fn from_base64(text: &str) -> Option<Self> {
        if text.len() != Self::BASE64_LEN {
            return None;
        }
        Self::try_from(BASE64.decode(text.as_bytes()).ok()?.as_slice()).ok()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = DigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| DigestError::Length(bytes.len()))
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digest = if let Some(base64) = text
            .strip_prefix("b3:")
            .or_else(|| text.strip_prefix("blake3-"))
        {
            Self::from_base64(base64)
        } else if text.len() == 2 * Self::LEN {
            HEXLOWER_PERMISSIVE
                .decode(text.as_bytes())
                .ok()
                .and_then(|bytes| Self::try_from(bytes.as_slice()).ok())
        } else {
            None
        };
        digest.ok_or_else(|| DigestError::Text(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value that FORMATS gives for the empty directory; `b3sum < /dev/null` prints the same in hexadecimal.
    #[test]
    fn the_empty_digest_has_its_published_text() {
        assert_eq!(
            Digest::empty().to_string(),
            "b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI="
        );
        assert_eq!(
            Digest::empty().to_hex(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "b3:",
            "b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI",
            "b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI==",
            "sha256-rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI=",
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f326",
            "zf1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        ] {
            let error = text.parse::<Digest>().unwrap_err();
            assert_eq!(error, DigestError::Text(text.to_owned()));
        }
        assert_eq!(Digest::try_from(&[0; 31][..]), Err(DigestError::Length(31)));
    }

    proptest! {
        #[test]
        fn every_text_form_reads_back(bytes: [u8; 32]) {
            let digest = Digest(bytes);
            let text = digest.to_string();
            prop_assert_eq!(text.len(), 3 + Digest::BASE64_LEN);
            prop_assert!(text.ends_with('='));
            prop_assert_eq!(text.parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(text.replace("b3:", "blake3-").parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(digest.to_hex().parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(digest.to_hex().to_uppercase().parse::<Digest>().unwrap(), digest);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<Digest>();
        }
    }
}
