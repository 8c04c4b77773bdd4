//! `castore.toml`: what stands for flags that are not given.
//!
//! - `file`: what a file may say, and several of them put together
//! - `apply`: from a file to the flags of a command
//! - `show`: `castore config show`

mod apply;
mod file;
mod show;

use clap::Subcommand;

pub(super) use self::apply::{Loaded, load, parse};

/// Show what castore.toml and the environment set
///
/// Settings come from /etc/castore/castore.toml, then $XDG_CONFIG_HOME/castore/castore.toml, then the file that --config
/// names; what a later one says wins. Environment variables win over files, and flags over both.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example of a castore.toml:
  remote = [\"hub\", \"origin\"]
  outage = \"wait=10m\"

  [remotes.hub]
  url = \"grpc+https://hub.example:8000\"
  options = { ca = \"/etc/castore/ca.pem\", token-file = \"/run/secrets/castore\" }

  [remotes.origin]
  url = \"objectstore+s3://bucket/castore\"
  options = { region = \"eu-west-1\", access_key_id = { env = \"KEY\" }, secret_access_key = { file = \"/run/secrets/s3\" } }

  [cache]
  dir = \"/ssd/castore\"
  size = \"100GiB\"

  [mount]
  allow-other = true

  [presets.toolchain]       # castore mount --preset toolchain
  root = \"toolchain\"
  mountpoint = \"/mnt/toolchain\"")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the settings that are in force, and where each comes from; secrets are hidden
    Show,
}

pub(super) fn run(args: &Args, loaded: &Loaded) -> anyhow::Result<()> {
    match args.command {
        Command::Show => show::run(loaded),
    }
}
