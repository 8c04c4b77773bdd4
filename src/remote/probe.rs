use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Fault, chain::Member};

/// The time before the first look at a remote that does not answer …
const FIRST: Duration = Duration::from_millis(250);
/// … which doubles up to this.
const LAST: Duration = Duration::from_secs(5);

/// Watches a remote that is skipped, until it answers: then `back` tells whoever waits. Ends with the chain.
pub(super) fn start(member: &Arc<Member>, back: &Arc<Notify>, timeout: Duration) {
    tracing::warn!(
        remote = member.remote.address(),
        reason = member.health.skipped().as_deref(),
        "does not answer and is skipped until it does"
    );
    let (member, back) = (Arc::downgrade(member), Arc::downgrade(back));
    tokio::spawn(watch(member, back, timeout));
}

async fn watch(member: Weak<Member>, back: Weak<Notify>, timeout: Duration) {
    let mut delay = FIRST;
    loop {
        tokio::time::sleep(delay).await;
        let Some(member) = member.upgrade() else {
            return;
        };
        if member.health.skipped().is_none() {
            return;
        }
        let answered = tokio::time::timeout(timeout, member.remote.ping()).await;
        let answered = answered.is_ok_and(|answer| match answer {
            Ok(()) => true,
            Err(error) => error.fault() != Some(Fault::Unavailable),
        });
        if answered {
            member.health.answered(Instant::now());
            tracing::info!(remote = member.remote.address(), "answers again");
            if let Some(back) = back.upgrade() {
                back.notify_waiters();
            }
            return;
        }
        delay = (delay * 2).min(LAST);
    }
}
