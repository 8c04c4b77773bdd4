//! A guest that is paused while it reads: its rings are stopped, and go on from where they were.

use std::{thread, time::Duration};

use crate::{
    Test,
    support::{
        guest::back_end::{BackEnd, Served},
        tree,
    },
};

pub const ALL: [Test; 1] = [("reads_go_on_after_a_pause", reads_go_on_after_a_pause)];

const FILES: u64 = 50;
const PAUSES: u32 = 20;

fn reads_go_on_after_a_pause(back_end: &BackEnd) {
    let mut served = Served::start(back_end, |root| {
        for file in 0..FILES {
            tree::file(
                root,
                &format!("f{file}"),
                &tree::noise(file, 200_000),
                false,
            );
        }
    });
    served.guest.mount("/mnt");
    let expected = served.guest.ok("cd /mnt && cat * | sha256sum");
    // Each round is right, or said so; without the guest's caches all of it is asked for again.
    let reading = format!(
        "for i in 1 2 3; do (cd /mnt; rounds=0; while [ ! -e /tmp/stop ]; do
            echo 3 >/proc/sys/vm/drop_caches
            [ \"$(cat * | sha256sum)\" = '{}' ] || touch /tmp/wrong
            rounds=$((rounds + 1)); echo $rounds >/tmp/rounds-$i
        done; touch /tmp/ended-$i) >/dev/null 2>&1 & done",
        expected.trim_end()
    );
    served.guest.ok(&reading);
    for _ in 0..PAUSES {
        thread::sleep(Duration::from_millis(100));
        served.guest.pause();
        thread::sleep(Duration::from_millis(100));
        served.guest.resume();
    }
    let ended = "touch /tmp/stop; i=0; while [ $i -lt 60 ]; do
        [ -e /tmp/ended-1 ] && [ -e /tmp/ended-2 ] && [ -e /tmp/ended-3 ] && break
        i=$((i + 1)); sleep 1; done
        [ ! -e /tmp/wrong ] && cat /tmp/rounds-1 /tmp/rounds-2 /tmp/rounds-3";
    let rounds = served.guest.ok(ended);
    assert_eq!(rounds.lines().count(), 3, "{rounds}");
    assert!(served.daemon.is_well(), "{}", served.daemon.log());
    served.guest.power_off();
}
