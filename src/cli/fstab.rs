//! Being called as `mount.castore`, as `mount(8)` does for a line of `/etc/fstab`.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::thread::LinkNameSpaceType;

use super::{daemon, detach, mountpoint, mounts::Mount};

/// Options of `mount(8)` that say nothing to us: the mount is read-only, nosuid, nodev and noatime whatever they say, and the
/// kernel checks permissions.
const IGNORED: [&str; 42] = [
    "_netdev",
    "nofail",
    "defaults",
    "auto",
    "noauto",
    "ro",
    "rw",
    "nouser",
    "nousers",
    "nogroup",
    "noowner",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "async",
    "sync",
    "dirsync",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "symfollow",
    "default_permissions",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "uhelper",
    "helper",
];
/// Our options, as `--name value` or, without a value, as `--name`.
const WITH_VALUE: [&str; 20] = [
    "bandwidth",
    "profile",
    "prefetch",
    "outage",
    "timeout",
    "hedge",
    "names-ttl",
    "metrics",
    "trust",
    "preset",
    "config",
    "cache-dir",
    "cache-size",
    "min-free",
    "memory",
    "remote",
    "list-root",
    "xattr",
    "threads",
    "io-mode",
];
const WITHOUT_VALUE: [&str; 4] = ["allow-other", "offline", "xattr", "inode32"];

/// What `mount(8)` wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    /// A mount: the arguments of `castore mount`.
    Mount(Vec<OsString>),
    /// That a mount which is there is changed.
    Remount {
        mountpoint: PathBuf,
        /// `None`: as it is.
        noexec: Option<bool>,
    },
    /// Only to know whether it is understood (`-f`).
    Fake,
}

/// Called as `mount.castore`, the arguments are `SOURCE MOUNTPOINT [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`. `None` when
/// called by another name.
pub(super) fn called(arguments: &[OsString]) -> Option<anyhow::Result<Called>> {
    let name = Path::new(arguments.first()?).file_name()?;
    (name == "mount.castore").then(|| {
        let words = words(&arguments[1..])?;
        // The process in the background was started there.
        if let Some(namespace) = words.namespace.as_ref().filter(|_| !daemon::was_started()) {
            enter(namespace)?;
        }
        understand(&words)
    })
}

/// Changes what can be changed of a mount.
pub(super) fn remount(path: &Path, noexec: Option<bool>) -> anyhow::Result<()> {
    let path = mountpoint::absolute(path)?;
    let mount = Mount::at(&path).context("there is nothing to remount")?;
    match noexec {
        Some(noexec) if noexec != mount.mounted.noexec => detach::set_noexec(&path, noexec)
            .with_context(|| format!("noexec cannot be changed on {path:?}")),
        _ => Ok(()),
    }
}

/// A command line of `mount(8)`, taken apart.
#[derive(Debug, Default)]
struct Words {
    positions: Vec<OsString>,
    /// Lists of options, in order.
    lists: Vec<String>,
    namespace: Option<OsString>,
    is_fake: bool,
    /// Options that are not known are no error.
    is_sloppy: bool,
}

fn words(arguments: &[OsString]) -> anyhow::Result<Words> {
    let mut words = Words::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(mut letters) = argument.as_bytes().strip_prefix(b"-") else {
            words.positions.push(argument.clone());
            continue;
        };
        // Several letters may stand together, and a value directly behind its letter.
        while let [letter, after @ ..] = letters {
            letters = after;
            match letter {
                b'f' => words.is_fake = true,
                b's' => words.is_sloppy = true,
                // The mount is read-only, is in no table of ours, and there is nothing to say.
                b'n' | b'v' | b'r' | b'w' => {}
                b'o' | b'N' | b't' => {
                    let value = match after {
                        [] => rest.next().cloned(),
                        value => Some(OsStr::from_bytes(value).to_owned()),
                    };
                    let letter = char::from(*letter);
                    let value = value.with_context(|| format!("-{letter} needs a value"))?;
                    match letter {
                        'o' => words.lists.push(value.to_string_lossy().into_owned()),
                        'N' => words.namespace = Some(value),
                        _ => {}
                    }
                    break;
                }
                letter => bail!("the option -{} is not known", letter.escape_ascii()),
            }
        }
    }
    Ok(words)
}

