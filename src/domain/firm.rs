//! Who a key acts for, and who made it.
//!
//! Both ids come from the identity provider's tokens. They are opaque, printable and bounded, so that they
//! can stand in a header, a log line or a Redis field as they are.

use std::fmt;
use std::sync::Arc;

/// Longest firm or user id, in bytes: room for any UUID, URN or e-mail address, small enough for a header.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text cannot be an id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("an id must not be empty")]
    Empty,
    /// The text is longer than 128 bytes.
    #[error("an id must not be longer than 128 bytes")]
    TooLong,
    /// The text has a character outside printable ASCII, or a space.
    #[error("an id must be printable ASCII without spaces")]
    NotPrintable,
}

macro_rules! opaque_id {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to 128 bytes of printable ASCII without spaces.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check_id(text).map(|()| Self(Arc::from(text)))
            }

            /// The id as it stands in tokens and records.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(input)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

opaque_id! {
    /// An accounting firm: the tenant, and the border no key crosses (K10).
    FirmId
}
opaque_id! {
    /// A person of a firm, as the identity provider's `sub` names them.
    UserId
}

fn check_id(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(IdError::NotPrintable);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_printable_and_bounded() {
        assert!(FirmId::parse("firm-1").is_ok());
        assert_eq!(FirmId::parse(""), Err(IdError::Empty));
        assert_eq!(FirmId::parse("a b"), Err(IdError::NotPrintable));
        assert_eq!(UserId::parse("é"), Err(IdError::NotPrintable));
        assert_eq!(UserId::parse(&"x".repeat(129)), Err(IdError::TooLong));
    }
}
