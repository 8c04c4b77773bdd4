use std::{
    ffi::OsString,
    fmt::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// A path in JSON: a string where it is valid UTF-8, else `{"escaped": "/mnt/\\xff", "base64": "L21udC//"}`, of which the first
/// is for people and the second for programs. A program that knows strings alone fails on such a path instead of taking
/// another one for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RawPath(pub(super) PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Bytes { escaped: String, base64: String },
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self.0.to_str() {
            Some(text) => Written::Text(text.to_owned()),
            None => Written::Bytes {
                escaped: self.0.as_os_str().as_bytes().escape_ascii().to_string(),
                base64: BASE64.encode(self.0.as_os_str().as_bytes()),
            },
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Written::deserialize(deserializer)? {
            Written::Text(text) => text.into(),
            Written::Bytes { base64, .. } => {
                let bytes = BASE64.decode(base64.as_bytes()).map_err(D::Error::custom)?;
                OsString::from_vec(bytes).into()
            }
        }))
    }
}

/// A path as a word of a command for a shell: as it is, in quotes, or as `$'…'` where it has control characters or is not
/// UTF-8.
pub(super) fn shell_word(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(byte);
    if bytes.iter().all(is_plain) && !bytes.is_empty() {
        return path.display().to_string();
    }
    match path.to_str() {
        Some(text) if !text.contains(|char: char| char.is_control()) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => {
            let mut word = "$'".to_owned();
            for byte in bytes {
                let _ = match byte {
                    b'\'' | b'\\' => write!(word, "\\{}", char::from(*byte)),
                    b' '..=b'~' => write!(word, "{}", char::from(*byte)),
                    // Three octal digits: what follows cannot be taken for one more.
                    _ => write!(word, "\\{byte:03o}"),
                };
            }
            word + "'"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_their_bytes() {
        for bytes in [
            &b"/mnt/tree"[..],
            b"/mnt/\xff\xfe tree",
            b"/m\\n",
            "/é".as_bytes(),
        ] {
            let path = RawPath(OsString::from_vec(bytes.to_vec()).into());
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(
                serde_json::from_str::<RawPath>(&json).unwrap(),
                path,
                "{json}"
            );
        }
        assert_eq!(
            serde_json::to_string(&RawPath("/a".into())).unwrap(),
            "\"/a\""
        );
    }

    #[test]
    fn a_shell_takes_a_path_as_one_word() {
        let word = |bytes: &[u8]| shell_word(Path::new(std::ffi::OsStr::from_bytes(bytes)));
        assert_eq!(word(b"/mnt/a-1"), "/mnt/a-1");
        assert_eq!(word(b"/mnt/it's a"), r"'/mnt/it'\''s a'");
        assert_eq!(word(b"/mnt/\xff1"), r"$'/mnt/\3771'");
    }
}
