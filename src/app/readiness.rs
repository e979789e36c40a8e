//! What must work before requests are sent here, and why it does not: the checks behind `/readyz`.
//!
//! All are answered from memory. A store that fails turns readiness red when the lease has ended and not before, because
//! until then this replica serves what it knows; the reason is shown from the first failure on. What settings of the store
//! may cost is shown and turns nothing red: to stop every replica for a risk would be the outage that is feared.

use std::sync::Arc;

use crate::audit::Spool;
use crate::coherence::Coherence;
use crate::domain::BootInstant;
use crate::ops::Check;
use crate::store::{Health, Partition};

use super::listeners::Checks;

/// While the gateway waits for its store.
pub(super) fn waiting(health: &Arc<Health>) -> Checks {
    let health = health.clone();
    Arc::new(move || {
        let detail = health.failure().unwrap_or_else(|| "the store has not answered yet".into());
        vec![Check { name: "store", ok: false, detail }]
    })
}

/// While the gateway serves.
pub(super) fn checks(health: &Arc<Health>, coherence: &Arc<Coherence>, spool: &Arc<Spool>) -> Checks {
    let (health, coherence, spool) = (health.clone(), coherence.clone(), spool.clone());
    Arc::new(move || {
        let proof = proof(&coherence);
        let is_coherent = proof.ok;
        let has_room = spool.has_room();
        let room = if has_room { "uses can be recorded" } else { "the spool is full or cannot be written" };
        vec![
            store(&health, is_coherent && has_lease(&coherence)),
            proof,
            Check { name: "audit", ok: has_room, detail: room.into() },
            settings(&health),
        ]
    })
}

/// Red only while nothing is proven: with one partition of several away, all replicas would turn red for its sake, and
/// whoever balances load would take the other firms away too.
fn proof(coherence: &Coherence) -> Check {
    let (unproven, all) = coherence.unproven_of();
    let detail = match unproven {
        0 => "every change to keys is known here".into(),
        _ => {
            let why = coherence.trouble().unwrap_or_else(|| "this replica cannot prove that its keys are current".to_owned());
            if all == 1 { why } else { format!("{unproven} of {all} partitions: {why}") }
        }
    };
    Check { name: "coherence", ok: unproven < all, detail }
}

fn store(health: &Health, may_go_on: bool) -> Check {
    match health.failure() {
        None => Check { name: "store", ok: true, detail: "answers".into() },
        Some(why) => Check { name: "store", ok: may_go_on, detail: why },
    }
}

fn settings(health: &Health) -> Check {
    let risks = health.risks();
    let detail = if risks.is_empty() { "nothing acknowledged can be lost through them".into() } else { risks.join("; ") };
    Check { name: "settings", ok: true, detail }
}

/// Whether what is known here was leased; a store in this process needs no lease, and gives no time to go on without it.
fn has_lease(coherence: &Coherence) -> bool {
    coherence.valid_until(Partition(0)) != BootInstant::NEVER
}
