//! Large files.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    lab::{GIGABIT, LARGE, Lab, Remote, Watch, run, timed},
    support::proxy::Link,
    work,
};

const ROUND_TRIP: u64 = 50;
const PAGES: usize = 1000;

/// How much of the link is used by reading [`LARGE`] bytes with `read`, and how much by rclone.
fn share(lab: &Lab, remote: &Remote, args: &[&str], read: impl Fn(&Path)) -> String {
    let digest = lab.large();
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let least = LARGE as f64 / GIGABIT as f64;
    let ours = lab.median(|| {
        let mut all = args.to_vec();
        all.push(&digest);
        let mount = lab.mount(remote, all);
        let took = timed(|| read(&mount.path));
        mount.stop();
        least / took
    });
    let theirs = rclone(lab, remote, link, "large", |path| {
        least / timed(|| read(path))
    });
    format!("{ours:.3} | {theirs}")
}

/// What rclone does of the same, where it applies.
fn rclone(
    lab: &Lab,
    remote: &Remote,
    link: Link,
    tree: &str,
    measure: impl FnOnce(&Path) -> f64,
) -> String {
    lab.rclone(remote, link, tree)
        .map_or_else(String::new, |mount| {
            format!("{:.3}", measure(&mount.path.join(tree)))
        })
}

/// Bytes that rclone is sent for each byte that is needed, where it applies.
fn rclone_fetches(
    lab: &Lab,
    remote: &Remote,
    link: Link,
    needed: f64,
    read: impl FnOnce(&Path),
) -> String {
    let Some(mount) = lab.rclone(remote, link, "large") else {
        return String::new();
    };
    let before = lab.rclone_bytes();
    read(&mount.path.join("large"));
    let mut last = 0;
    while last != lab.rclone_bytes() {
        last = lab.rclone_bytes();
        std::thread::sleep(Duration::from_secs(1));
    }
    format!("{:.3}", (last - before) as f64 / needed)
}

pub fn sequential(lab: &Lab, remote: &Remote) -> String {
    share(lab, remote, &["--io-mode", "large"], |root| {
        work::read_all(&root.join("file"));
    })
}

pub fn no_open(lab: &Lab, remote: &Remote) -> String {
    share(lab, remote, &["--io-mode", "small"], |root| {
        work::read_all(&root.join("file"));
    })
}

pub fn mapped(lab: &Lab, remote: &Remote) -> String {
    share(lab, remote, &[], |root| work::map_all(&root.join("file")))
}

pub fn streams(lab: &Lab, remote: &Remote) -> String {
    share(lab, remote, &[], |root| {
        work::interleaved(&root.join("file"));
    })
}

pub fn files(lab: &Lab, remote: &Remote) -> String {
    share(lab, remote, &[], |root| {
        work::at_once(
            (0..8)
                .map(|part| root.join(format!("part{part}")))
                .collect(),
        );
    })
}

/// From `open` to the first byte, in round trips, on a mount that was just made.
pub fn first_byte(lab: &Lab, remote: &Remote) -> String {
    let digest = lab.large();
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let trips = |took: f64| took * 1000.0 / ROUND_TRIP as f64;
    let ours = lab.median(|| {
        let mount = lab.mount(remote, [&digest]);
        let took = timed(|| work::first_byte(&mount.at("file")));
        mount.stop();
        trips(took)
    });
    let theirs = rclone(lab, remote, link, "large", |path| {
        trips(timed(|| work::first_byte(&path.join("file"))))
    });
    format!("{ours:.2} | {theirs}")
}

/// Bytes of content fetched for each byte read, reading all of a file.
pub fn overfetch(lab: &Lab, remote: &Remote) -> String {
    let digest = lab.large();
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let mount = lab.mount(remote, [&digest]);
    let before = remote.proxy.bytes().1;
    work::read_all(&mount.at("part0"));
    let fetched = settled(lab);
    let came = remote.proxy.bytes().1 - before;
    mount.stop();
    let read = (LARGE / 8) as f64;
    let theirs = rclone_fetches(lab, remote, link, read, |root| {
        work::read_all(&root.join("part0"));
    });
    format!(
        "{:.3} ({:.3} on the wire) | {theirs}",
        fetched as f64 / read,
        came as f64 / read
    )
}

