//! The text of a configuration as a tree, and the paths of its fields.
//!
//! Unlike a map type the tree keeps repeated keys, so that `load` can refuse them with both lines, and it remembers
//! each child's number in the text, so that refused children can be taken out without the others losing their places.
//! Numbers, bools and text are told apart as YAML does; keys are text as written. Where a field stands, `position` finds.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::position::{Place, break_off, rest_of_line};

/// A value of the text.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    /// What took the place of a scalar that was one reference and nothing else: it may be read as a number or a bool.
    Replaced(String),
    Sequence(Vec<Child>),
    Mapping(Vec<Child>),
    /// `!something value`, which no field wants.
    Tagged,
    /// Stands for a missing field that has been complained about, so that reading can go on.
    Pretended,
}

/// An item of a sequence or an entry of a mapping.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Child {
    /// How many siblings stand before it in the text; absent for what is not in the text.
    pub(super) ordinal: Option<usize>,
    /// The key as written; empty in a sequence.
    pub(super) key: String,
    pub(super) node: Node,
}

impl Node {
    pub(super) fn children(&self) -> &[Child] {
        match self {
            Self::Sequence(children) | Self::Mapping(children) => children,
            _ => &[],
        }
    }

    pub(super) fn children_mut(&mut self) -> Option<&mut Vec<Child>> {
        match self {
            Self::Sequence(children) | Self::Mapping(children) => Some(children),
            _ => None,
        }
    }

    /// Takes the value at `spot` out of the tree, so that its field has its default.
    pub(super) fn prune(&mut self, spot: &Spot) {
        let Some((last, parents)) = spot.steps.split_last() else {
            *self = Self::Null;
            return;
        };
        if let Some(siblings) = self.descend(parents).and_then(Self::children_mut) {
            siblings.retain(|child| child.ordinal != last.ordinal);
        }
    }

    /// The value at `spot`.
    pub(super) fn at_mut(&mut self, spot: &Spot) -> Option<&mut Self> {
        self.descend(&spot.steps)
    }

    fn descend(&mut self, steps: &[Step]) -> Option<&mut Self> {
        steps.iter().try_fold(self, |node, step| {
            node.children_mut()?.iter_mut().find(|child| child.ordinal == step.ordinal).map(|child| &mut child.node)
        })
    }

    /// Whether the path leads into a field that is only pretended.
    pub(super) fn pretends(&self, labels: &[Label]) -> bool {
        let Some((label, rest)) = labels.split_first() else { return *self == Self::Pretended };
        *self == Self::Pretended || self.labelled(label).is_some_and(|child| child.node.pretends(rest))
    }

    fn labelled(&self, label: &Label) -> Option<&Child> {
        match label {
            Label::Field(name) => self.children().iter().find(|child| child.key == *name),
            Label::Item(number) => self.children().get(*number),
        }
    }

    /// Turns a path of the checked configuration into a spot of the text: items are counted among those that were
    /// kept, and what the text does not have (a default) has a path and no place.
    pub(super) fn locate(&self, labels: &[Label]) -> Spot {
        let mut spot = Spot::default();
        let mut node = Some(self);
        for label in labels {
            let child = node.and_then(|node| node.labelled(label));
            let label = match (label, child.and_then(|child| child.ordinal)) {
                (Label::Item(_), Some(ordinal)) => Label::Item(ordinal),
                _ => label.clone(),
            };
            spot.steps.push(Step { label, ordinal: child.and_then(|child| child.ordinal) });
            node = child.map(|child| &child.node);
        }
        spot
    }
}

/// A step of a field's path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Label {
    Field(String),
    Item(usize),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Step {
    label: Label,
    ordinal: Option<usize>,
}

/// A field: its path for people, and the numbers by which the text is walked to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Spot {
    steps: Vec<Step>,
}

impl Spot {
    /// The child of this spot.
    pub(super) fn child(&self, child: &Child, parent: &Node) -> Self {
        let label = match (parent, child.ordinal) {
            (Node::Sequence(_), Some(number)) => Label::Item(number),
            _ => Label::Field(child.key.clone()),
        };
        self.with(Step { label, ordinal: child.ordinal })
    }

    /// A field that this spot should have and has not.
    pub(super) fn missing(&self, name: &str) -> Self {
        self.with(Step { label: Label::Field(name.to_owned()), ordinal: None })
    }

    /// Whether it is an entry of a mapping, so that it has a key.
    pub(super) fn has_key(&self, depth: usize) -> bool {
        depth.checked_sub(1).and_then(|last| self.steps.get(last)).is_some_and(|step| matches!(step.label, Label::Field(_)))
    }

    /// Whether the text has the field itself and not only what surrounds it.
    pub(super) fn is_written(&self) -> bool {
        self.steps.iter().all(|step| step.ordinal.is_some())
    }

    pub(super) fn parent(&self) -> Self {
        Self { steps: self.steps.split_last().map(|(_, parents)| parents.to_vec()).unwrap_or_default() }
    }

