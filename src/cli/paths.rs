use std::{
    env, io,
    path::{Path, PathBuf},
};

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
    base.unwrap_or_else(|| home().join(below_home)).join(rest)
}

pub(super) fn home() -> PathBuf {
    env::home_dir().unwrap_or_else(|| "/".into())
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

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The address of a store in a directory.
pub(super) fn address(path: &Path) -> io::Result<String> {
    let path = std::path::absolute(path)?;
    let url = url::Url::from_file_path(&path)
        .map_err(|()| io::Error::other(format!("{path:?} cannot be written as an address")))?;
    Ok(format!("objectstore+{url}"))
}
