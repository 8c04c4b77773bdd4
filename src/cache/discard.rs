use std::sync::mpsc;

use super::{
    Counter,
    store::{Command, Store},
};

/// What becomes of all that is sent to a cache that cannot be written: nothing, but nobody waits for it.
pub(super) fn discard(store: &Store, commands: &mpsc::Receiver<Command>) {
    for command in commands {
        match command {
            Command::Chunk(chunk) => {
                store.stats.add(Counter::Unwritten, 1);
                store.remove_pending(chunk.digest);
            }
            Command::Directories(_, _, done) => {
                let _ = done.send(());
            }
            Command::Sync(done) => {
                let _ = done.send(Ok(()));
            }
            Command::Stop => break,
            Command::Manifest { .. }
            | Command::Judged(..)
            | Command::Row(_)
            | Command::Damaged(..)
            | Command::Verified(_)
            | Command::Broken(_) => {}
        }
    }
}
