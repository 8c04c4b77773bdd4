use zerocopy::IntoBytes;

use super::{
    Dispatcher, Request, Scratch, TakeReply,
    wire::{Dirent, EntryOut, InHeader, ReadIn},
};
use crate::fs::Listing;

impl Dispatcher {
    /// Answers READDIR, or READDIRPLUS with `plus`, with as many lines as fit.
    pub(super) fn list(
        &self,
        request: &Request<'_>,
        listing: &Listing,
        args: &ReadIn,
        plus: bool,
        scratch: &mut Scratch,
        take: TakeReply<'_, '_>,
    ) {
        let Some(reply) = take() else { return };
        let capacity = args.size.min(self.transport.capabilities().max_transfer) as usize;
        let Scratch {
            listing: out,
            looked_up,
            ..
        } = scratch;
        out.clear();
        looked_up.clear();
        let InHeader { pid, node, .. } = request.header;
        let mut grant = plus.then(|| self.credit.of(pid, node));
        for listed in listing.lines() {
            let entry_len = if plus { size_of::<EntryOut>() } else { 0 };
            let len = (size_of::<Dirent>() + listed.name.len()).next_multiple_of(8);
            // What does not fit is not looked up, so the kernel never has to forget it.
            if out.len() + entry_len + len > capacity {
                break;
            }
            let mut number = None;
            if let Some(grant) = &mut grant {
                // An entry without an inode has the node id 0, and counts as no lookup.
                let given = listed.is_entry() && grant.take(listed.kind);
                let entry = given
                    .then(|| self.fs.look_up_listed(listing, &listed))
                    .flatten();
                looked_up.extend(entry.map(|entry| (entry.id, 1)));
                number = entry.map(|entry| entry.attr.number);
                let entry = entry
                    .as_ref()
                    .map_or_else(EntryOut::default, EntryOut::from);
                out.extend_from_slice(entry.as_bytes());
            }
            let dirent = Dirent {
                inode: number.unwrap_or_else(|| self.fs.number(listing, &listed)),
                offset: listed.next,
                name_len: u32::try_from(listed.name.len()).unwrap_or_default(),
                kind: listed.kind.mode() >> 12,
            };
            let end = out.len() + len;
            out.extend_from_slice(dirent.as_bytes());
            out.extend_from_slice(listed.name);
            out.resize(end, 0);
        }
        if let Some(grant) = grant {
            self.credit.spent(pid, &grant);
        }
        if !reply.bytes(&[out]) {
            self.take_back(looked_up.drain(..));
        }
        looked_up.clear();
    }
}
