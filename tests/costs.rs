//! What an operation on what is known costs: no allocation, and no exclusive lock on the inode table.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    dead_code,
    unreachable_pub,
    reason = "a test fails by panicking, and uses a part of what another one has"
)]

#[path = "protocol/peer.rs"]
mod peer;
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use castore::fs::dispatch::{Answer, Capabilities, Message, Scratch, Transport};
use peer::{GETATTR, LOOKUP, Peer, READ, READDIR, READDIRPLUS, named, range};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts answers that are no errors, and drops those of this test; the rest goes to the peer.
#[derive(Debug)]
struct Counted {
    inner: Arc<dyn Transport>,
    answered: Arc<AtomicU64>,
}

impl Transport for Counted {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        if answer.to.slot == 0 {
            return self.inner.send(answer);
        }
        assert!(answer.errno == 0 && !answer.body.is_empty());
        self.answered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        self.inner.notify(code, parts)
    }
}

const TIMES: u64 = 10_000;

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 40];
    message[4..8].copy_from_slice(&opcode.to_ne_bytes());
    message[8..16].copy_from_slice(&2_000_001_u64.to_ne_bytes());
    message[16..24].copy_from_slice(&node.to_ne_bytes());
    message.extend(body);
    message
}

#[test]
fn known_things_are_answered_without_an_allocation_or_an_exclusive_lock() {
    let answered = Arc::new(AtomicU64::new(0));
    let mut peer = Peer::with(&[], |inner| {
        Arc::new(Counted {
            inner,
            answered: Arc::clone(&answered),
        })
    });
    let (file, large) = (peer.lookup(1, "hello"), peer.lookup(1, "large"));
    let dir = peer.lookup(1, "deep");
    let link = peer.lookup(dir, "link");
    // Everything is fetched, written to disk and known.
    for node in [file, large] {
        assert_eq!(peer.call(READ, node, &range(0, 65_536)).errno, 0);
    }
    peer.call(READDIRPLUS, 1, &range(0, 65_536));
    peer.call(READDIRPLUS, dir, &range(0, 65_536));
    peer.fs.prefetch().close();
    let mut scratch = Scratch::default();
    let messages = [
        ("LOOKUP", message(LOOKUP, 1, &named("hello"))),
        ("LOOKUP", message(LOOKUP, dir, &named("link"))),
        ("GETATTR", message(GETATTR, file, &[0; 16])),
        ("GETATTR", message(GETATTR, link, &[0; 16])),
        ("READ", message(READ, file, &range(0, 4096))),
        ("READ", message(READ, large, &range(4096, 4096))),
        ("READDIR", message(READDIR, 1, &range(0, 32_768))),
        ("READDIRPLUS", message(READDIRPLUS, dir, &range(0, 32_768))),
    ];
    for (name, message) in messages {
        // What is set up once: a thread's part of the index's connections, say.
        for _ in 0..200 {
            peer.dispatcher
                .handle(&Message::whole(1, &message).unwrap(), &mut scratch);
        }
        let before = (
            ALLOCATIONS.get(),
            peer.fs.exclusive_locks(),
            answered.load(Ordering::SeqCst),
        );
        for _ in 0..TIMES {
            peer.dispatcher
                .handle(&Message::whole(1, &message).unwrap(), &mut scratch);
        }
        let locks = peer.fs.exclusive_locks() - before.1;
        let answers = answered.load(Ordering::SeqCst) - before.2;
        let allocations = ALLOCATIONS.get() - before.0;
        assert_eq!((allocations, locks, answers), (0, 0, TIMES), "{name}");
    }
}
