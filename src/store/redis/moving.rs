//! Moving a Redis store: out of all partitions, and into those of an empty one, each firm into the partition of its tag.
//!
//! Everything is written by commands that may be repeated, so an import that was cut off is completed by the same file:
//! until it is, a mark with the file's checksum stands in each partition and no gateway opens the store. Commands of one
//! partition go in batches, each one script in one slot.
//!
//! A replica that renews while we watch for a whole lease is alive; sessions of replicas that have ended stand still.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::audit::{self, ARRIVALS_PER_CALL, Entry};
use super::blocks::{self, Block, NUMBER_MAX};
use super::keys::{self, Fields};
use super::schema::{self, Names};
use super::script::Script;
use super::{RedisStore, corrupt, uses};
use crate::clock;
use crate::domain::{Action, FirmId, FirmTag, KeyState, ReplicaId, Timestamp, WrittenRecord};
use crate::store::moving::{MoveError, MovedKey, MovedRecord, Outgoing, Piece, Source, Target};
use crate::store::{SessionState, Store, StoreError};

/// Keys, firms and records of one call: a few hundred kilobytes, and Redis serves nobody else for a few milliseconds.
const PAGE: usize = 200;
/// Pieces that one call of an import writes, for the same reason.
const BATCH: usize = 200;
/// How often sessions are looked at while we watch whether a replica lives.
const SESSION_POLL: Duration = Duration::from_millis(100);
/// A renewal that is on its way when a lease ends; replicas renew four times within each.
const SESSION_MARGIN: Duration = Duration::from_millis(500);

/// KEYS firm's keys, firm's uses. ARGV prefix, first and last rank. Answers, for each key in that range, its record, what its
/// uses have told, and when its window last gave out a permit.
static KEYS_OF_FIRM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local prefix, page = ARGV[1], {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[3])) do
  local uses = redis.call('HGET', KEYS[2], id)
  page[#page + 1] = {
    redis.call('HGETALL', prefix .. 'record:' .. (redis.call('GET', prefix .. 'id:' .. id) or '')),
    uses and {cmsgpack.unpack(uses)} or {},
    redis.call('HGET', prefix .. 'grants:' .. id, 'latest') or '',
  }
end
return page
",
    )
});

/// KEYS importing, firms, spools, epoch. ARGV checksum. Answers what the partition is to an import of that file.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local begun = redis.call('GET', KEYS[1])
if begun then return begun == ARGV[1] and 'begun' or 'other' end
if redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then return 'not_empty' end
return 'empty'
",
    )
});

/// KEYS all names that are written. ARGV number of commands, then each: number of its words, those. Runs them in one go.
static RUN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local at = 2
for number = 1, tonumber(ARGV[1]) do
  local last = at + tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
return {'done'}
",
    )
});

/// Refuses a store into which an import was begun and not completed.
pub(super) async fn refuse_unfinished(store: &RedisStore) -> Result<(), StoreError> {
    for names in &store.partitions {
        let begun: Option<String> = store.connections.bulk().send(redis::cmd("GET").arg(names.named("importing"))).await?;
        if begun.is_some() {
            let why = "an import into it was begun and not completed; repeat `assure-gateway store import` with the same file";
            return Err(StoreError::Unsafe(why.to_owned()));
        }
    }
    Ok(())
}

/// The sessions of all partitions, once it is certain that none of them is a living replica's.
async fn silent_sessions(store: &RedisStore) -> Result<Vec<SessionState>, MoveError> {
    let first = sessions(store).await?;
    // Replicas that trust no lease renew as often as if they did, by the lease that is configured.
    let lease = first.iter().map(|session| session.lease.max(store.lease)).max();
    let until = lease.map(|lease| clock::boot_now().plus(lease + SESSION_MARGIN));
    while until.is_some_and(|until| clock::boot_now() < until) {
        tokio::time::sleep(SESSION_POLL).await;
        refuse_changed(&first, &sessions(store).await?)?;
    }
    Ok(first)
}

