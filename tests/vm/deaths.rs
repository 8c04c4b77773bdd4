//! What is left of a guest's mount when the back end dies: observed with QEMU 7.2 and Linux 6.1.

use crate::{
    Test,
    support::{
        guest::{
            back_end::{BackEnd, Served},
            machine::Guest,
        },
        tree,
    },
};

pub const ALL: [Test; 3] = [
    ("an_idle_guest_goes_on", an_idle_guest_goes_on),
    ("a_reading_guest_goes_on", a_reading_guest_goes_on),
    ("a_new_back_end_is_not_found", a_new_back_end_is_not_found),
];

fn mounted(back_end: &BackEnd) -> Served {
    let mut served = Served::start(back_end, |root| {
        for file in 0..4 {
            tree::file(root, &format!("f{file}"), &tree::noise(file, 50_000), false);
        }
        tree::file(root, "large", &tree::noise(9, 32 << 20), false);
    });
    served.guest.mount("/mnt");
    served.guest.ok("cat /mnt/f0 >/dev/null");
    served
}

fn an_idle_guest_goes_on(back_end: &BackEnd) {
    let mut served = mounted(back_end);
    served.daemon.kill();
    assert_reads_wait(&mut served);
    served.guest.quit();
}

fn a_reading_guest_goes_on(back_end: &BackEnd) {
    let mut served = mounted(back_end);
    let reading = "(while cat /mnt/large; do echo 3 >/proc/sys/vm/drop_caches; done; \
        touch /tmp/ended) >/dev/null 2>&1 & sleep 1";
    served.guest.ok(reading);
    served.daemon.kill();
    assert_reads_wait(&mut served);
    // The read that was under way waits too: it gets neither an error nor other bytes.
    served.guest.ok("[ ! -e /tmp/ended ]");
    served.guest.quit();
}

/// QEMU does not connect again. A version that does makes this fail, and `docs/virtiofs.md` wrong.
fn a_new_back_end_is_not_found(back_end: &BackEnd) {
    let mut served = mounted(back_end);
    served.daemon.kill();
    served.daemon.restart(back_end, &served.scratch);
    assert_reads_wait(&mut served);
    // A reset does not help: the guest boots and mounts, which only queues the INIT, and then waits for its answer.
    served.guest.reset();
    served.guest.mount("/mnt");
    waiting_read(&mut served.guest);
    served.guest.quit();
}

/// The guest runs on; what needs an answer from the back end waits, and SIGKILL does not end it.
fn assert_reads_wait(served: &mut Served) {
    let guest = &mut served.guest;
    assert!(guest.is_on(), "{}", guest.console());
    let read = waiting_read(guest);
    guest.ok(&format!("kill -KILL {read}; sleep 2; [ -d /proc/{read} ]"));
    guest.ok("[ ! -e /tmp/status ]");
    assert!(guest.is_on(), "{}", guest.console());
}

/// Starts a read, which must not end within three seconds, and gives its process.
fn waiting_read(guest: &mut Guest) -> String {
    let read = "(cat /mnt/f1 >/dev/null 2>&1; echo $? >/tmp/status) >/dev/null 2>&1 & \
        sleep 3; [ ! -e /tmp/status ] && pidof cat | cut -d ' ' -f 1";
    guest.ok(read).trim().to_owned()
}
