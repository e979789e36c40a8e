//! The name of a route: what logs, records and metrics say instead of a path.

use std::fmt;
use std::sync::Arc;

/// A configured route's pattern text (`/v1/clients/**`), or its `name` where the operator gave one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RouteId(Arc<str>);

impl RouteId {
    /// Names a route; the text is the operator's, never a caller's.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}
