//! Requests that miss: a task fetches what was missed and runs the request again, while the caller's signals are looked at.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::FutureExt;
use smallvec::SmallVec;

use super::{
    Dispatcher, FsError, Held, Miss, Request, Scratch,
    callers::{self, LOOK_EVERY, UNSEEN_FOR, Verdict},
    opcode::Opcode,
    pending::{Pending, WaitId},
    reply::Reply,
    wire::InHeader,
};

/// Rounds of fetching for one request. Each brings something that the request keeps, so this is never reached unless
/// something is wrong.
const MAX_ROUNDS: usize = 64;
/// Bytes of a request's payload that are kept while it waits: of what waits, none has more than a name.
const LONGEST_PAYLOAD: usize = 512;
/// What was begun for an interrupted request goes on for so long, so that a caller that tries again finds it under way.
const ABANDONED_FOR: Duration = Duration::from_secs(10);
/// And so many of them at once.
pub(super) const MOST_ABANDONED: usize = 64;

/// A request that waits. When it ends without an answer (a panic, the end of the runtime), it is answered with EIO.
struct Wait {
    dispatcher: Arc<Dispatcher>,
    opcode: Opcode,
    id: WaitId,
    header: InHeader,
    arguments: SmallVec<[u8; 64]>,
    payload: Box<[u8]>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        drop(self.dispatcher.pending.take(self.id));
    }
}

impl Dispatcher {
    /// Lets a request wait for what it missed.
    pub(super) fn wait(
        self: &Arc<Self>,
        opcode: Opcode,
        request: &Request<'_>,
        reply: Reply<'static>,
        miss: Miss,
    ) {
        let (id, abandoned) = self.pending.insert(reply, request.header.pid);
        let wait = Wait {
            dispatcher: Arc::clone(self),
            opcode,
            id,
            header: request.header,
            arguments: request.arguments.into(),
            payload: request.payload[..request.payload.len().min(LONGEST_PAYLOAD)].into(),
        };
        self.runtime.spawn(async move {
            let answer = AssertUnwindSafe(wait.answer(miss)).catch_unwind();
            let mut answer = pin!(answer);
            let ended = tokio::select! {
                ended = &mut answer => ended,
                _ = abandoned => {
                    // It was interrupted, or is just being answered.
                    let Ok(_place) = wait.dispatcher.abandoned.try_acquire() else {
                        return;
                    };
                    match tokio::time::timeout(ABANDONED_FOR, answer).await {
                        Ok(ended) => ended,
                        Err(_) => return,
                    }
                }
            };
            if ended.is_err() {
                wait.request().log_panic();
            }
        });
    }
}

impl Wait {
    fn request(&self) -> Request<'_> {
        Request {
            header: self.header,
            arguments: &self.arguments,
            payload: &self.payload,
        }
    }

    async fn answer(&self, miss: Miss) {
        let answered = match self.dispatcher.options.longest_wait {
            None => self.fetch_and_run(miss).await,
            Some(longest) => tokio::time::timeout(longest, self.fetch_and_run(miss))
                .await
                .unwrap_or(Err(FsError::TimedOut)),
        };
        if let Err(error) = answered
            && let Some(reply) = self.take()
        {
            reply.error(&error);
        }
    }

    /// Fetches what was missed and runs the request again until it is answered.
    async fn fetch_and_run(&self, mut miss: Miss) -> Result<(), FsError> {
        let Self {
            dispatcher, opcode, ..
        } = self;
        let mut held = Held::default();
        let mut scratch = Scratch::default();
        for _ in 0..MAX_ROUNDS {
            dispatcher.fs.resolve(miss, &mut held).await?;
            if !dispatcher.pending.contains(self.id) {
                return Ok(());
            }
            let request = self.request();
            let again = dispatcher.run(*opcode, &request, &held, &mut scratch, &mut || self.take());
            match again {
                Some(next) => miss = next,
                None => return Ok(()),
            }
        }
        Err(FsError::NoProgress)
    }

    fn take(&self) -> Option<Reply<'static>> {
        self.dispatcher.pending.take(self.id)
    }
}

/// Looks at the callers of interrupted requests and ends the wait of those that a signal ends.
pub(super) async fn watch_callers(pending: Arc<Pending>) {
    loop {
        pending.next_interrupt().await;
        loop {
            let interrupted = pending.interrupted();
            if interrupted.is_empty() {
                break;
            }
            let can_look = callers::can_look();
            for request in interrupted {
                let verdict = match can_look {
                    true => callers::look(request.caller),
                    false => Verdict::Unseen,
                };
                let ends = match verdict {
                    Verdict::End => true,
                    Verdict::Wait => false,
                    Verdict::Unseen => request.since.elapsed() >= UNSEEN_FOR,
                };
                if ends && let Some(reply) = pending.take(request.id) {
                    reply.error(&FsError::Interrupted);
                }
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
