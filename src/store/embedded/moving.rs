//! Moving the embedded store: out of one snapshot, and into a file of its own that takes the store's name at the end.
//!
//! The store's file is locked meanwhile, so no gateway runs on it. An import that is cut off leaves the store's own file
//! as it was; the next one begins anew.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};

use super::block::Block;
use super::disk::{Disk, FILE_NAME, failed};
use super::schema::{self, Reading, Spelling, corrupt};
use super::writer::Change;
use super::{activity, keys, pages};
use crate::domain::{KeyId, WrittenRecord};
use crate::store::StoreError;
use crate::store::moving::{MoveError, MovedKey, MovedRecord, Outgoing, Piece, Source, Target, done};

/// What an import fills before it takes the store's place.
const UNFINISHED_NAME: &str = "store.redb.importing";
/// Pieces of one commit: enough that the disk's wait for each is small beside the work, and a few megabytes.
const BATCH: usize = 10_000;

/// A store that is moved out of.
pub(crate) struct Export(Disk);

impl Export {
    /// Locks the store in `folder`.
    pub(crate) fn open(folder: &Path) -> Result<Self, MoveError> {
        if !folder.join(FILE_NAME).exists() {
            return Err(MoveError::Missing(folder.display().to_string()));
        }
        Ok(Self(Disk::open(folder)?))
    }

    fn write(&self, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        let snapshot = self.0.read()?;
        let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
        let by_firm = snapshot.open_table(schema::KEYS_BY_FIRM).map_err(failed)?;
        let mut start = Vec::new();
        loop {
            let next = [activity::next_firm(&by_firm, &start)?, activity::next_firm(&log, &start)?];
            let named = next.into_iter().flatten().map(|firm| (schema::of_firm(&firm), firm));
            let Some((rows, firm)) = named.min_by(|(one, _), (other, _)| one.bytes().cmp(other.bytes())) else { break };
            out.put(Piece::Firm(firm))?;
            write_firm(&snapshot, &rows, out)?;
            start = rows.end().bytes().to_vec();
        }
        write_spools(&snapshot, out)?;
        write_data_sets(&snapshot, out)
    }
}

impl Source for Export {
    fn export<'a>(&'a self, out: &'a mut Outgoing<'_>) -> BoxFuture<'a, Result<(), MoveError>> {
        done(self.write(out))
    }
}

fn write_firm(snapshot: &ReadTransaction, firm: &Spelling, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
    let by_firm = snapshot.open_table(schema::KEYS_BY_FIRM).map_err(failed)?;
    let records = snapshot.open_table(schema::KEYS).map_err(failed)?;
    let uses = snapshot.open_table(schema::KEY_USES).map_err(failed)?;
    for row in by_firm.range::<&[u8]>(firm.bytes()..firm.end().bytes()).map_err(failed)? {
        let id = KeyId::new(schema::id_at_end(row.map_err(failed)?.0.value())?);
        let record = schema::record_in(&records, id)?.ok_or_else(|| corrupt("a firm's list names a key that is not there"))?;
        out.put(Piece::Key(Box::new(MovedKey::new(&record, schema::uses_in(&uses, id)?, None))))?;
    }
    let log = snapshot.open_table(schema::ACTIVITY).map_err(failed)?;
    for row in log.range::<&[u8]>(firm.bytes()..firm.end().bytes()).map_err(failed)? {
        for entry in Block::of(row.map_err(failed)?.1.value())?.entries() {
            let entry = entry?;
            out.put(Piece::Record(Box::new(MovedRecord { arrival: entry.arrival, record: pages::record_of(&entry)? })))?;
        }
    }
    Ok(())
}

fn write_spools(snapshot: &ReadTransaction, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
    let spools = snapshot.open_table(schema::SPOOLS).map_err(failed)?;
    for row in spools.iter().map_err(failed)? {
        let (spool, mark) = row.map_err(failed)?;
        out.put(Piece::Spool(Reading::of(spool.value()).uuid()?, Reading::of(mark.value()).number()?))?;
    }
    Ok(())
}

