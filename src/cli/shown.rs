use std::{ffi::OsString, fmt, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use rustix::process::{getegid, geteuid};

use super::prefetch::PrefetchArgs;
use crate::{
    fs::{Options, Root},
    model::{Name, Node, RootRef},
    prefetch::Tree,
};

/// What a filesystem shows, and how.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are switches on a command line"
)]
pub(super) struct ShownArgs {
    /// Mount all names, as entries of the root
    #[arg(long, env = "CASTORE_ALL")]
    pub(super) all: bool,

    /// Mount what the remotes know of a Nix store, as /nix/store is
    #[arg(long, env = "CASTORE_NIX")]
    pub(super) nix: bool,

    /// Whether the root can be listed; its entries can be looked up in any case [default: true, and false with --nix,
    /// where it may have millions]
    #[arg(long, env = "CASTORE_LIST_ROOT", value_name = "BOOL", action = ArgAction::Set)]
    list_root: Option<bool>,

    /// Digests can be read as extended attributes; each `ls -l` asks for those of each file then, and is half as fast
    #[arg(
        long,
        env = "CASTORE_XATTR",
        value_name = "BOOL",
        default_value_t = false,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = ArgAction::Set
    )]
    xattr: bool,

    /// Inode numbers of 32 bits, for programs without large file support: they cannot stat files otherwise
    #[arg(long, env = "CASTORE_INODE32")]
    inode32: bool,

    /// User and group that everything belongs to [default: those of the user who mounts]
    #[arg(long, env = "CASTORE_OWNER", value_name = "UID:GID")]
    owner: Option<Owner>,

    #[command(flatten)]
    pub(super) prefetch: PrefetchArgs,
}

#[derive(Debug, Clone, Copy)]
struct Owner(u32, u32);

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(':')
            .and_then(|(user, group)| Some(Self(user.parse().ok()?, group.parse().ok()?)))
            .ok_or_else(|| "write two numbers, such as 1000:1000".to_owned())
    }
}

/// What is shown.
pub(super) enum What {
    Root(RootRef),
    /// All names.
    Names,
    /// All Nix store paths.
    StorePaths,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => root.fmt(f),
            Self::Names => f.write_str("all"),
            Self::StorePaths => f.write_str("nix"),
        }
    }
}

impl ShownArgs {
    /// Tells the root from the place it is shown at, which messages call `place`; `usage` is how the command is called.
    pub(super) fn what(
        &self,
        positions: &[OsString],
        place: &str,
        usage: &str,
    ) -> anyhow::Result<(What, OsString)> {
        let what = match (self.all, self.nix) {
            (true, false) => Some(What::Names),
            (false, true) => Some(What::StorePaths),
            (false, false) => None,
            (true, true) => bail!("--all and --nix exclude each other"),
        };
        match (positions, what) {
            ([_], Some(what)) if self.prefetch.fills() => {
                bail!("--prefetch tree and paths are for one tree, and --{what} shows many")
            }
            ([at], Some(what)) => Ok((what, at.clone())),
            ([root, at], None) => {
                let root = root.to_str().context("the root is not valid UTF-8")?;
                Ok((What::Root(RootRef::parse(root)?), at.clone()))
            }
            ([_, _], Some(what)) => bail!("--{what} takes {place} and no root"),
            _ => bail!("a root and {place} are needed: {usage}"),
        }
    }

    pub(super) fn options(&self, names_ttl: Duration) -> anyhow::Result<Options> {
        // What belongs to root in a user's own mount is refused by programs that compare owners, such as git.
        let own = || Owner(geteuid().as_raw(), getegid().as_raw());
        let Owner(user, group) = self.owner.unwrap_or_else(own);
        Ok(Options {
            list_root: self.list_root.unwrap_or(!self.nix),
            names_ttl,
            xattr: self.xattr,
            inode32: self.inode32,
            owner: (user, group),
            prefetch: self.prefetch.settings()?,
        })
    }
}

/// What the mount's root shows, and the digest for `status`.
pub(super) fn shown(root: &RootRef, node: Node) -> anyhow::Result<(Root, Option<String>)> {
    Ok(match node {
        Node::Directory { digest, size } => {
            (Root::Directory { digest, size }, Some(digest.to_string()))
        }
        node @ (Node::File { .. } | Node::Symlink { .. }) => {
            let digest = match &node {
                Node::File { digest, .. } => Some(digest.to_string()),
                _ => None,
            };
            let name = match root {
                RootRef::Name(name) => name.clone(),
                RootRef::StorePath(path) => path.basename().clone(),
                RootRef::Digest(digest) => Name::new(digest.to_hex())?,
            };
            (Root::Single { name, node }, digest)
        }
    })
}

/// What is shown, for those who fetch it ahead; `None`: a symlink.
pub(super) fn tree(shown: &Root) -> Option<Tree> {
    match shown {
        Root::Directory { digest, .. } => Some(Tree::Directory(*digest)),
        Root::Names => Some(Tree::Names),
        Root::StorePaths => Some(Tree::StorePaths),
        Root::Single {
            node: Node::File { digest, size, .. },
            ..
        } => Some(Tree::File(*digest, *size)),
        Root::Single { .. } => None,
    }
}
