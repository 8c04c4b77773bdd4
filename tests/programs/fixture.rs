//! A mounted tree, commands with a deadline, compiled helpers.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{Mount, Scratch, output, succeeded, tree::file};

/// Named as a program where groups with a limit of memory are needed.
pub const MEMORY_CONTROLLER: &str = "memory controller of control groups";

/// Why a test cannot run here; `None`: it can.
pub fn missing(programs: &[&str]) -> Option<String> {
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        return Some("/dev/fuse cannot be opened".into());
    }
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root".into());
    }
    let missing = |program: &&&str| match **program {
        // Not a program: whether the compiler makes 32-bit programs too.
        "-m32" => !compiles_32(),
        MEMORY_CONTROLLER => crate::limits::controller().is_none(),
        program => find(program).is_none(),
    };
    programs
        .iter()
        .find(missing)
        .map(|program| format!("no {program}: run contrib/test-programs.sh"))
}

/// Where a program is: installed, or unpacked by `contrib/test-programs.sh` into the target directory.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("programs");
    let unpacked = ["usr/sbin", "usr/bin"].map(|dir| unpacked.join(dir));
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .chain(unpacked)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

fn compiles_32() -> bool {
    let compiler = Command::new("cc")
        .args(["-m32", "-x", "c", "-o", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut compiler) = compiler else {
        return false;
    };
    let source = b"#include <sys/stat.h>\nint main(void) { struct stat s; return stat(\"\", &s); }";
    let written = std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), source);
    written.is_ok() && compiler.wait().is_ok_and(|status| status.success())
}

/// A tree and its mount, which goes first.
pub struct Tree {
    pub mount: Mount,
    pub scratch: Scratch,
    pub digest: String,
}

impl Tree {
    /// Imports what `make` makes, and mounts it.
    pub fn of(options: &[&str], make: impl FnOnce(&Path)) -> Self {
        Self::with(Scratch::new(), options, make)
    }

    /// The same with what the scratch directory has already.
    pub fn with(scratch: Scratch, options: &[&str], make: impl FnOnce(&Path)) -> Self {
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        make(&source);
        let digest = scratch.import(&source);
        let mount = scratch.mount(options.iter().copied().chain([digest.as_str()]));
        Self {
            mount,
            scratch,
            digest,
        }
    }

    /// The usual tree.
    pub fn of_twins() -> Self {
        Self::of(&[], twins)
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.mount.at(name)
    }

    pub fn source(&self) -> PathBuf {
        self.scratch.path("source")
    }

    /// A fresh directory beside the mount.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.scratch.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Mounts at a place of its own, with a cache of its own. `args` has the root.
    pub fn mount_again(&self, name: &str, args: &[&str]) -> Mount {
        let mountpoint = self.dir(name);
        let args = ["mount", "--foreground"].iter().chain(args);
        let mut command = self.scratch.command(args);
        command.arg(&mountpoint);
        command.env(
            "CASTORE_CACHE_DIR",
            self.scratch.path(&format!("{name}-cache")),
        );
        Mount::start(command, &mountpoint)
    }

    /// Every path of the tree, relative to its root, which is left out.
    pub fn paths(&self) -> Vec<PathBuf> {
        paths(&self.source())
    }
}

/// Everything below a directory, relative to it.
pub fn paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

/// What content addressing makes equal and programs must not: files, executables, empty files, symlinks, directories.
pub fn twins(root: &Path) {
    file(root, "one", b"equal\n", false);
    file(root, "two", b"equal\n", false);
    file(root, "sub/three", b"equal\n", false);
    for name in ["tool-a", "tool-b", "bin/tool-a"] {
        file(root, name, b"#!/bin/sh\necho \"$0\"\n", true);
    }
    for name in [
        "pkg/__init__.py",
        "pkg/sub/__init__.py",
        "lib/__init__.py",
        "x.lock",
        "y.lock",
    ] {
        file(root, name, b"", false);
    }
    for name in ["same-a", "same-b", "sub/same-a"] {
        file(root, &format!("{name}/inner/file"), b"below\n", false);
        file(root, &format!("{name}/inner/twin"), b"below\n", false);
        fs::create_dir(root.join(name).join("empty")).unwrap();
        symlink("inner/file", root.join(name).join("link")).unwrap();
    }
    symlink("one", root.join("link-a")).unwrap();
    symlink("one", root.join("link-b")).unwrap();
    symlink("same-a", root.join("to-same")).unwrap();
}

/// Runs a program to its end, which must be a success, and gives what it printed.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    run_command(command)
}

pub fn run_command(mut command: Command) -> String {
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    let what = format!("{command:?}");
    let output = output(command);
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    succeeded(&output)
}

/// Runs a line of shell in a directory; it must succeed and complain of nothing.
pub fn shell(dir: &Path, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", line]).current_dir(dir);
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.is_empty(),
        "{line}: {}: {said}",
        output.status
    );
    succeeded(&output)
}

/// Compiles `tests/programs/helpers/NAME.c` into the scratch directory.
pub fn helper(scratch: &Scratch, name: &str, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs/helpers")
        .join(format!("{name}.c"));
    let program = scratch.path(name);
    let mut command = Command::new("cc");
    command.args(["-Wall", "-Werror", "-O1", "-o"]);
    command.arg(&program).arg(source).args(options);
    run_command(command);
    program
}
