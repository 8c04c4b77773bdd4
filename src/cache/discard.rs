use std::{sync::mpsc, time::Duration};

use super::{
    Counter,
    store::{Command, Store},
};

/// What other processes have evicted takes up room for as long as it is open here.
const CLOSE_EVERY: Duration = Duration::from_secs(5);

/// What becomes of all that is sent to a cache that cannot be written: nothing, but nobody waits for it.
pub(super) fn discard(store: &Store, commands: &mpsc::Receiver<Command>) {
    loop {
        let command = match commands.recv_timeout(CLOSE_EVERY) {
            Ok(command) => command,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                store.files.close_gone();
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
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
