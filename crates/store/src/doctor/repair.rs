//! Repairing: what is damaged is moved aside, and what is left is made a directory that a node starts from.
//!
//! Which part of the log can go depends on how far a sound state reaches, be it the view or a checkpoint:
//!
//! ```text
//! log    ──sound──┤damaged├──sound──▶
//! state                          ▲     it needs nothing of the damage: what is up to there goes, what follows stays
//! state             ▲                  it goes on from itself, and all of the log goes
//! state      ▲                         the log is cut where the damage begins
//! ```
//! Whatever is lost is above what this incarnation then says it left its parent at: peers that have more see that, and
//! complete the region. What the state shows beyond its cursors is noted as shown, so that it is offered to them in turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isle_model::{Incarnation, Region, ShardId};

use super::{Doctor, DoctorError, Examination, Facts, Format, io_at};
use crate::batch::ShardWriter;
use crate::codec;
use crate::entry::StateChunk;
use crate::log::{self, Damage, Header, LogPosition, Prepared, Survey};
use crate::maintain::VIEW_FILE;
use crate::meta::ViewMark;
use crate::open;
use crate::overlay::Item;
use crate::store::{Store, StoreConfig};
use crate::view::ViewPlace;
use crate::view_key::ViewKey;

const CHUNKS_A_BATCH: usize = 256;
const CHECKPOINTS: &str = "checkpoints";
/// Of a log that starts anew, until the node makes one of its own size.
const SEGMENT_BYTES: u32 = 64 << 10;

/// What a repair did.
#[derive(Debug)]
pub struct Repair {
    /// Sentences, in order.
    pub actions: Vec<String>,
    /// Where the damaged parts are now, if there were any.
    pub aside: Option<PathBuf>,
}

struct Repairing {
    doctor: Doctor,
    facts: Facts,
    aside: PathBuf,
    incarnation: Incarnation,
    actions: Vec<String>,
    log_was_cut: bool,
}

impl Doctor {
    /// Moves what is damaged to `aside`, below the directory, and opens the directory once as `incarnation`, which was never
    /// used before, to write a new checkpoint.
    pub fn repair(
        self,
        examination: Examination,
        aside: &str,
        incarnation: Incarnation,
    ) -> Result<Repair, DoctorError> {
        let facts = examination.facts;
        if facts.format == Format::OtherVersion {
            return Err(DoctorError::OtherVersion);
        }
        let aside = self.root.join(aside);
        let Some((region, shards)) = facts.owner.clone() else {
            return Err(DoctorError::Unknown { what: "neither IDENTITY, VIEW nor a checkpoint says it" });
        };
        let mut repairing =
            Repairing { doctor: self, facts, aside, incarnation, actions: Vec::new(), log_was_cut: false };
        repairing.names(&region, shards)?;
        repairing.checkpoints()?;
        repairing.view()?;
        repairing.log()?;
        repairing.open(region, shards)
    }
}

impl Repairing {
    fn did(&mut self, what: String) {
        self.actions.push(what);
    }

    /// Moves a file or directory aside, under the name it had.
    fn set_aside(&mut self, name: &str) -> Result<(), DoctorError> {
        let (from, to) = (self.doctor.root.join(name), self.aside.join(name));
        let above = |path: &Path| path.parent().map(Path::to_owned).unwrap_or_default();
        fs::create_dir_all(above(&to)).map_err(io_at("making a place for what is damaged"))?;
        fs::rename(&from, &to).map_err(io_at(format!("moving {name}")))?;
        for directory in [above(&from), above(&to), self.aside.clone(), self.doctor.root.clone()] {
            let synced = fs::File::open(&directory).and_then(|directory| directory.sync_all());
            synced.map_err(io_at(format!("syncing {}", directory.display())))?;
        }
        Ok(())
    }

