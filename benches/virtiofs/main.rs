//! A guest's reads over virtiofs: castore beside the reference daemon, which serves the same tree from the disk. `cargo bench
//! --bench virtiofs`, or with `queue-size=128`, `Sequential` and other names of work. Both guests run in one machine, emulated, and take turns for nine rounds. Only the
//! ratios mean something.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    unreachable_pub,
    reason = "a benchmark stops by panicking, and its modules are for each other"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod work;

use std::{path::Path, time::Duration};

use support::{
    guest::{
        back_end::{BackEnd, CASTORE, Served, VIRTIOFSD},
        machine, program,
    },
    tree,
};
use work::Work;

const ROUNDS: usize = 9;
const LIMIT: Duration = Duration::from_secs(300);
/// Makes this program do the work that comes next, in the guest.
const OPTION: &str = "--work";

fn make_tree(root: &Path) {
    tree::file(root, "large", &tree::noise(1, work::LARGE), false);
    for file in 0..work::SMALL_FILES {
        let name = work::small_file(file);
        tree::file(root, &name, &tree::noise(file as u64, 8 << 10), false);
    }
}

/// A guest and its daemon, and what each work has taken: seconds in the guest, and seconds of the daemon's processor time.
struct Side {
    served: Served,
    command: String,
    taken: Vec<Vec<(f64, f64)>>,
}

impl Side {
    fn start(back_end: &BackEnd, queue_size: u32) -> Self {
        let mut command = String::new();
        let mut served = Served::with(back_end, make_tree, |options| {
            command = program::add_to(options);
            options.queue_size = queue_size;
            options.memory = 1024;
        });
        served.guest.mount("/mnt");
        let mut side = Self {
            served,
            command,
            taken: vec![Vec::new(); Work::ALL.len()],
        };
        // Fills castore's cache, and the host's page cache for both.
        for work in Work::ALL {
            side.run(work);
        }
        side.taken.iter_mut().for_each(Vec::clear);
        side
    }

    fn run(&mut self, work: Work) {
        let before = self.served.daemon.processor_time();
        let script = format!("{} {OPTION} {}", self.command, work.name());
        let output = self.served.guest.run_within(LIMIT, &script);
        assert_eq!(output.status, 0, "{output:?}");
        let seconds: f64 = String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let processor = self.served.daemon.processor_time().saturating_sub(before);
        self.taken[work as usize].push((seconds, processor.as_secs_f64()));
    }

    /// The median of the times, and the mean of the processor times, which are told in hundredths of a second.
    fn took(&self, work: Work) -> (f64, f64) {
        let taken = &self.taken[work as usize];
        let mut times: Vec<_> = taken.iter().map(|taken| taken.0).collect();
        times.sort_by(f64::total_cmp);
        let processor: f64 = taken.iter().map(|taken| taken.1).sum();
        (times[times.len() / 2], processor / taken.len() as f64)
    }
}

fn compare(queue_size: u32, works: &[Work]) {
    let mut sides = [&CASTORE, &VIRTIOFSD].map(|back_end| Side::start(back_end, queue_size));
    for round in 0..ROUNDS {
        for &work in works {
            // Each is first as often as the other.
            for turn in 0..2 {
                sides[(round + turn) % 2].run(work);
            }
        }
    }
    println!("\nqueue-size={queue_size}, medians of {ROUNDS} alternating rounds\n");
    println!(
        "| work in the guest | castore | virtiofsd | time | CPU castore | CPU virtiofsd | CPU |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for &work in works {
        let [ours, theirs] = [0, 1].map(|side: usize| sides[side].took(work));
        let (unit, units) = work.units();
        println!(
            "| {} | {:.3} s | {:.3} s | {:.2} | {:.3} s / {unit} | {:.3} s / {unit} | {:.2} |",
            work.title(),
            ours.0,
            theirs.0,
            ours.0 / theirs.0,
            ours.1 / units,
            theirs.1 / units,
            ours.1 / theirs.1,
        );
    }
    for side in sides {
        side.served.guest.power_off();
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [option, name] = &arguments[..]
        && option == OPTION
    {
        return work::run(name, Path::new("/mnt"));
    }
    // `cargo test --benches` passes --test; there is nothing to test here.
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let missing = machine::missing().or_else(program::missing);
    if let Some(why) = missing.or_else(|| VIRTIOFSD.missing()) {
        println!("not run: {why}");
        return;
    }
    let sizes = arguments
        .iter()
        .filter_map(|argument| argument.strip_prefix("queue-size="));
    let mut sizes: Vec<u32> = sizes.map(|size| size.parse().unwrap()).collect();
    if sizes.is_empty() {
        sizes = vec![1024, 128];
    }
    let named = |work: &Work| arguments.contains(&work.name());
    let mut works: Vec<_> = Work::ALL.into_iter().filter(named).collect();
    if works.is_empty() {
        works = Work::ALL.into();
    }
    for size in sizes {
        compare(size, &works);
    }
}
