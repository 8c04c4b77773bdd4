//! What goes wrong costs one request, which gets an error: a panic, an answer that cannot be sent, a wait that is too long.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use castore::fs::dispatch::{Answer, Capabilities, Transport};

use crate::peer::{GETATTR, LOOKUP, Peer, READ, named, range};

/// A transport that panics once, when it is told to, or sends nothing once.
#[derive(Debug)]
struct Fragile {
    inner: Arc<dyn Transport>,
    broken: Arc<AtomicBool>,
    fails: bool,
}

impl Transport for Fragile {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        let broken = self.broken.swap(false, Ordering::SeqCst);
        if broken && self.fails {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        assert!(!broken, "on purpose");
        self.inner.send(answer)
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.notify(code, parts)
    }
}

fn fragile(fails: bool) -> (Peer, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let peer = Peer::with(&[], |inner| {
        Arc::new(Fragile {
            inner,
            broken: Arc::clone(&broken),
            fails,
        })
    });
    (peer, broken)
}

/// On the thread that reads requests: it lives on.
#[test]
fn of_what_is_answered_at_once() {
    let (mut peer, broken) = fragile(false);
    let node = peer.lookup(1, "hello");
    for opcode in [GETATTR, LOOKUP, READ] {
        let ask = |peer: &mut Peer| match opcode {
            GETATTR => peer.call(GETATTR, node, &[0; 16]),
            LOOKUP => peer.call(LOOKUP, 1, &named("hello")),
            _ => peer.call(READ, node, &range(0, 5)),
        };
        assert_eq!(ask(&mut peer).errno, 0);
        broken.store(true, Ordering::SeqCst);
        assert_eq!(ask(&mut peer).errno, libc::EIO);
        assert_eq!(ask(&mut peer).errno, 0);
    }
}

/// In the task that waited for a fetch.
#[test]
fn of_what_was_fetched() {
    let (mut peer, broken) = fragile(false);
    broken.store(true, Ordering::SeqCst);
    // Nothing is cached, so this waits.
    assert_eq!(peer.call(LOOKUP, 1, &named("hello")).errno, libc::EIO);
    assert_eq!(peer.dispatcher.waiting(), 0);
    let node = peer.lookup(1, "hello");
    broken.store(true, Ordering::SeqCst);
    assert_eq!(peer.call(READ, node, &range(0, 5)).errno, libc::EIO);
    assert_eq!(peer.call(READ, node, &range(0, 100)).body, b"Hello World");
    assert_eq!(peer.dispatcher.waiting(), 0);
}

/// A caller waited for ever when its answer could not be sent.
#[test]
fn of_an_answer_that_cannot_be_sent() {
    let (mut peer, broken) = fragile(true);
    let node = peer.lookup(1, "hello");
    assert_eq!(peer.call(READ, node, &range(0, 5)).errno, 0);
    for opcode in [GETATTR, LOOKUP, READ] {
        broken.store(true, Ordering::SeqCst);
        let answered = match opcode {
            GETATTR => peer.call(GETATTR, node, &[0; 16]),
            LOOKUP => peer.call(LOOKUP, 1, &named("hello")),
            _ => peer.call(READ, node, &range(0, 5)),
        };
        assert_eq!(answered.errno, libc::EIO, "{opcode}");
    }
    assert_eq!(peer.call(READ, node, &range(0, 100)).body, b"Hello World");
}

/// The kernel ends the connection of a daemon that leaves a request waiting for longer than it grants.
#[test]
fn of_a_wait_that_is_too_long() {
    let mut peer = Peer::with(&["impatient"], |channel| channel);
    let node = peer.lookup(1, "hello");
    // Whoever opens the chunk waits for somebody who writes to it.
    let hex = "41f8394111eb713a22165c46c90ab8f0fd9399c92028fd6d288944b23ff5bf76";
    let chunk = peer.scratch.path(&format!("store/chunks/b3/41f8/{hex}"));
    std::fs::remove_file(&chunk).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &chunk, kind, mode, 0).unwrap();
    assert_eq!(peer.call(READ, node, &range(0, 5)).errno, libc::EIO);
    assert_eq!(peer.dispatcher.waiting(), 0);
    // Lets it go.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    drop(rustix::fs::open(&chunk, flags, mode));
}
