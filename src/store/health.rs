//! What the store's own answers say about it: whether renewals succeed, and how it is set up to keep what it acknowledges.
//!
//! A renewal reads and writes, four times in each lease, so it is the pulse: nothing else needs to be asked to know that
//! the store is well, or in its own words why not. Readiness reads the reason here. The log has one line when the store
//! begins to fail, one when it is well again, and between them one for another reason or after a while: never one for
//! each call, because a busy gateway makes thousands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Partition, Renewal, Risk, Safeguard, Store, StoreError, StoreIncarnation};
use crate::clock;
use crate::domain::BootInstant;
use crate::metrics::Metrics;

/// Between two lines about the store, when its state has changed meanwhile.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// After this long in which nothing changed, a store that still fails is mentioned again.
const REMINDER: Duration = Duration::from_secs(60);
/// How often the settings are looked at; another incarnation of the store is looked at when it is met.
const SETTINGS_LOOK: Duration = Duration::from_secs(10);

/// The store as this replica sees it.
pub struct Health {
    state: Mutex<State>,
    met_another: Notify,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    /// Why the last renewal failed, of each partition that it failed for.
    failing: BTreeMap<Partition, String>,
    incarnations: BTreeMap<Partition, StoreIncarnation>,
    said: Said,
    said_at: Option<BootInstant>,
    call_said_at: Option<BootInstant>,
    risks: Vec<String>,
}

/// What the log says at the moment.
#[derive(Clone, PartialEq, Eq, Default)]
enum Said {
    /// Nothing yet.
    #[default]
    Nothing,
    Well,
    /// Waiting for its first answer.
    Waiting(String),
    Failing(String),
}

impl Health {
    /// Knows nothing yet.
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), met_another: Notify::new(), metrics: metrics.clone() })
    }

    /// Notes how a renewal ended.
    pub fn renewed(&self, partition: Partition, result: &Result<Renewal, StoreError>) {
        match result {
            Ok(renewal) => {
                let mut state = self.state.lock();
                state.failing.remove(&partition);
                if state.incarnations.get(&partition) != Some(&renewal.store) {
                    state.incarnations.insert(partition, renewal.store.clone());
                    self.met_another.notify_one();
                }
                state.say();
            }
            Err(error) => self.failed(partition, error),
        }
    }

    /// Notes that the store does not do what it is asked.
    pub fn failed(&self, partition: Partition, error: &StoreError) {
        let why = match error {
            StoreError::Unavailable(why) => why.clone(),
            other => other.to_string(),
        };
        let mut state = self.state.lock();
        state.failing.insert(partition, why);
        state.say();
    }

    /// Notes that a call other than a renewal failed. While renewals succeed, the log says so now and then.
    pub fn call_failed(&self, operation: &'static str, error: &StoreError) {
        let now = clock::boot_now();
        let mut state = self.state.lock();
        if state.failing.is_empty() && state.call_said_at.is_none_or(|said| now.since(said) >= LINE_PAUSE) {
            state.call_said_at = Some(now);
            tracing::warn!(operation, %error, "the store failed a request");
        }
    }

    /// Why the store fails, if it does.
    pub fn failure(&self) -> Option<String> {
        self.state.lock().failing.values().next().cloned()
    }

    /// What the store's settings may cost, as sentences.
    pub fn risks(&self) -> Vec<String> {
        self.state.lock().risks.clone()
    }

    /// Looks at the store's settings now and again, until asked to stop.
    pub async fn watch_settings(self: Arc<Self>, store: Arc<dyn Store>, stop: CancellationToken) {
        loop {
            // Where it fails, the renewals say so.
            if let Ok(safeguards) = store.safeguards().await {
                self.weigh(&safeguards);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SETTINGS_LOOK) => {}
                () = self.met_another.notified() => {}
            }
        }
    }

    /// Shows the settings in the metric, and what is new about them in the log.
    fn weigh(&self, safeguards: &[Safeguard]) {
        self.metrics.store_setting_safe.reset();
        let mut risks = Vec::new();
        let known = self.risks();
        for Safeguard { setting, value, risk } in safeguards {
            self.metrics.store_setting_safe.with_label_values(&[*setting, *value]).set(i64::from(*risk == Risk::None));
            match risk {
                Risk::None => {}
                Risk::Loss(what) if known.contains(what) => risks.push(what.clone()),
                Risk::Unsafe(what) if known.contains(what) => risks.push(what.clone()),
                Risk::Loss(what) => {
                    tracing::warn!(setting, "{what}");
                    risks.push(what.clone());
                }
                Risk::Unsafe(what) => {
                    tracing::error!(setting, "promises may be broken: {what}");
                    risks.push(what.clone());
                }
            }
        }
        if risks.is_empty() && !known.is_empty() {
            tracing::info!("the store's settings keep what it acknowledges again");
        }
        self.state.lock().risks = risks;
    }
}

