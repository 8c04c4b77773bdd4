//! How little is enough.

use std::{fs, path::PathBuf, time::Duration};

use crate::{
    Test,
    fixture::MEMORY_CONTROLLER,
    support::{Mount, Scratch, before, eventually, tree},
};

pub const ALL: [Test; 1] = [(
    "a_small_control_group_is_enough",
    &[MEMORY_CONTROLLER],
    a_small_control_group_is_enough,
)];

/// The smallest control group in which a mount with `--memory 16MiB` serves a large file, many small ones and a large directory.
const SMALLEST: u64 = 64 << 20;

/// A control group with a limit of memory. Removed at the end, with its processes.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Self {
        let (base, file) = controller().unwrap();
        let group = base.join(format!("castore-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let made = Self(group);
        fs::write(made.0.join(file), limit.to_string()).unwrap();
        made
    }

    /// How many processes were ended for want of memory.
    fn killed(&self) -> u64 {
        let counts = ["memory.events", "memory.oom_control"].into_iter();
        let text: String = counts
            .filter_map(|file| fs::read_to_string(self.0.join(file)).ok())
            .collect();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the group does not count").parse().unwrap()
    }
}

/// Where groups with a limit of memory are made, and the file of the limit: version 2, or else version 1.
pub fn controller() -> Option<(PathBuf, &'static str)> {
    let _ = fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
    let places = [
        ("/sys/fs/cgroup", "cgroup.subtree_control", "memory.max"),
        (
            "/sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.limit_in_bytes",
        ),
    ];
    places.into_iter().find_map(|(base, shows, limit)| {
        let shown = fs::read_to_string(format!("{base}/{shows}")).ok()?;
        let usable = shows == limit || shown.split_whitespace().any(|name| name == "memory");
        usable.then(|| (base.into(), limit))
    })
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn a_small_control_group_is_enough() {
    let group = Group::new(SMALLEST);
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    tree::file(&source, "large", &tree::noise(1, 200 << 20), false);
    for number in 0..3000 {
        tree::file(
            &source,
            &format!("many/{number}"),
            &tree::noise(number, 3000),
            false,
        );
    }
    let digest = scratch.import(&source);
    let inside = group.0.join("cgroup.procs");
    let script = format!("echo $$ > {} && exec \"$@\"", inside.display());
    let inner = scratch.command(["mount", "--foreground", "--memory", "16MiB", &digest]);
    let mut command = before("sh", ["-c", &script, "sh"], &inner);
    command.arg(scratch.mnt());
    let mount = Mount::start(command, &scratch.mnt());
    tree::assert_equal(&source, &mount.path);
    // Again, past the kernel's cache.
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    tree::assert_equal(&source, &mount.path);
    assert_eq!(group.killed(), 0);
    mount.stop();
    eventually("the group is empty", || {
        fs::read_to_string(&inside).is_ok_and(|pids| pids.is_empty())
    });
}
