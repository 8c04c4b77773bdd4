//! What extended attributes cost.

use std::{fs, process::Command};

use crate::support::{Scratch, output, succeeded, tree};

const FILES: u64 = 300;

/// How many requests of these kinds `ls -l` makes, once everything was listed before.
fn asked_by_ls(scratch: &Scratch, options: &[&str], digest: &str) -> u64 {
    let mount = scratch.mount(options.iter().copied().chain([digest]));
    let requests = || {
        let json = scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let requests = status["mounts"][0]["requests"].as_array().unwrap().clone();
        let of_attributes = requests
            .iter()
            .filter(|pair| ["GETXATTR", "LISTXATTR"].contains(&pair[0].as_str().unwrap()));
        of_attributes
            .map(|pair| pair[1].as_u64().unwrap())
            .sum::<u64>()
    };
    let list = || {
        let mut command = Command::new("ls");
        command.arg("-l").arg(&mount.path);
        let listed = succeeded(&output(command));
        assert_eq!(listed.lines().count() as u64, FILES + 1);
        requests()
    };
    let first = list();
    let second = list() - first;
    mount.stop();
    second
}

/// Each answer would have to be given anew for each file; that there are no attributes at all is said once.
#[test]
#[ignore = "needs /dev/fuse"]
fn a_long_listing_asks_for_attributes_with_xattr_alone() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for number in 0..FILES {
        tree::file(&source, &format!("{number}"), b"x", false);
    }
    let digest = scratch.import(&source);
    assert_eq!(asked_by_ls(&scratch, &[], &digest), 0);
    let asked = asked_by_ls(&scratch, &["--xattr"], &digest);
    assert!(asked >= FILES, "{asked} requests");
}
