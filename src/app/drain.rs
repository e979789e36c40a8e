//! The way down: SIGTERM or SIGINT drains, a second one ends at once.
//!
//! For `edge.drain_notice` readiness is red while everything is still served, and connections are asked to go elsewhere:
//! a load balancer that looks at `/readyz` within that time sends nothing into a closing door. Then no connection is
//! accepted, requests under way finish within `edge.drain`, and what is left is cut. The ops listener goes last.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::listeners::CLOSING_MAX;
use super::start::Started;
use crate::config;

/// Exit code of a process that was told twice to end.
const EXIT_FORCED: i32 = 130;

/// What an orchestrator or a person sends to end the process. Taken from the start on: the first process of a container
/// is not ended by a signal that it does not take.
pub(super) struct Signals([Signal; 2]);

impl Signals {
    pub(super) fn new() -> Self {
        Self([SignalKind::terminate(), SignalKind::interrupt()].map(|kind| signal(kind).expect("the runtime has signals enabled")))
    }

    pub(super) async fn next(&mut self) {
        let Self([terminate, interrupt]) = self;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Waits for a signal and obeys it.
pub(super) async fn until_signalled(started: Started, mut signals: Signals, config: &config::Edge) {
    signals.next().await;
    tracing::info!(
        notice_seconds = config.drain_notice.as_secs_f64(),
        deadline_seconds = config.drain.as_secs_f64(),
        "draining; a second signal ends at once"
    );
    tokio::select! {
        () = drain(&started, config) => tracing::info!("drained"),
        () = signals.next() => {
            tracing::warn!("told twice to end; requests under way are cut, their records stay in the spool");
            std::process::exit(EXIT_FORCED);
        }
    }
}

async fn drain(started: &Started, config: &config::Edge) {
    started.listeners.announce_end();
    tokio::time::sleep(config.drain_notice).await;
    if !started.listeners.edge.finish(config.drain).await {
        tracing::warn!("requests still under way after the drain deadline are cut");
        started.gateway.cuts.end_all();
        started.listeners.edge.finish(CLOSING_MAX).await;
        started.listeners.edge.cut().await;
    }
    started.followers_end.cancel();
    started.listeners.admin.finish(CLOSING_MAX).await;
    started.listeners.admin.cut().await;
    started.stop_background().await;
    started.listeners.ops.finish(Duration::ZERO).await;
    started.listeners.ops.cut().await;
}
