//! A mount of castore or of the null server, and what its process takes.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    support::{self, Mount, Scratch},
    trees::Shape,
};

/// As castore has by default on two processors.
pub const THREADS: usize = 4;

pub enum Mounted {
    Castore(Mount),
    Null(Child, PathBuf),
}

impl Mounted {
    pub fn castore(scratch: &Scratch, options: &[&str], shape: Shape) -> Self {
        let name = shape.name();
        let threads = THREADS.to_string();
        let all = ["--threads", &threads].into_iter();
        let all = all.chain(options.iter().copied()).chain([name.as_str()]);
        let mount = scratch.mount(all);
        // The first walk must not pay for what is done once for a cache.
        Self::Castore(mount)
    }

    pub fn null(path: &Path, shape: Shape) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg("null-server")
            .arg(path)
            .args([shape.directories.to_string(), shape.files.to_string()])
            .stdin(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !support::is_mounted(path) {
            assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        Self::Null(child, path.to_owned())
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Castore(mount) => &mount.path,
            Self::Null(_, path) => path,
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Castore(mount) => mount.child.id(),
            Self::Null(child, _) => child.id(),
        }
    }

    /// Time of the processors that the process has taken so far.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let nanos = tasks.flatten().filter_map(|task| {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Bytes of anonymous memory.
    pub fn anonymous(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap() << 10
    }

    pub fn stop(self) {
        match self {
            Self::Castore(mount) => {
                mount.stop();
            }
            Self::Null(mut child, path) => {
                support::detach(&path);
                assert!(support::wait(&mut child, Duration::from_secs(20)).is_some());
            }
        }
    }
}

/// Requests of one operation that a mount of a scratch directory was sent.
pub fn requests(scratch: &Scratch, operation: &str) -> u64 {
    mount_status(scratch)["requests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|pair| pair[0] == operation)
        .map_or(0, |pair| pair[1].as_u64().unwrap())
}

/// Inodes that the kernel knows of a mount of a scratch directory.
pub fn inodes(scratch: &Scratch) -> u64 {
    mount_status(scratch)["inodes"].as_u64().unwrap()
}

fn mount_status(scratch: &Scratch) -> serde_json::Value {
    let status: serde_json::Value =
        serde_json::from_str(&scratch.ok(["status", "--json"])).unwrap();
    status["mounts"][0].clone()
}
