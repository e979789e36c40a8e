//! Fuzzing of the target's reader: what routes are matched on is what is forwarded.

use http::{HeaderValue, Method, Request, Uri, header};

use super::target::check;

/// A target that is accepted has one reading: reading what would be forwarded gives the same target again, and none of its
/// decoded segments is one that an upstream could take for something else.
pub fn target(data: &[u8]) {
    let (host, target) = data
        .iter()
        .position(|byte| *byte == b' ')
        .map_or((&b"localhost"[..], data), |cut| (data.get(..cut).unwrap_or_default(), data.get(cut + 1..).unwrap_or_default()));
    let (Ok(uri), Ok(host)) = (Uri::try_from(target), HeaderValue::from_bytes(host)) else { return };
    let Some(first) = accepted(uri, host) else { return };
    let forwarded = first.path_and_query();
    let again = accepted(Uri::from(forwarded.clone()), first.authority().clone()).expect("what is forwarded is accepted");
    assert_eq!(again.path_and_query(), forwarded, "what is forwarded is the last word");
    assert_eq!((again.path(), again.host(), again.authority()), (first.path(), first.host(), first.authority()));
    assert!(first.path().starts_with('/'));
    let path = forwarded.path();
    let encoded = path.strip_prefix('/').expect("it begins with a slash").split('/');
    for (segment, forwarded) in first.segments().zip(encoded) {
        let text = segment.text;
        assert!(!text.is_empty() && !text.contains(['/', '\\', '\0']) && !text.chars().any(char::is_control), "{text:?}");
        let bare = text.split(';').next().unwrap_or_default();
        assert!(bare != "." && bare != "..", "{text:?}");
        assert!(text.len() <= forwarded.len(), "segments stand in the same order");
    }
    for prefix in path.match_indices('/').map(|(place, _)| path.split_at(place).0) {
        let shorter = Uri::from(first.without_prefix(prefix));
        accepted(shorter, first.authority().clone()).expect("what is left without a prefix is accepted");
    }
}

fn accepted(uri: Uri, host: HeaderValue) -> Option<super::target::Target> {
    let request = Request::builder().method(Method::GET).uri(uri).header(header::HOST, host).body(()).ok()?;
    check(&request.into_parts().0).ok()
}
