//! An INTERRUPT that overtakes its request.

use std::{
    fs::{self, File},
    path::PathBuf,
    thread,
    time::Duration,
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    peer::{GETATTR, INTERRUPT, Peer, READ, range},
    support::within,
};

/// A caller that the daemon cannot see, so that an INTERRUPT alone decides.
const UNSEEN: u32 = 0;

/// A chunk whose file is a FIFO: whoever reads it waits until it is given back.
struct Withheld {
    chunk: PathBuf,
    kept: PathBuf,
}

impl Withheld {
    /// Of the file `hello` of the sample tree.
    fn new(peer: &Peer) -> Self {
        let hex = "41f8394111eb713a22165c46c90ab8f0fd9399c92028fd6d288944b23ff5bf76";
        let chunk = peer.scratch.path(&format!("store/chunks/b3/41f8/{hex}"));
        let kept = peer.scratch.path("kept");
        fs::rename(&chunk, &kept).unwrap();
        mknodat(CWD, &chunk, FileType::Fifo, Mode::RWXU, 0).unwrap();
        Self { chunk, kept }
    }

    fn give_back(self) {
        let fifo = self.kept.with_file_name("fifo");
        fs::rename(&self.chunk, &fifo).unwrap();
        fs::rename(&self.kept, &self.chunk).unwrap();
        // Lets go whoever reads it.
        within(Duration::from_secs(20), "nobody reads the FIFO", || {
            File::options().write(true).open(fifo).unwrap();
        });
    }
}

/// Sends an INTERRUPT, and the READ that it is for after a while; gives the number of the READ.
fn overtaken(peer: &mut Peer, node: u64, by: Duration) -> u64 {
    let last = peer.send(GETATTR, 1, &[0; 16]);
    assert_eq!(peer.answer(last).errno, 0);
    // Numbers go up by two: the INTERRUPT's own is between them.
    peer.send(INTERRUPT, 0, &(last + 4).to_ne_bytes());
    thread::sleep(by);
    let read = peer.send_from(UNSEEN, READ, node, &range(0, 100));
    assert_eq!(read, last + 4);
    read
}

/// Threads of the kernel overtake each other. The request waited on although its caller had been killed.
#[test]
fn one_that_comes_first_is_remembered() {
    let mut peer = Peer::new();
    let node = peer.lookup(1, "hello");
    let withheld = Withheld::new(&peer);
    let read = overtaken(&mut peer, node, Duration::ZERO);
    assert_eq!(peer.answer(read).errno, libc::EINTR);
    withheld.give_back();
}

/// It was for a request that had been answered by then: a later one of that number is another one.
#[test]
fn it_is_forgotten_after_a_second() {
    let mut peer = Peer::new();
    let node = peer.lookup(1, "hello");
    let withheld = Withheld::new(&peer);
    let read = overtaken(&mut peer, node, Duration::from_millis(1500));
    // Longer than an unseen caller that is interrupted waits.
    thread::sleep(Duration::from_secs(2));
    withheld.give_back();
    let answered = peer.answer(read);
    assert_eq!(
        (answered.errno, &answered.body[..]),
        (0, &b"Hello World"[..])
    );
}
