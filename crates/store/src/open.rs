//! Opening a data directory: from whatever a clean close, a crash or a power cut has left to a store that serves.
//!
//! ```text
//! LOCK, FORMAT ─▶ VIEW trusted? ─yes─▶ reuse view-N ───────────────┐
//!                       └─no─▶ view-N+1 from the newest checkpoint ─┴─▶ replay the log ─▶ own row, fsynced ─▶ serve
//! ```
//! The view is trusted after a clean close, or after a death of the process alone: same boot, same mount. After anything
//! else its file may hold any subset of what was written, and it is built anew.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use isle_model::{Delta, Incarnation, IncarnationTree, Region, Row, ShardId, planted};
use parking_lot::Mutex;

use crate::batch::ShardWriter;
use crate::checkpoint::{self, CheckpointError};
use crate::codec::{self, DecodeError};
use crate::disk::Disk;
use crate::entry::Entry;
use crate::log::{self, CommitLog, LogError, LogOptions, LogPosition};
use crate::maintain::{Maintenance, VIEW_FILE};
use crate::memory::{Census, Memory, ReadError, Workspace, put_all};
use crate::meta::{Meta, ViewMark};
use crate::overlay::Item;
use crate::packed::Packed;
use crate::purge::Sweep;
use crate::store::{Store, StoreConfig};
use crate::view::{View, ViewError, ViewPlace, directory_of};
use crate::view_key::{LEDGER, ViewKey};

pub(crate) const FORMAT_FILE: &str = "FORMAT";
/// The version of everything in the data directory.
pub(crate) const FORMAT: &str = "isle data directory, format 1\n";
/// Whose data it is: another region's directory, or another number of shards, would be read as this one's.
pub(crate) const IDENTITY_FILE: &str = "IDENTITY";
const LOCK_FILE: &str = "LOCK";
/// So many keys at once are taken out under a replay.
const SWEEP_ITEMS: usize = 1024;

/// What tells a restart of the process from a restart of the machine or of the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootIdentity {
    pub boot_id: String,
    pub mount_id: String,
}

/// How far opening has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    LoadingCheckpoint { items: u64 },
    ReplayingLog { bytes: u64, of: u64 },
}

/// What opening found and did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    pub view_reused: bool,
    /// Why the view was not reused, if there was one.
    pub view_distrusted: Option<&'static str>,
    pub checkpoint_items: u64,
    /// Checkpoints that were damaged, and passed over for an older one or for the log alone.
    pub checkpoints_damaged: Vec<String>,
    pub entries_replayed: u64,
    /// Torn writes cut from the end of the log. They were never acknowledged.
    pub cuts: Vec<log::Cut>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process has the data directory open")]
    Locked,
    #[error("the data directory has format {found:?}, this program reads {FORMAT:?}; upgrade or use another directory")]
    Format { found: String },
    #[error("the data directory was made with {found} shards, the configuration says {asked}")]
    Shards { found: usize, asked: u32 },
    #[error("the data directory is region {found}'s, the configuration says {asked}; use another directory")]
    Region { found: String, asked: Region },
    #[error(
        "{damage}; the log before it is trimmed, so that it cannot be done without: put this data directory aside and \
         start with an empty one, which the region's peers then complete"
    )]
    CheckpointLost { damage: String },
    #[error("data directory: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    View(#[from] ViewError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the log's entry ending at {at} does not decode: {source}")]
    Entry { at: LogPosition, source: DecodeError },
    #[error("the log's entry ending at {at} is of shard {}, which the data directory does not have", shard.0)]
    NoSuchShard { at: LogPosition, shard: ShardId },
    #[error("the log's entry ending at {at} cannot be applied: {source}")]
    Apply { at: LogPosition, source: ReadError },
    #[error("the configuration: {0}")]
    Config(String),
    #[error("the new incarnation cannot be noted: {0}")]
    Row(String),
}

pub type Opened = (Arc<Store>, Vec<ShardWriter>, RecoveryReport);

