//! Every metric, its labels and its help, in one struct. Names are the contract's.
//!
//! No label ever carries a key, a firm, a path or anything else that a caller chooses: routes are the operator's
//! names, outcomes and reasons are words of the `Rejection` table.

use std::sync::OnceLock;

pub use prometheus::IntCounter;
use prometheus::core::Collector;
use prometheus::{Encoder, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

/// A route's metrics, looked up once because each request counts there.
#[derive(Debug)]
pub struct RouteMetrics {
    /// By class of status, from its first request on.
    allowed: [OnceLock<IntCounter>; STATUS_CLASSES.len()],
    duration: Histogram,
    requests: IntCounterVec,
    route: Box<str>,
}

impl RouteMetrics {
    /// Counts a request that has ended: its outcome, the status of its answer, how long it took.
    pub fn count(&self, outcome: &str, status: Option<u16>, seconds: f64) {
        let (place, class) = class_of(status);
        let counter = || self.requests.with_label_values(&[&*self.route, outcome, class]);
        match self.allowed.get(place).filter(|_| outcome == ALLOWED) {
            Some(known) => known.get_or_init(counter).inc(),
            None => counter().inc(),
        }
        self.duration.observe(seconds);
    }
}

const NO_STATUS: &str = "none";
/// The outcome of a request that was let through.
const ALLOWED: &str = "allowed";
/// Classes of statuses; the first is that of no answer.
const STATUS_CLASSES: [&str; 6] = [NO_STATUS, "1xx", "2xx", "3xx", "4xx", "5xx"];

fn class_of(status: Option<u16>) -> (usize, &'static str) {
    let place = status.map_or(0, |status| usize::from(status / 100));
    STATUS_CLASSES.get(place).map_or((0, NO_STATUS), |class| (place, class))
}

/// Upper bounds of time histograms, in seconds: fine where the gateway lives (tens of microseconds), coarse where upstreams do.
const SECONDS: &[f64] =
    &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// All metrics of one process; handles are cheap to use and may be resolved ahead with `with_label_values`.
#[expect(missing_docs, reason = "each field is named and explained by the metric it registers below")]
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    pub requests: IntCounterVec,
    pub request_duration: HistogramVec,
    pub added_duration: Histogram,
    pub upstream_duration: HistogramVec,
    pub requests_in_flight: IntGauge,
    pub connections: IntGaugeVec,
    pub key_cache_hits: IntCounter,
    pub key_cache_misses: IntCounter,
    pub key_cache_entries: IntGauge,
    pub store_duration: HistogramVec,
    pub store_errors: IntCounterVec,
    pub store_setting_safe: IntGaugeVec,
    pub coherence_lease_remaining: prometheus::Gauge,
    pub revocation_propagation: Histogram,
    pub tombstone_write_errors: IntCounter,
    pub store_clock_leaps: IntCounter,
    pub rate_limit_decisions: IntCounterVec,
    pub rate_limit_reservations: IntCounter,
    pub audit_records: IntCounterVec,
    pub audit_spool_bytes: IntGauge,
    pub audit_spool_oldest: prometheus::Gauge,
    pub audit_shipped: IntCounter,
    pub audit_dropped: IntCounter,
    pub config_reloads: IntCounterVec,
    pub config_last_reload: prometheus::Gauge,
    pub rejections: IntCounterVec,
}

