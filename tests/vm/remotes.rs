//! A guest whose tree comes over a line that is slow, or silent for a while.

use std::{fs, path::Path, time::Duration};

use crate::{
    Test,
    mounts::{assert_same, many_files},
    support::{
        Scratch,
        guest::{
            back_end::{self, BackEnd, Daemon, Served},
            machine::{Guest, GuestOptions},
        },
        hub::Hub,
        proxy::{Link, Proxy},
        tree,
    },
};

pub const ALL: [Test; 2] = [
    ("a_slow_line_brings_all", a_slow_line_brings_all),
    (
        "what_is_cached_is_read_beside_a_silent_line",
        what_is_cached_is_read_beside_a_silent_line,
    ),
];

/// The address of the remote is in a file of the scratch directory.
const OVER_A_LINE: BackEnd = BackEnd {
    command: |program, scratch, socket| {
        let mut command = back_end::castore(program, scratch, socket);
        let remote = fs::read_to_string(scratch.path("remote")).unwrap();
        command.env("CASTORE_REMOTE", remote);
        command
    },
    ..back_end::CASTORE
};

/// A guest, its daemon, and the line and the hub that they get everything from.
struct Far {
    served: Served,
    line: Proxy,
    hub: Hub,
}

impl Far {
    fn start(make: impl FnOnce(&Path)) -> Self {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        fs::create_dir(&source).unwrap();
        make(&source);
        let hub = Hub::start(&scratch, "hub", &scratch.remote(), [""; 0]);
        let line = Proxy::start(hub.port());
        let address = format!("grpc+http://127.0.0.1:{}", line.port());
        fs::write(scratch.path("remote"), address).unwrap();
        let daemon = Daemon::start(&OVER_A_LINE, &scratch);
        let mut options = GuestOptions::new(&daemon.socket());
        options.request_queues = OVER_A_LINE.request_queues;
        let mut guest = Guest::boot(&options);
        guest.mount("/mnt");
        let served = Served {
            guest,
            daemon,
            scratch,
        };
        Self { served, line, hub }
    }

    fn stop(self) {
        self.served.guest.power_off();
        self.hub.stop();
    }
}

fn a_slow_line_brings_all(_: &BackEnd) {
    let mut far = Far::start(many_files);
    far.line.set(Link {
        delay: Duration::from_millis(20),
        bandwidth: Some(4 << 20),
        ..Link::default()
    });
    assert_same(&mut far.served);
    assert!(far.served.daemon.is_well(), "{}", far.served.daemon.log());
    far.stop();
}

fn what_is_cached_is_read_beside_a_silent_line(_: &BackEnd) {
    let mut far = Far::start(|root| {
        tree::file(root, "near", &tree::noise(1, 100_000), false);
        for file in 0..8 {
            let name = format!("far-{file}");
            tree::file(root, &name, &tree::noise(10 + file, 600_000), false);
        }
    });
    let guest = &mut far.served.guest;
    let digest = guest.ok("sha256sum /mnt/near");
    far.line.set(Link {
        black_hole: true,
        ..Link::default()
    });
    // Each waits for a request of its own.
    let readers = "for file in 0 1 2 3 4 5 6 7; do
        (sha256sum /mnt/far-$file >/tmp/far-$file.new && mv /tmp/far-$file.new /tmp/far-$file) >/dev/null 2>&1 &
        done; sleep 1";
    guest.ok(readers);
    for _ in 0..3 {
        guest.ok("echo 3 >/proc/sys/vm/drop_caches");
        assert_eq!(guest.ok("sha256sum /mnt/near"), digest);
        guest.ok("ls -l /mnt");
    }
    guest.ok("[ ! -e /tmp/far-0 ] && [ ! -e /tmp/far-7 ]");
    far.line.set(Link::default());
    let ended = "i=0; while [ $i -lt 50 ] && ! [ $(ls /tmp/far-? 2>/dev/null | wc -l) = 8 ]; do
        i=$((i + 1)); sleep 1; done; cat /tmp/far-?";
    let digests = guest.ok(ended);
    let again = guest.ok("sha256sum /mnt/far-?");
    assert_eq!((digests.lines().count(), digests), (8, again));
    far.stop();
}
