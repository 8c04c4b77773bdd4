use std::{future::Future, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    task::JoinHandle,
};
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::status;
use crate::{
    cache::CacheError,
    remote::{PENDING, WAIT},
};

/// How long a client waits that does not say so, and the bounds of what one can say.
const WAITS: Duration = Duration::from_secs(7);
const WAITS_AT_LEAST: Duration = Duration::from_millis(100);
const WAITS_AT_MOST: Duration = Duration::from_secs(60);
/// What a client did not wait for goes on for this time, for the next who asks.
const GOES_ON: Duration = Duration::from_secs(60);
/// A client that takes nothing, or sends nothing, for this time is given up.
const STALLED: Duration = Duration::from_secs(30);

/// How long a client waits for the first message of an answer.
pub(super) fn of_client(metadata: &MetadataMap) -> Duration {
    let told = metadata
        .get(WAIT)
        .and_then(|wait| wait.to_str().ok()?.parse().ok());
    let told = told.map_or(WAITS, Duration::from_millis);
    told.clamp(WAITS_AT_LEAST, WAITS_AT_MOST)
}

/// Brings something as long as the client waits for it. A client that goes away ends it; one that has waited long enough is
/// told that it is still to come, so that it does not take this server for dead.
pub(super) async fn bring<T: Send + 'static>(
    wait: Duration,
    work: impl Future<Output = Result<T, CacheError>> + Send + 'static,
) -> Result<T, Status> {
    let mut task = Task(Some(tokio::spawn(tokio::time::timeout(
        wait + GOES_ON,
        work,
    ))));
    let pending = || status::upstream("the remotes of this server have not answered yet", PENDING);
    let Some(running) = &mut task.0 else {
        return Err(pending());
    };
    match tokio::time::timeout(wait, running).await {
        Ok(Ok(Ok(result))) => result.map_err(|error| status::of(&error)),
        Ok(Ok(Err(_))) => Err(pending()),
        Ok(Err(_)) => Err(Status::internal("a fetch ended without a result")),
        Err(_) => {
            task.0 = None;
            Err(pending())
        }
    }
}

/// Ends with this, unless it was let go.
struct Task<T>(Option<JoinHandle<T>>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Hands a stream on to a client, and holds its place, as long as the client takes something.
pub(super) fn hand_on<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<T, Status>> {
    hand_on_within(STALLED, stream, place)
}

fn hand_on_within<T: Send + 'static>(
    stalled: Duration,
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<T, Status>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _place = place;
        let mut stream = std::pin::pin!(stream);
        loop {
            let item = tokio::select! {
                item = stream.next() => item,
                () = sender.closed() => return,
            };
            let is_last = !matches!(item, Some(Ok(_)));
            let sent = tokio::time::timeout(stalled, sender.send(item)).await;
            if is_last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    // What ends without an end was given up.
    let given_up = || Some(Err(Status::aborted("nothing was taken for too long")));
    futures::stream::unfold(Some(receiver), move |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await.unwrap_or_else(given_up)? {
            Ok(item) => Some((Ok(item), Some(receiver))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

/// The next message of a client that puts something.
pub(super) async fn next<T>(messages: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let message = tokio::time::timeout(STALLED, messages.message()).await;
    message.unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing was sent for too long")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    async fn place() -> (Arc<Semaphore>, OwnedSemaphorePermit) {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        (places, place)
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_gives_its_place_back() {
        let (places, place) = place().await;
        let endless = futures::stream::repeat_with(|| Ok::<_, Status>(1));
        let mut stream = hand_on_within(Duration::from_millis(20), endless, place);
        assert_eq!(stream.next().await.unwrap().unwrap(), 1);
        let _again = places.acquire().await.unwrap();
        // It is told that this is not all.
        let mut last = Ok(0);
        while let Some(item) = stream.next().await {
            last = item;
        }
        assert_eq!(last.unwrap_err().code(), tonic::Code::Aborted);
    }

    #[tokio::test]
    async fn what_ends_well_ends_well_and_a_client_that_goes_ends_it() {
        let (places, place) = place().await;
        let three = futures::stream::iter([Ok::<_, Status>(1), Ok(2), Ok(3)]);
        let all: Vec<_> = hand_on_within(STALLED, three, place).collect().await;
        assert!(all.len() == 3 && all.iter().all(Result::is_ok));
        let place = places.clone().acquire_owned().await.unwrap();
        let never = futures::stream::pending::<Result<u32, Status>>();
        drop(hand_on_within(STALLED, never, place));
        let _again = places.acquire().await.unwrap();
    }

    #[tokio::test]
    async fn a_client_is_told_what_is_still_to_come() {
        let wait = Duration::from_millis(20);
        let never = std::future::pending::<Result<u32, CacheError>>();
        let status = bring(wait, never).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(
            status.metadata().get(crate::remote::UPSTREAM).unwrap(),
            PENDING
        );
        assert_eq!(bring(wait, std::future::ready(Ok(7))).await.unwrap(), 7);
    }
}
