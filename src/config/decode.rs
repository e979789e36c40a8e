//! From the tree of a text to the typed configuration, with every mistake and not only the first.
//!
//! Serde stops at the first error. So the tree is read again and again: the value that was refused is told and taken
//! out, until the rest is good; a missing field is told and then pretended. Each pass changes the tree, so it ends.
//! Errors carry the spot where they arose. No sentence repeats a value, since it may have come from a secret file.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::{Deserialize, forward_to_deserialize_any};

use super::Config;
use super::document::{Child, Node, Spot};
use super::mistakes::{Finding, suggestion};
use super::position::Part;

/// What would be right where serde's own words would not say it.
const WANTED: [(&str, &str); 27] = [
    ("edge.listen", "an address like 127.0.0.1:8080, or a list of them"),
    ("admin.listen", "an address like 127.0.0.1:8081, or a list of them"),
    ("ops.listen", "an address like 127.0.0.1:9090, or a list of them"),
    ("edge.tls", "{ certificate: FILE, private_key: FILE }"),
    ("admin.tls", "{ certificate: FILE, private_key: FILE }"),
    ("edge.trusted_proxies", "a list of networks like [10.0.0.0/8, 127.0.0.1/32]"),
    ("edge.trusted_proxies[]", "a network like 10.0.0.0/8 or 127.0.0.1/32"),
    ("admin.frame_ancestors", "a list of origins like [https://app.example.com]"),
    ("admin.auth.issuers", "a list of { issuer: ..., audience: ..., jwks: ... }"),
    ("admin.auth.issuers[]", "{ issuer: ..., audience: ..., jwks: ... }"),
    ("admin.auth.issuers[].jwks", "{ file: PATH } or { url: https://... }"),
    ("assertion.signing_keys", "a list like [{ file: signing-2026.pem }]"),
    ("assertion.signing_keys[]", "{ file: PATH }"),
    ("store.embedded", "{ path: FOLDER }"),
    ("store.redis", "{ url: redis://HOST:6379 }"),
    ("store.redis.sentinel", "{ nodes: [HOST:26379], master: NAME }"),
    ("store.redis.cluster", "{ nodes: [HOST:6379] }"),
    ("store.redis.client_certificate", "{ certificate: FILE, private_key: FILE }"),
    ("audit.spool", "{ path: FOLDER, size_max: 1GiB, sync: 1s }"),
    ("upstreams", "upstreams by name, like ledger: { endpoints: [http://127.0.0.1:9000] }"),
    ("upstreams.*", "{ endpoints: [http://127.0.0.1:9000] }"),
    ("upstreams.*.endpoints", "a list like [http://127.0.0.1:9000]"),
    ("upstreams.*.timeout", "{ connect: 1s, response_header: 30s, idle: 60s }"),
    ("upstreams.*.health", "{ path: /healthz, interval: 5s }"),
    ("routes", "a list of routes like - { path: /v1/**, upstream: ledger }"),
    ("routes[]", "a route like { path: /v1/**, upstream: ledger }"),
    ("routes[].methods", "a list like [GET, HEAD]"),
];

/// Reads the tree; what is wrong goes to `findings`, and its field has its default in the result.
pub(super) fn decode(root: &mut Node, findings: &mut Vec<Finding>) -> Config {
    loop {
        let refusal = match Config::deserialize(Reader { node: root, spot: Spot::default() }) {
            Ok(config) => return config,
            Err(refusal) => refusal,
        };
        let spot = refusal.spot.clone().unwrap_or_default();
        match refusal.reason {
            Reason::Missing(field) => {
                let missing = spot.missing(field);
                // A field that was refused and taken out is missing only because of that.
                if !findings.iter().any(|known| missing.contains(&known.spot)) {
                    let wanted = wanted(&missing).map(|wanted| format!("; write {field}: {wanted}")).unwrap_or_default();
                    findings.push(Finding { spot: missing, part: Part::Key, problem: format!("`{field}` is missing here{wanted}") });
                }
                match root.at_mut(&spot) {
                    Some(Node::Mapping(children)) => {
                        children.push(Child { ordinal: None, key: field.to_owned(), node: Node::Pretended });
                    }
                    Some(nothing @ Node::Null) => {
                        *nothing = Node::Mapping(vec![Child { ordinal: None, key: field.to_owned(), node: Node::Pretended }]);
                    }
                    _ => root.prune(&spot),
                }
            }
            _ if root.at_mut(&spot) == Some(&mut Node::Pretended) => root.prune(&spot.parent()),
            // What lies within was refused and taken out; that the rest is not enough is only a consequence.
            Reason::NoVariant { .. } if findings.iter().any(|known| spot.contains(&known.spot)) => root.prune(&spot),
            reason => {
                let (part, problem) = reason.tell(&spot);
                findings.push(Finding { spot: spot.clone(), part, problem });
                root.prune(&spot);
            }
        }
    }
}

