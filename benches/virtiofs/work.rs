//! What the guest does, timed there.

use std::{
    fs::{self, File},
    hint::black_box,
    io::Read,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    time::Instant,
};

/// Bytes of the large file.
pub const LARGE: usize = 512 << 20;
pub const SMALL_FILES: usize = 2000;
const IN_A_DIRECTORY: usize = 100;
/// Reads past the page cache, each one request.
const DIRECT_READS: u64 = 10_000;
const PAGE: u64 = 4096;

/// Without "warm" the guest's caches are dropped before; the daemon's are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Sequential,
    SequentialWarm,
    Small,
    SmallWarm,
    Walk,
    WalkWarm,
    Requests,
}

impl Work {
    pub const ALL: [Self; 7] = [
        Self::Sequential,
        Self::SequentialWarm,
        Self::Small,
        Self::SmallWarm,
        Self::Walk,
        Self::WalkWarm,
        Self::Requests,
    ];

    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::Sequential => "512 MiB in order, cold",
            Self::Small => "2,000 files of 8 KiB, cold",
            Self::Walk => "stat of 2,000 files, cold",
            Self::SequentialWarm | Self::SmallWarm | Self::WalkWarm => "the same, warm",
            Self::Requests => "10,000 direct reads of 4 KiB",
        }
    }

    /// What processor time is told for, and how much of that one run is.
    pub const fn units(self) -> (&'static str, f64) {
        match self {
            Self::Sequential | Self::SequentialWarm => ("GiB", 0.5),
            Self::Small | Self::SmallWarm | Self::Walk | Self::WalkWarm => ("10,000 files", 0.2),
            Self::Requests => ("10,000 requests", 1.0),
        }
    }
}

pub fn small_file(file: usize) -> String {
    format!("small/{}/{file}", file / IN_A_DIRECTORY)
}

/// Does a work in the tree that is mounted, and prints how many seconds it took.
pub fn run(name: &str, root: &Path) {
    let work = Work::ALL.into_iter().find(|work| work.name() == name);
    let work = work.unwrap();
    let is_cold = matches!(
        work,
        Work::Sequential | Work::Small | Work::Walk | Work::Requests
    );
    if is_cold {
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    } else {
        // Whatever was run before it.
        once(work, root);
    }
    let begun = Instant::now();
    once(work, root);
    println!("{}", begun.elapsed().as_secs_f64());
}

fn once(work: Work, root: &Path) {
    match work {
        Work::Sequential | Work::SequentialWarm => {
            let mut file = File::open(root.join("large")).unwrap();
            let mut buffer = vec![0; 1 << 20];
            let mut read = 0;
            loop {
                match file.read(&mut buffer).unwrap() {
                    0 => break,
                    more => read += more,
                }
                black_box(&buffer);
            }
            assert_eq!(read, LARGE);
        }
        Work::Small | Work::SmallWarm => {
            for file in 0..SMALL_FILES {
                let bytes = fs::read(root.join(small_file(file))).unwrap();
                assert_eq!(black_box(bytes).len(), 8 << 10);
            }
        }
        Work::Walk | Work::WalkWarm => {
            let mut files = 0;
            for directory in fs::read_dir(root.join("small")).unwrap() {
                for file in fs::read_dir(directory.unwrap().path()).unwrap() {
                    let found = fs::symlink_metadata(file.unwrap().path()).unwrap();
                    files += usize::from(black_box(found).is_file());
                }
            }
            assert_eq!(files, SMALL_FILES);
        }
        Work::Requests => {
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_DIRECT);
            let file = options.open(root.join("large")).unwrap();
            // Direct reads want aligned memory.
            let mut memory = vec![0; 2 * usize::try_from(PAGE).unwrap()];
            let at = memory.as_ptr().align_offset(usize::try_from(PAGE).unwrap());
            let buffer = &mut memory[at..at + usize::try_from(PAGE).unwrap()];
            let pages = LARGE as u64 / PAGE;
            for number in 0..DIRECT_READS {
                let page = number * 7919 % pages;
                file.read_exact_at(buffer, page * PAGE).unwrap();
                black_box(&buffer);
            }
        }
    }
}
