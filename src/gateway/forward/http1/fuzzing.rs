//! Fuzzing of the reader of upstreams' answers: no bytes make it panic, and how they come in pieces changes nothing.

use bytes::BytesMut;
use http::{HeaderMap, Method};

use super::decoder::{Decoded, Decoder, Framing};
use super::head;

/// What a reader made of an answer.
#[derive(PartialEq, Eq, Debug)]
enum Reading {
    Refused,
    Unfinished,
    Whole { heads: Vec<(u16, HeaderMap, bool)>, body: Vec<u8>, trailers: HeaderMap, left: Vec<u8> },
}

/// A whole answer: heads, of which the last counts, and a body. The first byte chooses the request's method.
pub fn answer(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let method = if first % 2 == 0 { Method::GET } else { Method::HEAD };
    same_in_pieces(data, |pieces| read_answer(pieces, &method));
}

/// A chunked body alone, so that the fuzzer need not find a head first.
pub fn answer_chunks(data: &[u8]) {
    same_in_pieces(data, |pieces| {
        let mut read = BytesMut::new();
        let mut decoder = Decoder::new(Framing::Chunked);
        let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
        for piece in pieces {
            read.extend_from_slice(piece);
            if !decode(&mut decoder, &mut read, &mut body, &mut trailers) {
                return Reading::Refused;
            }
        }
        if decoder.is_over() {
            assert!(body.len() + read.len() < data.len(), "a body is shorter than its chunks");
            return Reading::Whole { heads: Vec::new(), body, trailers, left: read.to_vec() };
        }
        Reading::Unfinished
    });
}

fn same_in_pieces(data: &[u8], reading: impl Fn(&mut dyn Iterator<Item = &[u8]>) -> Reading) {
    let whole = reading(&mut [data].into_iter());
    let step = data.len() / 32 + 1;
    for cut in (0..=data.len()).step_by(step) {
        let (first, second) = data.split_at(cut);
        let cut_in_two = reading(&mut [first, second].into_iter());
        assert_eq!(cut_in_two, whole, "cut behind {cut}");
    }
    if data.len() < 256 {
        assert_eq!(reading(&mut data.chunks(1)), whole, "byte by byte");
    }
}

fn read_answer(pieces: &mut dyn Iterator<Item = &[u8]>, method: &Method) -> Reading {
    let mut read = BytesMut::new();
    let mut heads = Vec::new();
    let mut decoder: Option<Decoder> = None;
    let (mut body, mut trailers) = (Vec::new(), HeaderMap::new());
    for piece in pieces {
        read.extend_from_slice(piece);
        while decoder.is_none() {
            match head::parse(&mut read, method) {
                Err(_) => return Reading::Refused,
                Ok(None) => break,
                Ok(Some(head)) => {
                    let status = head.response.status();
                    heads.push((status.as_u16(), head.response.headers().clone(), head.is_kept));
                    if !status.is_informational() || status == 101 {
                        decoder = Some(Decoder::new(head.framing));
                    }
                }
            }
        }
        if let Some(decoder) = &mut decoder
            && !decode(decoder, &mut read, &mut body, &mut trailers)
        {
            return Reading::Refused;
        }
    }
    match decoder {
        Some(decoder) if decoder.is_over() || decoder.ends_with_the_connection() => {
            Reading::Whole { heads, body, trailers, left: read.to_vec() }
        }
        _ => Reading::Unfinished,
    }
}

/// Takes all that is there; says whether it is right so far.
fn decode(decoder: &mut Decoder, read: &mut BytesMut, body: &mut Vec<u8>, trailers: &mut HeaderMap) -> bool {
    loop {
        match decoder.decode(read) {
            Err(_) => return false,
            Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
            Ok(Decoded::Trailers(came)) => *trailers = came,
            Ok(Decoded::End | Decoded::NeedsMore) => return true,
        }
    }
}
