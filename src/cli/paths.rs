use std::{
    env, io,
    path::{Path, PathBuf},
};

use super::registry;

/// Where things are when nobody says: below `/var` for root, else where the XDG base directory specification puts them.
pub(super) fn default_store() -> PathBuf {
    default(
        "/var/lib/castore/store",
        "XDG_DATA_HOME",
        ".local/share",
        "castore/store",
    )
}

pub(super) fn default_cache() -> PathBuf {
    default("/var/cache/castore", "XDG_CACHE_HOME", ".cache", "castore")
}

fn default(root: &str, variable: &str, below_home: &str, rest: &str) -> PathBuf {
    if is_root() {
        return root.into();
    }
    let base = env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    match base.or_else(|| home().map(|home| home.join(below_home))) {
        Some(base) => base.join(rest),
        None => homeless().join(rest),
    }
}

/// The home of the user, where there is one: services and containers often have none.
pub(super) fn home() -> Option<PathBuf> {
    env::home_dir().filter(|home| home.is_absolute() && home.is_dir())
}

/// For a user without a home, a directory that survives a restart of the machine. Another user may have made it before, so it
/// is used only where it is this user's alone.
fn homeless() -> PathBuf {
    let user = outer_uid();
    let dir = PathBuf::from(format!("/var/tmp/castore-{user}"));
    match registry::private(&dir, 0o700) {
        Ok(()) => dir,
        Err(_) => env::temp_dir().join(format!("castore-{user}-{}", std::process::id())),
    }
}

/// The store of the user who called sudo.
pub(super) fn store_behind_sudo() -> Option<PathBuf> {
    let user = env::var("SUDO_USER").ok().filter(|_| is_root())?;
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let home = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(&user))
            .then(|| fields.nth(4))
            .flatten()
    })?;
    Some(Path::new(home).join(".local/share/castore/store"))
}

/// Whether this is the machine's root, and not a user who is called root in a namespace of its own: `/var` and `/run` are not
/// such a user's.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root() && uid_map().is_none_or(|map| is_identity(&map))
}

/// The number that this user has outside of its user namespace, which is the one that others see on the files of a shared
/// directory.
pub(super) fn outer_uid() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    uid_map().and_then(|map| outer(&map, uid)).unwrap_or(uid)
}

/// First user inside, first user outside, count; of each range.
fn uid_map() -> Option<Vec<[u32; 3]>> {
    parse(&std::fs::read_to_string("/proc/self/uid_map").ok()?)
}

fn parse(map: &str) -> Option<Vec<[u32; 3]>> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some([next()?, next()?, next()?])
    };
    map.lines().map(range).collect()
}

fn is_identity(map: &[[u32; 3]]) -> bool {
    map == [[0, 0, u32::MAX]]
}

fn outer(map: &[[u32; 3]], uid: u32) -> Option<u32> {
    map.iter().find_map(|[inside, outside, count]| {
        let offset = uid.checked_sub(*inside).filter(|offset| offset < count)?;
        outside.checked_add(offset)
    })
}

/// The address of a store in a directory.
pub(super) fn address(path: &Path) -> io::Result<String> {
    let path = std::path::absolute(path)?;
    let url = url::Url::from_file_path(&path)
        .map_err(|()| io::Error::other(format!("{path:?} cannot be written as an address")))?;
    Ok(format!("objectstore+{url}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_namespace_are_told_from_those_of_the_machine() {
        let whole = parse("         0          0 4294967295\n").unwrap();
        assert!(is_identity(&whole));
        assert_eq!(outer(&whole, 1000), Some(1000));
        let rootless = parse("0 1000 1\n1 100000 65536\n").unwrap();
        assert!(!is_identity(&rootless));
        assert_eq!(outer(&rootless, 0), Some(1000));
        assert_eq!(outer(&rootless, 34), Some(100_033));
        assert_eq!(outer(&rootless, 70_000), None);
        assert_eq!(parse("x"), None);
    }
}
