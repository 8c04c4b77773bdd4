//! Many small files.

use std::fs;

use super::{
    lab::{ENTRIES, GIGABIT, LIMIT, Lab, Remote, SMALL_FILES, timed},
    support::tree,
    work,
};

const ROUND_TRIP: u64 = 20;

pub fn small(lab: &Lab) -> String {
    lab.tree("small", |source| {
        for number in 0..SMALL_FILES {
            let dir = source.join(format!("d{}", number / 100));
            fs::create_dir_all(&dir).unwrap();
            let content = tree::noise(number as u64, 500 + number % 7000);
            fs::write(dir.join(format!("f{number}")), content).unwrap();
        }
    })
}

fn entries(lab: &Lab) -> String {
    lab.tree("entries", |source| {
        for number in 0..ENTRIES - ENTRIES / 100 {
            let dir = source.join(format!("x{}/d{}", number / 2000, number / 99));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("f{number}")), number.to_string()).unwrap();
        }
    })
}

/// From the start of the mount to the end of `find`, in round trips.
pub fn find(lab: &Lab, remote: &Remote) -> String {
    let digest = entries(lab);
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let find = |path: &std::path::Path| work::shell(path, "find . -size +100000k");
    let cold = |round_trip: u64| {
        remote.link(round_trip, GIGABIT);
        let mut mounted = None;
        let took = timed(|| {
            let mount = lab.mount(remote, [&digest]);
            find(&mount.path);
            mounted = Some(mount);
        });
        mounted.unwrap().stop();
        took
    };
    let took = lab.median(|| cold(ROUND_TRIP));
    // The same without the distance: what is left is the distance alone.
    let near = lab.median(|| cold(0));
    let trips = (took - near) / (ROUND_TRIP as f64 / 1000.0);
    let theirs = lab
        .rclone(remote, link, "entries")
        .map_or_else(String::new, |mount| {
            let find = "find . -size +100000k";
            let took = work::shell_in_time(&mount.path.join("entries"), find);
            took.map_or_else(
                || format!("more than {} s", LIMIT.as_secs()),
                |took| format!("{took:.2} s"),
            )
        });
    format!("{trips:.1} ({took:.2} s, and {near:.2} s without the distance) | {theirs}")
}

pub const CAT: &str = "find . -type f -print0 | xargs -0 cat";

/// The time of a walk that reads everything, over that of `castore fetch`.
pub fn cat(lab: &Lab, remote: &Remote) -> String {
    let digest = small(lab);
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let mut seconds = (0.0, 0.0);
    let ours = lab.median(|| {
        let mount = lab.mount(remote, [&digest]);
        let read = timed(|| work::shell(&mount.path, CAT));
        mount.stop();
        let fetch = lab.fetch(remote, &digest);
        seconds = (read, fetch);
        read / fetch
    });
    let theirs = lab
        .rclone(remote, link, "small")
        .map_or_else(String::new, |mount| {
            // A part of them: all would take minutes.
            let part = "find d0 d1 d2 -type f -print0 | xargs -0 cat";
            let took = work::shell_in_time(&mount.path.join("small"), part);
            took.map_or_else(
                || format!("more than {} s for 300", LIMIT.as_secs()),
                |took| format!("{:.0} s at that rate", took * SMALL_FILES as f64 / 300.0),
            )
        });
    format!(
        "{ours:.2} ({:.2} s, {:.2} s) | {theirs}",
        seconds.0, seconds.1
    )
}

/// How much of the link `castore fetch` uses.
pub fn fetch(lab: &Lab, remote: &Remote) -> String {
    let digest = small(lab);
    remote.link(ROUND_TRIP, GIGABIT);
    let before = remote.proxy.bytes().1;
    let cpu = children_cpu();
    let took = lab.fetch(remote, &digest);
    let cpu = children_cpu() - cpu;
    let came = (remote.proxy.bytes().1 - before) as f64;
    format!(
        "{:.2} ({took:.2} s, of which {cpu:.2} s of processor in the client alone) | ",
        came / took / GIGABIT as f64
    )
}

/// Seconds of processor that ended children have taken.
fn children_cpu() -> f64 {
    // SAFETY: a structure of plain numbers, which the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: it is valid for writing.
    let done = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    assert_eq!(done, 0);
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
