use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::cli::paths;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ConfigError {
    #[error("{path:?}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    // Without the line itself: there may be a secret on it.
    #[error("{path:?} is not a castore.toml: in line {line}: {cause}")]
    Toml {
        path: PathBuf,
        line: usize,
        cause: String,
    },
    #[error("{path:?}: [{section}] has a key {key:?} that it does not know; it knows {known}")]
    Key {
        path: PathBuf,
        section: String,
        key: String,
        known: String,
    },
    #[error(
        "the remote {remote:?} of castore.toml has an option {option:?} from {source_of}: {cause}"
    )]
    Secret {
        remote: String,
        option: String,
        source_of: String,
        cause: String,
    },
    #[error("there is no preset {0:?} in castore.toml; it has {1}")]
    Preset(String, String),
    #[error("a setting of {0} cannot be used: {1}")]
    Value(String, String),
}

/// A value, as it would stand behind a flag.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Bool(bool),
    Number(i64),
    Text(String),
    List(Vec<String>),
}

/// An option of a remote; a secret may be elsewhere.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Setting {
    Plain(Value),
    File { file: PathBuf },
    Env { env: String },
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedRemote {
    pub(super) url: String,
    #[serde(default)]
    pub(super) options: BTreeMap<String, Setting>,
}

pub(super) type Section = BTreeMap<String, Value>;

/// What one file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    remote: Option<Value>,
    timeout: Option<Value>,
    outage: Option<Value>,
    hedge: Option<Value>,
    offline: Option<Value>,
    #[serde(default)]
    remotes: BTreeMap<String, NamedRemote>,
    #[serde(default)]
    cache: Section,
    #[serde(default)]
    mount: Section,
    #[serde(default)]
    serve: Section,
    #[serde(default)]
    presets: BTreeMap<String, Section>,
}

/// A value and the file that it is from.
pub(super) type From = (Value, PathBuf);

/// What all files say together. Keys are the names of flags.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// The files that were read, in order.
    pub(super) files: Vec<PathBuf>,
    pub(super) remotes: BTreeMap<String, NamedRemote>,
    /// For every command that has such a flag.
    pub(super) common: BTreeMap<String, From>,
    pub(super) mount: BTreeMap<String, From>,
    pub(super) serve: BTreeMap<String, From>,
    pub(super) presets: BTreeMap<String, BTreeMap<String, From>>,
}

/// Keys of `[cache]` and their flags.
pub(super) const CACHE_KEYS: [(&str, &str); 6] = [
    ("dir", "cache-dir"),
    ("size", "cache-size"),
    ("min-free", "min-free"),
    ("memory", "memory"),
    ("trust", "trust"),
    ("verify", "verify"),
];

/// Options of a gRPC remote that name files.
pub(super) const FILES: [&str; 5] = ["ca", "cert", "key", "token-file", "names-token-file"];

/// Reads the files of the system and of the user, where they are there, and the one that was given, which must be.
pub(super) fn read(given: Option<&Path>) -> Result<Merged, ConfigError> {
    let mut merged = Merged::default();
    let system = PathBuf::from("/etc/castore/castore.toml");
    for path in [Some(system.clone()), user_file()].into_iter().flatten() {
        match fs::read_to_string(&path) {
            Ok(text) => merged.add(&path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A home that is another user's, as under `su` and `sudo -E`.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path != system => {}
            Err(cause) => return Err(ConfigError::Read { path, cause }),
        }
    }
    if let Some(path) = given {
        let text = fs::read_to_string(path).map_err(|cause| ConfigError::Read {
            path: path.to_owned(),
            cause,
        })?;
        merged.add(path, &text)?;
    }
    Ok(merged)
}

fn user_file() -> Option<PathBuf> {
    let base = env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(paths::home()?.join(".config")))?;
    Some(base.join("castore/castore.toml")).filter(|path| path.is_absolute())
}

impl Merged {
    fn add(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let file: File = toml::from_str(text).map_err(|cause| ConfigError::Toml {
            path: path.to_owned(),
            line: cause.span().map_or(1, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            }),
            cause: cause.message().to_owned(),
        })?;
        let from = |value: Value| (value, path.to_owned());
        for (flag, value) in [
            ("remote", file.remote),
            ("timeout", file.timeout),
            ("outage", file.outage),
            ("hedge", file.hedge),
            ("offline", file.offline),
        ] {
            if let Some(value) = value {
                self.common.insert(flag.to_owned(), from(value));
            }
        }
        for (key, value) in file.cache {
            let flag = CACHE_KEYS.iter().find(|(known, _)| *known == key);
            let Some((_, flag)) = flag else {
                return Err(ConfigError::Key {
                    path: path.to_owned(),
                    section: "cache".to_owned(),
                    key,
                    known: CACHE_KEYS.map(|(known, _)| known).join(", "),
                });
            };
            self.common.insert((*flag).to_owned(), from(value));
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        for (name, mut remote) in file.remotes {
            for (option, setting) in &mut remote.options {
                match setting {
                    // Relative to the file that names it, wherever castore is called.
                    Setting::File { file } => *file = dir.join(&*file),
                    Setting::Plain(Value::Text(file)) if FILES.contains(&option.as_str()) => {
                        *file = dir.join(&*file).to_string_lossy().into_owned();
                    }
                    Setting::Plain(_) | Setting::Env { .. } => {}
                }
            }
            self.remotes.insert(name, remote);
        }
        let section = |section: Section| section.into_iter().map(|(key, value)| (key, from(value)));
        self.mount.extend(section(file.mount));
        self.serve.extend(section(file.serve));
        for (name, preset) in file.presets {
            self.presets
                .entry(name)
                .or_default()
                .extend(section(preset));
        }
        self.files.push(path.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_file_wins_key_by_key() {
        let mut merged = Merged::default();
        let first = "timeout = '5s'\n[cache]\nsize = '1GiB'\ndir = '/a'\n[remotes.hub]\nurl = 'grpc+http://a'";
        merged.add(Path::new("/first"), first).unwrap();
        let second =
            "remote = ['hub']\n[cache]\nsize = '2GiB'\n[mount]\nthreads = 4\nxattr = false";
        merged.add(Path::new("/second"), second).unwrap();
        let value = |flag: &str| merged.common[flag].0.clone();
        assert_eq!(value("timeout"), Value::Text("5s".to_owned()));
        assert_eq!(value("cache-size"), Value::Text("2GiB".to_owned()));
        assert_eq!(value("cache-dir"), Value::Text("/a".to_owned()));
        assert_eq!(merged.common["cache-size"].1, Path::new("/second"));
        assert_eq!(merged.mount["threads"].0, Value::Number(4));
    }

    #[test]
    fn unknown_keys_are_errors_that_say_where() {
        for (text, part) in [
            ("colour = 'red'", "colour"),
            ("[cache]\ncolour = 'red'", "colour"),
            ("[remotes.x]\nurl = 'a'\ncolour = 'red'", "colour"),
            ("[remotes.x]\n", "url"),
            ("remote = ", "expected"),
        ] {
            let error = Merged::default().add(Path::new("/f"), text).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(part) && message.contains("/f"),
                "{message}"
            );
        }
    }
}
