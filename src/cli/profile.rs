use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::BinaryBytes;

use super::{
    args::{CacheArgs, RemoteArgs},
    open,
    prefetch::read_profile,
    runtime,
};
use crate::{
    cache::Cache,
    model::{Node, RootRef},
    prefetch::{Profile, Tree},
};

/// What mounts have read, for the next mount to fetch ahead
///
/// Each mount records which parts of which files were read, in order, and the next mount of the same tree, or of another tree
/// under the same name, fetches them in that order before they are asked for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore profile record toolchain -- sh -c 'cd {} && bin/rustc --version'
  castore profile show toolchain
  castore profile export toolchain toolchain.profile
  castore profile import toolchain.profile
  castore mount --profile toolchain.profile toolchain /mnt/toolchain")]
pub(super) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Show(Show),
    Export(Export),
    Import(Import),
    Record(Record),
}

/// Show the profile of a tree, or of a file
#[derive(Debug, clap::Args)]
struct Show {
    /// A digest, a name or a Nix store path; all or nix for mounts of those; or a file with a profile
    #[arg(value_name = "ROOT|FILE")]
    of: String,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

/// Write the profile of a tree into a file, for other machines
#[derive(Debug, clap::Args)]
struct Export {
    /// A digest, a name or a Nix store path; all or nix for mounts of those
    root: String,

    /// Where to write it; - is stdout [default: -]
    file: Option<PathBuf>,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

/// Take a profile from a file: the next mount of its tree, or of its name, uses it
#[derive(Debug, clap::Args)]
struct Import {
    /// The file; - is stdin
    file: PathBuf,

    /// Take it for this tree instead of the one that it names
    #[arg(long, env = "CASTORE_ROOT", value_name = "ROOT")]
    root: Option<String>,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

/// Mount a tree, run a command, and keep what it read as the tree's profile
///
/// The place of the mount is in the variable CASTORE_MOUNT, and stands for {} in the command's arguments. The command's status
/// is that of this one.
#[derive(Debug, clap::Args)]
struct Record {
    /// A digest, a name or a Nix store path
    root: String,

    /// Where to mount it [default: a new directory]
    #[arg(long, env = "CASTORE_MOUNTPOINT", value_name = "DIR")]
    mountpoint: Option<PathBuf>,

