//! Mounts of other systems, for comparison.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of benchmarks"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::support::{self, Scratch, servers::Server};

/// A mount of another system, in the foreground of a child process. It is taken down when this is dropped.
pub struct Other {
    child: Child,
    pub path: PathBuf,
}

impl Other {
    pub fn start(mut command: Command, path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !support::is_mounted(path) {
            assert!(
                child.try_wait().unwrap().is_none() && Instant::now() < deadline,
                "{command:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            path: path.to_owned(),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        support::detach(&self.path);
        if support::wait(&mut self.child, Duration::from_secs(10)).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// One of the servers' programs.
pub fn program(name: &str) -> PathBuf {
    let servers = env::var("CASTORE_TEST_SERVERS").map_or_else(
        |_| Path::new(env!("CARGO_TARGET_TMPDIR")).join("../servers"),
        PathBuf::from,
    );
    std::path::absolute(servers.join("bin").join(name)).unwrap()
}

/// `rclone` without a configuration of the user's.
pub fn rclone(scratch: &Scratch) -> Command {
    let mut command = Command::new(program("rclone"));
    command.env("RCLONE_CONFIG", scratch.path("no-rclone.conf"));
    command
}

/// Plain files in the bucket of `SeaweedFS`, by way of a port.
pub fn plain_files(port: u16) -> String {
    format!(
        ":s3,provider=SeaweedFS,access_key_id=castore,secret_access_key=castore-tests-only,region=us-east-1,\
         endpoint='http://127.0.0.1:{port}':castore/plain"
    )
}

/// Puts plain files there, below a directory of that name.
pub fn upload(scratch: &Scratch, source: &Path, weed: &Server, name: &str) {
    let mut upload = rclone(scratch);
    upload
        .args(["copy", "--transfers", "32"])
        .arg(source)
        .arg(format!("{}/{name}", plain_files(weed.port())));
    assert!(upload.stderr(Stdio::null()).status().unwrap().success());
}

/// A fresh `rclone mount --vfs-cache-mode full` of them, over an empty cache.
pub fn rclone_mount(scratch: &Scratch, port: u16) -> Other {
    let cache = scratch.path("rclone-cache");
    let _ = fs::remove_dir_all(&cache);
    let path = scratch.path("rclone-mnt");
    let mut command = rclone(scratch);
    command
        .arg("mount")
        .arg(plain_files(port))
        .arg(&path)
        .args([
            "--read-only",
            "--vfs-cache-mode",
            "full",
            "--dir-cache-time",
            "1h",
        ])
        .arg("--cache-dir")
        .arg(&cache);
    Other::start(command, &path)
}
