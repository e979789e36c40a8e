//! Which earlier route takes all that a later one would, without comparing each with each.
//!
//! The patterns of routes are laid into a tree for each host, a level for each segment; a later pattern walks where what covers
//! its own segments leads.

use std::collections::{BTreeMap, HashMap};

use crate::config::Route;

/// The routes so far.
#[derive(Default)]
pub(super) struct Earlier<'a> {
    hosts: HashMap<Option<String>, Node<'a>>,
    count: usize,
}

#[derive(Default)]
struct Node<'a> {
    literals: BTreeMap<&'a str, Node<'a>>,
    /// `*` and `{firm}`.
    any: Option<Box<Node<'a>>>,
    /// Routes with `**` here.
    open: Vec<Placed<'a>>,
    /// Routes whose pattern ends here.
    ends: Vec<Placed<'a>>,
}

/// A route by its place, with the methods it takes.
struct Placed<'a> {
    place: usize,
    methods: &'a Option<Vec<String>>,
}

impl<'a> Earlier<'a> {
    /// Adds the next route; answers the place of the first that takes all it would.
    pub(super) fn add(&mut self, route: &'a Route) -> Option<usize> {
        let host = route.host.as_ref().map(|host| host.to_ascii_lowercase());
        let hosts = host.is_some().then_some(&None).into_iter().chain([&host]);
        let found = hosts.filter_map(|host| self.hosts.get(host)?.covering(route.path.split('/'), &route.methods)).min();
        self.hosts.entry(host).or_default().add(&route.path, Placed { place: self.count, methods: &route.methods });
        self.count += 1;
        found
    }
}

impl<'a> Node<'a> {
    fn add(&mut self, pattern: &'a str, placed: Placed<'a>) {
        let mut node = self;
        for segment in pattern.split('/') {
            node = match segment {
                "**" => return node.open.push(placed),
                "*" | "{firm}" => node.any.get_or_insert_default(),
                literal => node.literals.entry(literal).or_default(),
            };
        }
        node.ends.push(placed);
    }

    /// `{firm}` answers every path of its form (with 403 for another firm), so it covers like `*`; `/a/**` also means `/a` itself.
    fn covering(&self, mut later: std::str::Split<'_, char>, methods: &Option<Vec<String>>) -> Option<usize> {
        let first = |routes: &[Placed<'_>]| routes.iter().find(|route| take_all(route.methods, methods)).map(|route| route.place);
        let (ends, literal, any) = match later.next() {
            None => (first(&self.ends), None, None),
            Some("**") => (None, None, None),
            Some(segment) => (None, self.literals.get(segment), self.any.as_deref().filter(|_| !segment.is_empty())),
        };
        let below = literal.into_iter().chain(any).filter_map(|node| node.covering(later.clone(), methods));
        below.chain(ends).chain(first(&self.open)).min()
    }
}

fn take_all(earlier: &Option<Vec<String>>, later: &Option<Vec<String>>) -> bool {
    match (earlier, later) {
        (None, _) => true,
        (Some(more), Some(fewer)) => fewer.iter().all(|method| more.contains(method)),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(host: Option<&str>, path: &str, methods: &[&str]) -> Route {
        let methods = (!methods.is_empty()).then(|| methods.iter().map(|method| (*method).to_owned()).collect());
        Route { host: host.map(str::to_owned), path: path.to_owned(), methods, ..Route::default() }
    }

    fn covered(routes: &[Route]) -> Vec<Option<usize>> {
        let mut earlier = Earlier::default();
        routes.iter().map(|route| earlier.add(route)).collect()
    }

    #[test]
    fn a_pattern_covers_what_it_surely_matches() {
        let rows = [
            ("/a", "/a", true),
            ("/**", "/a/b", true),
            ("/**", "/**", true),
            ("/a/**", "/a/*/c", true),
            ("/a/**", "/a", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/ab", false),
            ("/a/*/**", "/a", false),
            ("/a/**", "/a/**", true),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a/**", false),
            ("/a/*", "/a/{firm}", true),
            ("/a/{firm}", "/a/*", true),
            ("/a/b", "/a/*", false),
            ("/a/*/c", "/a/b/**", false),
            ("/a", "/a/b", false),
        ];
        for (earlier, later, wanted) in rows {
            let found = covered(&[route(None, earlier, &[]), route(None, later, &[])]);
            assert_eq!(found, [None, wanted.then_some(0)], "{earlier} before {later}");
        }
    }

    #[test]
    fn hosts_and_methods_have_to_be_covered_too_and_the_first_route_is_named() {
        let routes = [
            route(Some("One.example"), "/a/**", &[]),
            route(Some("one.example"), "/a/b", &[]),
            route(None, "/a/b", &["GET", "POST"]),
            route(Some("two.example"), "/a/b", &["POST"]),
            route(None, "/a/b", &["PUT"]),
            route(None, "/a/b", &[]),
            route(None, "/a/**", &[]),
            route(Some("one.example"), "/a/c", &["GET"]),
            route(None, "/a/b", &["GET"]),
        ];
        assert_eq!(covered(&routes), [None, Some(0), None, Some(2), None, None, None, Some(0), Some(2)]);
    }
}