async fn sessions(store: &RedisStore) -> Result<Vec<SessionState>, StoreError> {
    let mut all = Vec::new();
    for names in &store.partitions {
        all.extend(store.sessions(names.partition).await?.all);
    }
    Ok(all)
}

/// Whoever has renewed, or come, since the first look is alive.
fn refuse_changed(first: &[SessionState], now: &[SessionState]) -> Result<(), MoveError> {
    let is_known = |session: &SessionState| {
        first
            .iter()
            .any(|known| (&known.replica, known.incarnation, known.renewals) == (&session.replica, session.incarnation, session.renewals))
    };
    let mut alive: Vec<ReplicaId> = now.iter().filter(|session| !is_known(session)).map(|session| session.replica.clone()).collect();
    alive.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    alive.dedup();
    if alive.is_empty() { Ok(()) } else { Err(MoveError::InUse(alive)) }
}

/// A store that is moved out of.
pub(crate) struct Export(Arc<RedisStore>);

impl Export {
    pub(crate) fn new(store: Arc<RedisStore>) -> Self {
        Self(store)
    }

    async fn write(&self, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        let silent = silent_sessions(&self.0).await?;
        for names in &self.0.partitions {
            let mut first = 0;
            loop {
                let command = ranks("ZRANGE", names.named("firms"), first);
                let firms: Vec<String> = self.0.connections.bulk().send(&command).await?;
                for firm in &firms {
                    let firm = FirmId::parse(firm).map_err(|_| corrupt("a firm's id is none"))?;
                    self.write_firm(names, firm, out).await?;
                }
                if firms.len() < PAGE {
                    break;
                }
                first += PAGE;
            }
        }
        self.write_spools(out).await?;
        self.write_data_sets(out).await?;
        // Whoever has come meanwhile may have changed what was written already.
        refuse_changed(&silent, &sessions(&self.0).await?)
    }

    async fn write_firm(&self, names: &Names, firm: FirmId, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        out.put(Piece::Firm(firm.clone()))?;
        let keys = keys::names_of_keys(names, &firm);
        let mut first = 0;
        loop {
            let arguments = [names.prefix.clone(), first.to_string(), (first + PAGE - 1).to_string()];
            let page: Vec<RawKey> = self.0.connections.bulk().call(&KEYS_OF_FIRM, &keys, &arguments).await?;
            for raw in &page {
                out.put(Piece::Key(Box::new(read_key(raw)?)))?;
            }
            if page.len() < PAGE {
                break;
            }
            first += PAGE;
        }
        self.write_log(names, &firm, out).await
    }

    async fn write_log(&self, names: &Names, firm: &FirmId, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        let log = names.of_firm(firm, "log");
        let mut start = "-".to_owned();
        loop {
            let mut command = redis::cmd("XRANGE");
            command.arg(&log).arg(&start).arg("+").arg("COUNT").arg(ARRIVALS_PER_CALL);
            let entries: Vec<Entry> = self.0.connections.bulk().send(&command).await?;
            for entry in &entries {
                for (arrival, record) in audit::read_entry(entry)? {
                    out.put(Piece::Record(Box::new(MovedRecord { arrival, record: audit::read(&record)? })))?;
                }
            }
            match entries.last() {
                Some((last, _)) if entries.len() == ARRIVALS_PER_CALL => start = format!("({last}"),
                _ => return Ok(()),
            }
        }
    }

    async fn write_spools(&self, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        let mut marks: BTreeMap<Uuid, Vec<u64>> = BTreeMap::new();
        for names in &self.0.partitions {
            let spools: Vec<String> = self.0.connections.bulk().send(redis::cmd("SMEMBERS").arg(names.named("spools"))).await?;
            for text in spools {
                let spool: Uuid = text.parse().map_err(|_| corrupt("a spool's name is no UUID"))?;
                let mark = self.0.connections.bulk().send(redis::cmd("GET").arg(names.mark(spool))).await?;
                marks.entry(spool).or_default().push(mark);
            }
        }
        for (spool, marks) in marks {
            let (first, is_whole) = (marks.first().copied().unwrap_or(0), marks.len() == self.0.partitions.len());
            if !is_whole || marks.iter().any(|mark| *mark != first) {
                // Some of a batch would be taken again by whoever has it already.
                return Err(MoveError::PartlyShipped(spool));
            }
            out.put(Piece::Spool(spool, first))?;
        }
        Ok(())
    }
}

