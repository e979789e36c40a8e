//! HPACK that cannot be decoded: RFC 7541.

use super::Verdict::ConnectionError;
use super::{Case, Words, case, headers};
use crate::support::frames::{COMPRESSION_ERROR, END_STREAM};

pub(super) fn cases(words: &Words) -> Vec<Case> {
    let get = words.get();
    let behind = |bytes: &[u8]| [&get, bytes].concat();
    let rows: [(&'static str, &'static str, Vec<u8>); 8] = [
        ("hpack/2.3.3/1", "a field of an index beyond both tables", behind(b"\xfe")),
        ("hpack/2.3.3/2", "a name of an index beyond both tables", behind(b"\x7f\x3f\x04test")),
        ("hpack/4.2/1", "a size update at the block's end", behind(b"\x21")),
        ("hpack/5.2/1", "Huffman padding of more than 7 bits", behind(b"\0\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff")),
        ("hpack/5.2/2", "Huffman padding of zeros", behind(b"\0\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90")),
        ("hpack/5.2/3", "the symbol EOS in a Huffman string", behind(b"\0\x85\xf2\xb2\x4a\x87\xff\xff\xff\xfd\x25\x42\x7f")),
        ("hpack/6.1/1", "a field of index 0", behind(b"\x80")),
        ("hpack/6.3/1", "a size update over the setting", [&b"\x3f\xe2\x1f"[..], &get].concat()),
    ];
    rows.into_iter()
        .map(|(id, what, block)| case(id, what, vec![headers(1, END_STREAM, &block)], ConnectionError(&[COMPRESSION_ERROR])))
        .collect()
}
