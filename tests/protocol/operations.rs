//! Each operation of the protocol (7.45) has its row here, written down from the header and not from the product's table.

use crate::peer::{
    BATCH_FORGET, DESTROY, FORGET, GETATTR, GETXATTR, INIT, INTERRUPT, LISTXATTR, LOOKUP,
    NOTIFY_REPLY, OPEN, OPENDIR, Peer, READ, READDIR, READDIRPLUS, READLINK, RELEASE, RELEASEDIR,
    STATFS, init, listed_nodes, named, open, range, u64_at,
};

#[test]
fn what_would_change_something_is_erofs() {
    let mut peer = Peer::new();
    for (opcode, name) in [
        (4, "SETATTR"),
        (6, "SYMLINK"),
        (8, "MKNOD"),
        (9, "MKDIR"),
        (10, "UNLINK"),
        (11, "RMDIR"),
        (12, "RENAME"),
        (13, "LINK"),
        (16, "WRITE"),
        (21, "SETXATTR"),
        (24, "REMOVEXATTR"),
        (35, "CREATE"),
        (43, "FALLOCATE"),
        (45, "RENAME2"),
        (47, "COPY_FILE_RANGE"),
        (51, "TMPFILE"),
        (53, "COPY_FILE_RANGE_64"),
    ] {
        assert_eq!(peer.call(opcode, 1, &[0; 128]).errno, libc::EROFS, "{name}");
    }
}

#[test]
fn what_the_kernel_does_better_by_itself_is_enosys() {
    let mut peer = Peer::new();
    for (opcode, name) in [
        (20, "FSYNC"),
        (25, "FLUSH"),
        (30, "FSYNCDIR"),
        (31, "GETLK"),
        (32, "SETLK"),
        (33, "SETLKW"),
        (34, "ACCESS"),
        (37, "BMAP"),
        (40, "POLL"),
        (46, "LSEEK"),
        (48, "SETUPMAPPING"),
        (49, "REMOVEMAPPING"),
        (50, "SYNCFS"),
        (52, "STATX"),
        (4096, "CUSE_INIT"),
        (7, "a number that was never given"),
        (54, "one that is not given yet"),
        (u32::MAX, "the last one"),
    ] {
        assert_eq!(
            peer.call(opcode, 1, &[0; 128]).errno,
            libc::ENOSYS,
            "{name}"
        );
    }
    // IOCTL: ENOTTY is what callers look for.
    assert_eq!(peer.call(39, 1, &[0; 128]).errno, libc::ENOTTY);
}

#[test]
fn what_has_no_answer_gets_none() {
    let mut peer = Peer::new();
    let file = peer.lookup(1, "hello");
    peer.send(FORGET, file, &0_u64.to_ne_bytes());
    peer.send(BATCH_FORGET, 0, &[0; 8]);
    peer.send(INTERRUPT, 0, &999_u64.to_ne_bytes());
    peer.send(NOTIFY_REPLY, 1, &[0; 48]);
    // Messages that are too short to have a number.
    peer.send_bytes(&[1]);
    peer.send_bytes(&[0; 39]);
    let last = peer.send(GETATTR, 1, &[0; 16]);
    assert_eq!(peer.receive().unique, last);
}

#[test]
fn init_agrees_on_what_both_know() {
    let mut peer = Peer::new();
    // A newer major version: ours is told, and the kernel asks again.
    let answered = peer.call(INIT, 0, &init(8, 0));
    assert_eq!((answered.errno, answered.body[0]), (0, 7));
    let answered = peer.call(INIT, 0, &init(7, 45));
    assert_eq!((answered.errno, answered.body.len()), (0, 64));
    let word = |at: usize| u32::from_ne_bytes(answered.body[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4)), (7, 45));
    let flags = u64::from(word(12)) | u64::from(word(32)) << 32;
    for (bit, name) in [
        (0, "ASYNC_READ"),
        (13, "DO_READDIRPLUS"),
        (23, "CACHE_SYMLINKS"),
    ] {
        assert_ne!(flags & 1 << bit, 0, "{name}");
    }
    for (bit, name) in [
        (14, "READDIRPLUS_AUTO"),
        (16, "WRITEBACK_CACHE"),
        (1, "POSIX_LOCKS"),
        (39, "HAS_RESEND"),
    ] {
        assert_eq!(flags & 1 << bit, 0, "{name}");
    }
    assert_eq!(peer.call(INIT, 0, &init(7, 30)).errno, libc::EPROTO);
    assert_eq!(peer.call(INIT, 0, &[0; 3]).errno, libc::EPROTO);
}