impl Export {
    async fn write_data_sets(&self, out: &mut Outgoing<'_>) -> Result<(), MoveError> {
        for names in &self.0.partitions {
            let token: Option<String> = self.0.connections.bulk().send(redis::cmd("GET").arg(names.named("store"))).await?;
            if let Some(token) = token {
                out.put(Piece::DataSet(names.partition.0, token))?;
            }
        }
        Ok(())
    }
}

impl Source for Export {
    fn export<'a>(&'a self, out: &'a mut Outgoing<'_>) -> BoxFuture<'a, Result<(), MoveError>> {
        self.write(out).boxed()
    }
}

fn ranks(command: &str, name: String, first: usize) -> redis::Cmd {
    let mut ranks = redis::cmd(command);
    ranks.arg(name).arg(first).arg(first + PAGE - 1);
    ranks
}

/// A key's record, what its uses have told, and its window's clock.
type RawKey = (Fields, Vec<String>, String);

fn read_key((record, told, counted): &RawKey) -> Result<MovedKey, StoreError> {
    let counted: Option<Timestamp> = if counted.is_empty() { None } else { Some(keys::time(counted)?) };
    Ok(MovedKey::new(&keys::read_record(record)?, uses::read(told)?, counted))
}

/// A store that is moved into.
pub(crate) struct Import {
    store: Arc<RedisStore>,
    silent: Vec<SessionState>,
    firm: Option<FirmId>,
    open: Option<OpenBlock>,
    batches: Vec<Batch>,
}

/// Commands that wait to be sent to a partition.
#[derive(Default)]
struct Batch {
    /// The names that they write, as a Cluster wants them told.
    keys: BTreeSet<String>,
    words: Vec<Vec<u8>>,
    commands: usize,
    pieces: usize,
}

impl Batch {
    /// The second word is the key that is written.
    fn add<const N: usize>(&mut self, words: [&str; N]) {
        self.add_all(words.iter().map(|word| word.as_bytes().to_vec()).collect());
    }

    fn add_all(&mut self, words: Vec<Vec<u8>>) {
        self.keys.extend(words.get(1).map(|key| String::from_utf8_lossy(key).into_owned()));
        self.words.push(words.len().to_string().into_bytes());
        self.words.extend(words);
        self.commands += 1;
    }

    /// Names and arguments of the script.
    fn spelt(self) -> (Vec<String>, Vec<Vec<u8>>) {
        (self.keys.into_iter().collect(), [self.commands.to_string().into_bytes()].into_iter().chain(self.words).collect())
    }

    fn add_spool(&mut self, names: &Names, spool: Uuid, sequence: u64) {
        self.add(["SET", &names.mark(spool), &sequence.to_string()]);
        self.add(["SADD", &names.named("spools"), &spool.to_string()]);
        self.pieces += 1;
    }

    /// Begins a firm anew: its log cannot be written over, everything else can.
    fn add_firm(&mut self, names: &Names, firm: &FirmId) {
        self.add(["DEL", &names.of_firm(firm, "log")]);
        self.add(["DEL", &names.of_firm(firm, "times")]);
        self.add(["DEL", &names.of_firm(firm, "changes")]);
        self.add(["ZADD", &names.named("firms"), "NX", "+inf", firm.as_str()]);
        self.pieces += 1;
    }

