//! Fuzzing of what looks at a request's bytes before hyper does.

use super::chunk_scan::ChunkScan;
use super::head_scan::HeadScan;

/// How a scan ended, how many bytes belonged to the message, and what it made of them.
type Seen = (bool, Option<usize>, Vec<u8>);

/// A head is judged the same however it comes in pieces; what httparse then takes for a head ends where the scan says.
pub fn request_head(data: &[u8]) {
    let scan = |pieces: [&[u8]; 2]| -> Seen {
        let mut scan = HeadScan::default();
        let (end, bytes) = in_pieces(pieces, |piece| scan.scan(piece));
        (scan.is_spoilt(), end, bytes)
    };
    let whole = scan([data, &[]]);
    cuts(data).for_each(|cut| assert_eq!(scan([cut.0, cut.1]), whole, "cut behind {}", cut.0.len()));
    let (is_spoilt, end, bytes) = whole;
    let mut fields = [httparse::EMPTY_HEADER; 100];
    if let (false, Ok(httparse::Status::Complete(length))) = (is_spoilt, httparse::Request::new(&mut fields).parse(&bytes)) {
        assert_eq!(end, Some(length), "two ends of one head");
        let head = bytes.get(..length).unwrap_or_default();
        let bare = head.windows(2).filter(|pair| pair.ends_with(b"\n") && !pair.starts_with(b"\r")).count();
        assert_eq!(bare, 0, "a bare line feed");
    }
}

/// A chunked body ends at the same byte however it comes in pieces, and only there.
pub fn request_chunks(data: &[u8]) {
    let scan = |pieces: [&[u8]; 2]| {
        let mut scan = ChunkScan::new();
        in_pieces(pieces, |piece| scan.scan(piece))
    };
    let whole = scan([data, &[]]);
    cuts(data).for_each(|cut| assert_eq!(scan([cut.0, cut.1]), whole, "cut behind {}", cut.0.len()));
    if let Some(end) = whole.0 {
        let body = data.get(..end).expect("the end lies within the bytes");
        assert_eq!(scan([body, &[]]).0, Some(end), "what follows changes nothing");
        assert!(body.ends_with(b"\r\n"));
    }
}

/// Scans two pieces; answers where the message ended, and the bytes as hyper would get them.
fn in_pieces(pieces: [&[u8]; 2], mut scan: impl FnMut(&mut [u8]) -> Option<usize>) -> (Option<usize>, Vec<u8>) {
    let mut bytes = Vec::new();
    for piece in pieces {
        let begin = bytes.len();
        bytes.extend_from_slice(piece);
        if let Some(end) = scan(bytes.get_mut(begin..).unwrap_or_default()) {
            bytes.truncate(begin + end);
            return (Some(begin + end), bytes);
        }
    }
    (None, bytes)
}

/// Every way to cut short bytes in two, and some for long ones.
fn cuts(data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let step = data.len() / 64 + 1;
    (0..=data.len()).step_by(step).map(|at| data.split_at(at))
}