impl Metrics {
    /// Registers everything, the process collector included.
    ///
    /// # Panics
    /// If two metrics share a name: a defect that any start of the program shows.
    pub fn new() -> Self {
        let registry = Registry::new_custom(Some("assure_gateway".into()), None).expect("the prefix is a valid metric name");
        let counters = |name, help, labels: &[&str]| register(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let counter = |name, help| register(&registry, IntCounter::new(name, help));
        let gauge = |name, help| register(&registry, IntGauge::new(name, help));
        let seconds_gauge = |name, help| register(&registry, prometheus::Gauge::new(name, help));
        let times = |name, help, labels: &[&str]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()), labels))
        };
        let time = |name, help| register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec())));
        let metrics = Self {
            requests: counters(
                "requests_total",
                "Requests on the edge by route, outcome (allowed or the public code) and class of the status.",
                &["route", "outcome", "status_class"],
            ),
            request_duration: times("request_duration_seconds", "From a request's head to its answer's last byte.", &["route"]),
            added_duration: time("added_duration_seconds", "Time spent in the gateway itself until the request was forwarded or refused."),
            upstream_duration: times(
                "upstream_duration_seconds",
                "From forwarding a request to the head of the upstream's answer.",
                &["upstream"],
            ),
            requests_in_flight: gauge("requests_in_flight", "Requests on the edge that have begun and not ended."),
            connections: register(&registry, IntGaugeVec::new(Opts::new("connections", "Open connections by listener."), &["listener"])),
            key_cache_hits: counter("key_cache_hits_total", "Keys resolved without asking the store."),
            key_cache_misses: counter("key_cache_misses_total", "Keys for which the store was asked."),
            key_cache_entries: gauge("key_cache_entries", "Live keys in the cache."),
            store_duration: times("store_duration_seconds", "Time the store took, by operation.", &["operation"]),
            store_errors: counters("store_errors_total", "Calls that the store failed, by operation.", &["operation"]),
            store_setting_safe: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "store_setting_safe",
                        "1 if nothing that Redis acknowledged can be lost through the setting's value, 0 if it can; none with the embedded store.",
                    ),
                    &["setting", "value"],
                ),
            ),
            coherence_lease_remaining: seconds_gauge(
                "coherence_lease_remaining_seconds",
                "How long this replica may go on trusting its cache without hearing from the store; +Inf with the embedded store.",
            ),
            revocation_propagation: time(
                "revocation_propagation_seconds",
                "From a revocation's commit to the last replica's confirmation.",
            ),
            tombstone_write_errors: counter(
                "tombstone_write_errors_total",
                "Times that revocations could not be written to this gateway's own disk; the store has them.",
            ),
            store_clock_leaps: counter(
                "store_clock_leaps_total",
                "Times that the store's clock leapt forward, so that uses left their windows too early.",
            ),
            rate_limit_decisions: counters("rate_limit_decisions_total", "Window decisions: allowed or limited.", &["outcome"]),
            rate_limit_reservations: counter("rate_limit_reservations_total", "Calls to the store for permits."),
            audit_records: counters("audit_records_total", "Audit records written, by action and outcome.", &["action", "outcome"]),
            audit_spool_bytes: gauge("audit_spool_bytes", "Bytes in the spool that are not shipped yet."),
            audit_spool_oldest: seconds_gauge("audit_spool_oldest_seconds", "Age of the oldest record that is not shipped yet."),
            audit_shipped: counter("audit_shipped_total", "Audit records taken by the store's log."),
            audit_dropped: counter(
                "audit_dropped_total",
                "Audit records lost. Always 0, unless the store was set back further than the spool's kept segments reach: then at most so many. Anything else is a defect.",
            ),
            config_reloads: counters("config_reloads_total", "Configuration reloads by result: success or failure.", &["result"]),
            config_last_reload: seconds_gauge(
                "config_last_reload_timestamp_seconds",
                "When the configuration in force was loaded, in seconds since 1970.",
            ),
            rejections: counters(
                "rejections_total",
                "Refused requests by true reason; invalid_key is told apart here and in the log only.",
                &["reason"],
            ),
            registry,
            process: Registry::new(),
        };
        metrics.register_build_info();
        for result in ["success", "failure"] {
            metrics.config_reloads.with_label_values(&[result]);
        }
        metrics
    }

    fn register_build_info(&self) {
        let info = register(&self.registry, IntGaugeVec::new(Opts::new("build_info", "1, with the version as a label."), &["version"]));
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // In a registry of its own, because its names (`process_cpu_seconds_total`, …) are the field's and take no prefix.
        self.process.register(Box::new(prometheus::process_collector::ProcessCollector::for_self())).expect("registered once");
    }

    /// The metrics of the route of this name.
    pub fn of_route(&self, route: &str) -> RouteMetrics {
        RouteMetrics {
            allowed: Default::default(),
            duration: self.request_duration.with_label_values(&[route]),
            requests: self.requests.clone(),
            route: route.into(),
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(32 * 1024);
        for registry in [&self.registry, &self.process] {
            TextEncoder::new().encode(&registry.gather(), &mut text).expect("writing to memory does not fail");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("names and labels are constants");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}
