//! Which server is the master, as a majority of the sentinels say.
//!
//! The sentinels are asked again and again, so that a master is left when another is named, or when so few sentinels can
//! be reached that another may have been named unheard: a gateway that was cut off together with an old master stops
//! using it. The library's own client believes whichever sentinel answers first, and takes no time limits for asking.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Client, RedisError};

use super::connector::Access;
use super::outage::explained;
use crate::clock;
use crate::config::{Sentinel, ServerAddress};
use crate::domain::BootInstant;
use crate::store::StoreError;

/// Between two rounds of questions: a few in each second, while sentinels take a second or more to see a master fail.
pub(super) const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// How long connecting to a sentinel and its answer may take.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long a majority's word is good, counted from before it was asked for.
const TRUST_MAX: Duration = Duration::from_secs(1);

/// All sentinels, and what a majority of them said last.
pub(super) struct Sentinels {
    nodes: Vec<Node>,
    master: String,
    asking: tokio::sync::Mutex<()>,
    agreed: Mutex<Option<(ServerAddress, BootInstant)>>,
}

struct Node {
    address: ServerAddress,
    connection: tokio::sync::Mutex<Option<MultiplexedConnection>>,
}

impl Sentinels {
    pub(super) fn new(config: &Sentinel) -> Self {
        let nodes = config.nodes.iter().map(|address| Node { address: address.clone(), connection: tokio::sync::Mutex::default() });
        Self { nodes: nodes.collect(), master: config.master.clone(), asking: tokio::sync::Mutex::default(), agreed: Mutex::default() }
    }

    /// Whether a majority named this server a short while ago.
    pub(super) fn name(&self, server: &ServerAddress) -> bool {
        let now = clock::boot_now();
        self.agreed.lock().as_ref().is_some_and(|(master, asked)| master == server && now.since(*asked) < TRUST_MAX)
    }

    /// The server that a majority names.
    pub(super) async fn ask(&self, access: &Access) -> Result<ServerAddress, StoreError> {
        let wanted = clock::boot_now();
        let _only_one_asks = self.asking.lock().await;
        if let Some((master, asked)) = &*self.agreed.lock()
            && *asked >= wanted
        {
            return Ok(master.clone());
        }
        let asked = clock::boot_now();
        let answers = join_all(self.nodes.iter().map(|node| node.ask(&self.master, access))).await;
        let counted = count(&self.master, answers);
        *self.agreed.lock() = counted.as_ref().ok().map(|master| (master.clone(), asked));
        counted.map_err(StoreError::Unavailable)
    }
}

/// The address that more than half of all name, whether or not they answered.
fn count(master: &str, answers: Vec<Result<ServerAddress, String>>) -> Result<ServerAddress, String> {
    let (all, mut votes, mut problems) = (answers.len(), HashMap::<ServerAddress, usize>::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(address) => *votes.entry(address).or_default() += 1,
            Err(problem) => problems.push(problem),
        }
    }
    let best = votes.into_iter().max_by_key(|(_, count)| *count);
    match best {
        Some((address, count)) if count * 2 > all => Ok(address),
        best => {
            let agree = best.map_or(0, |(_, count)| count);
            let why = problems.into_iter().next().map_or_else(String::new, |problem| format!("; {problem}"));
            Err(format!("{agree} of {all} sentinels agree on the master of {master:?}, more than half must{why}"))
        }
    }
}

impl Node {
    async fn ask(&self, master: &str, access: &Access) -> Result<ServerAddress, String> {
        let answered = tokio::time::timeout(ANSWER_MAX, async {
            let mut kept = self.connection.lock().await;
            let result = self.ask_on(&mut kept, master, access).await;
            if result.is_err() {
                *kept = None;
            }
            result
        });
        let told = |problem: String| format!("sentinel {}: {problem}", self.address.as_str());
        match answered.await {
            Ok(Ok(Some(parts))) => address_of(&parts).ok_or_else(|| told("the master's address is none".to_owned())),
            Ok(Ok(None)) => Err(told(format!("no master is named {master:?}"))),
            Ok(Err(error)) => Err(told(explained(&error))),
            Err(_) => Err(told("no answer in time".to_owned())),
        }
    }

    async fn ask_on(
        &self,
        kept: &mut Option<MultiplexedConnection>,
        master: &str,
        access: &Access,
    ) -> Result<Option<Vec<String>>, RedisError> {
        let mut connection = match kept {
            Some(connection) => connection.clone(),
            None => {
                let client: Client = access.sentinel(&self.address)?;
                let config =
                    redis::AsyncConnectionConfig::new().set_connection_timeout(Some(ANSWER_MAX)).set_response_timeout(Some(ANSWER_MAX));
                kept.insert(client.get_multiplexed_async_connection_with_config(&config).await?).clone()
            }
        };
        redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master).query_async(&mut connection).await
    }
}

fn address_of(parts: &[String]) -> Option<ServerAddress> {
    let [host, port] = parts else { return None };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    ServerAddress::parse(&format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_of_all_sentinels_names_a_master() {
        let one = || ServerAddress::parse("a:1").ok_or_else(String::new);
        let other = || ServerAddress::parse("b:1").ok_or_else(String::new);
        let away = || Err("away".to_owned());
        assert_eq!(count("m", vec![one(), away(), one()]), one());
        assert_eq!(count("m", vec![one()]), one());
        assert_eq!(count("m", vec![one(), other(), other()]), other());
        for undecided in [vec![one(), away(), away()], vec![one(), other()], vec![one(), other(), away()], vec![away()]] {
            assert!(count("m", undecided).is_err_and(|why| why.contains("sentinels agree on the master of \"m\"")));
        }
    }

    #[test]
    fn a_master_may_have_an_ipv6_address() {
        let parse = |host: &str, port: &str| address_of(&[host.to_owned(), port.to_owned()]).map(|address| address.as_str().to_owned());
        assert_eq!(parse("::1", "6379").as_deref(), Some("[::1]:6379"));
        assert_eq!(parse("10.0.0.1", "6379").as_deref(), Some("10.0.0.1:6379"));
        assert_eq!((parse("", "6379"), parse("h", "0")), (None, None));
    }
}
