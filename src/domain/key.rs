//! An API key: its text, its digest, its record.
//!
//! ```text
//!   assure _ Ab3d  k9…32 characters…Qz  0aB1cD
//!   │        │     │                    └ CRC-32 (IEEE) of all before it, base62, most significant first
//!   │        │     └ secret: 32 random base62 characters, 190 bits
//!   │        └ firm tag: from a hash of the firm id; says which partition holds the key, nothing else
//!   └ namespace: `keys.prefix`; with `assure` a key has 49 characters
//! ```
//!
//! Stored are the SHA-256 of the whole text and its first 15 characters (K2, K3). The checksum is for typing
//! errors and secret scanners, not for security: it spares the store a look-up for garbage.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{FirmId, FrozenPermissions, Timestamp, UserId};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const TAG_CHARS: usize = 4;
const SECRET_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 6;
const DISPLAY_CHARS: usize = 15;
/// From so many letters and digits behind the namespace on, a text is hidden as a key or the better part of one.
const KEY_LIKE_CHARS: usize = 24;
/// Longest `keys.prefix`, in characters.
pub const NAMESPACE_CHARS_MAX: usize = 16;
/// Longest key name, in characters (contract, `POST /v1/keys`).
pub const NAME_CHARS_MAX: usize = 100;

/// What stands before the underscore of every key: `keys.prefix`, `assure` by default.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyNamespace(Box<str>);

impl KeyNamespace {
    /// Accepts 1 to 16 lower-case letters and digits, beginning with a letter; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let is_word = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let starts_well = text.starts_with(|first: char| first.is_ascii_lowercase());
        (is_word && starts_well && text.len() <= NAMESPACE_CHARS_MAX).then(|| Self(text.into()))
    }

    /// The text before the underscore.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the form and the checksum of a presented key and digests it; `None` for anything that no
    /// gateway with this namespace can have issued. Costs no look-up, and no hash for a wrong length.
    pub fn parse_key(&self, presented: &[u8]) -> Option<ParsedKey> {
        let body = presented.strip_prefix(self.0.as_bytes())?.strip_prefix(b"_")?;
        if body.len() != TAG_CHARS + SECRET_CHARS + CHECKSUM_CHARS || !body.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        let (signed, checksum) = presented.split_at_checked(presented.len() - CHECKSUM_CHARS)?;
        if checksum != base62_fixed::<CHECKSUM_CHARS>(u64::from(crc32fast::hash(signed))) {
            return None;
        }
        let tag = body.first_chunk::<TAG_CHARS>().copied()?;
        Some(ParsedKey { digest: KeyDigest::of(presented), tag: FirmTag(tag) })
    }

    /// `text` with all but the display prefix of each key starred out: for what callers write where it is kept, such as a
    /// path, a User-Agent or a reason. A key with a typing error, or cut short, is nearly a key and is hidden too.
    pub fn hide_keys<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut hidden = Cow::Borrowed(text);
        for underscore in memchr::memchr_iter(b'_', text.as_bytes()) {
            let (before, after) = (text.get(..underscore).unwrap_or_default(), text.get(underscore + 1..).unwrap_or_default());
            let length = after.bytes().take_while(u8::is_ascii_alphanumeric).count();
            if length >= KEY_LIKE_CHARS && before.ends_with(self.as_str()) {
                let shown = underscore + 1 + DISPLAY_CHARS.saturating_sub(self.0.len() + 1);
                let end = underscore + 1 + length;
                hidden.to_mut().replace_range(shown..end, &"*".repeat(end - shown));
            }
        }
        hidden
    }

    /// Whether `text` holds a key, or most of one.
    pub fn is_in(&self, text: &str) -> bool {
        matches!(self.hide_keys(text), Cow::Owned(_))
    }
}

/// A presented key that is well-formed: what of it is needed to find it, and nothing of the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParsedKey {
    /// SHA-256 of the whole text.
    pub digest: KeyDigest,
    /// The partition hint.
    pub tag: FirmTag,
}

/// The whole text of a new key. It exists between its creation and the one answer that carries it (K2).
pub struct KeySecret(Zeroizing<String>);

impl KeySecret {
    /// Draws a new key for `firm` from the operating system's generator.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes: no key is better than a guessable one.
    pub fn generate(namespace: &KeyNamespace, firm: &FirmId) -> Self {
        let mut text = Zeroizing::new(String::with_capacity(NAMESPACE_CHARS_MAX + 48));
        text.push_str(namespace.as_str());
        text.push('_');
        text.push_str(FirmTag::of(firm).as_str());
        push_random_base62(&mut text);
        let checksum = base62_fixed::<CHECKSUM_CHARS>(u64::from(crc32fast::hash(text.as_bytes())));
        text.extend(checksum.map(char::from));
        Self(text)
    }

