//! The file between two stores: lines of JSON, written once from front to back, read twice.
//!
//! ```text
//!   {"kind":"header", format, version, exported_at}
//!   {"kind":"firm", firm_id}                     then all of that firm: its keys, its log in the order of arrival
//!   {"kind":"key", digest, …, uses, counted_at}
//!   {"kind":"activity", arrival, record}
//!   {"kind":"spool", spool, sequence}            what of a gateway's spool the log holds already
//!   {"kind":"data_set", partition, token}        which data set each partition of a Redis is, so that gateways know it again
//!   {"kind":"trailer", keys, records, spools, sha256}      of every byte before this line
//! ```
//!
//! Reading checks the order, the counts and the checksum, so that a file that was cut off or changed is noticed by the
//! first reading, before anything is written. Memory holds one line. No line ever holds a secret.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::MoveError;
use crate::domain::{AuditRecord, FirmId, KeyDigest, KeyRecord, Timestamp};
use crate::store::uses::KeyUses;
use crate::store::written::WrittenKey;

const FORMAT: &str = "assure-gateway-store";
const VERSION: u32 = 1;
/// Longest line: far beyond what a record's bounded texts can fill, so that a wrong file costs no memory.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Header {
        format: String,
        version: u32,
        exported_at: Timestamp,
    },
    Firm {
        firm_id: FirmId,
    },
    Key(Box<MovedKey>),
    Activity(Box<MovedRecord>),
    Spool {
        spool: Uuid,
        sequence: u64,
    },
    DataSet {
        partition: u16,
        token: String,
    },
    Trailer {
        #[serde(flatten)]
        counts: Counts,
        sha256: String,
    },
}

/// What is moved, in the order of the file.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Piece {
    /// What follows is this firm's.
    Firm(FirmId),
    /// A key of the firm.
    Key(Box<MovedKey>),
    /// A record of the firm's log.
    Record(Box<MovedRecord>),
    /// The last sequence of a spool that the log holds.
    Spool(Uuid, u64),
    /// The token by which gateways know a partition.
    DataSet(u16, String),
}

/// A key with what its uses have told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct MovedKey {
    digest: String,
    #[serde(flatten)]
    record: WrittenKey,
    pub(crate) uses: KeyUses,
    /// When a permit of its window was last given out, where the store remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counted_at: Option<Timestamp>,
}

impl MovedKey {
    pub(crate) fn new(record: &KeyRecord, uses: KeyUses, counted_at: Option<Timestamp>) -> Self {
        Self { digest: record.digest.hex(), record: WrittenKey::of(record), uses, counted_at }
    }

    /// The key's record; the digest was checked when the line was read.
    pub(crate) fn record(&self) -> KeyRecord {
        let digest = KeyDigest::from_hex(&self.digest).unwrap_or(KeyDigest::from_bytes([0; 32]));
        self.record.clone().with(digest)
    }
}

/// A record of a firm's log with its place in the order of arrival, as text because it may exceed what JSON readers hold.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct MovedRecord {
    #[serde(with = "number_as_text")]
    pub(crate) arrival: u64,
    pub(crate) record: AuditRecord,
}

mod number_as_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
        String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How much was moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Firms with a key or a record.
    pub firms: u64,
    /// Keys, revoked ones included.
    pub keys: u64,
    /// Records of the activity log.
    pub records: u64,
    /// Spools of gateways.
    pub spools: u64,
}

impl Counts {
    fn add(&mut self, piece: &Piece) {
        match piece {
            Piece::Firm(_) => self.firms += 1,
            Piece::Key(_) => self.keys += 1,
            Piece::Record(_) => self.records += 1,
            Piece::Spool(..) => self.spools += 1,
            Piece::DataSet(..) => {}
        }
    }
}

/// A file that is being written.
pub(crate) struct Outgoing<'a> {
    out: &'a mut (dyn Write + Send),
    progress: super::Progress<'a>,
    counts: Counts,
    hash: Sha256,
}

impl<'a> Outgoing<'a> {
    /// Begins with the header.
    pub(super) fn begin(out: &'a mut (dyn Write + Send), progress: super::Progress<'a>, now: Timestamp) -> Result<Self, MoveError> {
        let mut outgoing = Self { out, progress, counts: Counts::default(), hash: Sha256::new() };
        outgoing.write(&Line::Header { format: FORMAT.to_owned(), version: VERSION, exported_at: now })?;
        Ok(outgoing)
    }

    /// Writes the next piece.
    pub(crate) fn put(&mut self, piece: Piece) -> Result<(), MoveError> {
        self.counts.add(&piece);
        let line = match piece {
            Piece::Firm(firm_id) => Line::Firm { firm_id },
            Piece::Key(key) => Line::Key(key),
            Piece::Record(record) => Line::Activity(record),
            Piece::Spool(spool, sequence) => Line::Spool { spool, sequence },
            Piece::DataSet(partition, token) => Line::DataSet { partition, token },
        };
        self.progress.show(self.counts);
        self.write(&line)
    }

    /// Ends with the trailer; without it the file is worth nothing.
    pub(super) fn finish(mut self) -> Result<Counts, MoveError> {
        let sha256 = spelt(self.hash.clone());
        self.write(&Line::Trailer { counts: self.counts, sha256 })?;
        self.out.flush()?;
        Ok(self.counts)
    }

    fn write(&mut self, line: &Line) -> Result<(), MoveError> {
        let mut text = serde_json::to_vec(line).expect("texts and numbers are always written, and memory does not fail");
        text.push(b'\n');
        self.hash.update(&text);
        Ok(self.out.write_all(&text)?)
    }
}

