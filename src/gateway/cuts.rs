//! What ends an answer or a tunnel in the middle: its key is revoked, this replica can no longer tell whether it is, or
//! the drain has taken too long (protocol 1, "running streams end within a second").

use std::pin::Pin;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::admit;
use super::exchange::Exchange;
use super::resolve::Keyring;

/// Ends when an answer must not go on, with the reason: `key_revoked`, `replica_incoherent` or `draining`.
pub type Cut = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Makes `Cut`s.
#[derive(Debug)]
pub struct Cuts {
    keyring: Arc<Keyring>,
    drained: CancellationToken,
}

impl Cuts {
    /// Cuts for keys of this keyring.
    pub fn new(keyring: Arc<Keyring>) -> Arc<Self> {
        Arc::new(Self { keyring, drained: CancellationToken::new() })
    }

    /// Ends everything that still goes on: draining has taken too long.
    pub fn end_all(&self) {
        self.drained.cancel();
    }

    /// Fires when draining has taken too long.
    pub(super) async fn drained(&self) {
        self.drained.cancelled().await;
    }

    /// What may cut this exchange.
    pub(super) fn of(self: &Arc<Self>, exchange: &Exchange) -> Cut {
        let (cuts, key) = (self.clone(), exchange.key().cloned());
        Box::pin(async move {
            let ended = async {
                match key {
                    Some(key) => cuts.keyring.end_of(&key).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                end = ended => admit::ended(end).consequence().reason,
                () = cuts.drained() => "draining",
            }
        })
    }
}