/// Bytes that have been fetched, once no more come.
fn settled(lab: &Lab) -> u64 {
    let mut last = 0;
    loop {
        let fetched = lab.counters()["fetched_bytes"];
        if fetched == last {
            return fetched;
        }
        last = fetched;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Bytes fetched for each byte of the chunks that 1,000 random reads touch: those of a mount that fetches nothing ahead.
pub fn random(lab: &Lab, remote: &Remote) -> String {
    let digest = lab.large();
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let fetched = |prefetch: &str| {
        let mount = lab.mount(remote, ["--prefetch", prefetch, &digest]);
        work::random(&mount.at("file"), work::random_pages(PAGES));
        let fetched = settled(lab);
        mount.stop();
        fetched as f64
    };
    let (ours, needed) = (fetched("auto"), fetched("off"));
    let theirs = rclone_fetches(lab, remote, link, needed, |root| {
        work::random(&root.join("file"), work::random_pages(PAGES));
    });
    format!("{:.3} | {theirs}", ours / needed)
}

/// Bytes fetched for each byte needed, with sixteen readers of one file.
pub fn readers(lab: &Lab, remote: &Remote) -> String {
    let digest = lab.large();
    let link = remote.link(ROUND_TRIP, GIGABIT);
    let mount = lab.mount(remote, [&digest]);
    work::at_once(vec![mount.at("part0"); 16]);
    let fetched = settled(lab);
    mount.stop();
    let needed = (LARGE / 8) as f64;
    let theirs = rclone_fetches(lab, remote, link, needed, |root| {
        work::at_once(vec![root.join("part0"); 16]);
    });
    format!("{:.3} | {theirs}", fetched as f64 / needed)
}

/// The most memory of its own that the mount takes, above `--memory`, in MiB.
pub fn memory(lab: &Lab, remote: &Remote) -> String {
    const BUDGET: u64 = 128;
    let digest = lab.large();
    remote.link(ROUND_TRIP, GIGABIT);
    let mount = lab.mount(remote, ["--memory", &format!("{BUDGET}MiB"), &digest]);
    let watch = Watch::start(mount.child.id());
    work::read_all(&mount.at("file"));
    let paths: Vec<PathBuf> = (0..8)
        .map(|part| mount.at(&format!("part{part}")))
        .collect();
    work::at_once(paths);
    let large = watch.most();
    mount.stop();
    // And many small ones, with the profile of what was read of them.
    let digest = super::small::small(lab);
    let mut most = large;
    for _ in 0..2 {
        let memory = format!("{BUDGET}MiB");
        let mount = lab.remount(remote, ["--memory", &memory, &digest]);
        let watch = Watch::start(mount.child.id());
        work::shell(&mount.path, super::small::CAT);
        most = most.max(watch.most());
        mount.stop();
    }
    let most = most as f64 / f64::from(1 << 20);
    format!("{:+.0} MiB | ", most - BUDGET as f64)
}

/// The time to read what is cached, over that with `--prefetch off --profile off`.
pub fn warm(lab: &Lab, remote: &Remote) -> String {
    let digest = lab.large();
    remote.link(1, 10 * GIGABIT);
    lab.mount(remote, [&digest]).stop();
    let mount = lab.remount(remote, [&digest]);
    work::read_all(&mount.at("file"));
    mount.stop();
    let read = |prefetch: &str| {
        let args = ["--prefetch", prefetch, "--profile", prefetch, &digest];
        let mount = lab.remount(remote, args);
        let took = timed(|| work::read_all(&mount.at("file")));
        mount.stop();
        took
    };
    let mut ratios: Vec<_> = (0..9)
        .map(|round| match round % 2 {
            0 => {
                let off = read("off");
                read("auto") / off
            }
            _ => read("auto") / read("off"),
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    format!("{:.3} | ", ratios[ratios.len() / 2])
}

/// How long a reader waits for a page that is not cached while the tree is being filled, over the same without, at 20 MB/s.
pub fn beside_tree(lab: &Lab, remote: &Remote) -> String {
    const READS: usize = 40;
    let digest = lab.large();
    remote.link(20, 20_000_000);
    let latency = |prefetch: &str| {
        let mount = lab.mount(remote, ["--prefetch", prefetch, &digest]);
        std::thread::sleep(Duration::from_secs(2));
        let mut times: Vec<_> = work::random_pages(READS)
            .into_iter()
            .map(|page| {
                // Now and then, so that the filling has time to go on.
                std::thread::sleep(Duration::from_millis(100));
                timed(|| work::random(&mount.at("file"), vec![page]))
            })
            .collect();
        let filled = lab.counters().get("prefetch_tree_bytes").copied();
        mount.stop();
        times.sort_by(f64::total_cmp);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        (times[READS / 2], mean, filled.unwrap_or(0))
    };
    let (alone, mean_alone, _) = latency("auto");
    let (beside, mean_beside, filled) = latency("tree");
    run(lab.scratch.command(["status"]));
    format!(
        "{:.2} (mean {:.2}, {} MiB filled meanwhile) | ",
        beside / alone,
        mean_beside / mean_alone,
        filled >> 20
    )
}