impl Store {
    /// Opens a data directory as a new incarnation, which is durable when this returns.
    pub fn open(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        place: ViewPlace,
        boot: BootIdentity,
        incarnation: Incarnation,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Opened, OpenError> {
        let faults = config.faults();
        if !faults.is_empty() {
            return Err(OpenError::Config(faults.join("; ")));
        }
        let lock = lock(&place)?;
        check_identity(disk.as_ref(), &config)?;
        check_format(disk.as_ref())?;
        let mut report = RecoveryReport::default();
        let start = choose_view(&config, disk.as_ref(), &place, &boot, &mut report, progress)?;
        let mut replayed = replay_log(&config, &disk, incarnation, start, progress);
        if let Some(fault) = replayed.as_ref().err().and_then(|failed| failed.view_fault.clone())
            && report.view_reused
        {
            tracing::error!(fault, "the view is damaged and built anew");
            distrust_view(disk.as_ref())?;
            let start = choose_view(&config, disk.as_ref(), &place, &boot, &mut report, progress)?;
            (report.view_reused, report.view_distrusted) = (false, Some("it is damaged"));
            replayed = replay_log(&config, &disk, incarnation, start, progress);
        }
        let Replayed { log, cuts, replay, mark, checkpoint } =
            replayed.map_err(|failed| match (failed.error, report.checkpoints_damaged.last()) {
                (OpenError::Log(LogError::Trimmed { .. }), Some(damage)) => {
                    OpenError::CheckpointLost { damage: damage.clone() }
                }
                (error, _) => error,
            })?;
        report.entries_replayed = replay.entries;
        report.cuts = cuts;
        let live_bytes = replay.live_bytes;
        let (memory, row) = replay.finish(log.durable())?;
        if memory.tree().contains(incarnation) {
            return Err(OpenError::Row(format!("{incarnation} was used before, and its dots would be issued again")));
        }
        let published = AtomicU64::new(log.durable().0);
        let store = Arc::new(Store {
            memory,
            disk,
            incarnation,
            publishing: Mutex::new(()),
            published,
            maintenance: Mutex::new(Maintenance::new(mark, checkpoint, place, live_bytes)),
            sync_thread: OnceLock::new(),
            short_of_space: AtomicBool::new(false),
            _lock: lock,
            config,
            log,
        });
        store.begin_incarnation(row)?;
        let writers = (0..store.config.shards).map(|s| ShardWriter::new(store.clone(), ShardId(s))).collect();
        Ok((store, writers, report))
    }

    /// Notes the own row and fsyncs it: no dot of this incarnation exists before.
    fn begin_incarnation(&self, row: Row) -> Result<(), OpenError> {
        self.learn_rows([(self.incarnation, row)]).map_err(|error| OpenError::Row(error.to_string()))?;
        self.sync().map_err(|error| OpenError::Row(error.to_string()))?;
        Ok(())
    }
}

/// The log applied to the view.
struct Replayed {
    log: CommitLog,
    cuts: Vec<log::Cut>,
    replay: Replay,
    mark: ViewMark,
    checkpoint: LogPosition,
}

struct ReplayFailed {
    error: OpenError,
    /// What the view failed with: then another one may do.
    view_fault: Option<String>,
}

fn replay_log(
    config: &StoreConfig,
    disk: &Arc<dyn Disk>,
    incarnation: Incarnation,
    start: Start,
    progress: &mut dyn FnMut(Progress),
) -> Result<Replayed, ReplayFailed> {
    let Start { view, mark, known_durable, checkpoint } = start;
    let found = mark.meta.last_seqs.len();
    if found != config.shards as usize {
        let error = OpenError::Shards { found, asked: config.shards };
        return Err(ReplayFailed { error, view_fault: None });
    }
    let mut replay = Replay::new(config, view, disk.clone(), mark.clone());
    let options = LogOptions {
        segment_bytes: config.segment_bytes as u32,
        replay_from: mark.meta.position,
        known_durable,
        recent_bytes: config.tail_ring_bytes,
        reserve_bytes: config.disk_reserve_bytes,
        ..LogOptions::new(incarnation.0)
    };
    let mut shown = |at: log::Progress| progress(Progress::ReplayingLog { bytes: at.done, of: at.total });
    match CommitLog::open(disk.clone(), &options, |entry| replay.take(entry), &mut shown) {
        Ok((log, found)) => Ok(Replayed { log, cuts: found.cuts, replay, mark, checkpoint }),
        Err(error) => {
            let view_fault = replay.memory.view.load().fault().map(str::to_owned);
            Err(ReplayFailed { error: error.into(), view_fault })
        }
    }
}

/// Takes the lock of a real directory. The operating system lets go of it when the process ends, however it ends.
pub(crate) fn lock(place: &ViewPlace) -> Result<Option<std::fs::File>, OpenError> {
    let ViewPlace::Directory(root) = place else { return Ok(None) };
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(root.join(LOCK_FILE))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked),
        Err(errno) => Err(OpenError::Io(errno.into())),
    }
}

