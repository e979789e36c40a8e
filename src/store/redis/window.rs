//! Permits (protocol 2): the arithmetic is the script's, here are its arguments and its answer.

use std::time::Duration;

use super::keys::{number, words};
use super::schema;
use super::{RedisStore, corrupt};
use crate::domain::window::{GRANT_LIFE, GRANT_SHARE, GrantId, WINDOW};
use crate::store::{PermitRequest, Permits, StoreError};

pub(super) async fn permits(store: &RedisStore, request: PermitRequest) -> Result<Permits, StoreError> {
    let keys = ["window", "grants"].map(|what| schema::of_key(what, request.key));
    let answer: Vec<String> = store.connections.hot().call(&schema::PERMITS, &keys, &arguments(&request)).await?;
    match &*words(&answer) {
        ["granted", id, count, remaining, reset] => Ok(Permits::Granted {
            id: GrantId(number(id)?),
            count: small(count)?,
            remaining: small(remaining)?,
            reset: Duration::from_micros(number(reset)?),
        }),
        ["full", retry_after] => Ok(Permits::Full { retry_after: Duration::from_micros(number(retry_after)?) }),
        _ => Err(corrupt("permits have an unknown answer")),
    }
}

fn arguments(request: &PermitRequest) -> Vec<String> {
    let mut arguments = vec![
        request.limit.to_string(),
        request.want.to_string(),
        GRANT_SHARE.to_string(),
        WINDOW.as_micros().to_string(),
        GRANT_LIFE.as_micros().to_string(),
    ];
    for report in &request.reports {
        arguments.extend([report.id.0.to_string(), report.uses.len().to_string()]);
        // Rounded up: a use may count for longer, never for less.
        arguments.extend(report.uses.iter().map(|offset| offset.as_nanos().div_ceil(1_000).to_string()));
    }
    arguments
}

fn small(text: &str) -> Result<u32, StoreError> {
    text.parse().map_err(|_| corrupt("a count is none"))
}