fn write_data_sets(snapshot: &ReadTransaction, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
    let meta = snapshot.open_table(schema::META).map_err(failed)?;
    for row in meta.range::<&[u8]>(schema::META_DATA_SET..).map_err(failed)? {
        let (name, token) = row.map_err(failed)?;
        let Some(partition) = name.value().strip_prefix(schema::META_DATA_SET).and_then(|number| number.first_chunk()) else { break };
        let token = String::from_utf8(token.value().to_vec()).map_err(|_| corrupt("a data set's token is not text"))?;
        out.put(Piece::DataSet(u16::from_be_bytes(*partition), token))?;
    }
    Ok(())
}

/// A store that is moved into.
pub(crate) struct Import {
    folder: PathBuf,
    /// The store's own file: held open, so that no gateway opens it before it is replaced.
    own: Disk,
    unfinished: Option<Disk>,
    batch: Vec<Piece>,
}

impl Import {
    /// Locks the store in `folder`, which is made if it is missing.
    pub(crate) fn open(folder: &Path) -> Result<Self, MoveError> {
        Ok(Self { folder: folder.to_owned(), own: Disk::open(folder)?, unfinished: None, batch: Vec::new() })
    }

    fn begin_anew(&mut self) -> Result<(), MoveError> {
        let snapshot = self.own.read()?;
        for table in [schema::KEYS, schema::ACTIVITY, schema::SPOOLS] {
            if !snapshot.open_table(table).map_err(failed)?.is_empty().map_err(failed)? {
                return Err(MoveError::NotEmpty);
            }
        }
        match fs::remove_file(self.folder.join(UNFINISHED_NAME)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => self.unfinished = Some(Disk::open_named(&self.folder, UNFINISHED_NAME)?),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MoveError> {
        let disk = self.unfinished.as_ref().ok_or_else(|| corrupt("an import was not begun"))?;
        let transaction = disk.write()?;
        let writes = Cell::new(0);
        let mut change = Change::open(&transaction, &writes)?;
        let mut log = Vec::new();
        for piece in self.batch.drain(..) {
            take(&mut change, piece, &mut log)?;
        }
        flush_log(&mut change, &mut log)?;
        activity::write_ways(&mut change)?;
        change.finish()?;
        transaction.commit().map_err(failed)?;
        Ok(())
    }

    /// The file takes the store's name once all of it is on the disk; until then the store is as it was.
    fn replace(&mut self) -> Result<(), MoveError> {
        self.flush()?;
        self.unfinished = None;
        fs::rename(self.folder.join(UNFINISHED_NAME), self.folder.join(FILE_NAME))?;
        Ok(File::open(&self.folder)?.sync_all()?)
    }
}

/// Takes a piece; records wait in `log` for those of the same firm behind them, with which they make blocks.
fn take(change: &mut Change<'_>, piece: Piece, log: &mut Vec<MovedRecord>) -> Result<(), StoreError> {
    match piece {
        Piece::Firm(_) => flush_log(change, log),
        Piece::Key(key) => {
            let record = key.record();
            keys::insert(change, &record)?;
            change.key_uses.put(schema::of_key(record.id).bytes(), &schema::write_uses(&key.uses))
        }
        Piece::Record(moved) => {
            log.push(*moved);
            Ok(())
        }
        Piece::Spool(spool, sequence) => change.spools.put(spool.as_bytes(), &sequence.to_be_bytes()),
        // Of no use here, but kept for the way back.
        Piece::DataSet(partition, token) => change.meta.put(&[schema::META_DATA_SET, &partition.to_be_bytes()].concat(), token.as_bytes()),
    }
}

/// Writes the records that wait, all of one firm.
fn flush_log(change: &mut Change<'_>, log: &mut Vec<MovedRecord>) -> Result<(), StoreError> {
    let Some(firm) = log.first().map(|moved| moved.record.firm_id.clone()) else { return Ok(()) };
    let last = log.iter().map(|moved| moved.arrival).max();
    change.arrival = change.arrival.max(last.unwrap_or(0));
    let records: Vec<_> = log.drain(..).map(|moved| (moved.arrival, WrittenRecord::from(moved.record))).collect();
    activity::append_as_of(change, &firm, &records)
}

impl Target for Import {
    fn begin<'a>(&'a mut self, _checksum: &'a str) -> BoxFuture<'a, Result<(), MoveError>> {
        done(self.begin_anew())
    }

    fn put(&mut self, piece: Piece) -> BoxFuture<'_, Result<(), MoveError>> {
        self.batch.push(piece);
        done(if self.batch.len() < BATCH { Ok(()) } else { self.flush() })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), MoveError>> {
        done(self.replace())
    }
}