fn wanted(spot: &Spot) -> Option<&'static str> {
    let pattern = spot.pattern();
    WANTED.iter().find(|(known, _)| *known == pattern).map(|(_, wanted)| *wanted)
}

/// Why a value was refused, and where.
#[derive(Debug)]
struct Refusal {
    spot: Option<Spot>,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    /// A type's own sentence.
    Told(String),
    /// Serde's words: what was expected, and the kind of what was found.
    Type { expected: String, found: &'static str },
    /// A field that does not exist, and those that do.
    Unknown { field: String, known: &'static [&'static str] },
    /// A word that is none of these.
    NoVariant { known: &'static [&'static str] },
    /// A field that must be there.
    Missing(&'static str),
}

impl Reason {
    fn tell(self, spot: &Spot) -> (Part, String) {
        let wanted = wanted(spot);
        let problem = match self {
            Self::Unknown { field, .. } if field == "<<" => "merge keys are not supported; write the fields out".to_owned(),
            Self::Unknown { field, known } => format!("there is no such field; {}", suggestion(&field, known)),
            Self::Missing(field) => format!("`{field}` is missing here"),
            Self::Told(sentence) => wanted.map_or(sentence, |wanted| format!("expected {wanted}")),
            Self::NoVariant { known } => {
                wanted.map_or_else(|| format!("expected one of: {}", known.join(", ")), |wanted| format!("expected {wanted}"))
            }
            Self::Type { expected, found } => {
                let expected = wanted.unwrap_or_else(|| in_words(&expected));
                let hint = if expected == "text" && found != "a list" && found != "a mapping" { "; put it in quotes" } else { "" };
                format!("expected {expected}, found {found}{hint}")
            }
        };
        let part = if problem.starts_with("there is no such") { Part::Key } else { Part::Value };
        (part, problem)
    }
}

/// Serde's names of types in the operator's words; our own types speak for themselves.
fn in_words(expected: &str) -> &str {
    match expected {
        "a string" | "path string" => "text",
        "a boolean" => "true or false",
        "u32" => "a whole number from 0 to 4294967295",
        "u16" | "u64" | "usize" => "a whole number",
        "a sequence" => "a list",
        "a map" => "a mapping",
        other if other.starts_with("struct ") => "a mapping of fields",
        other => other,
    }
}

fn kind(unexpected: &Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "true or false",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a number",
        Unexpected::Float(_) => "a fraction or a number too large",
        Unexpected::Str(_) | Unexpected::Char(_) => "text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map | Unexpected::StructVariant => "a mapping",
        _ => "something else",
    }
}

impl Refusal {
    fn new(reason: Reason) -> Self {
        Self { spot: None, reason }
    }

    /// The innermost spot stays.
    fn within(self, spot: &Spot) -> Self {
        Self { spot: self.spot.or_else(|| Some(spot.clone())), ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.reason)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: fmt::Display>(sentence: T) -> Self {
        Self::new(Reason::Told(sentence.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Reason::Type { expected: expected.to_string(), found: kind(&unexpected) })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self::new(Reason::NoVariant { known })
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(Reason::Unknown { field: field.to_owned(), known })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Reason::Missing(field))
    }
}

/// Hands a node to serde.
struct Reader<'n> {
    node: &'n Node,
    spot: Spot,
}

impl<'n> Reader<'n> {
    fn hand<'de, V: Visitor<'de>>(&self, node: &'n Node, visitor: V) -> Result<V::Value, Refusal> {
        match node {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Unsigned(value) => visitor.visit_u64(*value),
            Node::Signed(value) => visitor.visit_i64(*value),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Text(value) | Node::Replaced(value) => visitor.visit_str(value),
            Node::Sequence(children) => visitor.visit_seq(Children { parent: node, spot: &self.spot, rest: children.iter(), value: None }),
            Node::Mapping(children) => visitor.visit_map(Children { parent: node, spot: &self.spot, rest: children.iter(), value: None }),
            Node::Tagged => Err(Refusal::new(Reason::Told("tags like !this are not supported; write the value alone".to_owned()))),
            Node::Pretended => visitor.visit_str(""),
        }
        .map_err(|refusal| refusal.within(&self.spot))
    }

