//! A guest that starts again without a word: no unmount, no FORGET, no DESTROY.

use std::time::Instant;

use crate::{
    Test,
    support::{
        guest::back_end::{BackEnd, Served},
        tree,
    },
};

pub const ALL: [Test; 2] = [
    ("survives_resets", survives_resets),
    ("survives_resets_under_load", survives_resets_under_load),
];

const RESETS: u32 = 20;
const FILES: u64 = 50;

fn survives_resets(back_end: &BackEnd) {
    resets(back_end, RESETS, |_| {});
}

/// The old guest's requests are pending when it goes.
fn survives_resets_under_load(back_end: &BackEnd) {
    resets(back_end, 5, |served| {
        let script = "for i in 1 2 3; do (while :; do echo 3 >/proc/sys/vm/drop_caches; \
            cat /mnt/* >/dev/null; done) >/dev/null 2>&1 & done";
        served.guest.ok(script);
    });
}

fn resets(back_end: &BackEnd, count: u32, before: impl Fn(&mut Served)) {
    let mut served = Served::start(back_end, |root| {
        for file in 0..FILES {
            tree::file(root, &format!("f{file}"), &tree::noise(file, 5_000), false);
        }
    });
    let mut expected = None;
    let (mut memory, begun) = (Vec::new(), Instant::now());
    for reset in 0..=count {
        served.guest.mount("/mnt");
        let digest = served.guest.ok("cd /mnt && cat * | sha256sum");
        let first = expected.get_or_insert_with(|| digest.clone());
        assert_eq!(*first, digest, "after {reset} resets");
        assert!(served.daemon.is_well(), "{}", served.daemon.log());
        memory.push(served.daemon.memory());
        if reset < count {
            before(&mut served);
            served.guest.reset();
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{count} resets in {seconds:.1} s; KiB of memory after each: {memory:?}");
    let (first, last) = (memory[0], memory[memory.len() - 1]);
    assert!(last < first + 4096, "{first} KiB, and {last} at the end");
    served.guest.power_off();
}