/// A file that is being read.
pub(crate) struct Incoming<R> {
    from: R,
    line: u64,
    text: Vec<u8>,
    hash: Sha256,
    counts: Counts,
    firm: Option<FirmId>,
    arrival: u64,
    newest_use: Option<Timestamp>,
    checksum: Option<String>,
}

/// What a whole reading has shown.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Checked {
    pub(crate) counts: Counts,
    /// Names the file by its content.
    pub(crate) checksum: String,
    /// The newest moment at which a key's window was drawn on.
    pub(crate) newest_use: Option<Timestamp>,
}

impl<R: BufRead> Incoming<R> {
    /// Reads the header.
    pub(crate) fn open(from: R) -> Result<Self, MoveError> {
        let mut incoming = Self {
            from,
            line: 0,
            text: Vec::new(),
            hash: Sha256::new(),
            counts: Counts::default(),
            firm: None,
            arrival: 0,
            newest_use: None,
            checksum: None,
        };
        match incoming.read()? {
            Some(Line::Header { format, version: VERSION, .. }) if format == FORMAT => Ok(incoming),
            Some(Line::Header { format, version, .. }) if format == FORMAT => {
                Err(incoming.wrong(&format!("version {version} of the format; this program reads {VERSION} only")))
            }
            Some(_) => Err(incoming.wrong("this is not an export of a store")),
            None => Err(incoming.wrong("the file is empty")),
        }
    }

    /// The next piece; `None` behind a trailer that fits all that came before it.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, MoveError> {
        let before = self.hash.clone();
        let piece = match self.read()? {
            Some(Line::Firm { firm_id }) => {
                self.firm = Some(firm_id.clone());
                self.arrival = 0;
                Piece::Firm(firm_id)
            }
            Some(Line::Key(key)) => Piece::Key(self.fitting_key(key)?),
            Some(Line::Activity(record)) => Piece::Record(self.fitting_record(record)?),
            Some(Line::Spool { spool, sequence }) => Piece::Spool(spool, sequence),
            Some(Line::DataSet { partition, token }) => Piece::DataSet(partition, token),
            Some(Line::Trailer { counts, sha256 }) => return self.end(counts, &sha256, before).map(|()| None),
            Some(Line::Header { .. }) => return Err(self.wrong("a second header")),
            None => return Err(self.wrong("the file ends without its trailer; it was cut off")),
        };
        self.counts.add(&piece);
        Ok(Some(piece))
    }

    /// What the whole reading has shown; only once `next` has answered `None`.
    pub(crate) fn checked(self) -> Option<Checked> {
        let (counts, newest_use) = (self.counts, self.newest_use);
        self.checksum.map(|checksum| Checked { counts, checksum, newest_use })
    }

    /// An error about the line that was read last.
    pub(crate) fn wrong(&self, what: &str) -> MoveError {
        MoveError::Line(self.line, what.to_owned())
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn fitting_key(&mut self, key: Box<MovedKey>) -> Result<Box<MovedKey>, MoveError> {
        if KeyDigest::from_hex(&key.digest).is_none() {
            return Err(self.wrong("the digest is not 64 hexadecimal digits"));
        }
        self.note_use(key.counted_at);
        self.note_use(key.uses.last.as_ref().map(|last| last.at));
        if self.firm.as_ref() == Some(&key.record.firm_id) { Ok(key) } else { Err(self.wrong("a key of another firm than the section's")) }
    }

    fn fitting_record(&mut self, record: Box<MovedRecord>) -> Result<Box<MovedRecord>, MoveError> {
        if self.firm.as_ref() != Some(&record.record.firm_id) {
            return Err(self.wrong("a record of another firm than the section's"));
        }
        if record.arrival <= self.arrival {
            return Err(self.wrong("the records of a firm are not in the order of their arrival"));
        }
        self.arrival = record.arrival;
        self.note_use((record.record.permits_spent() > 0).then_some(record.record.time));
        Ok(record)
    }

    fn note_use(&mut self, at: Option<Timestamp>) {
        self.newest_use = self.newest_use.max(at);
    }

    fn end(&mut self, counts: Counts, claimed: &str, before: Sha256) -> Result<(), MoveError> {
        let checksum = spelt(before);
        if counts != self.counts {
            let found = self.counts;
            return Err(self.wrong(&format!("the trailer counts {counts}, but the file holds {found}")));
        }
        if claimed != checksum {
            return Err(self.wrong("the checksum does not fit; the file was changed"));
        }
        if self.read()?.is_some() {
            return Err(self.wrong("something follows the trailer"));
        }
        self.checksum = Some(checksum);
        Ok(())
    }

    /// Reads a line; `None` at the end of the file.
    fn read(&mut self) -> Result<Option<Line>, MoveError> {
        self.text.clear();
        self.line += 1;
        std::io::Read::take(&mut self.from, LINE_BYTES_MAX).read_until(b'\n', &mut self.text)?;
        if self.text.is_empty() {
            return Ok(None);
        }
        if !self.text.ends_with(b"\n") {
            return Err(self.wrong("the line is cut off, or too long"));
        }
        self.hash.update(&self.text);
        serde_json::from_slice(&self.text).map(Some).map_err(|error| self.wrong(&format!("not a line of an export: {error}")))
    }
}

fn spelt(hash: Sha256) -> String {
    let bytes: [u8; 32] = hash.finalize().into();
    KeyDigest::from_bytes(bytes).hex()
}

impl std::fmt::Display for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { firms, keys, records, spools } = self;
        write!(out, "{firms} firms, {keys} keys, {records} records, {spools} spools")
    }
}
