//! Fuzzing of the header filter.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Version, header};

pub use super::http1::fuzzing::{answer, answer_chunks};

use super::body::DeclaredLength;
use super::headers::{Ours, for_client, for_upstream, retain_request_trailers, retain_response_trailers};
use crate::gateway::client_address::{ClientAddress, Transport};
use crate::gateway::target::squeezed;

/// Whatever a client or an upstream sends, nothing of one hop, no credential and no claim of ours crosses, `Content-Length` is
/// the gateway's, and filtering what was filtered changes nothing.
pub fn header_filter(data: &[u8]) {
    let fields = fields(data);
    let host = HeaderValue::from_static("localhost");
    let id = HeaderValue::from_static("0198f3a2-0000-7000-8000-000000000000");
    let assertion = (HeaderName::from_static("x-assure-jwt-assertion"), HeaderValue::from_static("ours"));
    let client = ClientAddress::find([192, 0, 2, 1].into(), Transport::Clear, &[], &fields);
    let length = DeclaredLength::Exact(5);
    let ours = Ours { host: &host, request_id: &id, assertion: &assertion, client: &client, received_as: Version::HTTP_11, length };

    let mut sent = HeaderMap::new();
    for_upstream(&fields, &ours, &mut sent);
    assert_eq!(all(&sent, &CONTENT_LENGTH), ["5"]);
    assert!(!sent.contains_key(HOST), "the connection writes it");
    assert_eq!(all(&sent, &assertion.0), ["ours"]);
    assert!(all(&sent, &header::FORWARDED).len() == 1 && all(&sent, &header::VIA).len() == 1);
    for name in sent.keys() {
        let plain = squeezed(name);
        assert!(plain == assertion.0.as_str() || !plain.starts_with("x-assure-"), "{name}");
        assert!(!is_of_one_hop(&plain) && !matches!(plain.as_ref(), "authorization" | "x-api-key"), "{name}");
    }
    let mut twice = HeaderMap::new();
    for_upstream(&sent, &ours, &mut twice);
    assert_eq!(twice, sent, "filtering twice changes something");

    let mut received = fields.clone();
    for_client(&mut received, Version::HTTP_11);
    for name in received.keys() {
        let plain = squeezed(name);
        assert!(!plain.starts_with("x-assure-") && (!is_of_one_hop(&plain) || plain == "proxy-authenticate"), "{name}");
    }

    for retain in [retain_request_trailers, retain_response_trailers] {
        let mut trailers = fields.clone();
        retain(&mut trailers);
        assert!(!trailers.contains_key(CONNECTION) && !trailers.contains_key(CONTENT_LENGTH) && !trailers.contains_key(HOST));
    }
}

/// One field for each line `NAME:VALUE` that http takes.
fn fields(data: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.get(1..).unwrap_or_default())) {
            fields.append(name, value);
        }
    }
    fields
}

fn is_of_one_hop(name: &str) -> bool {
    matches!(name, "connection" | "keep-alive" | "proxy-connection" | "proxy-authorization" | "transfer-encoding" | "upgrade" | "expect")
}

fn all<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    fields.get_all(name).iter().map(|value| value.to_str().expect("ours are plain")).collect()
}