    fn set_aside_if_there(&mut self, name: &str) -> Result<(), DoctorError> {
        if self.doctor.root.join(name).exists() { self.set_aside(name) } else { Ok(()) }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DoctorError> {
        self.doctor.disk.write_atomic(name, bytes).map_err(io_at(format!("writing {name}")))
    }

    fn names(&mut self, region: &Region, shards: u32) -> Result<(), DoctorError> {
        if self.facts.format == Format::Damaged {
            self.set_aside_if_there(open::FORMAT_FILE)?;
            self.write(open::FORMAT_FILE, open::FORMAT.as_bytes())?;
            self.did(format!("wrote {} anew", open::FORMAT_FILE));
        }
        if self.facts.identity_is_damaged {
            self.set_aside_if_there(open::IDENTITY_FILE)?;
            self.write(open::IDENTITY_FILE, open::identity_of(region, shards).as_bytes())?;
            self.did(format!("wrote {} anew: region {region}, {shards} shards", open::IDENTITY_FILE));
        }
        Ok(())
    }

    fn checkpoints(&mut self) -> Result<(), DoctorError> {
        for position in self.facts.damaged_checkpoints.clone() {
            self.set_aside(&crate::checkpoint::name_of(position))?;
            self.did(format!("set the checkpoint of {position} aside"));
        }
        Ok(())
    }

    fn view(&mut self) -> Result<(), DoctorError> {
        let is_outrun = self.facts.view < self.facts.checkpoints.last().copied();
        if self.facts.view_is_damaged || self.facts.mark_is_damaged || is_outrun {
            self.facts.view = None;
            self.view_aside()?;
        }
        Ok(())
    }

    /// The mark stays as far as it is sound: it knows incarnations, and what was durable.
    fn view_aside(&mut self) -> Result<(), DoctorError> {
        let names = self.doctor.disk.list("").map_err(io_at("listing the directory"))?;
        for name in names.iter().filter(|name| open::is_view(Path::new(name))) {
            self.set_aside(name)?;
            self.did(format!("set {name} aside: the view is built anew"));
        }
        match self.facts.mark.clone() {
            None => self.set_aside_if_there(VIEW_FILE),
            Some(mark) => {
                let (boot_id, mount_id) = (String::new(), String::new());
                let mark = ViewMark { boot_id, mount_id, clean: false, seal: 0, ..mark };
                open::write_mark(self.doctor.disk.as_ref(), &mark).map_err(io_at(VIEW_FILE))
            }
        }
    }

    fn log(&mut self) -> Result<(), DoctorError> {
        loop {
            let survey = self.survey()?;
            let state = self.facts.state().unwrap_or_default();
            let Some(damage) = survey.damage else {
                // Nothing that is sound reaches the log: it begins anew, without any.
                return if state < survey.oldest { self.everything_aside() } else { Ok(()) };
            };
            self.log_was_cut = true;
            if self.is_past(state, &damage)? {
                self.segments_aside(|number| number <= damage.segment)?;
                self.did(format!("the state of {state} needs nothing of the log up to segment {}", damage.segment));
                self.restart_log_if_empty(state, damage.segment)?;
            } else if state > damage.position {
                self.segments_aside(|_| true)?;
                self.did(format!("the log goes on from the state of {state}; what it held above is left to the peers"));
                self.restart_log_if_empty(state, damage.segment)?;
            } else if state >= survey.oldest {
                self.cut(&damage)?;
            } else {
                return self.everything_aside();
            }
        }
    }

    fn survey(&self) -> Result<Survey, DoctorError> {
        let durable = Facts::known_durable(self.facts.mark.as_ref(), &self.facts.checkpoints);
        let mut visit = |logged: log::Entry| codec::decode_entry(logged.payload).map(drop).map_err(Into::into);
        Ok(log::survey(self.doctor.disk.as_ref(), durable, &mut visit, &mut |_| ())?)
    }

    /// Whether a state holds everything that the damaged segment did.
    fn is_past(&self, state: LogPosition, damage: &Damage) -> Result<bool, DoctorError> {
        let is_of_it = state > damage.position && state.segment() == damage.segment;
        Ok(state >= damage.end || (is_of_it && log::is_last_entry(self.doctor.disk.as_ref(), state)?))
    }

    fn segments(&self) -> Result<Vec<u32>, DoctorError> {
        let names = self.doctor.disk.list(log::DIRECTORY).map_err(io_at("listing the log"))?;
        Ok(names.iter().filter_map(|name| log::number_of(name)).collect())
    }

    /// The last first: what a crash leaves is a log that ends early, and not one with a hole.
    fn segments_aside(&mut self, goes: impl Fn(u32) -> bool) -> Result<(), DoctorError> {
        for number in self.segments()?.into_iter().rev().filter(|number| goes(*number)) {
            self.set_aside(&log::path_of(number))?;
            self.did(format!("set segment {number} of the log aside"));
        }
        Ok(())
    }

    /// An empty segment, which says where the log goes on: a log that is gone altogether would be missed.
    fn restart_log_if_empty(&mut self, state: LogPosition, after: u32) -> Result<(), DoctorError> {
        if !self.segments()?.is_empty() {
            return Ok(());
        }
        let number = after.max(state.segment()) + 1;
        let header =
            Header { number, incarnation: self.incarnation.0, follows: state.segment(), previous_end: Some(state) };
        let made = Prepared::make(self.doctor.disk.as_ref(), header, SEGMENT_BYTES);
        made.map_err(io_at("making a log segment"))?;
        Ok(())
    }

    /// Keeps what precedes the damage.
    fn cut(&mut self, damage: &Damage) -> Result<(), DoctorError> {
        self.segments_aside(|number| number >= damage.segment)?;
        let kept = damage.position.offset();
        if kept > log::SEGMENT_HEADER_BYTES {
            let path = log::path_of(damage.segment);
            let mut bytes = fs::read(self.aside.join(&path)).map_err(io_at("reading what is sound"))?;
            bytes.truncate(kept as usize);
            self.write(&path, &bytes)?;
        }
        self.did(format!("cut the log at {}; what it held above is left to the peers", damage.position));
        Ok(())
    }

    fn everything_aside(&mut self) -> Result<(), DoctorError> {
        self.view_aside()?;
        self.set_aside_if_there(VIEW_FILE)?;
        for directory in [log::DIRECTORY, CHECKPOINTS] {
            // One by one: some of what was in there may be aside already.
            for name in self.doctor.disk.list(directory).unwrap_or_default().iter().rev() {
                self.set_aside(&format!("{directory}/{name}"))?;
            }
        }
        self.did("nothing sound reaches back far enough: the region begins anew, and its peers complete it".to_owned());
        Ok(())
    }

    /// Opens what is left, which proves that it can be, and makes a checkpoint that needs nothing of before.
    fn open(mut self, region: Region, shards: u32) -> Result<Repair, DoctorError> {
        self.doctor.lock = None;
        let config = StoreConfig { region, shards, disk_reserve_bytes: 0, ..StoreConfig::default() };
        let (disk, place) = (self.doctor.disk.clone(), ViewPlace::Directory(self.doctor.root.clone()));
        let (store, mut writers, _) =
            Store::open(config, disk, place, self.doctor.boot.clone(), self.incarnation, &mut |_| ())?;
        let failed = |error: String| DoctorError::Write(error);
        store.drain_all().map_err(|error| failed(error.to_string()))?;
        if self.log_was_cut {
            let shown = show_what_no_cursor_covers(&store, &mut writers).map_err(failed)?;
            if shown > 0 {
                self.did(format!("{shown} keys show what the cut log no longer tells: the peers are offered them"));
            }
        }
        store.sync().map_err(|error| failed(error.to_string()))?;
        store.checkpoint_now().map_err(|error| failed(error.to_string()))?;
        store.close().map_err(|error| failed(error.to_string()))?;
        self.did("opened the directory and wrote a checkpoint: a node can start from it".to_owned());
        let aside = self.aside.exists().then_some(self.aside);
        Ok(Repair { actions: self.actions, aside })
    }
}

/// What the view holds of after the cut is in no log and under no cursor: it is noted as what a state transfer has shown.
fn show_what_no_cursor_covers(store: &Store, writers: &mut [ShardWriter]) -> Result<usize, String> {
    let mut shown = 0;
    let mut beyond: BTreeMap<ShardId, Vec<StateChunk>> = BTreeMap::new();
    let mut after = None;
    loop {
        let some = store.memory.view.load().after(after.as_ref(), 1024).map_err(|error| error.to_string())?;
        let Some((last, _)) = some.last() else { break };
        after = Some(last.clone());
        for chunk in some.iter().filter_map(|(key, item)| beyond_cursors(store, key, item)) {
            shown += 1;
            let chunks = beyond.entry(chunk.shard).or_default();
            chunks.push(chunk);
            if chunks.len() >= CHUNKS_A_BATCH {
                let chunks = std::mem::take(chunks);
                show(store, writers, chunks)?;
            }
        }
    }
    beyond.into_values().try_for_each(|chunks| show(store, writers, chunks))?;
    Ok(shown)
}

fn beyond_cursors(store: &Store, key: &ViewKey, item: &Item) -> Option<StateChunk> {
    let Item::Record(record) = item else { return None };
    let (keyspace, user_key) = (key.keyspace(), key.user_key());
    let shard = store.memory.shard_of(keyspace, &user_key);
    let tree = store.tree();
    let lineage = tree.shard(shard);
    let absorbed = store.streams(keyspace, shard).absorbed(lineage);
    if record.dots().all(|dot| absorbed.covers(dot, lineage)) {
        return None;
    }
    let end = Bytes::from([&user_key[..], &[0]].concat());
    let (start, records) = (user_key.clone(), vec![(user_key, record.as_ref().clone())]);
    let (absorbed, ledger, taken_at) = (Vec::new(), Vec::new(), store.hlc_high());
    Some(StateChunk {
        keyspace,
        shard,
        start,
        end: Some(end),
        absorbed,
        records,
        ledger,
        taken_at,
        changes: false,
        last_own: None,
    })
}

fn show(store: &Store, writers: &mut [ShardWriter], chunks: Vec<StateChunk>) -> Result<(), String> {
    let Some(shard) = chunks.first().map(|chunk| chunk.shard) else { return Ok(()) };
    let writer = writers.get_mut(shard.0 as usize).ok_or("a key is of no shard")?;
    let mut batch = writer.begin();
    for chunk in chunks {
        batch.state_chunk(chunk, store.hlc_high()).map_err(|error| error.to_string())?;
    }
    let _ = batch.commit().map_err(|error| error.to_string())?;
    Ok(())
}
