use super::{Digest, DigestError, Name, NameError, StorePath, StorePathError};

/// How a person names a tree, or something in it: a digest, a registered name or a Nix store path, then an optional path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootRef {
    /// A digest text; it always means a directory.
    Digest(Digest),
    /// A name that was registered with `import --name` or `name`.
    Name(Name),
    /// A Nix store path, or its basename, which may be a registered name too.
    StorePath(StorePath),
}

/// Why a text names no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootRefError {
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error("not a root: {0}")]
    Name(NameError),
    #[error("a path is no root, unless it is a Nix store path: {0}")]
    StorePath(StorePathError),
    #[error(
        "a root is needed: a digest (b3:…), a registered name or a Nix store path; `castore roots` lists the names"
    )]
    Empty,
    #[error("{0:?} has a path after the root; this command takes a root alone")]
    Path(String),
    #[error("in the path after the root: {0}")]
    Component(NameError),
}

impl RootRef {
    /// Splits `ROOT[/path]`. Base64 has `/` among its digits, so `b3:` (or `blake3-`) takes exactly 44 characters and
    /// only a `/` after them begins the path.
    ///
    /// # Errors
    /// When the root is neither a digest nor a valid name, or a path component is no valid name.
    pub fn parse_with_path(text: &str) -> Result<(Self, Vec<Name>), RootRefError> {
        if text.starts_with('/') {
            return Self::parse_absolute(text);
        }
        let digest_len = ["b3:", "blake3-"]
            .iter()
            .find(|prefix| text.starts_with(**prefix))
            .map(|prefix| prefix.len() + Digest::BASE64_LEN);
        let split = match digest_len {
            Some(len) if text.is_char_boundary(len.min(text.len())) => len.min(text.len()),
            Some(_) => text.len(),
            None => text.find('/').unwrap_or(text.len()),
        };
        let (root, rest) = text.split_at(split);
        if !rest.is_empty() && !rest.starts_with('/') {
            return Err(DigestError::Text(text.to_owned()).into());
        }
        let is_hex = root.len() == 2 * Digest::LEN && root.bytes().all(|b| b.is_ascii_hexdigit());
        let root = if root.is_empty() {
            return Err(RootRefError::Empty);
        } else if digest_len.is_some() || is_hex {
            Self::Digest(root.parse()?)
        } else {
            let name = Name::new(root.as_bytes().to_vec()).map_err(RootRefError::Name)?;
            StorePath::from_basename(name.clone()).map_or(Self::Name(name), Self::StorePath)
        };
        Ok((root, components(rest.split('/'))?))
    }

    /// `/nix/store/<basename>[/path]`; stores at other places are known too.
    fn parse_absolute(text: &str) -> Result<(Self, Vec<Name>), RootRefError> {
        let mut parts = text.split('/').filter(|part| !part.is_empty());
        let mut failed = RootRefError::Empty;
        for part in parts.by_ref() {
            match part.parse::<StorePath>() {
                Ok(path) => return Ok((Self::StorePath(path), components(parts)?)),
                Err(error) => failed = RootRefError::StorePath(error),
            }
        }
        Err(failed)
    }

    /// A root alone, without a path.
    ///
    /// # Errors
    /// As [`RootRef::parse_with_path`], and when a path follows.
    pub fn parse(text: &str) -> Result<Self, RootRefError> {
        match Self::parse_with_path(text)? {
            (root, path) if path.is_empty() => Ok(root),
            _ => Err(RootRefError::Path(text.to_owned())),
        }
    }
}

fn components<'a>(parts: impl Iterator<Item = &'a str>) -> Result<Vec<Name>, RootRefError> {
    parts
        .filter(|part| !part.is_empty())
        .map(|part| Name::new(part.as_bytes().to_vec()).map_err(RootRefError::Component))
        .collect()
}

impl std::fmt::Display for RootRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::StorePath(path) => path.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_inside_base64_is_no_path() {
        // A digest whose base64 text has a slash in it: 32 bytes of 0xff are "////…8=".
        let digest = Digest::try_from(&[0xff; 32][..]).unwrap();
        let text = digest.to_string();
        assert!(text.contains('/'));
        assert_eq!(RootRef::parse(&text), Ok(RootRef::Digest(digest)));
        let (root, path) = RootRef::parse_with_path(&format!("{text}/bin//sh")).unwrap();
        assert_eq!(root, RootRef::Digest(digest));
        let path: Vec<_> = path.iter().map(ToString::to_string).collect();
        assert_eq!(path, ["bin", "sh"]);
    }

    #[test]
    fn names_and_hexadecimal_are_told_apart() {
        let hex = Digest::empty().to_hex();
        assert_eq!(RootRef::parse(&hex), Ok(RootRef::Digest(Digest::empty())));
        let (root, path) = RootRef::parse_with_path("rust-1.95/lib").unwrap();
        assert_eq!(root.to_string(), "rust-1.95");
        assert_eq!(path.len(), 1);
    }

    #[test]
    fn store_paths_are_known_with_and_without_their_directory() {
        let basename = "00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12";
        let path = RootRef::StorePath(basename.parse().unwrap());
        assert_eq!(RootRef::parse(basename).as_ref(), Ok(&path));
        let text = format!("/nix/store/{basename}");
        assert_eq!(RootRef::parse(&text).as_ref(), Ok(&path));
        let (root, rest) = RootRef::parse_with_path(&format!("{text}/bin/hello")).unwrap();
        assert_eq!(root, path);
        assert_eq!(rest.len(), 2);
    }

    #[test]
    fn what_names_no_root_is_refused() {
        assert_eq!(RootRef::parse(""), Err(RootRefError::Empty));
        assert_eq!(RootRef::parse("/"), Err(RootRefError::Empty));
        assert!(matches!(
            RootRef::parse("/x"),
            Err(RootRefError::StorePath(_))
        ));
        assert!(matches!(
            RootRef::parse("b3:abc"),
            Err(RootRefError::Digest(_))
        ));
        assert!(matches!(RootRef::parse("a/b"), Err(RootRefError::Path(_))));
        assert!(matches!(RootRef::parse(".."), Err(RootRefError::Name(_))));
        let long = format!("{}x", Digest::empty());
        assert!(matches!(
            RootRef::parse(&long),
            Err(RootRefError::Digest(_))
        ));
        assert!(matches!(
            RootRef::parse_with_path("a/.."),
            Err(RootRefError::Component(_))
        ));
        // Multi-byte characters across the 44th must not panic.
        assert!(RootRef::parse(&format!("b3:{}", "é".repeat(30))).is_err());
    }
}
