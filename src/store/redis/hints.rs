//! Hears of changes as they are published, so that replicas renew at once and not only four times in a lease.
//!
//! Only a hint: what is lost here is found by the next renewal. Ends with the store, or with the process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connector::Connector;
use crate::tasks::Tasks;

/// How long connecting and subscribing may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Begins to listen; the answer moves with every message, and when the subscription breaks or is made again.
pub(super) fn listen(connector: Arc<Connector>, news: String, tasks: &Tasks, ended: CancellationToken) -> watch::Receiver<u64> {
    let (tell, told) = watch::channel(0_u64);
    let stopping = tasks.stopping();
    tasks.spawn("store hints", async move {
        let listening = async {
            loop {
                if let Ok(Some(mut messages)) = tokio::time::timeout(CONNECT_MAX, subscribe(&connector, &news)).await {
                    tell.send_modify(|count| *count = count.wrapping_add(1));
                    while messages.next().await.is_some() {
                        tell.send_modify(|count| *count = count.wrapping_add(1));
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = listening => {}
            () = ended.cancelled() => {}
            () = stopping.cancelled() => {}
        }
    });
    told
}

async fn subscribe(connector: &Connector, news: &str) -> Option<redis::aio::PubSubStream> {
    let mut subscription = connector.subscribable().await.ok()?.get_async_pubsub().await.ok()?;
    subscription.subscribe(news).await.ok()?;
    Some(subscription.into_on_message())
}
