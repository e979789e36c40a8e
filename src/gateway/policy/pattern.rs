//! A route's path pattern: literal segments, `*`, `{firm}`, and `**` at the end.

use crate::gateway::target::{self, Target};

/// How widely a pattern is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Breadth {
    /// What it says.
    Exact,
    /// Also with a trailing slash, `;parameters` or an extension.
    Deny,
}

/// A path pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    segments: Vec<Segment>,
    ending: Ending,
    names_firm: bool,
}

/// One segment of a pattern.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Segment {
    /// This text.
    Literal(Box<str>),
    /// `*`: any one segment.
    Any,
    /// `{firm}`: any one segment, which must be the key's firm.
    Firm,
}

/// What may follow the last segment of a pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// `**`: any number of further segments.
    Open,
    /// A slash.
    Slash,
    /// Nothing.
    Bare,
}

impl Pattern {
    /// Reads a pattern that `config` has found well formed.
    pub(super) fn compile(text: &str) -> Self {
        let body = text.strip_prefix('/').unwrap_or(text);
        let (body, ending) = match body.strip_suffix("**") {
            Some(front) => (front.strip_suffix('/').unwrap_or(front), Ending::Open),
            None if text.ends_with('/') => (body, Ending::Slash),
            None => (body, Ending::Bare),
        };
        let segments = body.split('/').filter(|segment| !segment.is_empty()).map(|segment| match segment {
            "*" => Segment::Any,
            "{firm}" => Segment::Firm,
            literal => Segment::Literal(literal.into()),
        });
        let segments: Vec<Segment> = segments.collect();
        Self { names_firm: segments.contains(&Segment::Firm), segments, ending }
    }

    /// Its segments, without the ending.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What may follow them.
    pub(super) fn ending(&self) -> Ending {
        self.ending
    }

    /// Whether every segment of a matching path that stands for a firm names this one.
    pub(super) fn names_only(&self, firm: &str, target: &Target) -> bool {
        !self.names_firm
            || self.segments.iter().zip(target.segments()).all(|(segment, asked)| *segment != Segment::Firm || asked.text == firm)
    }

    /// Whether a path matches, as one reads it: what the index must agree with.
    #[cfg(test)]
    pub(super) fn matches(&self, target: &Target, breadth: Breadth) -> bool {
        let mut asked = target.segments();
        let fits = self.segments.iter().all(|segment| {
            asked.next().is_some_and(|asked| match segment {
                Segment::Any | Segment::Firm => true,
                Segment::Literal(literal) => *asked.text == **literal || (breadth == Breadth::Deny && asked.is_form_of(literal)),
            })
        });
        fits && (self.ending == Ending::Open || asked.next().is_none() && self.ending.fits(breadth, target))
    }
}

impl Ending {
    /// Whether a path whose segments are all matched may end as it does.
    pub(super) fn fits(self, breadth: Breadth, target: &Target) -> bool {
        breadth == Breadth::Deny || self == Self::Open || target.has_trailing_slash() == (self == Self::Slash)
    }
}

/// The texts that a segment is a form of, in the sense of [`target::Segment::is_form_of`]: itself, and what stands before each
/// place at which parameters, an extension or white space may begin. None is longer than `bytes_max`.
pub(super) fn forms<'a>(asked: target::Segment<'a>, bytes_max: usize) -> impl Iterator<Item = &'a str> {
    let text = asked.text;
    let begins_addition = |letter: char| matches!(letter, ';' | '.') || letter.is_whitespace();
    let places = text.char_indices().take_while(move |(place, _)| *place <= bytes_max).filter(move |(_, letter)| begins_addition(*letter));
    let shorter = places.filter_map(move |(place, _)| text.get(..place));
    shorter.chain((text.len() <= bytes_max).then_some(text))
}
