//! The fuzzer's entry: hands its input to the target that `ASSURE_FUZZ_TARGET` names.
//!
//! One program for all targets, because linking the gateway takes longer than a short run. What is private to the gateway is
//! asserted beside it, see its `src/fuzzing.rs`; what anyone can call is asserted here.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use assure_gateway::config::{self, ByteCount};
use assure_gateway::domain::KeyNamespace;
use assure_gateway::fuzzing;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

/// Every target, by the name of its corpus. `run` reads this list.
const TARGETS: [(&str, fn(&[u8])); 12] = [
    ("key", key),
    ("configuration", configuration),
    ("target", fuzzing::target),
    ("header_filter", fuzzing::header_filter),
    ("request_head", fuzzing::request_head),
    ("request_chunks", fuzzing::request_chunks),
    ("answer", fuzzing::answer),
    ("answer_chunks", fuzzing::answer_chunks),
    ("spool", fuzzing::spool),
    ("token", fuzzing::token),
    ("jwks", fuzzing::jwks),
    ("cursor", fuzzing::cursor),
];

static CHOSEN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("ASSURE_FUZZ_TARGET").expect("ASSURE_FUZZ_TARGET names a target");
    TARGETS.iter().find(|(name, _)| *name == wanted).expect("a target of this name").1
});

fuzz_target!(|data: &[u8]| CHOSEN(data));

/// What is taken for a key has the one form, its own digest, and a checksum that notices every other character.
fn key(data: &[u8]) {
    let namespace = KeyNamespace::parse("assure").expect("a good prefix");
    // No fuzzer finds a checksum, so 43 characters are given theirs.
    let completed = data.first_chunk::<43>().map(|signed| with_checksum(signed));
    for text in [Some(data), completed.as_deref()].into_iter().flatten() {
        let Some(parsed) = namespace.parse_key(text) else { continue };
        assert!(text.len() == 49 && text.starts_with(b"assure_") && text[7..].iter().all(u8::is_ascii_alphanumeric));
        assert_eq!(parsed.digest.as_bytes(), &<[u8; 32]>::from(Sha256::digest(text)));
        assert_eq!(parsed.tag.as_str().as_bytes(), &text[7..11]);
        assert!(KeyNamespace::parse("other").expect("a good prefix").parse_key(text).is_none());
        for place in 0..text.len() {
            let mut altered = text.to_vec();
            altered[place] = if altered[place] == b'0' { b'1' } else { b'0' };
            assert!(namespace.parse_key(&altered).is_none(), "a typing error at {place}");
        }
    }
}

/// CRC-32 (IEEE) bit by bit, and base62, written a second time.
fn with_checksum(signed: &[u8]) -> Vec<u8> {
    let crc = !signed.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let checksum = (0..6).rev().map(|place| digits[(crc / 62_u32.pow(place) % 62) as usize]);
    signed.iter().copied().chain(checksum).collect()
}

/// A configuration is read the same twice, every mistake has a line that exists, and what is accepted can be warned about.
/// A size alone is what a second reader makes of it, never wraps, and is written in a form that reads back.
fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(size) = text.parse::<ByteCount>() {
        assert_eq!(size_again(text), Some(u128::from(size.0)));
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    // Files and variables of this machine are not the fuzzer's to read.
    if text.contains("${") {
        return;
    }
    let name = Path::new("fuzz.yaml");
    let (first, second) = (config::parse(name, text), config::parse(name, text));
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first, second);
            config::warnings(&first);
        }
        (Err(first), Err(second)) => assert_eq!(first.to_string(), second.to_string()),
        _ => panic!("read in two ways"),
    }
}

/// A size, with room for what 64 bits do not hold.
fn size_again(text: &str) -> Option<u128> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let (base, power) = match unit.as_bytes() {
        [] => (1, 0),
        [letter, b'i', b'B'] => (1024_u128, b"KMGT".iter().position(|known| known == letter)? + 1),
        [letter, b'B'] => (1000, b"KMGT".iter().position(|known| known == letter)? + 1),
        _ => return None,
    };
    Some(number.parse::<u128>().ok()? * base.pow(u32::try_from(power).ok()?))
}