fn check_format(disk: &dyn Disk) -> Result<(), OpenError> {
    if !disk.exists(FORMAT_FILE)? {
        disk.write_atomic(FORMAT_FILE, FORMAT.as_bytes())?;
        return Ok(());
    }
    let found = String::from_utf8_lossy(&disk.read(FORMAT_FILE)?).into_owned();
    if found == FORMAT { Ok(()) } else { Err(OpenError::Format { found }) }
}

/// Written before FORMAT, so that a directory with a format has an owner.
fn check_identity(disk: &dyn Disk, config: &StoreConfig) -> Result<(), OpenError> {
    let asked = identity_of(&config.region, config.shards);
    if !disk.exists(IDENTITY_FILE)? {
        disk.write_atomic(IDENTITY_FILE, asked.as_bytes())?;
        return Ok(());
    }
    let found = String::from_utf8_lossy(&disk.read(IDENTITY_FILE)?).into_owned();
    if found == asked {
        return Ok(());
    }
    let line = |name: &str| found.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    let region = line("region ");
    if region != config.region.as_str() {
        return Err(OpenError::Region { found: region, asked: config.region.clone() });
    }
    Err(OpenError::Shards { found: line("shards ").parse().unwrap_or(0), asked: config.shards })
}

pub(crate) fn identity_of(region: &Region, shards: u32) -> String {
    format!("region {region}\nshards {shards}\n")
}

/// `None` where it is not what was written.
pub(crate) fn parse_identity(text: &str) -> Option<(Region, u32)> {
    let (region, shards) = text.strip_prefix("region ")?.strip_suffix('\n')?.split_once("\nshards ")?;
    let found = (Region::new(region), shards.parse().ok()?);
    (identity_of(&found.0, found.1) == text).then_some(found)
}

/// The view that recovery starts from, and what it holds.
struct Start {
    view: View,
    mark: ViewMark,
    /// What was marked or checkpointed was durable: damage below is no torn write.
    known_durable: LogPosition,
    checkpoint: LogPosition,
}

fn choose_view(
    config: &StoreConfig,
    disk: &dyn Disk,
    place: &ViewPlace,
    boot: &BootIdentity,
    report: &mut RecoveryReport,
    progress: &mut dyn FnMut(Progress),
) -> Result<Start, OpenError> {
    let checkpoints = checkpoint::list(disk)?;
    let newest = checkpoints.last().copied().unwrap_or_default();
    let old = read_mark(disk)?;
    let known_durable = old.as_ref().map_or(newest, |mark| mark.meta.position.max(newest));
    if let Some(mark) = &old {
        match distrust(mark, place, boot) {
            None => match open_sealed(place, mark, config) {
                Ok(view) => {
                    report.view_reused = true;
                    let mark = ViewMark { clean: false, ..owned_by(mark.clone(), boot) };
                    // From here on the view is written: the clean mark must not outlive this.
                    write_mark(disk, &mark)?;
                    // One that it has replaced, or that was to replace it, when the process died.
                    remove_views(place, Some(mark.generation))?;
                    return Ok(Start { view, mark, known_durable, checkpoint: newest });
                }
                Err(error) => {
                    tracing::error!(%error, "the view is damaged and built anew");
                    report.view_distrusted = Some(match error {
                        ViewError::Unsealed { .. } => "it has lost what was flushed into it",
                        _ => "it does not open",
                    });
                }
            },
            why => report.view_distrusted = why,
        }
        // A crash while it is removed leaves part of it, which must not be taken for all.
        distrust_view(disk)?;
    }
    let generation = old.as_ref().map_or(0, |mark| mark.generation);
    let Built { generation, view, mut meta, checkpoint, durable } =
        build_view(config, disk, place, generation, &checkpoints, report, progress)?;
    // An older checkpoint may name incarnations that only the mark knows.
    for (incarnation, row) in old.iter().flat_map(|mark| mark.meta.tree.rows()) {
        meta.tree.insert(incarnation, row.clone()).map_err(|conflict| OpenError::Row(conflict.to_string()))?;
    }
    // Only what is flushed is marked.
    let seal = view.flush()?;
    let mark = ViewMark { generation, boot_id: String::new(), mount_id: String::new(), clean: false, seal, meta };
    let mark = owned_by(mark, boot);
    write_mark(disk, &mark)?;
    Ok(Start { view, mark, known_durable: known_durable.max(durable), checkpoint })
}

