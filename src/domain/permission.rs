//! What a key may do, frozen when it was created (K4, K5).

use std::sync::Arc;

/// The creator's permissions at the moment of creation: sorted, without repeats, immutable, cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, serde::Serialize)]
#[serde(transparent)]
pub struct FrozenPermissions(Arc<[Box<str>]>);

impl FrozenPermissions {
    /// Freezes a set of permission names; order and repeats do not matter.
    pub fn freeze<I: IntoIterator<Item = S>, S: Into<Box<str>>>(names: I) -> Self {
        let mut names: Vec<Box<str>> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }

    /// Whether `name` is among them; exact, case-sensitive.
    pub fn allows(&self, name: &str) -> bool {
        self.0.binary_search_by(|known| (**known).cmp(name)).is_ok()
    }

    /// The names in sorted order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }
}

impl<'de> serde::Deserialize<'de> for FrozenPermissions {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Vec::<Box<str>>::deserialize(input).map(Self::freeze)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freezing_sorts_and_removes_repeats() {
        let frozen = FrozenPermissions::freeze(["b", "a", "b"]);
        assert_eq!(frozen.names().collect::<Vec<_>>(), ["a", "b"]);
        assert!(frozen.allows("a") && !frozen.allows("A") && !frozen.allows("c"));
    }
}
