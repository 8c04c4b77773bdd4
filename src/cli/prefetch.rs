use std::{fs, path::PathBuf, str::FromStr, sync::Arc};

use anyhow::{Context, bail};
use clap::Args;

use crate::{
    cache::Cache,
    prefetch::{Mode, Profile, Profiles, Settings, Tree, node_at},
};

/// What is fetched before anybody asks for it.
#[derive(Debug, Clone, Args)]
pub(super) struct PrefetchArgs {
    /// What is fetched ahead of readers: off, auto, tree, or paths of the tree with commas between
    ///
    /// auto: what is about to be read, as far as anybody can say. tree: the whole tree besides, in the background, whenever
    /// nobody waits for anything and there is room in the cache. Paths: the same for a part of it, such as bin,lib/gcc. off:
    /// nothing, for a metered link.
    #[arg(
        long,
        env = "CASTORE_PREFETCH",
        value_name = "WHAT",
        default_value = "auto"
    )]
    prefetch: Vec<What>,

    /// What is done with profiles of what was read: off, auto, record or a file
    ///
    /// auto: what this mount reads is recorded, and what an earlier mount of the same tree (or of one that had this name) has
    /// read is fetched ahead. record: it is recorded alone, in place of what was. A file, from castore profile export, is
    /// fetched ahead, and nothing recorded.
    #[arg(
        long,
        env = "CASTORE_PROFILE",
        value_name = "WHAT",
        default_value = "auto"
    )]
    profile: Use,
}

#[derive(Debug, Clone)]
enum What {
    Off,
    Auto,
    Tree,
    Paths(Vec<Vec<u8>>),
}

#[derive(Debug, Clone)]
enum Use {
    Off,
    Auto,
    Record,
    File(PathBuf),
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "off" => Self::Off,
            "auto" => Self::Auto,
            "tree" => Self::Tree,
            paths => {
                let paths = paths.split(',').map(path).collect::<Result<Vec<_>, _>>()?;
                Self::Paths(paths)
            }
        })
    }
}

/// A path of the tree, with `/` between its names alone.
fn path(text: &str) -> Result<Vec<u8>, String> {
    let names = text.split('/').filter(|name| !matches!(*name, "" | "."));
    let names: Vec<_> = names.collect();
    if names.is_empty() || names.contains(&"..") {
        return Err(format!(
            "{text:?} is no path of the tree; write off, auto, tree or paths such as bin,lib/gcc"
        ));
    }
    Ok(names.join("/").into())
}

impl FromStr for Use {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            "auto" => Self::Auto,
            "record" => Self::Record,
            file => Self::File(file.into()),
        })
    }
}

impl PrefetchArgs {
    /// Paths become absolute: the process may leave its directory.
    pub(super) fn make_absolute(&mut self) -> std::io::Result<()> {
        if let Use::File(path) = &mut self.profile {
            *path = std::path::absolute(&*path)?;
        }
        Ok(())
    }

    /// Whether a part of one tree is to be fetched.
    pub(super) fn fills(&self) -> bool {
        let mut whats = self.prefetch.iter();
        whats.any(|what| matches!(what, What::Tree | What::Paths(_)))
    }

    /// What was given, perhaps in several parts.
    fn mode(&self) -> anyhow::Result<Mode> {
        let mut paths = Vec::new();
        for what in &self.prefetch {
            let mode = match what {
                What::Off => Mode::Off,
                What::Auto => Mode::Auto,
                What::Tree => Mode::Tree,
                What::Paths(more) => {
                    paths.extend(more.iter().cloned());
                    continue;
                }
            };
            if self.prefetch.len() > 1 {
                bail!(
                    "--prefetch: off, auto and tree stand alone; paths can be given several times"
                );
            }
            return Ok(mode);
        }
        Ok(Mode::Paths(paths.into()))
    }

    /// Whether the tree has the paths that were given.
    pub(super) async fn check(&self, cache: &Arc<Cache>, tree: &Tree) -> anyhow::Result<()> {
        let Mode::Paths(paths) = self.mode()? else {
            return Ok(());
        };
        for path in paths.iter().filter(|_| !cache.is_offline()) {
            if node_at(cache, tree, path).await.is_none() {
                let path = String::from_utf8_lossy(path);
                bail!("--prefetch: the tree has no path {path:?}, or it cannot be had");
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let mode = self.mode()?;
        let profiles = match &self.profile {
            Use::Off => Profiles::Off,
            Use::Auto => Profiles::Auto,
            Use::Record => Profiles::Record,
            Use::File(path) => Profiles::Given(Arc::new(read_profile(path)?)),
        };
        Ok(Settings { mode, profiles })
    }
}

/// A profile from a file.
pub(super) fn read_profile(path: &std::path::Path) -> anyhow::Result<Profile> {
    let text =
        fs::read_to_string(path).with_context(|| format!("the profile {path:?} cannot be read"))?;
    Profile::parse(&text).with_context(|| format!("{path:?} is no profile"))
}
