//! The way back from a field to its place in the text.
//!
//! The YAML parser tells positions only in its errors. So a place is found by provoking one: the text is read again
//! up to the field in question and the reading is broken off right there; the parser's error then carries line and
//! column. That costs a pass per mistake and is right for everything YAML can write (flow and block, quotes, comments,
//! multi-line scalars, anchors), because the parser itself does the looking.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::document::Spot;

/// Which part of an entry a mistake is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Key,
    Value,
}

/// A place in the text; line and column count from 1, the column in characters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    /// What stands there, as written but without quotes; for a list or a mapping the rest of its line.
    pub(super) text: String,
}

/// Where the key or the value at `spot` stands, or the innermost thing around it that the text has; `None` for the
/// text as a whole.
pub(super) fn place(text: &str, spot: &Spot, part: Part) -> Option<Place> {
    let (ordinals, is_whole) = spot.ordinals();
    if ordinals.is_empty() {
        return None;
    }
    let value = seek(text, &ordinals, Part::Value)?;
    let is_scalar = value.1.as_ref().is_some_and(|scalar| !scalar.is_empty());
    // A mapping's own position is that of its first key, which may be lines below the name the operator looks for.
    let shows_key = spot.has_key(ordinals.len()) && (part == Part::Key || !is_whole || !is_scalar);
    let ((line, column), scalar) = if shows_key { seek(text, &ordinals, Part::Key)? } else { value };
    let shown = scalar.unwrap_or_else(|| rest_of_line(text, line, column));
    Some(Place { line, column, text: shown })
}

/// A line of the text, counted from 1.
pub(super) fn source_line(text: &str, line: usize) -> &str {
    line.checked_sub(1).and_then(|before| text.lines().nth(before)).unwrap_or("")
}

/// What follows the column, counted from 1, without the spaces around it.
pub(super) fn rest_of_line(text: &str, line: usize, column: usize) -> String {
    source_line(text, line).chars().skip(column.saturating_sub(1)).collect::<String>().trim().to_owned()
}

/// Line and column of a value or key, and its text where it is a scalar.
fn seek(text: &str, ordinals: &[usize], part: Part) -> Option<((usize, usize), Option<String>)> {
    let scalar = RefCell::new(None);
    let walk = Seek { ordinals, part, scalar: &scalar };
    let location = walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?.location()?;
    Some(((location.line(), location.column()), scalar.into_inner()))
}

/// Breaks off at the very beginning: the error's position is that of the whole value.
pub(super) fn break_off(input: serde_yaml::Deserializer<'_>) -> Option<serde_yaml::Error> {
    Seek { ordinals: &[], part: Part::Value, scalar: &RefCell::new(None) }.deserialize(input).err()
}