#[test]
fn what_is_answered() {
    let mut peer = Peer::with(&["xattr"], |channel| channel);
    let file = peer.lookup(1, "hello");
    let link = peer.lookup(1, "link");
    let dir = peer.lookup(1, "deep");
    assert_eq!(peer.call(LOOKUP, 1, &named("absent")).body[..8], [0; 8]);
    assert_eq!(peer.call(LOOKUP, file, &named("x")).errno, libc::ENOTDIR);
    assert_eq!(peer.call(LOOKUP, 999, &named("x")).errno, libc::ESTALE);
    assert_eq!(peer.call(LOOKUP, 1, b"no end").errno, libc::EINVAL);
    let attr = peer.call(GETATTR, file, &[0; 16]);
    assert_eq!((attr.body.len(), u64_at(&attr.body, 24)), (104, 11));
    assert_eq!(peer.call(READLINK, link, &[]).body, b"hello");
    assert_eq!(peer.call(READLINK, file, &[]).errno, libc::EINVAL);
    // Opens are the kernel's, but not those that would write.
    assert_eq!(peer.call(OPEN, file, &open(0)).errno, libc::ENOSYS);
    assert_eq!(
        peer.call(OPEN, file, &open(libc::O_RDWR)).errno,
        libc::EROFS
    );
    assert_eq!(peer.call(OPEN, dir, &open(0)).errno, libc::EISDIR);
    assert_eq!(peer.call(READ, file, &range(6, 100)).body, b"World");
    assert_eq!(peer.call(READ, file, &range(u64::MAX, 100)).body, b"");
    assert_eq!(peer.call(READ, dir, &range(0, 100)).errno, libc::EISDIR);
    assert_eq!(peer.call(READ, file, &[0; 7]).errno, libc::EINVAL);
    assert_eq!(peer.call(OPENDIR, dir, &open(0)).errno, libc::ENOSYS);
    let listed = peer.call(READDIR, dir, &range(0, 4096));
    assert!(listed.errno == 0 && listed.body.len() >= 3 * 24);
    let listed = peer.call(READDIRPLUS, dir, &range(0, 4096));
    let nodes = listed_nodes(&listed.body);
    assert_eq!(nodes[..2], [0, 0], "`.` and `..` are no lookups");
    assert!(nodes[2..].iter().all(|node| *node > 1));
    assert_eq!(
        peer.call(READDIR, file, &range(0, 4096)).errno,
        libc::ENOTDIR
    );
    assert_eq!(peer.call(STATFS, 1, &[]).body.len(), 80);
    assert_eq!(peer.call(RELEASE, file, &[0; 24]).errno, 0);
    assert_eq!(peer.call(RELEASEDIR, dir, &[0; 24]).errno, 0);
    let asked =
        |size: u32, name: &str| [&size.to_ne_bytes()[..], &[0; 4], &named(name)[..]].concat();
    let name = "user.tvix.castore.blob.digest";
    assert_eq!(peer.call(GETXATTR, file, &asked(100, name)).body.len(), 47);
    assert_eq!(
        peer.call(GETXATTR, file, &asked(0, name)).body[..4],
        [47, 0, 0, 0]
    );
    assert_eq!(
        peer.call(GETXATTR, file, &asked(46, name)).errno,
        libc::ERANGE
    );
    assert_eq!(
        peer.call(LISTXATTR, file, &asked(100, "")).body,
        named(name)
    );
    assert_eq!(peer.call(DESTROY, 0, &[]).errno, 0);
}

/// An entry that does not fit is not counted as a lookup, and nothing is lost between replies.
#[test]
fn a_listing_in_small_replies_is_whole() {
    let mut peer = Peer::new();
    let whole = listed_nodes(&peer.call(READDIRPLUS, 1, &range(0, 65_536)).body);
    let (mut offset, mut nodes) = (0, Vec::new());
    loop {
        let body = peer.call(READDIRPLUS, 1, &range(offset, 500)).body;
        if body.is_empty() {
            break;
        }
        let some = listed_nodes(&body);
        offset += some.len() as u64;
        nodes.extend(some);
    }
    assert_eq!(nodes, whole);
    let forgotten = |node: &u64, count: u64| [node.to_ne_bytes(), count.to_ne_bytes()].concat();
    let forget = whole.iter().filter(|node| **node != 0);
    let mut body = (u32::try_from(forget.clone().count()).unwrap())
        .to_ne_bytes()
        .to_vec();
    body.extend([0; 4]);
    body.extend(forget.flat_map(|node| forgotten(node, 2)));
    peer.send(BATCH_FORGET, 0, &body);
    peer.call(GETATTR, 1, &[0; 16]);
    assert_eq!(peer.fs.inode_count(), 1);
}

/// A handle on a file that was forgotten must not become one on another file.
#[test]
fn a_node_id_is_never_used_again() {
    let mut peer = Peer::new();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        for name in ["hello", "hello-too", "deep", "link"] {
            let node = peer.lookup(1, name);
            assert!(
                seen.insert(node),
                "{name} has {node}, which was used before"
            );
            peer.send(FORGET, node, &1_u64.to_ne_bytes());
            assert_eq!(peer.call(GETATTR, node, &[0; 16]).errno, libc::ESTALE);
        }
    }
    assert_eq!(peer.fs.inode_count(), 1);
}
