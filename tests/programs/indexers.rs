//! Programs that walk the whole machine, and how they leave a mount out.

use std::{fs, process::Command};

use crate::{
    Test,
    fixture::{Tree, find, run_command},
};

pub const ALL: [Test; 1] = [(
    "updatedb_skips_it_by_its_type",
    &[UPDATEDB, "unshare"],
    updatedb_skips_it_by_its_type,
)];

/// Of the Debian package plocate.
const UPDATEDB: &str = "updatedb.plocate";

/// The paths that updatedb takes in below the scratch directory of a tree, with these types of filesystems in `PRUNEFS`. It
/// reads its configuration from `/etc` and nowhere else, so it gets one of its own there, in a mount namespace.
fn indexed(tree: &Tree, pruned: &str) -> Vec<String> {
    let etc = tree.dir("etc");
    let config = format!("PRUNE_BIND_MOUNTS=\"yes\"\nPRUNEFS=\"{pruned}\"\n");
    fs::write(etc.join("updatedb.conf"), config).unwrap();
    let root = tree.scratch.dir.path().canonicalize().unwrap();
    let script = format!(
        "mount --bind {etc} /etc && exec {updatedb} --verbose --require-visibility no \
         --database-root {root} --output {root}/locate.db",
        etc = etc.display(),
        updatedb = find(UPDATEDB).unwrap().display(),
        root = root.display(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
    let listed = run_command(command);
    let prefix = format!("{}/", root.display());
    let below = listed.lines().filter_map(|line| line.strip_prefix(&prefix));
    let mut below: Vec<_> = below.map(str::to_owned).collect();
    below.sort();
    below
}

/// How many requests of a kind the mount has had.
fn requests(tree: &Tree, operation: &str) -> u64 {
    let json = tree.scratch.ok(["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let requests = status["mounts"][0]["requests"].as_array().unwrap();
    let of_kind = requests.iter().find(|pair| pair[0] == operation);
    of_kind.map_or(0, |pair| pair[1].as_u64().unwrap())
}

/// No distribution's configuration knows the type, so each mount would be indexed every day.
fn updatedb_skips_it_by_its_type() {
    let tree = Tree::of_twins();
    // A part of what Debian sets.
    let usual = "NFS afs autofs cifs fuse.glusterfs fuse.rclone fuse.sshfs fusectl nfs nfs4 proc sysfs tmpfs";
    let all = indexed(&tree, usual);
    let of = |all: &[String], dir: &str| {
        let below = all.iter().filter_map(|path| path.strip_prefix(dir));
        below.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of(&all, "mnt/"), of(&all, "source/"));
    assert_eq!(of(&all, "mnt/").len(), tree.paths().len());
    assert_eq!(requests(&tree, "READ"), 0, "it has read files");
    let pruned = indexed(&tree, &format!("{usual} fuse.castore"));
    assert_eq!(of(&pruned, "mnt/"), [""; 0]);
    assert_eq!(of(&pruned, "source/"), of(&all, "source/"));
    tree.mount.stop();
}
