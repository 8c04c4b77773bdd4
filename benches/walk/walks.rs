//! Programs that walk over a tree.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    mounted::{self, Mounted},
    put, seconds,
    support::Scratch,
    trees::Shape,
};

const ROUNDS: usize = 5;
const WALKS: [&str; 4] = ["find", "find -ls", "du", "ls -lR"];

pub fn run(program: &str, root: &Path) -> Duration {
    let mut words = program.split(' ');
    let mut command = Command::new(words.next().unwrap());
    // The path comes before the expression of `find`.
    if program.starts_with("find") {
        command.arg(root).args(words);
    } else {
        command.args(words).arg(root);
    }
    let start = Instant::now();
    let ended = command
        .env("LC_ALL", "C")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(ended.success(), "{program}");
    start.elapsed()
}

pub fn table() {
    let shapes = [
        Shape::new(1, 150_000),
        Shape::new(4, 5000),
        Shape::new(10_000, 1),
    ];
    let scratch = Scratch::new();
    put(&scratch, &shapes);
    let other = Scratch::new();
    println!(
        "walks, medians of {ROUNDS} alternating rounds; fresh: the first walk of a mount over a filled cache"
    );
    println!(
        "{:<12} {:<10} {:>10} {:>10} {:>10} {:>10} {:>12} {:>13}",
        "tree",
        "walk",
        "fresh ms",
        "null ms",
        "again ms",
        "native ms",
        "fresh/null",
        "again/native"
    );
    for shape in shapes {
        let native = scratch.path(&format!("native-{}", shape.name()));
        shape.make(&native);
        for walk in WALKS {
            let mut times: [Vec<Duration>; 4] = Default::default();
            run(walk, &native);
            for _ in 0..ROUNDS {
                let mount = Mounted::castore(&scratch, &[], shape);
                times[0].push(run(walk, mount.path()));
                times[2].push(run(walk, mount.path()));
                times[3].push(run(walk, &native));
                times[2].push(run(walk, mount.path()));
                times[3].push(run(walk, &native));
                mount.stop();
                let mount = Mounted::null(&other.mnt(), shape);
                times[1].push(run(walk, mount.path()));
                mount.stop();
            }
            let [fresh, null, again, native] = times.map(|times| seconds(&times) * 1000.0);
            println!(
                "{:<12} {walk:<10} {fresh:>10.1} {null:>10.1} {again:>10.1} {native:>10.1} {:>12.2} {:>13.2}",
                format!("{} x {}", shape.directories, shape.files),
                fresh / null,
                again / native
            );
        }
        fs::remove_dir_all(native).unwrap();
    }
}

/// Who lists only leaves few inodes in the kernel, and who looks afterwards has few lookups.
pub fn who_looks() {
    let (many, few, some) = (
        Shape::new(1, 1_000_000),
        Shape::new(4, 5000),
        Shape::new(1, 151_000),
    );
    let scratch = Scratch::new();
    put(&scratch, &[many, few, some]);
    let mount = Mounted::castore(&scratch, &[], many);
    run("ls -f", &mount.path().join("dir000000"));
    println!(
        "`ls -f` of 1,000,000 entries leaves {} inodes",
        mounted::inodes(&scratch)
    );
    mount.stop();
    for walk in ["du", "find -size +1M", "ls -lR", "find"] {
        let mount = Mounted::castore(&scratch, &[], few);
        run(walk, mount.path());
        let lookups = mounted::requests(&scratch, "LOOKUP");
        println!(
            "`{walk}` of 20,000 files: {lookups} LOOKUPs ({:.2} %), {} READDIRPLUS",
            lookups as f64 / 200.0,
            mounted::requests(&scratch, "READDIRPLUS")
        );
        mount.stop();
    }
    let mount = Mounted::castore(&scratch, &[], some);
    let time = run("ls -l", &mount.path().join("dir000000"));
    println!(
        "`ls -l` of 151,000 entries, fresh: {:.2} s, {} LOOKUPs, {} GETXATTRs",
        time.as_secs_f64(),
        mounted::requests(&scratch, "LOOKUP"),
        mounted::requests(&scratch, "GETXATTR")
    );
    mount.stop();
}
