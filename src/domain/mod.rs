//! The product's words: keys, firms, permissions, routes, refusals, records, time.
//!
//! Pure: no input or output, no async, no clock, no shared state. Everything else in the crate points
//! here and nothing here points out. Parsing happens in the constructors, so a value that exists is valid.

mod audit_record;
mod firm;
mod key;
mod permission;
mod rejection;
mod request_id;
mod route;
mod time;
mod trace;
pub mod window;
mod written_record;

pub use audit_record::{Action, AuditRecord, Outcome, ReplicaId, Sequence, UnknownWord};
pub use firm::{FirmId, IdError, UserId};
pub use key::{FirmTag, KeyDigest, KeyId, KeyName, KeyNameError, KeyNamespace, KeyRecord, KeySecret, KeyState, ParsedKey};
pub use permission::FrozenPermissions;
pub use rejection::{Code, Consequence, Rejection, problem_type, reason_spends_permit};
pub use request_id::RequestId;
pub use route::RouteId;
pub use time::{BootInstant, Timestamp};
pub use trace::is_traceparent;
pub use written_record::{Field, Texts, Unreadable, WrittenRecord};
