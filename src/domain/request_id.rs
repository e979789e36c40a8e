//! The name of one request, in every log line, record, answer and upstream request that belongs to it.

use std::fmt;

use uuid::Uuid;

/// A UUIDv7 (RFC 9562 section 5.7), made by the gateway for every request; never taken from a client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestId(Uuid);

impl RequestId {
    /// Names a request by a UUID that the caller made.
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The sixteen bytes, as the spool frames them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The UUID itself.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(out)
    }
}