impl State {
    fn say(&mut self) {
        let now = clock::boot_now();
        let is_first = matches!(self.said, Said::Nothing | Said::Waiting(_));
        let news = match self.failing.values().next() {
            None => Said::Well,
            Some(why) if is_first => Said::Waiting(why.clone()),
            Some(why) => Said::Failing(why.clone()),
        };
        let pause = self.said_at.map_or(Duration::MAX, |said| now.since(said));
        let is_due = if news == self.said { news != Said::Well && pause >= REMINDER } else { pause >= LINE_PAUSE || news == Said::Well };
        if !is_due {
            return;
        }
        match &news {
            Said::Well if is_first => {}
            Said::Well => tracing::info!("the store answers again"),
            Said::Waiting(why) => tracing::warn!(%why, "waiting for Redis; only the ops listener answers, and it is not ready"),
            Said::Failing(why) => tracing::error!(%why, "the store fails; requests are refused, at the latest when the lease ends"),
            Said::Nothing => {}
        }
        self.said = news;
        self.said_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(health: &Health, why: &str) {
        health.failed(Partition(0), &StoreError::Unavailable(why.into()));
    }

    fn well(health: &Health, incarnation: &str) {
        let renewal = Renewal {
            is_settled: false,
            epoch: super::super::Epoch(1),
            news: super::super::Invalidations::Flush,
            trust: super::super::Trust::UntilTold,
            store: StoreIncarnation { data_set: "one".into(), run: incarnation.into() },
            time: None,
        };
        health.renewed(Partition(0), &Ok(renewal));
    }

    #[test]
    fn a_state_is_said_once_and_another_reason_not_at_once() {
        let health = Health::new(&Metrics::new());
        let said_at = || health.state.lock().said_at;
        failing(&health, "away");
        let first = said_at();
        for _ in 0..100 {
            failing(&health, "away");
            failing(&health, "still away");
        }
        assert_eq!((said_at(), health.failure().as_deref()), (first, Some("still away")), "one line, the newest reason");
        well(&health, "one");
        assert!(said_at() > first && health.failure().is_none() && health.state.lock().said == Said::Well);
        let second = said_at();
        failing(&health, "gone");
        assert!(health.state.lock().said == Said::Well && said_at() == second, "a hiccup right after it was well is not a line");
    }

    #[tokio::test]
    async fn each_incarnation_has_its_settings_looked_at() {
        let health = Health::new(&Metrics::new());
        let looked = async || tokio::time::timeout(Duration::from_millis(20), health.met_another.notified()).await.is_ok();
        well(&health, "one");
        assert!(looked().await);
        well(&health, "one");
        assert!(!looked().await);
        well(&health, "two");
        assert!(looked().await);
    }

    #[test]
    fn settings_show_in_the_metric_with_what_they_cost() {
        let metrics = Metrics::new();
        let health = Health::new(&metrics);
        let safeguard = |value, risk| Safeguard { setting: "appendfsync", value, risk };
        let shown = || String::from_utf8(metrics.encode()).unwrap();
        health.weigh(&[safeguard("everysec", Risk::Loss("a second".into()))]);
        assert!(shown().contains("assure_gateway_store_setting_safe{setting=\"appendfsync\",value=\"everysec\"} 0\n"));
        assert_eq!(health.risks(), ["a second"]);
        health.weigh(&[safeguard("always", Risk::None)]);
        assert!(shown().contains("{setting=\"appendfsync\",value=\"always\"} 1\n") && !shown().contains("everysec"));
        assert!(health.risks().is_empty());
    }
}