fn understand(words: &Words) -> anyhow::Result<Called> {
    let mut options: Vec<OsString> = Vec::new();
    // Then the source is only what the mount table shows. A preset may have a root of its own.
    let mut shows_all = false;
    let (mut noexec, mut is_remount) = (None, false);
    let list = words.lists.iter().flat_map(|list| list.split(','));
    for option in list.filter(|option| !option.is_empty()) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let ours = name.replace('_', "-");
        let is_owner = ours == "owner" && value.is_some();
        match &*ours {
            "all" | "nix" => {
                shows_all = true;
                options.push(format!("--{ours}").into());
            }
            // What comes later counts, so `user,exec` allows what `user` does not.
            "noexec" | "user" | "users" => noexec = Some(true),
            "exec" => noexec = Some(false),
            "remount" => is_remount = true,
            // They imply nosuid and nodev alone.
            "owner" | "group" if !is_owner => {}
            _ if WITHOUT_VALUE.contains(&&*ours) && value.is_none() => {
                options.push(format!("--{ours}").into());
            }
            _ if is_owner || WITH_VALUE.contains(&&*ours) => {
                let Some(value) = value else {
                    bail!("the mount option {name} needs a value: {name}=…");
                };
                options.push(format!("--{ours}={value}").into());
            }
            _ => {
                let is_for_others = name.starts_with("x-")
                    || name.starts_with("X-")
                    || name.starts_with("comment")
                    || IGNORED.contains(&name);
                if !is_for_others && !words.is_sloppy {
                    bail!("the mount option {option:?} is not known; see `castore mount --help`");
                }
            }
        }
    }
    let [source, mountpoint] = &words.positions[..] else {
        bail!(
            "called as mount.castore, it takes a root and a mount point: mount.castore ROOT MOUNTPOINT [-o OPTIONS]"
        );
    };
    if words.is_fake {
        return Ok(Called::Fake);
    }
    if is_remount {
        return Ok(Called::Remount {
            mountpoint: mountpoint.into(),
            noexec,
        });
    }
    if noexec == Some(true) {
        options.push("--noexec".into());
    }
    let mut translated = vec![OsString::from("castore"), OsString::from("mount")];
    translated.append(&mut options);
    translated.push("--".into());
    if !shows_all {
        translated.push(source.clone());
    }
    translated.push(mountpoint.clone());
    Ok(Called::Mount(translated))
}

/// Enters a mount namespace: the number of a process, or a path.
fn enter(namespace: &OsStr) -> anyhow::Result<()> {
    let is_number = namespace.as_bytes().iter().all(u8::is_ascii_digit);
    let path = match is_number {
        true => Path::new("/proc").join(namespace).join("ns/mnt"),
        false => namespace.into(),
    };
    let entered = File::open(&path).and_then(|file| {
        let kind = Some(LinkNameSpaceType::Mount);
        Ok(rustix::thread::move_into_link_name_space(
            file.as_fd(),
            kind,
        )?)
    });
    entered.with_context(|| format!("the mount namespace {path:?} cannot be entered"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn understood(line: &str) -> Result<Called, String> {
        called(&words_of(line))
            .unwrap()
            .map_err(|error| format!("{error:#}"))
    }

    fn translated(line: &str) -> String {
        match understood(line) {
            Ok(Called::Mount(words)) => words.join(&OsString::from(" ")).into_string().unwrap(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn fstab_options_become_ours() {
        assert!(called(&words_of("castore mount a /mnt")).is_none());
        assert_eq!(
            translated(
                "/sbin/mount.castore tools /mnt -v -o rw,_netdev,nofail,x-systemd.automount,cache_size=5GiB"
            ),
            "castore mount --cache-size=5GiB -- tools /mnt"
        );
        assert_eq!(
            translated("mount.castore none /mnt -oall,allow_other,owner=1:2"),
            "castore mount --all --allow-other --owner=1:2 -- /mnt"
        );
        assert_eq!(
            translated("mount.castore tools /mnt -o xattr,xattr=false,inode32"),
            "castore mount --xattr --xattr=false --inode32 -- tools /mnt"
        );
        let fails = |line: &str, with: &str| {
            let error = understood(line).unwrap_err();
            assert!(error.contains(with), "{line}: {error}");
        };
        fails("mount.castore tools /mnt -o colour=red", "colour=red");
        fails("mount.castore tools /mnt -o remote", "needs a value");
        fails("mount.castore tools /mnt -o", "-o needs a value");
        fails("mount.castore tools /mnt -q", "-q is not known");
        fails("mount.castore tools", "a root and a mount point");
    }

    #[test]
    fn what_mount_passes_on_is_understood() {
        let all = "mount.castore -t fuse.castore tools -nsv -N /proc/self/ns/mnt /mnt -rw -o \
                   user=ada,users,owner,group,exec,nodiratime,lazytime,strictatime,dirsync,default_permissions,odd";
        let words = words(&words_of(all)[1..]).unwrap();
        assert_eq!(
            words.namespace.as_deref(),
            Some(OsStr::new("/proc/self/ns/mnt"))
        );
        let Ok(Called::Mount(arguments)) = understand(&words) else {
            panic!("no mount");
        };
        assert_eq!(arguments, words_of("castore mount -- tools /mnt"));
        let line = |options: &str| format!("mount.castore tools /mnt {options}");
        // As mount(8) has it: `user` implies noexec, and what comes later counts.
        for options in ["-o noexec", "-o exec,user", "-o users", "-o exec -o noexec"] {
            assert_eq!(
                translated(&line(options)),
                "castore mount --noexec -- tools /mnt"
            );
        }
        for options in ["-o user,exec", "-o owner", "-o group"] {
            assert_eq!(translated(&line(options)), "castore mount -- tools /mnt");
        }
        assert_eq!(understood(&line("-f")), Ok(Called::Fake));
        assert!(understood(&line("-f -o colour=red")).is_err());
        let remount = |noexec| Called::Remount {
            mountpoint: "/mnt".into(),
            noexec,
        };
        assert_eq!(understood(&line("-o remount,ro")), Ok(remount(None)));
        assert_eq!(
            understood(&line("-o remount,noexec")),
            Ok(remount(Some(true)))
        );
    }
}
