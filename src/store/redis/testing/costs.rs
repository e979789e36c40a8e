//! What shipping costs, for whoever changes it: `cargo test --release --lib costs -- --ignored --nocapture`.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Server, ask};
use crate::clock;
use crate::domain::{AuditRecord, FirmId, KeyId, WrittenRecord};
use crate::store::{AuditBatch, Store};

/// Keys that are used in turn, at 40,000 requests a second.
const KEYS: u64 = 64;
const PAUSE: Duration = Duration::from_micros(25);

fn records(first: u64, count: u64, firms: u64) -> Vec<WrittenRecord> {
    (first..first + count)
        .map(|sequence| {
            let mut record = AuditRecord::example(0);
            record.event_id = clock::fresh_uuid();
            record.request_id = Some(clock::fresh_uuid().to_string());
            record.time = clock::wall_now().minus(Duration::from_secs(60)).plus(PAUSE * u32::try_from(sequence).unwrap());
            record.key_id = KeyId::new(Uuid::from_u128(u128::from(1 + sequence % KEYS)));
            record.actor = record.key_id.to_string();
            record.firm_id = FirmId::parse(&format!("firm-{}", sequence % KEYS % firms)).unwrap();
            record.sequence = NonZeroU64::new(sequence);
            WrittenRecord::from(record)
        })
        .collect()
}

/// Processor time of a Redis's main thread, in seconds.
fn processor(server: &Server) -> f64 {
    let told = ask(server.port, &["INFO", "cpu"]);
    let fields = told.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.ends_with("_main_thread"));
    fields.map(|(_, seconds)| seconds.trim().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
#[ignore = "measures, and asserts nothing"]
async fn shipping_costs() {
    for (batch, firms) in [(64, 1), (64, 64), (512, 1), (512, 64), (2048, 1), (2048, 64)] {
        let server = Server::with("--appendonly yes --appendfsync everysec --auto-aof-rewrite-percentage 0");
        let store = server.open().await.unwrap();
        let rounds = 32_768 / batch;
        let batches: Vec<_> = (0..rounds).map(|round| records(1 + round * batch, batch, firms)).collect();
        let (before, began, mut ours) = (processor(&server), Instant::now(), 0.0);
        for records in batches {
            let batch = AuditBatch { spool: Uuid::from_u128(7), records, lost_up_to: None, age_max: Some(Duration::from_secs(3_600)) };
            let turn = own_time();
            store.ship(batch).await.unwrap();
            ours += own_time() - turn;
        }
        let count = (rounds * batch) as f64;
        let (redis, wall) = (processor(&server) - before, began.elapsed().as_secs_f64());
        let [redis, ours, wall] = [redis, ours, wall].map(|seconds| seconds * 1e6 / count);
        println!("{batch:5} records, {firms:2} firms: Redis {redis:5.2} µs, this process {ours:5.2} µs, wall {wall:5.2} µs per record");
        for line in ask(server.port, &["INFO", "commandstats"]).lines() {
            if let Some((name, rest)) = line.trim().split_once(":calls=") {
                println!("      {name} {rest}");
            }
        }
    }
}

/// Processor time of this thread, in seconds.
fn own_time() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