    fn add_key(&mut self, names: &Names, key: &MovedKey) {
        let record = key.record();
        let (id, created) = (record.id.to_string(), record.created_at.micros().to_string());
        let mut hash = vec!["HSET".to_owned(), names.record(&record.digest), "created_at".to_owned(), created.clone()];
        hash.extend(keys::write_record(&record));
        match &record.state {
            KeyState::Live => {
                self.add(["SADD", &names.of_firm(&record.firm_id, "live"), &id]);
                self.add(["SADD", &names.of_creator(&record.firm_id, &record.creator), &id]);
            }
            KeyState::Revoked { at, by, reason } => {
                let fields =
                    [("revoked_at", at.micros().to_string()), ("revoked_by", by.to_string()), ("revoked_reason", reason.to_string())];
                hash.extend(fields.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
            }
        }
        self.add_all(hash.into_iter().map(String::into_bytes).collect());
        self.add(["SET", &names.id(record.id), &record.digest.hex()]);
        self.add(["ZADD", &names.of_firm(&record.firm_id, "keys"), &created, &id]);
        if let Some(told) = uses::pack_moved(&key.uses) {
            let command = ["HSET", &names.of_firm(&record.firm_id, "uses"), &id].map(|word| word.as_bytes().to_vec());
            self.add_all(command.into_iter().chain([told]).collect());
        }
        self.pieces += 1;
    }

    /// A block is told by its id; arrivals stay what they were, so that whoever follows the log goes on where it was.
    fn add_block(&mut self, names: &Names, open: &OpenBlock) {
        let place = blocks::place(open.arrival);
        let (newest, about) = (open.block.newest().to_string(), open.block.about());
        let entry = ["XADD", &names.of_firm(&open.firm, "log"), &place, "records"].map(|word| word.as_bytes().to_vec());
        self.add_all(entry.into_iter().chain([open.block.bytes().to_vec()]).collect());
        let member = format!("{place} {about}");
        self.add(["ZADD", &names.of_firm(&open.firm, "times"), &newest, &member]);
        if about.starts_with('!') {
            self.add(["ZADD", &names.of_firm(&open.firm, "changes"), &newest, &member]);
        }
        self.add(["ZADD", &names.named("firms"), "LT", &newest, open.firm.as_str()]);
    }
}

/// Records of a firm that are to become one entry of its log.
struct OpenBlock {
    firm: FirmId,
    block: Block,
    /// The last one's.
    arrival: u64,
}

impl Import {
    pub(crate) fn new(store: Arc<RedisStore>) -> Self {
        let batches = store.partitions.iter().map(|_| Batch::default()).collect();
        Self { store, silent: Vec::new(), firm: None, open: None, batches }
    }

    async fn begin_anew(&mut self, checksum: &str) -> Result<(), MoveError> {
        for names in &self.store.partitions {
            let keys = ["importing", "firms", "spools", "epoch"].map(|name| names.named(name));
            let found: String = self.store.connections.bulk().call(&LOOK, &keys, &[checksum.to_owned()]).await?;
            match found.as_str() {
                "empty" | "begun" => {}
                "other" => return Err(MoveError::OtherFile),
                _ => return Err(MoveError::NotEmpty),
            }
        }
        self.silent = silent_sessions(&self.store).await?;
        for names in &self.store.partitions {
            self.run(names, &["SET", &names.named("importing"), checksum]).await?;
        }
        // Whoever opened the store just before the mark was set has come by now, or finds it.
        refuse_changed(&self.silent, &sessions(&self.store).await?)
    }

    async fn take(&mut self, piece: Piece) -> Result<(), MoveError> {
        let store = self.store.clone();
        if !matches!(piece, Piece::Record(_)) {
            self.close_block()?;
        }
        match piece {
            Piece::Firm(firm) => {
                let names = store.names_of(FirmTag::of(&firm));
                self.batch(names)?.add_firm(names, &firm);
                self.firm = Some(firm);
                self.flush_full(names).await
            }
            Piece::Key(key) => {
                let names = store.names_of(FirmTag::of(self.section()?));
                self.batch(names)?.add_key(names, &key);
                self.flush_full(names).await
            }
            Piece::Record(moved) => {
                let names = store.names_of(FirmTag::of(self.section()?));
                self.add_record(&moved)?;
                self.batch(names)?.pieces += 1;
                self.flush_full(names).await
            }
            Piece::Spool(spool, sequence) => {
                for names in &store.partitions {
                    self.batch(names)?.add_spool(names, spool, sequence);
                    self.flush_full(names).await?;
                }
                Ok(())
            }
            Piece::DataSet(partition, token) => {
                // Gateways that know the store by its partitions know it again, those partitions that there still are.
                if let Some(names) = store.partitions.get(usize::from(partition)) {
                    // Whoever knows the token believes it only together with the layout (see `identity`).
                    self.batch(names)?.add(["SET", &names.named("store"), &token]);
                    self.batch(names)?.add(["SET", &names.named("schema"), schema::SCHEMA]);
                }
                Ok(())
            }
        }
    }

