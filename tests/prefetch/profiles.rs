//! What one mount reads and the next one fetches ahead.

use std::fs;

use super::{Far, noise, read_file, support};

fn program() -> Far {
    let far = Far::new(|source| {
        for dir in ["used", "unused"] {
            fs::create_dir_all(source.join(dir)).unwrap();
            for number in 0..120_u64 {
                let path = source.join(dir).join(format!("f{number:03}"));
                noise(&path, number + 1000 * dir.len() as u64, 2000);
            }
        }
        noise(&source.join("large"), 9, 6 << 20);
    });
    far.link(10, None);
    far
}

/// Every tenth file, from the last to the first, and a part of the large one.
fn run(mount: &support::Mount, far: &Far) {
    for number in (0..120).rev().step_by(10) {
        read_file(mount, far, &format!("used/f{number:03}"));
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_was_read_is_fetched_by_the_next_mount() {
    let far = program();
    let mount = far.mount(&[]);
    run(&mount, &far);
    read_file(&mount, &far, "large");
    mount.stop();
    let shown = far.scratch.ok(["profile", "show", &far.root]);
    assert!(shown.starts_with("castore-profile 1\n"), "{shown}");
    let paths: Vec<_> = shown
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .collect();
    assert_eq!(paths[..2], ["used/f119", "used/f109"], "{shown}");
    assert_eq!(paths.last(), Some(&"large"));
    let file = far.scratch.path("profile");
    far.scratch
        .ok(["profile", "export", &far.root, file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&file).unwrap(), shown);
    // Elsewhere, nothing is known before it is imported.
    far.scratch.clear_cache();
    let said = far.scratch.fails(["profile", "show", &far.root]);
    assert!(said.contains("no profile"), "{said}");
    let said = far
        .scratch
        .ok(["profile", "import", file.to_str().unwrap()]);
    assert!(said.contains("13 files"), "{said}");
    let needed = 12 * 2000 + (6 << 20);
    for args in [&[][..], &["--profile", file.to_str().unwrap()]] {
        let mount = far.mount(args);
        // Nobody reads anything.
        let counters = far.settled();
        assert_eq!(
            counters["prefetch_profile_bytes"], needed,
            "{args:?} {counters:?}"
        );
        assert_eq!(counters["fetched_bytes"], needed, "{args:?}");
        run(&mount, &far);
        let counters = far.counters();
        assert_eq!(
            counters["prefetch_profile_used_bytes"],
            12 * 2000,
            "{counters:?}"
        );
        // Who reads what the profile says has no need of more.
        assert_eq!(counters["prefetch_siblings_bytes"], 0, "{counters:?}");
        mount.stop();
        // What was not read has been wasted, once the mount has ended.
        let status = far.scratch.ok(["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let wasted = &status["cache"]["counters"]["prefetch_profile_wasted_bytes"];
        assert_eq!(wasted.as_u64(), Some(6 << 20));
        far.scratch.clear_cache();
    }
    let mount = far.mount(&["--profile", "off"]);
    run(&mount, &far);
    assert_eq!(far.settled()["prefetch_profile_bytes"], 0);
    mount.stop();
    far.scratch.fails(["profile", "show", &far.root]);
}

/// A new release has the profile of the one before, by its name and by paths.
#[test]
#[ignore = "needs /dev/fuse"]
fn another_tree_of_the_same_name_takes_it_over() {
    let far = program();
    let source = far.scratch.path("source");
    let import = || {
        let source = source.to_str().unwrap();
        far.scratch.ok(["import", "--name", "program", source]);
    };
    import();
    let mount = |far: &Far| far.scratch.mount(["--remote", &far.address, "program"]);
    let first = mount(&far);
    run(&first, &far);
    first.stop();
    // One file has changed, one is gone, and the tree is another one.
    noise(&source.join("used/f119"), 77, 5000);
    fs::remove_file(source.join("used/f009")).unwrap();
    import();
    let second = mount(&far);
    let counters = far.settled();
    assert_eq!(counters["prefetch_profile_bytes"], 5000, "{counters:?}");
    read_file(&second, &far, "used/f119");
    assert_eq!(far.counters()["prefetch_profile_used_bytes"], 5000);
    second.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn it_stops_when_something_else_is_read() {
    let far = Far::new(|source| {
        for dir in ["a", "b"] {
            fs::create_dir_all(source.join(dir)).unwrap();
            for number in 0..100_u64 {
                let seed = number + 1000 * u64::from(dir.as_bytes()[0]);
                noise(&source.join(dir).join(format!("f{number:02}")), seed, 100);
            }
        }
        noise(&source.join("large"), 9, 48 << 20);
    });
    let mount = far.mount(&["--prefetch", "off"]);
    for number in 0..10 {
        read_file(&mount, &far, &format!("a/f{number:02}"));
    }
    read_file(&mount, &far, "large");
    mount.stop();
    let file = far.scratch.path("profile");
    far.scratch
        .ok(["profile", "export", &far.root, file.to_str().unwrap()]);
    far.scratch.clear_cache();
    far.link(2, Some(4_000_000));
    let mount = far.mount(&["--profile", file.to_str().unwrap()]);
    for number in 0..100 {
        read_file(&mount, &far, &format!("b/f{number:02}"));
    }
    let counters = far.settled();
    assert!(counters["fetched_bytes"] < 40 << 20, "{counters:?}");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_command_is_recorded_with_its_status() {
    let far = program();
    let record = far.scratch.run([
        "profile",
        "record",
        "--remote",
        &far.address,
        &far.root,
        "--",
        "sh",
        "-c",
        "cat {}/used/f003 $CASTORE_MOUNT/used/f001 | wc -c; exit 7",
    ]);
    assert_eq!(record.status.code(), Some(7), "{record:?}");
    assert_eq!(String::from_utf8_lossy(&record.stdout).trim(), "4000");
    let shown = far.scratch.ok(["profile", "show", &far.root]);
    let paths: Vec<_> = shown
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .collect();
    assert_eq!(paths, ["used/f003", "used/f001"], "{shown}");
    // One that reads next to nothing leaves it as it is.
    let mount = far.mount(&[]);
    mount.stop();
    assert_eq!(far.scratch.ok(["profile", "show", &far.root]), shown);
    let said = far
        .scratch
        .fails(["profile", "record", "nobody", "--", "true"]);
    assert!(said.contains("nobody"), "{said}");
    let missing = far.scratch.path("missing");
    let said = far
        .scratch
        .fails(["profile", "import", missing.to_str().unwrap()]);
    assert!(said.contains("cannot be read"), "{said}");
    fs::write(&missing, "nonsense").unwrap();
    let said = far
        .scratch
        .fails(["profile", "import", missing.to_str().unwrap()]);
    assert!(said.contains("no profile"), "{said}");
}

/// Without a network, nothing is asked for that nobody wants.
#[test]
#[ignore = "needs /dev/fuse"]
fn nothing_is_replayed_offline() {
    let far = program();
    let mount = far.mount(&[]);
    run(&mount, &far);
    mount.stop();
    let file = far.scratch.path("profile");
    far.scratch
        .ok(["profile", "export", &far.root, file.to_str().unwrap()]);
    far.scratch.clear_cache();
    // The directories alone are there.
    far.mount(&["--profile", "off"]).stop();
    let mount = far.mount(&["--offline", "--profile", file.to_str().unwrap()]);
    assert_eq!(fs::read_dir(mount.at("used")).unwrap().count(), 120);
    fs::read(mount.at("used/f119")).unwrap_err();
    let counters = far.settled();
    // The kernel asks for it once more after its readahead has failed.
    let missed = counters["offline_misses"];
    assert!((1..=2).contains(&missed), "{counters:?}");
    mount.stop();
}

/// What was last used before the profile was recorded makes room for it, and nothing else does.
#[test]
#[ignore = "needs /dev/fuse"]
fn it_takes_the_place_of_what_is_older_alone() {
    let far = Far::new(|source| {
        for number in 0..5_u64 {
            noise(&source.join(format!("f{number}")), number, 8 << 20);
        }
    });
    let fill = || {
        far.scratch.clear_cache();
        let args = ["--prefetch", "off", "--profile", "off"];
        let mount = far.mount(&[&args[..], &["--cache-size", "32MiB"]].concat());
        for number in 0..3 {
            read_file(&mount, &far, &format!("f{number}"));
        }
        mount.stop();
    };
    let mount = far.mount(&[]);
    read_file(&mount, &far, "f3");
    read_file(&mount, &far, "f4");
    mount.stop();
    let file = far.scratch.path("profile");
    let file = file.to_str().unwrap();
    far.scratch.ok(["profile", "export", &far.root, file]);
    // Times are in seconds.
    let second = || std::thread::sleep(std::time::Duration::from_millis(1100));
    fill();
    second();
    far.scratch.ok(["profile", "import", file]);
    let mount = far.mount(&[]);
    support::eventually("the profile's files", || {
        far.counters()["prefetch_profile_bytes"] == 16 << 20
    });
    mount.stop();
    fill();
    far.scratch.ok(["profile", "import", file]);
    second();
    let mount = far.mount(&["--prefetch", "off", "--profile", "off"]);
    for number in 0..3 {
        read_file(&mount, &far, &format!("f{number}"));
    }
    mount.stop();
    let mount = far.mount(&[]);
    let counters = far.settled();
    assert_eq!(counters["evicted_bytes"], 0, "{counters:?}");
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_file_that_is_a_root_is_replayed_too() {
    let far = Far::new(|source| noise(&source.join("x"), 1, 10));
    let file = far.scratch.path("source/x");
    noise(&file, 5, 3 << 20);
    let import = ["import", "--name", "single", file.to_str().unwrap()];
    far.scratch.ok(import);
    for args in [&["--all"][..], &["single"]] {
        far.scratch.run(["status"]);
        let mount = |more: &[&str]| {
            let remote = ["--remote", &far.address];
            far.scratch.mount([&remote[..], more, args].concat())
        };
        let first = mount(&[]);
        let path = first.at("single");
        let read = support::within(support::DEADLINE, "the read", move || {
            fs::read(path).unwrap()
        });
        assert_eq!(read, fs::read(&file).unwrap());
        first.stop();
        let profile = far.scratch.path("profile");
        let root = if args == ["--all"] { "all" } else { "single" };
        let profile = profile.to_str().unwrap();
        far.scratch
            .ok(["profile", "export", "--remote", &far.address, root, profile]);
        far.scratch.clear_cache();
        let second = mount(&["--profile", profile]);
        let counters = far.settled();
        assert_eq!(
            counters["prefetch_profile_bytes"],
            3 << 20,
            "{args:?} {counters:?}"
        );
        second.stop();
        far.scratch.clear_cache();
    }
    let mount = far
        .scratch
        .mount(["--remote", &far.address, "--prefetch", "tree", "single"]);
    assert_eq!(far.settled()["prefetch_tree_bytes"], 3 << 20);
    mount.stop();
}