    /// Whether one is the other or lies within it: then a mistake of the one may be the cause of the other's.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.steps.iter().zip(&other.steps).all(|(mine, theirs)| mine.label == theirs.label)
    }

    /// Whether the other is this one or lies within it.
    pub(super) fn contains(&self, other: &Self) -> bool {
        self.steps.len() <= other.steps.len() && self.overlaps(other)
    }

    /// The path with `[]` for every item and `*` for the name of an upstream: what hints are looked up by.
    pub(super) fn pattern(&self) -> String {
        let mut pattern = String::new();
        for (depth, step) in self.steps.iter().enumerate() {
            match &step.label {
                Label::Item(_) => pattern.push_str("[]"),
                Label::Field(_) if depth == 1 && pattern == "upstreams" => pattern.push_str(".*"),
                Label::Field(name) if pattern.is_empty() => pattern.push_str(name),
                Label::Field(name) => {
                    pattern.push('.');
                    pattern.push_str(name);
                }
            }
        }
        pattern
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.steps.clone();
        steps.push(step);
        Self { steps }
    }

    /// The numbers as far as the text has them, and whether that is the whole way.
    pub(super) fn ordinals(&self) -> (Vec<usize>, bool) {
        let ordinals: Vec<usize> = self.steps.iter().map_while(|step| step.ordinal).collect();
        let is_whole = ordinals.len() == self.steps.len();
        (ordinals, is_whole)
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.steps.iter().enumerate() {
            match &step.label {
                Label::Item(number) => write!(out, "[{number}]")?,
                Label::Field(name) => {
                    let dot = if depth == 0 { "" } else { "." };
                    let is_plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
                    if is_plain { write!(out, "{dot}{name}")? } else { write!(out, "{dot}{name:?}")? }
                }
            }
        }
        Ok(())
    }
}

/// Why a text is not YAML.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct SyntaxError {
    pub(super) place: Option<Place>,
    pub(super) problem: String,
}

/// Reads a text into a tree.
pub(super) fn read(text: &str) -> Result<Node, SyntaxError> {
    if text.trim().is_empty() {
        return Ok(Node::Null);
    }
    match Node::deserialize(serde_yaml::Deserializer::from_str(text)) {
        Ok(root) => Ok(root),
        Err(error) if error.location().is_some() => Err(SyntaxError::of(text, &error, None)),
        Err(error) => Err(after_the_document(text).unwrap_or_else(|| SyntaxError::of(text, &error, None))),
    }
}

impl SyntaxError {
    fn of(text: &str, error: &serde_yaml::Error, sentence: Option<&str>) -> Self {
        let place = error.location().map(|location| {
            // The parser names the line after the last one when the text ends too early.
            let line = location.line().min(text.lines().count()).max(1);
            Place { line, column: location.column(), text: rest_of_line(text, line, 1) }
        });
        let told = error.to_string();
        // The position stands in front of the sentence already; what the parser was doing, and since where, helps.
        let (told, position) = told.split_once(" at line ").unwrap_or((&told, ""));
        let context = position.find(", ").and_then(|comma| position.get(comma..)).unwrap_or("");
        let (sentence, context) = sentence.map_or((told, context), |sentence| (sentence, ""));
        let has_reference = place.as_ref().is_some_and(|place| place.text.contains("${"));
        let hint = if has_reference { "; inside { } and [ ] put references in quotes, like '${VAR}'" } else { "" };
        Self { place, problem: format!("this is not valid YAML: {sentence}{context}{hint}") }
    }
}

/// When a line breaks out of the outermost mapping, the parser only says that a second document follows, and not where.
fn after_the_document(text: &str) -> Option<SyntaxError> {
    const SENTENCE: &str = "the fields end before this line, and it is none itself; look at its indentation and its colon";
    let second = serde_yaml::Deserializer::from_str(text).nth(1)?;
    let error = break_off(second)?;
    Some(SyntaxError::of(text, &error, Some(SENTENCE)))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Signed(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Node, E> {
        // No field is so large; as a fraction it is refused where it stands, with its place.
        Ok(Node::Float(f64::INFINITY))
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Float(f64::NEG_INFINITY))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut children = Vec::new();
        while let Some(node) = items.next_element()? {
            children.push(Child { ordinal: Some(children.len()), key: String::new(), node });
        }
        Ok(Node::Sequence(children))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut children = Vec::new();
        while let Some(key) = entries.next_key_seed(KeyText)? {
            children.push(Child { ordinal: Some(children.len()), key, node: entries.next_value()? });
        }
        Ok(Node::Mapping(children))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (_, value) = tagged.variant::<IgnoredAny>()?;
        value.newtype_variant::<IgnoredAny>()?;
        Ok(Node::Tagged)
    }
}

/// A key as written, also where YAML would read a number or a bool.
struct KeyText;

impl<'de> DeserializeSeed<'de> for KeyText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<String, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyText {
    type Value = String;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the name of a field")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}