    /// The text, for the one answer that shows it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the store keeps of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(self.0.as_bytes())
    }

    /// The first 15 characters, for lists (K3).
    pub fn display_prefix(&self) -> String {
        self.0.chars().take(DISPLAY_CHARS).collect()
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("KeySecret(hidden)")
    }
}

/// Appends 32 characters, each drawn uniformly: bytes of 248 and above are thrown away, so that the
/// remainder modulo 62 favours none.
fn push_random_base62(text: &mut String) {
    let random = SystemRandom::new();
    let mut drawn = Zeroizing::new([0_u8; 64]);
    let mut missing = SECRET_CHARS;
    while missing > 0 {
        random.fill(drawn.as_mut()).expect("the operating system supplies random bytes");
        for byte in drawn.iter().copied().filter(|byte| *byte < 248).take(missing) {
            text.push(char::from(base62_digit(u64::from(byte))));
            missing -= 1;
        }
    }
}

fn base62_digit(value: u64) -> u8 {
    let place = usize::try_from(value % 62).expect("a remainder of 62 fits");
    BASE62.get(place).copied().expect("a remainder of 62 is a digit")
}

/// `value` modulo 62^N as N base62 digits, most significant first.
fn base62_fixed<const N: usize>(mut value: u64) -> [u8; N] {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit = base62_digit(value);
        value /= 62;
    }
    digits
}

/// Four characters from a hash of the firm id: where a firm's keys are kept, without saying which firm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FirmTag([u8; TAG_CHARS]);

impl FirmTag {
    /// The tag of a firm.
    pub fn of(firm: &FirmId) -> Self {
        let hash = Sha256::digest(firm.as_str().as_bytes());
        let number = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Self(base62_fixed(number))
    }

    /// The four characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base62 digits are ASCII")
    }
}

/// SHA-256 of a whole key: the name under which caches and stores know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    fn of(text: &[u8]) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Takes back a digest that a store kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits in lower case.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to memory does not fail");
            text
        })
    }

    /// The digest that such digits spell, if they are 64.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * place..2 * place + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for KeyDigest {
    /// The first four bytes: enough to follow a key through a debug log, useless for anything else.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("digest:")?;
        self.0.iter().take(4).try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// A key's public name: a UUIDv7, chosen by the creating gateway, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct KeyId(Uuid);

impl KeyId {
    /// Names a key by a UUID that the caller made.
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID itself.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(out)
    }
}

impl FromStr for KeyId {
    type Err = uuid::Error;

    /// Accepts the hyphenated form only, so that one key has one name.
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse_ascii(text.as_bytes())
            .and_then(|uuid| if text.len() == 36 { Ok(uuid) } else { Uuid::try_parse("not hyphenated") })
            .map(Self)
    }
}

/// What people call a key: 1 to 100 characters, no control characters, trimmed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct KeyName(Box<str>);

/// Why a text cannot be a key's name; the texts are shown to the person who typed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyNameError {
    /// Nothing but white space.
    #[error("the name is empty; use something you will recognise later, like “MCP server”")]
    Empty,
    /// Over 100 characters.
    #[error("the name is longer than 100 characters")]
    TooLong,
    /// A control character, or one that changes the direction of the text around it.
    #[error("the name contains a control character")]
    Control,
    /// What everybody in the firm may read.
    #[error("the name contains an API key, and a name is shown to everybody in the firm")]
    Secret,
}