    /// Write the profile into this file, too
    #[arg(long, env = "CASTORE_OUTPUT", value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,

    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<std::process::ExitCode> {
    runtime::log_to_stderr();
    match &args.command {
        What::Show(args) => show(args)?,
        What::Export(args) => export(args)?,
        What::Import(args) => import(args)?,
        What::Record(args) => return record(args),
    }
    Ok(std::process::ExitCode::SUCCESS)
}

fn show(args: &Show) -> anyhow::Result<()> {
    let path = Path::new(&args.of);
    let profile = match path.is_file() {
        true => read_profile(path)?,
        false => kept(&args.cache, &args.remotes, &args.of)?,
    };
    // A reader that has seen enough is no error.
    let mut out = std::io::stdout().lock();
    let written = out.write_all(profile.to_text().as_bytes());
    if !written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        eprintln!("{}", summary(&profile));
    }
    Ok(())
}

fn export(args: &Export) -> anyhow::Result<()> {
    let profile = kept(&args.cache, &args.remotes, &args.root)?;
    write(args.file.as_deref().unwrap_or(Path::new("-")), &profile)
}

fn import(args: &Import) -> anyhow::Result<()> {
    let mut profile = read_profile(&args.file)?;
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        if let Some(root) = &args.root {
            (profile.tree, profile.name) = tree(&cache, root).await?;
        }
        let summary = format!("{}: {}", profile.tree, summary(&profile));
        let text = profile.to_text();
        cache.keep_profile(profile.tree, profile.name, &text);
        cache.sync().await?;
        tokio::task::spawn_blocking(move || cache.close()).await?;
        println!("{summary}");
        Ok(())
    })
}

fn record(args: &Record) -> anyhow::Result<std::process::ExitCode> {
    let temporary = match &args.mountpoint {
        Some(_) => None,
        None => Some(Temporary::new()?),
    };
    let mountpoint = match (&args.mountpoint, &temporary) {
        (Some(path), _) => std::path::absolute(path)?,
        (None, Some(temporary)) => temporary.0.clone(),
        (None, None) => bail!("no mount point"),
    };
    if let Some(output) = args
        .output
        .as_ref()
        .filter(|output| *output != Path::new("-"))
    {
        // Told before anything is run.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(output)
            .with_context(|| format!("{output:?} cannot be written"))?;
    }
    let before = kept(&args.cache, &args.remotes, &args.root).ok();
    let itself = std::env::current_exe().context("this program cannot be found")?;
    let remotes = args.remotes.addresses()?.join("\n");
    let cache_dir = std::path::absolute(args.cache.dir())?;
    let castore = |command: &str| {
        let mut castore = Command::new(&itself);
        // In the environment: an address may have a password, and arguments are for all to see.
        castore
            .arg(command)
            .env("CASTORE_REMOTE", &remotes)
            .env("CASTORE_CACHE_DIR", &cache_dir);
        castore
    };
    let mut mount = castore("mount");
    mount.args(["--profile", "record"]);
    if args.remotes.offline {
        mount.arg("--offline");
    }
    let mount = mount.arg("--").arg(&args.root).arg(&mountpoint).status()?;
    if !mount.success() {
        bail!("{} cannot be mounted", args.root);
    }
    let mut words = args
        .command
        .iter()
        .map(|word| with_place(word, mountpoint.as_os_str()));
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(&program);
    command.args(words).env("CASTORE_MOUNT", &mountpoint);
    // What was read until it was interrupted is kept, and the mount is taken down.
    let ran = runtime::run(command);
    // The profile is kept when the mount ends.
    let unmount = castore("unmount").arg(&mountpoint).status()?;
    let status = ran.with_context(|| format!("{program:?} cannot be run"))?;
    if !unmount.success() {
        bail!("{mountpoint:?} cannot be unmounted; its profile is kept when it is");
    }
    let profile = kept(&args.cache, &args.remotes, &args.root).ok();
    match profile.filter(|profile| Some(profile) != before.as_ref()) {
        Some(profile) => {
            eprintln!("{}", summary(&profile));
            if let Some(output) = &args.output {
                write(output, &profile)?;
            }
        }
        None => eprintln!("nothing else was read than before; the profile is what it was"),
    }
    Ok(runtime::code(status))
}

/// With the place of the mount for each `{}`.
fn with_place(word: &OsStr, place: &OsStr) -> OsString {
    let (mut out, mut rest) = (Vec::new(), word.as_bytes());
    while let Some(at) = rest.windows(2).position(|two| two == b"{}") {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(place.as_bytes());
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

/// What is in a profile, for a person.
fn summary(profile: &Profile) -> String {
    let bytes = BinaryBytes(profile.bytes());
    format!("{} files, {bytes}", profile.files())
}

/// Writes a profile into a file, or to stdout for `-`.
fn write(file: &Path, profile: &Profile) -> anyhow::Result<()> {
    let text = profile.to_text();
    match file == Path::new("-") {
        true => std::io::stdout().write_all(text.as_bytes())?,
        false => fs::write(file, text).with_context(|| format!("{file:?} cannot be written"))?,
    }
    Ok(())
}

/// The profile that is kept of a tree.
fn kept(cache: &CacheArgs, remotes: &RemoteArgs, root: &str) -> anyhow::Result<Profile> {
    runtime::block_on(async {
        let cache = open::cache(cache, remotes)?;
        let found = async {
            let (tree, name) = tree(&cache, root).await?;
            let Some(stored) = cache.profile(tree, name).await? else {
                bail!(
                    "there is no profile of {root} in the cache {:?} yet; a mount records one, or `castore profile record`",
                    cache.dir()
                );
            };
            Profile::parse(&stored.text).context("the profile that was kept is damaged")
        };
        let found = found.await;
        tokio::task::spawn_blocking(move || cache.close()).await?;
        found
    })
}

/// What profiles call a tree, and by which name it goes.
async fn tree(cache: &Arc<Cache>, root: &str) -> anyhow::Result<(String, Option<String>)> {
    match root {
        "all" => return Ok((Tree::Names.key(), None)),
        "nix" => return Ok((Tree::StorePaths.key(), None)),
        _ => {}
    }
    let root = RootRef::parse(root)?;
    // A digest need not be there.
    if let RootRef::Digest(digest) = root {
        return Ok((Tree::Directory(digest).key(), None));
    }
    let (Node::Directory { digest, .. } | Node::File { digest, .. }) =
        open::root(cache, &root).await?
    else {
        bail!("{root} is a symlink, of which no profile is kept");
    };
    Ok((digest.to_string(), name_of(&root)))
}

/// The name by which a profile is found for another tree.
pub(super) fn name_of(root: &RootRef) -> Option<String> {
    match root {
        RootRef::Digest(_) => None,
        RootRef::Name(name) => Some(name.to_string()),
        // The hash is that of one build.
        RootRef::StorePath(path) => {
            let name = path.basename().to_string();
            name.split_once('-').map(|(_, name)| name.to_owned())
        }
    }
}

/// A directory that goes away when this is dropped, and is not if something is still mounted on it.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> anyhow::Result<Self> {
        let name = format!("castore-profile-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("{path:?} cannot be made"))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