    fn empty<'de, V: Visitor<'de>>(&self, visit: impl FnOnce(Children<'_>) -> Result<V::Value, Refusal>) -> Result<V::Value, Refusal> {
        visit(Children { parent: self.node, spot: &self.spot, rest: [].iter(), value: None }).map_err(|refusal| refusal.within(&self.spot))
    }

    /// What a scalar that was one reference reads as when the field wants a number or a bool.
    fn hand_typed<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let Node::Replaced(text) = self.node else { return self.hand(self.node, visitor) };
        let typed = match (text.parse(), text.parse(), text.parse()) {
            (Ok(value), _, _) => Node::Bool(value),
            (_, Ok(value), _) => Node::Unsigned(value),
            (_, _, Ok(value)) => Node::Signed(value),
            _ => Node::Text(text.clone()),
        };
        match typed {
            Node::Bool(value) => visitor.visit_bool(value),
            Node::Unsigned(value) => visitor.visit_u64(value),
            Node::Signed(value) => visitor.visit_i64(value),
            _ => visitor.visit_str(text),
        }
        .map_err(|refusal: Refusal| refusal.within(&self.spot))
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.hand(self.node, visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.hand_typed(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.hand_typed(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.hand_typed(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if *self.node == Node::Null { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    /// A list whose items are all commented out is empty.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node {
            Node::Null | Node::Pretended => self.empty::<V>(|none| visitor.visit_seq(none)),
            node => self.hand(node, visitor),
        }
    }

    /// A section whose fields are all commented out has its defaults.
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node {
            Node::Null | Node::Pretended => self.empty::<V>(|none| visitor.visit_map(none)),
            // Serde's structs would take a list as their fields in order, which nobody could read.
            Node::Sequence(_) => {
                let refusal: Refusal = de::Error::invalid_type(Unexpected::Seq, &visitor);
                Err(refusal.within(&self.spot))
            }
            node => self.hand(node, visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    /// A word, or a mapping with one entry: the variant's name and its content.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        let spot = self.spot.clone();
        let variant = match self.node {
            Node::Text(word) | Node::Replaced(word) => {
                Some(Variant { name: word, node: &Node::Null, spot: spot.clone(), name_spot: spot.clone() })
            }
            Node::Pretended => {
                variants.first().map(|first| Variant { name: first, node: &Node::Pretended, spot: spot.clone(), name_spot: spot.clone() })
            }
            Node::Mapping(children) => match children.as_slice() {
                [only] => {
                    let inner = spot.child(only, self.node);
                    Some(Variant { name: &only.key, node: &only.node, spot: inner.clone(), name_spot: inner })
                }
                _ => None,
            },
            _ => None,
        };
        match variant {
            Some(variant) => visitor.visit_enum(variant),
            None => Err(Refusal::new(Reason::NoVariant { known: variants })),
        }
        .map_err(|refusal| refusal.within(&spot))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

/// The items of a sequence or the entries of a mapping.
struct Children<'n> {
    parent: &'n Node,
    spot: &'n Spot,
    rest: std::slice::Iter<'n, Child>,
    value: Option<(&'n Child, Spot)>,
}

impl<'de> SeqAccess<'de> for Children<'_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        let Some(child) = self.rest.next() else { return Ok(None) };
        seed.deserialize(Reader { node: &child.node, spot: self.spot.child(child, self.parent) }).map(Some)
    }
}

impl<'de> MapAccess<'de> for Children<'_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        let Some(child) = self.rest.next() else { return Ok(None) };
        let spot = self.spot.child(child, self.parent);
        let key: StrDeserializer<'_, Refusal> = child.key.as_str().into_deserializer();
        let key = seed.deserialize(key).map_err(|refusal| refusal.within(&spot))?;
        self.value = Some((child, spot));
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (child, spot) = self.value.take().expect("serde asks for a value after its key");
        seed.deserialize(Reader { node: &child.node, spot: spot.clone() }).map_err(|refusal| refusal.within(&spot))
    }
}

/// A variant of an enum, by name.
struct Variant<'n> {
    name: &'n str,
    node: &'n Node,
    spot: Spot,
    name_spot: Spot,
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Refusal;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refusal> {
        let name: StrDeserializer<'_, Refusal> = self.name.into_deserializer();
        let value = seed.deserialize(name).map_err(|refusal| refusal.within(&self.name_spot))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Refusal;

    fn unit_variant(self) -> Result<(), Refusal> {
        match self.node {
            Node::Null | Node::Pretended => Ok(()),
            _ => Err(Refusal::new(Reason::Told("expected the word alone".to_owned())).within(&self.spot)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Refusal> {
        let spot = self.spot.clone();
        seed.deserialize(Reader { node: self.node, spot: self.spot }).map_err(|refusal| refusal.within(&spot))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Refusal> {
        Reader { node: self.node, spot: self.spot }.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Refusal> {
        Reader { node: self.node, spot: self.spot }.deserialize_map(visitor)
    }
}
