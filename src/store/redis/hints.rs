//! Hears of changes as they are published, so that replicas renew at once and not only four times in a lease.
//!
//! Only a hint: what is lost here is found by the next renewal. Ends with the store, or with the process.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::connection::Connections;
use super::schema::NEWS;
use crate::tasks::Tasks;

/// How long connecting and subscribing may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Begins to listen; the answer moves with every message, and when the subscription breaks or is made again.
pub(super) fn listen(connections: &Connections, tasks: &Tasks, ended: CancellationToken) -> watch::Receiver<u64> {
    let (tell, told) = watch::channel(0_u64);
    let (client, stopping) = (connections.client(), tasks.stopping());
    tasks.spawn("store hints", async move {
        let listening = async {
            loop {
                if let Ok(Ok(mut messages)) = tokio::time::timeout(CONNECT_MAX, subscribe(&client)).await {
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

async fn subscribe(client: &redis::Client) -> redis::RedisResult<redis::aio::PubSubStream> {
    let mut subscription = client.get_async_pubsub().await?;
    subscription.subscribe(NEWS).await?;
    Ok(subscription.into_on_message())
}
