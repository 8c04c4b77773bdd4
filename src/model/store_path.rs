use std::{fmt, str::FromStr};

use data_encoding::{BitOrder, Encoding, Specification};

use super::Name;

/// Length of an output hash as text.
const HASH_TEXT: usize = 32;

/// By what stores know a Nix store path: 20 bytes, written as 32 characters of nixbase32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputHash([u8; OutputHash::LEN]);

impl OutputHash {
    /// In bytes.
    pub const LEN: usize = 20;

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl TryFrom<&[u8]> for OutputHash {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl fmt::Display for OutputHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = encoding().map(|encoding| encoding.encode(&self.0));
        text.unwrap_or_default()
            .chars()
            .rev()
            .try_for_each(|char| write!(f, "{char}"))
    }
}

/// The basename of a Nix store path: 32 characters of nixbase32, `-`, a name. The characters stand for 20 bytes, by which
/// stores know the path. Source: the Nix manual, "Store Path Specification".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: OutputHash,
    basename: Name,
}

/// Why a text is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no store path: its last part has to be 32 characters of 0-9 a-z without e, o, t and u, then - and a name"
)]
pub struct StorePathError(String);

impl StorePath {
    /// # Errors
    /// When the name is no store path's basename.
    pub fn from_basename(basename: Name) -> Result<Self, StorePathError> {
        let error = || StorePathError(basename.to_string());
        let bytes = basename.as_bytes();
        let name = bytes.get(HASH_TEXT + 1..).unwrap_or_default();
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte);
        if bytes.get(HASH_TEXT) != Some(&b'-') || name.is_empty() || !name.iter().all(allowed) {
            return Err(error());
        }
        let hash = decode(&bytes[..HASH_TEXT]).ok_or_else(error)?;
        Ok(Self { hash, basename })
    }

    /// By what stores know it.
    #[must_use]
    pub const fn hash(&self) -> OutputHash {
        self.hash
    }

    #[must_use]
    pub const fn basename(&self) -> &Name {
        &self.basename
    }
}

impl FromStr for StorePath {
    type Err = StorePathError;

    /// Takes a basename, or a path that ends in one.
    fn from_str(text: &str) -> Result<Self, StorePathError> {
        let error = || StorePathError(text.to_owned());
        let basename = match text.strip_prefix('/') {
            Some(path) => path.trim_end_matches('/').rsplit('/').next(),
            None => Some(text),
        };
        let name = Name::new(basename.unwrap_or_default().as_bytes().to_vec());
        Self::from_basename(name.map_err(|_| error())?).map_err(|_| error())
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.basename.fmt(f)
    }
}

/// nixbase32 takes the bits from the end and the lowest first, so the text is base32 in that bit order, reversed.
fn encoding() -> Option<Encoding> {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("0123456789abcdfghijklmnpqrsvwxyz");
    specification.bit_order = BitOrder::LeastSignificantFirst;
    specification.encoding().ok()
}

fn decode(text: &[u8]) -> Option<OutputHash> {
    let reversed: Vec<u8> = text.iter().rev().copied().collect();
    OutputHash::try_from(&encoding()?.decode(&reversed).ok()?[..]).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the Nix manual's and the test suites' published values.
    #[test]
    fn a_published_hash() {
        let path: StorePath =
            "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60_p20170221182432"
                .parse()
                .unwrap();
        assert_eq!(
            data_encoding::HEXLOWER.encode(path.hash().as_bytes()),
            "8a12321522fd91efbd60ebb2481af88580f61600"
        );
        assert_eq!(path.hash().to_string(), "00bgd045z0d4icpbc2yyz4gx48ak44la");
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        for text in [
            "",
            "/",
            "hello",
            "00bgd045z0d4icpbc2yyz4gx48ak44la",
            "00bgd045z0d4icpbc2yyz4gx48ak44la-",
            "00bgd045z0d4icpbc2yyz4gx48ak44le-x",
            "00bgd045z0d4icpbc2yyz4gx48ak44la-a b",
            "00bgd045z0d4icpbc2yyz4gx48ak44l-ax",
        ] {
            assert!(text.parse::<StorePath>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn hashes_read_back(hash: [u8; 20]) {
            let hash = OutputHash(hash);
            let text = format!("{hash}-x");
            prop_assert_eq!(text.parse::<StorePath>().unwrap().hash(), hash);
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = text.parse::<StorePath>();
        }
    }
}
