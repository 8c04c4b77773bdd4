//! A panic costs one request.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use castore::fs::dispatch::{Answer, Capabilities, Transport};

use crate::peer::{GETATTR, LOOKUP, Peer, READ, named, range};

/// A transport that panics once, when it is told to.
#[derive(Debug)]
struct Fragile {
    inner: Arc<dyn Transport>,
    broken: Arc<AtomicBool>,
}

impl Transport for Fragile {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        assert!(!self.broken.swap(false, Ordering::SeqCst), "on purpose");
        self.inner.send(answer)
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.notify(code, parts)
    }
}

fn fragile() -> (Peer, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let peer = Peer::with(&[], |inner| {
        Arc::new(Fragile {
            inner,
            broken: Arc::clone(&broken),
        })
    });
    (peer, broken)
}

/// On the thread that reads requests: it lives on.
#[test]
fn of_what_is_answered_at_once() {
    let (mut peer, broken) = fragile();
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
    let (mut peer, broken) = fragile();
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