fn open_sealed(place: &ViewPlace, mark: &ViewMark, config: &StoreConfig) -> Result<View, ViewError> {
    let view = View::open(place, mark.generation, config.view_cache_bytes)?;
    view.check_sealed(mark.seal)?;
    Ok(view)
}

fn owned_by(mark: ViewMark, boot: &BootIdentity) -> ViewMark {
    ViewMark { boot_id: boot.boot_id.clone(), mount_id: boot.mount_id.clone(), ..mark }
}

pub(crate) fn write_mark(disk: &dyn Disk, mark: &ViewMark) -> std::io::Result<()> {
    disk.write_atomic(VIEW_FILE, &codec::encode_view_mark(mark))
}

/// The mark is nobody's from here on: it vouches for no view.
fn distrust_view(disk: &dyn Disk) -> Result<(), OpenError> {
    if let Some(mark) = read_mark(disk)? {
        let nobody = BootIdentity { boot_id: String::new(), mount_id: String::new() };
        write_mark(disk, &ViewMark { clean: false, seal: 0, ..owned_by(mark, &nobody) })?;
    }
    Ok(())
}

/// A new generation of the view, and what it was built from.
struct Built {
    generation: u64,
    view: View,
    meta: Meta,
    checkpoint: LogPosition,
    /// Known from the checkpoint.
    durable: LogPosition,
}

