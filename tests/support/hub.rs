//! `castore serve` as a process of its own, which is gone afterwards however the test ends.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use super::{DEADLINE, Scratch, signal, wait};

pub struct Hub {
    child: Child,
    /// As clients write it.
    pub address: String,
    log: std::path::PathBuf,
}

impl Hub {
    /// Serves `remote` with a cache of its own, named `cache` in the scratch directory, on a free port.
    pub fn start<S: AsRef<OsStr>>(
        scratch: &Scratch,
        cache: &str,
        remote: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        Self::listen(scratch, "127.0.0.1:0", cache, remote, args)
    }

    /// The same at a place of one's own choice.
    pub fn listen<S: AsRef<OsStr>>(
        scratch: &Scratch,
        place: &str,
        cache: &str,
        remote: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = scratch.command(["serve", "--listen", place, "--remote", remote]);
        command
            .args(args)
            .env("CASTORE_CACHE_DIR", scratch.path(cache));
        Self::spawn(command, &scratch.path(&format!("{cache}.log")))
    }

    pub fn spawn(mut command: Command, log: &Path) -> Self {
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        command.stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(DEADLINE).unwrap_or_default();
        if line.trim().is_empty() {
            let _ = child.kill();
            let _ = child.wait();
            panic!("no server: {}", fs::read_to_string(log).unwrap());
        }
        Self {
            child,
            address: line.trim().to_owned(),
            log: log.to_owned(),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it by SIGTERM; it must end well.
    pub fn stop(mut self) -> String {
        signal(&self.child, libc::SIGTERM);
        let status = wait(&mut self.child, DEADLINE).expect("the server does not end");
        let log = self.log();
        assert!(status.success(), "{status}: {log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }

    /// Ends it without a warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}
