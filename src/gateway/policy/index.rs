//! Which route matches first, without trying them in turn.
//!
//! Patterns are laid into trees, a level for each segment; a path walks only where its own segments lead, and leaves aside whatever
//! stands behind the best match so far in the operator's order. Deny rules have trees of their own, because they are also found
//! by longer forms of their segments, and each host has its own. A path takes as many steps as it has segments, times the places
//! where `*` is an alternative; at the worst as many as all patterns have, which is what trying them in turn took.

use std::collections::BTreeMap;

use super::pattern::{Breadth, Ending, Pattern, Segment, forms};
use crate::gateway::target::{Segments, Target};

/// No route: behind all of them.
const NONE: usize = usize::MAX;

/// The patterns of all routes; a route is known by its place in the operator's order.
#[derive(Default, Debug)]
pub(super) struct Index {
    any_host: Trees,
    hosts: BTreeMap<Box<str>, Trees>,
}

#[derive(Default, Debug)]
struct Trees {
    deny: Node,
    exact: Node,
}

/// What follows the same segments in several patterns.
#[derive(Debug)]
struct Node {
    /// The first of the routes that end here or below.
    first: usize,
    literals: BTreeMap<Box<str>, Node>,
    /// Bytes of the longest of them.
    longest: usize,
    any: Option<Box<Node>>,
    /// Routes whose patterns end here, in order.
    ends: Vec<(usize, Ending)>,
}

impl Default for Node {
    fn default() -> Self {
        Self { first: NONE, literals: BTreeMap::new(), longest: 0, any: None, ends: Vec::new() }
    }
}

impl Index {
    /// Adds the next route in the operator's order.
    pub(super) fn add(&mut self, place: usize, host: Option<&str>, pattern: &Pattern, breadth: Breadth) {
        let trees = match host {
            Some(host) => self.hosts.entry(host.into()).or_default(),
            None => &mut self.any_host,
        };
        let root = match breadth {
            Breadth::Deny => &mut trees.deny,
            Breadth::Exact => &mut trees.exact,
        };
        root.add(place, pattern);
    }

    /// The first route whose host and pattern match and that `takes` the rest of the request.
    pub(super) fn first(&self, target: &Target, takes: impl Fn(usize) -> bool) -> Option<usize> {
        let mut search = Search { target, takes, found: NONE };
        search.look_in(&self.any_host);
        if let Some(trees) = self.hosts.get(target.host()) {
            search.look_in(trees);
        }
        (search.found != NONE).then_some(search.found)
    }
}

impl Node {
    fn add(&mut self, place: usize, pattern: &Pattern) {
        let mut node = self;
        node.first = node.first.min(place);
        for segment in pattern.segments() {
            node = match segment {
                Segment::Literal(text) => {
                    node.longest = node.longest.max(text.len());
                    node.literals.entry(text.clone()).or_default()
                }
                Segment::Any | Segment::Firm => node.any.get_or_insert_default(),
            };
            node.first = node.first.min(place);
        }
        node.ends.push((place, pattern.ending()));
    }
}

struct Search<'a, F> {
    target: &'a Target,
    takes: F,
    found: usize,
}

impl<F: Fn(usize) -> bool> Search<'_, F> {
    fn look_in(&mut self, trees: &Trees) {
        self.walk(&trees.deny, Breadth::Deny, self.target.segments());
        self.walk(&trees.exact, Breadth::Exact, self.target.segments());
    }

    fn walk(&mut self, node: &Node, breadth: Breadth, mut asked: Segments<'_>) {
        if node.first >= self.found {
            return;
        }
        let next = asked.next();
        let ends_here = |ending: Ending| ending == Ending::Open || next.is_none() && ending.fits(breadth, self.target);
        let here = node.ends.iter().take_while(|(place, _)| *place < self.found);
        let first = here.filter(|(_, ending)| ends_here(*ending)).map(|(place, _)| *place).find(|place| (self.takes)(*place));
        self.found = first.unwrap_or(self.found);
        let Some(next) = next else { return };
        if let Some(below) = &node.any {
            self.walk(below, breadth, asked);
        }
        match breadth {
            Breadth::Exact => {
                if let Some(below) = node.literals.get(next.text) {
                    self.walk(below, breadth, asked);
                }
            }
            Breadth::Deny => {
                for form in forms(next, node.longest) {
                    if let Some(below) = node.literals.get(form) {
                        self.walk(below, breadth, asked);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::target;
    use proptest::prelude::*;
    use proptest::sample::select;

    #[derive(Debug)]
    struct Rule {
        host: Option<&'static str>,
        pattern: Pattern,
        breadth: Breadth,
        is_taken: bool,
    }

    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let segment = select(vec!["a", "ab", "a;b", "a.b", "\u{e4}", "*", "{firm}"]);
        let path = (prop::collection::vec(segment, 0..4), select(vec!["", "/", "/**"]));
        let text = path.prop_map(|(segments, ending)| match (segments.join("/"), ending) {
            (front, "") => format!("/{front}"),
            (front, _) if front.is_empty() => format!("/{}", ending.trim_start_matches('/')),
            (front, ending) => format!("/{front}{ending}"),
        });
        let host = select(vec![None, None, Some("one.example"), Some("two.example")]);
        let rule = (host, text, any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(host, text, denies, is_taken)| Rule {
            host,
            pattern: Pattern::compile(&text),
            breadth: if denies { Breadth::Deny } else { Breadth::Exact },
            is_taken,
        });
        prop::collection::vec(rule, 0..24)
    }

    fn asked() -> impl Strategy<Value = Target> {
        let segment = select(vec!["a", "ab", "a;b", "a.b", "a;b.c", "a%20", "a%C2%A0b", ".a", "%C3%A4", "%C3%A4;x", "x", "b"]);
        let host = select(vec!["one.example", "two.example", "three.example"]);
        (prop::collection::vec(segment, 0..5), any::<bool>(), host).prop_map(|(segments, slash, host)| {
            let path = format!("/{}{}", segments.join("/"), if slash && !segments.is_empty() { "/" } else { "" });
            let request = http::Request::get(path).header("host", host).body(()).unwrap();
            target::check(&request.into_parts().0).unwrap()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn the_index_finds_what_trying_all_in_turn_finds(rules in rules(), asked in prop::collection::vec(asked(), 1..16)) {
            let mut index = Index::default();
            for (place, rule) in rules.iter().enumerate() {
                index.add(place, rule.host, &rule.pattern, rule.breadth);
            }
            for target in &asked {
                let matches = |rule: &Rule| {
                    rule.is_taken && rule.host.is_none_or(|host| host == target.host()) && rule.pattern.matches(target, rule.breadth)
                };
                prop_assert_eq!(index.first(target, |place| rules[place].is_taken), rules.iter().position(matches), "{:?}", target);
            }
        }
    }

    #[test]
    fn a_path_of_many_forms_is_looked_up_no_further_than_the_longest_literal() {
        let segment = target::Segment { text: "..........;;;;;;;;;;" };
        assert_eq!(forms(segment, 3).collect::<Vec<_>>(), ["", ".", "..", "..."]);
        assert_eq!(forms(target::Segment { text: "a.b" }, 3).collect::<Vec<_>>(), ["a", "a.b"]);
    }
}
