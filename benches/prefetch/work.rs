//! What readers do.

use std::{
    fs::File,
    io::Read,
    os::unix::{fs::FileExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use super::{
    lab::{LARGE, LIMIT},
    support,
};

/// Runs it on a thread of its own, so that a mount that hangs ends the benchmark.
pub fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    support::within(LIMIT, what, work)
}

pub fn read_all(path: &Path) {
    let path = path.to_owned();
    within("the read", move || read_to_end(&path));
}

pub fn read_to_end(path: &Path) -> usize {
    let mut file = File::open(path).unwrap();
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return total,
            read => total += read,
        }
    }
}

/// Touches each page of a mapping, in order.
pub fn map_all(path: &Path) {
    let path = path.to_owned();
    within("the mapped read", move || {
        let file = File::open(path).unwrap();
        // SAFETY: nobody changes the file: it is of a read-only mount.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut sum = 0_u64;
        for page in (0..map.len()).step_by(4096) {
            sum = sum.wrapping_add(u64::from(map[page]));
        }
        std::hint::black_box(sum);
    });
}

/// Reads a file in eight places in turns.
pub fn interleaved(path: &Path) {
    let path = path.to_owned();
    within("the interleaved reads", move || {
        let file = File::open(path).unwrap();
        let (part, step) = (LARGE as u64 / 8, 128 << 10);
        let mut buffer = vec![0; step];
        for at in (0..part).step_by(step) {
            for stream in 0..8 {
                file.read_exact_at(&mut buffer, stream * part + at).unwrap();
            }
        }
    });
}

/// Reads several files at once.
pub fn at_once(paths: Vec<PathBuf>) {
    within("the reads", move || {
        let threads = paths
            .into_iter()
            .map(|path| thread::spawn(move || read_to_end(&path)));
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
    });
}

/// The positions of `count` random pages of a file of [`LARGE`] bytes.
pub fn random_pages(count: usize) -> Vec<u64> {
    let mut at = 1_u64;
    let next = |_| {
        at = at
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (at >> 33) % (LARGE as u64 / 4096) * 4096
    };
    (0..count).map(next).collect()
}

pub fn random(path: &Path, pages: Vec<u64>) {
    let path = path.to_owned();
    within("the random reads", move || {
        let file = File::open(path).unwrap();
        let mut buffer = [0; 4096];
        for page in pages {
            file.read_exact_at(&mut buffer, page).unwrap();
        }
    });
}

pub fn first_byte(path: &Path) {
    let path = path.to_owned();
    within("the first byte", move || {
        let mut byte = [0];
        File::open(path).unwrap().read_exact(&mut byte).unwrap();
    });
}

/// As [`shell`], for what may take too long: seconds, where it ended in time.
pub fn shell_in_time(dir: &Path, script: &str) -> Option<f64> {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = support::wait(&mut child, LIMIT);
    if status.is_none() {
        let group = i32::try_from(child.id()).unwrap();
        // SAFETY: a system call; the group is that of our child, which has not been waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let _ = child.wait();
    }
    status.map(|_| started.elapsed().as_secs_f64())
}

/// A shell command in a directory.
pub fn shell(dir: &Path, script: &str) {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = within("the command", move || command.status().unwrap());
    assert!(status.success(), "{script}");
}
