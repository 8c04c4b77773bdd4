use std::{
    io,
    sync::{Arc, Weak},
};

use tokio::sync::broadcast::error::RecvError;
use zerocopy::IntoBytes;

use super::{
    Dispatcher,
    wire::{InvalEntry, InvalInode, NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE},
};
use crate::fs::{Filesystem, Outdated};

impl Dispatcher {
    /// Has the kernel drop what it keeps of a tree that is not shown any more. Blocks until lookups under way in its
    /// directories have ended, so none of them can bring something back.
    pub fn drop_outdated(&self, outdated: &Outdated) {
        for (parent, name) in &outdated.names {
            self.invalidate_entry(*parent, name);
        }
        for directory in &outdated.directories {
            self.invalidate(*directory);
        }
    }

    /// Has the kernel drop attributes and pages of an inode. Waits for reads under way.
    fn invalidate(&self, node: u64) {
        let message = InvalInode {
            node,
            offset: 0,
            len: 0,
        };
        note(
            self.transport
                .notify(NOTIFY_INVAL_INODE, &[message.as_bytes()]),
        );
    }

    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        let message = InvalEntry {
            parent,
            name_len: u32::try_from(name.len()).unwrap_or_default(),
            flags: 0,
        };
        let parts = [message.as_bytes(), name, &[0]];
        note(self.transport.notify(NOTIFY_INVAL_ENTRY, &parts));
    }
}

fn note(notified: io::Result<()>) {
    match notified {
        Ok(()) => {}
        // ENOENT: the kernel keeps nothing of it; ENODEV: the filesystem was unmounted.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
        Err(error) => tracing::warn!(%error, "the kernel did not take a notification"),
    }
}

/// Has the kernel drop the pages of files that turned out to be wrong as a whole, for as long as there is a mount.
pub(in crate::fs) async fn invalidate_wrong_blobs(
    fs: Arc<Filesystem>,
    dispatcher: Weak<Dispatcher>,
) {
    let mut wrong = fs.cache().wrong_blobs();
    drop(fs);
    loop {
        let blob = match wrong.recv().await {
            Ok(blob) => Some(blob),
            // Some were missed: all go.
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        let Some(dispatcher) = dispatcher.upgrade() else {
            return;
        };
        let invalidated = tokio::task::spawn_blocking(move || {
            for node in dispatcher.fs.nodes_of(blob) {
                dispatcher.invalidate(node);
            }
        });
        let _ = invalidated.await;
    }
}