    fn add_record(&mut self, moved: &MovedRecord) -> Result<(), StoreError> {
        let (record, micros) = (WrittenRecord::from(&moved.record), moved.record.time.micros());
        let is_same_ms = |open: &OpenBlock| {
            open.firm == moved.record.firm_id && moved.arrival > open.arrival && moved.arrival & !NUMBER_MAX == open.arrival & !NUMBER_MAX
        };
        if !self.open.as_ref().is_some_and(|open| is_same_ms(open) && open.block.admits(micros)) {
            self.close_block()?;
        }
        let open = self.open.get_or_insert_with(|| OpenBlock { firm: moved.record.firm_id.clone(), block: Block::default(), arrival: 0 });
        open.block.push_as(moved.arrival & NUMBER_MAX, micros, record.bytes());
        open.block.note(&moved.record.key_id.to_string(), moved.record.action != Action::Use);
        open.arrival = moved.arrival;
        Ok(())
    }

    /// Writes the open block, if there is one.
    fn close_block(&mut self) -> Result<(), StoreError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let store = self.store.clone();
        let names = store.names_of(FirmTag::of(&open.firm));
        self.batch(names)?.add_block(names, &open);
        Ok(())
    }

    fn section(&self) -> Result<&FirmId, StoreError> {
        self.firm.as_ref().ok_or_else(|| corrupt("a key or record stands before its firm"))
    }

    fn batch(&mut self, names: &Names) -> Result<&mut Batch, StoreError> {
        self.batches.get_mut(usize::from(names.partition.0)).ok_or_else(|| corrupt("a firm lives in no partition"))
    }

    async fn flush_full(&mut self, names: &Names) -> Result<(), MoveError> {
        if self.batch(names)?.pieces < BATCH { Ok(()) } else { self.flush(names).await }
    }

    async fn flush(&mut self, names: &Names) -> Result<(), MoveError> {
        let batch = std::mem::take(self.batch(names)?);
        if !batch.words.is_empty() {
            let (keys, arguments) = batch.spelt();
            self.store.connections.bulk().call::<Vec<String>>(&RUN, &keys, &arguments).await?;
        }
        Ok(())
    }

    /// One command on a key that must have reached as many Redis replicas as a change must, and with it all before it.
    async fn run(&self, names: &Names, words: &[&str; 3]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        batch.add(*words);
        let (keys, arguments) = batch.spelt();
        self.store.change(names, &RUN, &keys, &arguments).await.map(drop)
    }

    async fn complete(&mut self) -> Result<(), MoveError> {
        let store = self.store.clone();
        self.close_block()?;
        for names in &store.partitions {
            self.flush(names).await?;
        }
        refuse_changed(&self.silent, &sessions(&store).await?)?;
        for names in &store.partitions {
            let importing = names.named("importing");
            self.run(names, &["DEL", &importing, &importing]).await?;
        }
        Ok(())
    }
}

impl Target for Import {
    fn begin<'a>(&'a mut self, checksum: &'a str) -> BoxFuture<'a, Result<(), MoveError>> {
        self.begin_anew(checksum).boxed()
    }

    fn put(&mut self, piece: Piece) -> BoxFuture<'_, Result<(), MoveError>> {
        self.take(piece).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), MoveError>> {
        self.complete().boxed()
    }
}