/// Walks to a value and breaks off there.
#[derive(Clone, Copy)]
struct Seek<'a> {
    ordinals: &'a [usize],
    part: Part,
    scalar: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        if self.ordinals.is_empty() { input.deserialize_str(self) } else { input.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the place that was looked for")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        *self.scalar.borrow_mut() = Some(text.to_owned());
        Err(E::custom("here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((before, rest)) = self.ordinals.split_first() else { return Ok(()) };
        for _ in 0..*before {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Seek { ordinals: rest, ..self }).map(|_| ())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((before, rest)) = self.ordinals.split_first() else { return Ok(()) };
        for _ in 0..*before {
            entries.next_entry::<IgnoredAny, IgnoredAny>()?;
        }
        if rest.is_empty() && self.part == Part::Key {
            return entries.next_key_seed(Seek { ordinals: &[], ..self }).map(|_| ());
        }
        entries.next_key::<IgnoredAny>()?;
        entries.next_value_seed(Seek { ordinals: rest, ..self })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::document::{Label, Node, read};

    fn field(name: &str) -> Label {
        Label::Field(name.to_owned())
    }

    #[test]
    fn every_way_of_writing_yaml_leads_back_to_the_right_line() {
        let text = "\
# comment: no
edge:
  # listen: not this one
  listen: 127.0.0.1:1   # this one
  tls: {certificate: a, 'private_key': \"b: c\"}
note: |
  log:
    level: inside a text
folded: >-
  a
  b
plain: one
  two
routes:
- path: /a
  methods: [GET,
    HEAD]
-
  path: /b
- {path: /c,
   deny: 'x'}
\"log\":
  level:
    debug
empty:
";
        let root = read(text).unwrap();
        let rows: [(&[Label], usize, usize, &str); 14] = [
            (&[field("edge")], 2, 1, "edge"),
            (&[field("edge"), field("listen")], 4, 11, "127.0.0.1:1"),
            (&[field("edge"), field("tls"), field("certificate")], 5, 22, "a"),
            (&[field("edge"), field("tls"), field("private_key")], 5, 40, "b: c"),
            (&[field("note")], 6, 7, "log:\n  level: inside a text\n"),
            (&[field("folded")], 9, 9, "a b"),
            (&[field("plain")], 12, 8, "one two"),
            (&[field("routes"), Label::Item(0), field("methods"), Label::Item(1)], 17, 5, "HEAD"),
            (&[field("routes"), Label::Item(1), field("path")], 19, 9, "/b"),
            (&[field("routes"), Label::Item(2)], 20, 3, "{path: /c,"),
            (&[field("routes"), Label::Item(2), field("deny")], 21, 10, "x"),
            (&[field("log")], 22, 1, "log"),
            (&[field("log"), field("level")], 24, 5, "debug"),
            (&[field("empty")], 25, 1, "empty"),
        ];
        for (labels, line, column, shown) in rows {
            let found = place(text, &root.locate(labels), Part::Value).unwrap();
            assert_eq!((found.line, found.column, found.text.as_str()), (line, column, shown), "{labels:?}");
        }
    }

    #[test]
    fn what_the_text_does_not_have_is_placed_at_what_surrounds_it() {
        let text = "a: 1\nedge:\n  listen: x\n";
        let spot = read(text).unwrap().locate(&[field("edge"), field("drain")]);
        assert_eq!(spot.to_string(), "edge.drain");
        assert_eq!(place(text, &spot, Part::Value).map(|place| place.line), Some(2));
        assert_eq!(place(text, &Spot::default(), Part::Value), None);
    }

    #[test]
    fn taking_out_an_item_leaves_the_places_of_the_others() {
        let text = "routes:\n- a\n- b\n- c\n";
        let mut root = read(text).unwrap();
        let second = root.locate(&[field("routes"), Label::Item(1)]);
        root.prune(&second);
        let third = root.locate(&[field("routes"), Label::Item(1)]);
        assert_eq!(third.to_string(), "routes[2]");
        assert_eq!(place(text, &third, Part::Value).map(|place| place.line), Some(4));
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let scalar = prop_oneof![
            any::<bool>().prop_map(serde_json::Value::from),
            any::<u32>().prop_map(serde_json::Value::from),
            "[ -~]{1,12}".prop_map(serde_json::Value::from),
            "[a-z\n#:]{1,12}".prop_map(serde_json::Value::from),
        ];
        scalar.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..5).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[a-z#: ]{1,8}", inner, 1..5)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Every scalar of the tree, with the numbers that lead to it.
    fn scalars(node: &Node, path: Vec<usize>, found: &mut Vec<(Vec<usize>, Node)>) {
        if node.children().is_empty() {
            found.push((path, node.clone()));
            return;
        }
        for (number, child) in node.children().iter().enumerate() {
            let mut longer = path.clone();
            longer.push(number);
            scalars(&child.node, longer, found);
        }
    }

    proptest! {
        #[test]
        fn every_text_value_is_found_again_however_it_was_written(value in any_value()) {
            for text in [serde_yaml::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
                let mut found = Vec::new();
                scalars(&read(&text).unwrap(), Vec::new(), &mut found);
                let mut last = (0, 0);
                for (ordinals, node) in found {
                    let (position, scalar) = seek(&text, &ordinals, Part::Value).unwrap();
                    prop_assert!(position > last, "values are found in the order of the text");
                    last = position;
                    if let Node::Text(wanted) = node {
                        prop_assert_eq!(scalar, Some(wanted));
                    }
                }
            }
        }

        #[test]
        fn no_text_makes_reading_panic(text in "[ -~\n]{0,60}") {
            let _ = read(&text);
        }
    }
}
