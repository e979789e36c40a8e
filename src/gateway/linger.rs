//! After an early refusal over HTTP/2, takes what the client is still sending and throws it away.
//!
//! A stream that is reset while its client uploads loses the answer in many clients (curl, httpx), although RFC 9113
//! section 8.1 asks them to keep it. So the rest is read for a while; what comes after that is reset. On HTTP/1 the edge
//! does the same for the whole connection.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Longest time that is spent on the rest of one body.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest pause between two pieces of it.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most bytes of it: several times the largest body that is ever accepted, and no more.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads and forgets, within bounds.
pub(super) async fn discard(mut body: Incoming) {
    let mut left = BYTES_MAX;
    let reading = async {
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE_MAX, body.frame()).await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // Whether it ended by itself makes no difference: the body is dropped, and with it the stream.
    let _ = tokio::time::timeout(TIME_MAX, reading).await;
}