/// A new generation from the newest checkpoint that is sound; from nothing, if there is none.
fn build_view(
    config: &StoreConfig,
    disk: &dyn Disk,
    place: &ViewPlace,
    mut generation: u64,
    checkpoints: &[LogPosition],
    report: &mut RecoveryReport,
    progress: &mut dyn FnMut(Progress),
) -> Result<Built, OpenError> {
    for position in checkpoints.iter().rev() {
        generation += 1;
        remove_views(place, None)?;
        let view = View::open(place, generation, config.view_cache_bytes)?;
        let mut items = 0;
        let loaded = checkpoint::load(disk, *position, |key, item| {
            items += 1;
            if u64::is_multiple_of(items, 10_000) {
                progress(Progress::LoadingCheckpoint { items });
            }
            view.put(&key, &Packed::of(&key, &item))?;
            Ok(())
        });
        match loaded {
            Ok(loaded) => {
                report.checkpoint_items = items;
                let (meta, durable) = (loaded.meta, loaded.durable);
                return Ok(Built { generation, view, meta, checkpoint: *position, durable });
            }
            Err(OpenError::Checkpoint(error)) if error.is_damage() => {
                tracing::error!(%error, "a checkpoint is passed over");
                report.checkpoints_damaged.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    generation += 1;
    remove_views(place, None)?;
    let view = View::open(place, generation, config.view_cache_bytes)?;
    let (meta, none) = (Meta::empty(config.shards), LogPosition::ZERO);
    Ok(Built { generation, view, meta, checkpoint: none, durable: none })
}

/// The view's mark. One that does not decode is as good as none: the view is built anew.
fn read_mark(disk: &dyn Disk) -> Result<Option<ViewMark>, OpenError> {
    if !disk.exists(VIEW_FILE)? {
        return Ok(None);
    }
    let bytes = disk.read(VIEW_FILE)?;
    match codec::decode_view_mark(Bytes::from(bytes)) {
        Ok(mark) => Ok(Some(mark)),
        Err(error) => {
            tracing::warn!(%error, "the view's mark does not decode; the view is built anew");
            Ok(None)
        }
    }
}

/// Why a view may not be trusted; `None` if it may.
pub(crate) fn distrust(mark: &ViewMark, place: &ViewPlace, boot: &BootIdentity) -> Option<&'static str> {
    let ViewPlace::Directory(root) = place else { return Some("it was temporary") };
    if !directory_of(root, mark.generation).join("db").exists() {
        return Some("its directory is gone");
    }
    if mark.seal == 0 && !mark.boot_id.is_empty() {
        return Some("its mark is damaged, or of an earlier version");
    }
    if mark.seal == 0 || (mark.boot_id.is_empty() && !mark.clean) {
        return Some("it failed, or was about to be removed");
    }
    match (mark.clean, mark.boot_id == boot.boot_id, mark.mount_id == boot.mount_id) {
        (true, ..) | (_, true, true) => None,
        (_, false, _) => Some("the machine was restarted without a clean close"),
        (_, _, false) => Some("the file system was mounted anew without a clean close"),
    }
}

/// Removes every generation but the one to keep.
fn remove_views(place: &ViewPlace, kept: Option<u64>) -> Result<(), OpenError> {
    let ViewPlace::Directory(root) = place else { return Ok(()) };
    let kept = kept.map(|generation| directory_of(root, generation));
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if is_view(&path) && kept.as_ref() != Some(&path) {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

pub(crate) fn is_view(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix("view-").is_some_and(|n| n.parse::<u64>().is_ok())
}

/// The log applied, entry by entry, by the code that live commits use.
struct Replay {
    memory: Memory,
    tree: IncarnationTree,
    last_incarnation: Option<Incarnation>,
    entries: u64,
    disk: Arc<dyn Disk>,
    mark: ViewMark,
    /// What the view holds of what is counted by now: the ledger.
    live_bytes: i64,
    /// From here on the overlay is drained. What it holds at the end is drained behind the first writes.
    overlay_bytes: usize,
}

impl Replay {
    fn new(config: &StoreConfig, view: View, disk: Arc<dyn Disk>, mark: ViewMark) -> Replay {
        let meta = &mark.meta;
        let memory = Memory::new(config.region.clone(), config.shards, view);
        for (at, shard) in memory.shards.iter().enumerate() {
            shard.write().seq = meta.last_seqs[at];
        }
        for ((keyspace, shard), streams) in &meta.streams {
            let mut shard = memory.shard(*shard).write();
            shard.streams.insert(*keyspace, Arc::new(streams.clone()));
            shard.published.insert(*keyspace, Arc::new(streams.clone()));
        }
        for ((keyspace, shard), left) in &meta.transfers {
            let mut shard = memory.shard(*shard).write();
            shard.transfers.insert(*keyspace, left.clone());
            shard.published_transfers.insert(*keyspace, left.clone());
        }
        for (keyspace, shard) in &meta.purging {
            let mut shard = memory.shard(*shard).write();
            shard.purging.insert(*keyspace);
            shard.published_purging.insert(*keyspace);
        }
        memory.note_hlc(meta.hlc_high);
        meta.expired.iter().for_each(|region| memory.note_holder(region, true));
        let mut live_bytes = 0;
        for row in memory.view.load().sized_range(&ViewKey::first(LEDGER), &ViewKey::last(LEDGER)) {
            // An entry that does not decode is met again where it is read, and reported there.
            let Ok(((_, Item::Ledger(entry)), bytes)) = row else { continue };
            live_bytes += bytes as i64;
            if entry.fate == isle_model::Fate::Open {
                let mut shard = memory.shard(memory.shard_of(entry.keyspace, &entry.key)).write();
                if !shard.purging.contains(&entry.keyspace) {
                    let open = shard.open_losers.entry(entry.keyspace).or_default();
                    open.insert((entry.loser, entry.field.clone()));
                }
            }
        }
        Replay {
            memory,
            tree: meta.tree.clone(),
            last_incarnation: meta.last_incarnation,
            entries: 0,
            disk,
            mark,
            live_bytes,
            overlay_bytes: config.overlay_drain_bytes,
        }
    }

    fn take(&mut self, logged: log::Entry) -> Result<(), OpenError> {
        let (end, writer) = (logged.end, Incarnation(logged.incarnation));
        let entry = codec::decode_entry(logged.payload).map_err(|source| OpenError::Entry { at: end, source })?;
        self.entries += 1;
        if let Entry::Rows(rows) = entry {
            return self.learn(writer, rows);
        }
        if let Entry::Holder { region, expired } = &entry {
            self.memory.note_holder(region, *expired);
            return Ok(());
        }
        if let Some(shard) = entry.shard().filter(|shard| shard.0 as usize >= self.memory.shards.len()) {
            return Err(OpenError::NoSuchShard { at: end, shard });
        }
        self.make_way_for(&entry)?;
        self.apply(end, writer, entry).map_err(|source| OpenError::Apply { at: end, source })?;
        if self.memory.overlay_bytes() > self.overlay_bytes {
            self.drain()?;
        }
        Ok(())
    }

    fn learn(&mut self, writer: Incarnation, rows: Vec<(Incarnation, Row)>) -> Result<(), OpenError> {
        for (incarnation, row) in rows {
            let new = self.tree.insert(incarnation, row).map_err(|conflict| OpenError::Row(conflict.to_string()))?;
            // The writer's own row opens its incarnation: its dots count from one again.
            if incarnation == writer && (new || self.last_incarnation != Some(incarnation)) {
                self.last_incarnation = Some(incarnation);
                self.memory.shards.iter().for_each(|shard| shard.write().seq = 0);
            }
        }
        Ok(())
    }

    fn apply(&mut self, end: LogPosition, writer: Incarnation, entry: Entry) -> Result<(), ReadError> {
        let memory = &self.memory;
        let Some(shard) = entry.shard() else { return Ok(()) };
        let mut work = Workspace::new(memory, shard);
        let is_own = |delta: &Delta| delta.dot.incarnation == writer;
        match entry {
            Entry::Rows(_) | Entry::Holder { .. } => {}
            Entry::Delta(delta) if planted::is(planted::Bug::SkipInReplay) && delta.dot.seq % 8 == 7 => {}
            Entry::Delta(delta) => {
                let (stamp, own) = (delta.hlc, is_own(&delta));
                work.delta(memory, &self.tree, delta, own)?;
                memory.note_hlc(stamp);
            }
            Entry::DeltaAhead(delta) => {
                let own = is_own(&delta);
                work.delta(memory, &self.tree, delta, own)?;
            }
            Entry::Forget { keyspace, key, .. } => work.forget(memory, keyspace, &key)?,
            Entry::StateChunk(chunk) => {
                work.state_chunk(memory, &self.tree, &chunk)?;
                memory.note_hlc(chunk.taken_at);
            }
            Entry::StateBegun { keyspace, from, begun, .. } => work.state_begun(memory, keyspace, &from, &begun),
            Entry::StateDone { keyspace, cursors, heard, is_empty, .. } => {
                work.state_done(memory, &self.tree, keyspace, &cursors, heard.as_ref(), is_empty);
            }
            Entry::Purge { keyspace, .. } => work.purge(keyspace),
        }
        work.stage(memory, &mut memory.shard(shard).write(), end);
        memory.publish(end);
        Ok(())
    }

    /// What the log has of a keyspace behind its purge was taken in when that was over.
    fn make_way_for(&mut self, entry: &Entry) -> Result<(), OpenError> {
        let (Some(keyspace), Some(shard)) = (entry.keyspace(), entry.shard()) else { return Ok(()) };
        if !self.memory.shard(shard).read().purging.contains(&keyspace) {
            return Ok(());
        }
        let (mut sweep, view) = (Sweep::new(keyspace, shard), self.memory.view.load_full());
        while let Some(keys) = sweep.next(&self.memory, &view, SWEEP_ITEMS)? {
            for key in keys {
                let by = view.remove(&key)?;
                self.live_bytes += if Census::Upto(None).counts(&key) { by } else { 0 };
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), OpenError> {
        if self.tree.len() != self.mark.meta.tree.len() {
            // As in maintenance: the mark knows every incarnation that the view names.
            self.mark.meta.tree = self.tree.clone();
            write_mark(self.disk.as_ref(), &self.mark)?;
        }
        for shard in &self.memory.shards {
            let mut shard = shard.write();
            let items = shard.overlay.next_to_drain(None, usize::MAX);
            self.live_bytes += put_all(&self.memory.view.load(), &items, &Census::Upto(None))?;
            shard.overlay.drained(&items);
        }
        Ok(())
    }

    /// The memory, and the row of the incarnation that starts now.
    fn finish(self, durable: LogPosition) -> Result<(Memory, Row), OpenError> {
        let mut left_at = Vec::new();
        self.memory.publish(durable);
        for shard in &self.memory.shards {
            let mut shard = shard.write();
            left_at.push(shard.seq);
            shard.seq = 0;
            shard.published_seq = 0;
        }
        let row = Row { region: self.memory.region.clone(), parent: self.last_incarnation, left_at };
        *self.memory.tree.write() = Arc::new(self.tree);
        Ok((self.memory, row))
    }
}