impl KeyName {
    /// Trims white space and checks length and characters.
    pub fn parse(text: &str) -> Result<Self, KeyNameError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(KeyNameError::Empty);
        }
        if text.chars().any(is_control) {
            return Err(KeyNameError::Control);
        }
        if text.chars().count() > NAME_CHARS_MAX {
            return Err(KeyNameError::TooLong);
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Control characters, and the marks that override the direction of text or are invisible line breaks
/// (Unicode UAX #9; "Trojan Source", CVE-2021-42574): a name must look the same wherever it is shown.
fn is_control(character: char) -> bool {
    character.is_control() || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl<'de> serde::Deserialize<'de> for KeyName {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(input)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// What the store says about a key. Immutable but for its revocation (K5); never deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRecord {
    /// The public name.
    pub id: KeyId,
    /// The digest it is found by.
    pub digest: KeyDigest,
    /// What people call it.
    pub name: KeyName,
    /// The first 15 characters.
    pub prefix: Box<str>,
    /// The firm it acts for.
    pub firm_id: FirmId,
    /// Who created it.
    pub creator: UserId,
    /// How the creator's token named them, for lists.
    pub creator_name: Option<Box<str>>,
    /// What the creator could do at that moment.
    pub permissions: FrozenPermissions,
    /// When it was created, by the store's clock.
    pub created_at: Timestamp,
    /// Live, or revoked and by whom.
    pub state: KeyState,
}

/// Whether a key can still be used. Revocation is final.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyState {
    /// Usable.
    Live,
    /// Refused for ever.
    Revoked {
        /// When, by the store's clock.
        at: Timestamp,
        /// By whom.
        by: UserId,
        /// What they gave as the reason; may be empty.
        reason: Box<str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn namespace() -> KeyNamespace {
        KeyNamespace::parse("assure").expect("a good namespace")
    }

    #[test]
    fn a_generated_key_has_49_characters_and_parses_to_its_own_digest_and_tag() {
        let firm = FirmId::parse("firm-1").expect("a good id");
        let secret = KeySecret::generate(&namespace(), &firm);
        assert_eq!(secret.reveal().len(), 49);
        let parsed = namespace().parse_key(secret.reveal().as_bytes()).expect("well-formed");
        assert!(parsed.digest == secret.digest() && parsed.tag == FirmTag::of(&firm));
        assert_eq!(secret.display_prefix(), secret.reveal()[..15]);
        assert_eq!(format!("{secret:?}"), "KeySecret(hidden)");
    }

    #[test]
    fn names_are_trimmed_bounded_and_free_of_control_characters() {
        assert_eq!(KeyName::parse("  MCP server ").map(|name| name.as_str().to_owned()), Ok("MCP server".into()));
        assert_eq!(KeyName::parse(" \t"), Err(KeyNameError::Empty));
        assert_eq!(KeyName::parse("a\u{0}b"), Err(KeyNameError::Control));
        assert_eq!(KeyName::parse("a\u{202e}b"), Err(KeyNameError::Control));
        assert_eq!(KeyName::parse(&"é".repeat(101)), Err(KeyNameError::TooLong));
        assert!(KeyName::parse(&"é".repeat(100)).is_ok());
    }

    #[test]
    fn keys_are_hidden_wherever_they_stand_and_nothing_else_is() {
        let firm = FirmId::parse("firm-1").expect("a good id");
        let secret = KeySecret::generate(&namespace(), &firm);
        let (key, shown) = (secret.reveal(), format!("{}{}", secret.display_prefix(), "*".repeat(34)));
        for around in ["{}", "/v1/{}/x", "a_{}_b", "é{}é", "{} and {}", "x{}", "\u{1f511}_{}"] {
            let hidden = namespace().hide_keys(&around.replace("{}", key)).into_owned();
            assert_eq!(hidden, around.replace("{}", &shown));
            assert!(namespace().is_in(&around.replace("{}", key)));
        }
        // Cut short, it is still most of a key.
        assert_eq!(namespace().hide_keys(&key[..40]), format!("{}{}", secret.display_prefix(), "*".repeat(25)));
        for text in ["", "_", "assure_", "/assure_reports/2026", "assured_x", &key[..15], &key.replace('_', "-"), &key[7..]] {
            assert!(matches!(namespace().hide_keys(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        let long = KeyNamespace::parse("a234567890123456").expect("a good namespace");
        let key = KeySecret::generate(&long, &firm);
        assert_eq!(long.hide_keys(key.reveal()), format!("a234567890123456_{}", "*".repeat(42)));
    }

    #[test]
    fn a_key_id_has_one_spelling() {
        let id = KeyId::new(Uuid::from_u128(7));
        assert_eq!(id.to_string().parse::<KeyId>().ok(), Some(id));
        assert!(id.uuid().simple().to_string().parse::<KeyId>().is_err());
        assert!("x".parse::<KeyId>().is_err());
    }

    proptest! {
        #[test]
        fn one_changed_character_is_always_noticed(place in 0_usize..49, replacement in 0_usize..62) {
            let firm = FirmId::parse("firm-1").expect("a good id");
            let secret = KeySecret::generate(&namespace(), &firm);
            let mut bytes = secret.reveal().as_bytes().to_vec();
            prop_assume!(bytes[place] != BASE62[replacement]);
            bytes[place] = BASE62[replacement];
            prop_assert!(namespace().parse_key(&bytes).is_none());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(namespace().parse_key(&bytes).is_none());
        }
    }

    #[test]
    fn a_digest_reads_back_from_hex_and_garbage_does_not() {
        let known = KeyDigest::from_bytes([0xa5; 32]);
        assert_eq!(KeyDigest::from_hex(&known.hex()), Some(known));
        for garbage in ["a5".to_owned(), "+a".repeat(32), "é".repeat(32)] {
            assert_eq!(KeyDigest::from_hex(&garbage), None, "{garbage:?}");
        }
    }
}
