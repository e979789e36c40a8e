//! The way down: SIGTERM or SIGINT drains, a second one ends at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::listeners::CLOSING_MAX;
use super::start::Started;

/// Between "not ready" and closing the doors, so that whoever balances load can look once more.
const READINESS_NOTICE: Duration = Duration::from_secs(1);
/// Exit code of a process that was told twice to end.
const EXIT_FORCED: i32 = 130;

/// Waits for a signal and obeys it.
pub(super) async fn until_signalled(started: Started, deadline: Duration) {
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| signal(kind).expect("the runtime has signals enabled"));
    next(&mut signals).await;
    tracing::info!(deadline_seconds = deadline.as_secs_f64(), "draining; a second signal ends at once");
    tokio::select! {
        () = drain(&started, deadline) => tracing::info!("drained"),
        () = next(&mut signals) => {
            tracing::warn!("told twice to end; requests under way are cut, their records stay in the spool");
            std::process::exit(EXIT_FORCED);
        }
    }
}

async fn next([terminate, interrupt]: &mut [Signal; 2]) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn drain(started: &Started, deadline: Duration) {
    started.listeners.show_not_ready();
    tokio::time::sleep(READINESS_NOTICE).await;
    if !started.listeners.edge.finish(deadline).await {
        tracing::warn!("requests still under way after the drain deadline are cut");
        started.gateway.cut.cancel();
        started.listeners.edge.finish(CLOSING_MAX).await;
        started.listeners.edge.cut().await;
    }
    started.listeners.admin.finish(CLOSING_MAX).await;
    started.listeners.admin.cut().await;
    started.stop_background().await;
    started.listeners.ops.finish(Duration::ZERO).await;
    started.listeners.ops.cut().await;
}
