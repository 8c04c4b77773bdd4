use std::{ffi::OsString, path::Path};

use anyhow::bail;

/// Options of `mount(8)` that say nothing to us: the mount is read-only, nosuid and nodev whatever they say.
const IGNORED: [&str; 22] = [
    "_netdev", "nofail", "defaults", "auto", "noauto", "ro", "rw", "user", "nouser", "users",
    "owner", "group", "suid", "nosuid", "dev", "nodev", "exec", "atime", "noatime", "relatime",
    "async", "sync",
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
const WITHOUT_VALUE: [&str; 2] = ["allow-other", "offline"];

/// Called as `mount.castore`, as `mount -t castore` does, the arguments are `SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]`;
/// they become those of `castore mount`. `None` when called by another name.
pub(super) fn arguments(arguments: &[OsString]) -> Option<anyhow::Result<Vec<OsString>>> {
    let called = Path::new(arguments.first()?).file_name()?;
    (called == "mount.castore").then(|| translate(&arguments[1..]))
}

fn translate(arguments: &[OsString]) -> anyhow::Result<Vec<OsString>> {
    let mut positions = Vec::new();
    let mut options: Vec<OsString> = Vec::new();
    // Then the source is only what the mount table shows. A preset may have a root of its own.
    let mut shows_all = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        let list = if text == "-o" {
            rest.next().map(|list| list.to_string_lossy())
        } else if let Some(list) = text.strip_prefix("-o") {
            Some(list.to_owned().into())
        } else if text.starts_with('-') {
            continue; // -s, -f, -n, -v and -N are of no meaning here.
        } else {
            positions.push(argument.clone());
            continue;
        };
        let Some(list) = list else {
            bail!("-o needs a list of options");
        };
        for option in list.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let ours = name.replace('_', "-");
            if ours == "all" || ours == "nix" {
                shows_all = true;
                options.push(format!("--{ours}").into());
            } else if ours == "owner" && value.is_some() || WITH_VALUE.contains(&&*ours) {
                let Some(value) = value else {
                    bail!("the mount option {name} needs a value: {name}=…");
                };
                options.push(format!("--{ours}={value}").into());
            } else if WITHOUT_VALUE.contains(&&*ours) && value.is_none() {
                options.push(format!("--{ours}").into());
            } else if !IGNORED.contains(&name)
                && !name.starts_with("x-")
                && !name.starts_with("comment")
            {
                bail!("the mount option {option:?} is not known; see `castore mount --help`");
            }
        }
    }
    let [source, mountpoint] = &positions[..] else {
        bail!(
            "called as mount.castore, it takes a root and a mount point: mount.castore ROOT MOUNTPOINT [-o OPTIONS]"
        );
    };
    let mut translated = vec![OsString::from("castore"), OsString::from("mount")];
    translated.append(&mut options);
    if !shows_all {
        translated.push(source.clone());
    }
    translated.push(mountpoint.clone());
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn translated(line: &str) -> Result<String, String> {
        let result = arguments(&words(line)).unwrap();
        let joined = |words: Vec<OsString>| words.join(&OsString::from(" "));
        result
            .map(|words| joined(words).into_string().unwrap())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn fstab_options_become_ours() {
        assert!(arguments(&words("castore mount a /mnt")).is_none());
        assert_eq!(
            translated(
                "/sbin/mount.castore tools /mnt -v -o rw,_netdev,nofail,x-systemd.automount,cache_size=5GiB"
            ),
            Ok("castore mount --cache-size=5GiB tools /mnt".to_owned())
        );
        assert_eq!(
            translated("mount.castore none /mnt -oall,allow_other,owner=1:2"),
            Ok("castore mount --all --allow-other --owner=1:2 /mnt".to_owned())
        );
        assert!(
            translated("mount.castore tools /mnt -o colour=red")
                .unwrap_err()
                .contains("colour=red")
        );
        assert!(
            translated("mount.castore tools /mnt -o remote")
                .unwrap_err()
                .contains("needs a value")
        );
        assert!(translated("mount.castore tools").is_err());
    }
}
