//! Hears of changes as they are published, so that replicas renew at once and not only four times in a lease.
//!
//! Only a hint: what is lost here is found by the next renewal, so a user who may neither publish nor subscribe is warned
//! of and not refused. Ends with the store, or with the process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::Line;
use super::connector::Connector;
use super::outage::explained;
use crate::store::StoreError;
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
            let mut is_said = false;
            loop {
                let subscribed = tokio::time::timeout(CONNECT_MAX, subscribe(&connector, &news)).await;
                if let Ok(Err(StoreError::Unavailable(why))) = &subscribed
                    && is_forbidden(why)
                    && !is_said
                {
                    is_said = true;
                    warn_of_rights("SUBSCRIBE", why);
                }
                if let Ok(Ok(mut messages)) = subscribed {
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

/// Publishes something that says nothing, so that a user without the right to is known at the start.
pub(super) async fn try_publishing(line: &Line, news: &str) {
    let published: Result<u64, StoreError> = line.send(redis::cmd("PUBLISH").arg(news).arg("")).await;
    if let Err(StoreError::Unavailable(why)) = published
        && is_forbidden(&why)
    {
        warn_of_rights("PUBLISH", &why);
    }
}

async fn subscribe(connector: &Connector, news: &str) -> Result<redis::aio::PubSubStream, StoreError> {
    let unavailable = |error: &redis::RedisError| StoreError::Unavailable(explained(error));
    let client = connector.subscribable().await?;
    let mut subscription = client.get_async_pubsub().await.map_err(|error| unavailable(&error))?;
    subscription.subscribe(news).await.map_err(|error| unavailable(&error))?;
    Ok(subscription.into_on_message())
}

fn is_forbidden(why: &str) -> bool {
    why.contains("NOPERM")
}

fn warn_of_rights(command: &str, why: &str) {
    tracing::warn!(
        command,
        "this Redis user may not use the gateways' channel, so replicas learn of changes with their next renewal and not at once, and a revocation takes longer; allow it (ACL &assure:*): {why}"
    );
}
