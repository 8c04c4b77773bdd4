//! One machine after the other over the same socket.

use crate::{
    Test,
    support::{
        eventually,
        guest::back_end::{BackEnd, Served},
        tree,
    },
};

pub const ALL: [Test; 1] = [("the_next_machine_is_served", the_next_machine_is_served)];

/// The memory of the first stayed mapped, and that of the next would not have fitted beside it.
fn the_next_machine_is_served(back_end: &BackEnd) {
    let mut served = Served::start(back_end, |root| {
        tree::file(root, "hello", b"Hello World", false);
    });
    for _ in 0..2 {
        served.guest.mount("/mnt");
        assert_eq!(served.guest.ok("cat /mnt/hello"), "Hello World");
        assert!(served.daemon.guest_mappings() > 0);
        served = served.next_machine(back_end);
    }
    served.guest.mount("/mnt");
    assert_eq!(served.guest.ok("cat /mnt/hello"), "Hello World");
    let Served { guest, daemon, .. } = served;
    guest.power_off();
    eventually("the guest's memory is given back", || {
        daemon.guest_mappings() == 0
    });
}
