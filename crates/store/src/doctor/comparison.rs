//! Holds what the view says against what checkpoint and log say. Both are opened as a node would open them, over copies: the
//! one with the view there is, the other with one that is built anew.

use std::path::Path;
use std::sync::Arc;

use isle_model::{Incarnation, Region};

use crate::codec;
use crate::disk::{Disk, ScratchDisk};
use crate::open::{BootIdentity, RecoveryReport};
use crate::overlay::Item;
use crate::store::{Store, StoreConfig};
use crate::view::ViewPlace;
use crate::view_key::{LEDGER, ViewKey};

const STEP: usize = 1024;
/// Of a store that nobody else ever sees.
const NOBODY: Incarnation = Incarnation(u64::MAX);

pub(super) struct Stores<'a> {
    pub(super) disk: &'a Arc<dyn Disk>,
    pub(super) scratch: &'a Path,
    pub(super) boot: &'a BootIdentity,
    pub(super) region: Region,
    pub(super) shards: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) records: u64,
    pub(crate) ledger: u64,
    pub(crate) differences: u64,
    pub(crate) first: Option<String>,
}

impl Stores<'_> {
    pub(super) fn compare(&self) -> Result<Comparison, String> {
        let (viewed, report) = self.open(ViewPlace::Directory(self.scratch.to_owned()))?;
        if let Some(why) = report.view_distrusted {
            return Err(why.to_owned());
        }
        let (rebuilt, _) = self.open(ViewPlace::Temporary)?;
        let (mut viewed, mut rebuilt) = (Items::of(viewed), Items::of(rebuilt));
        let mut comparison = Comparison::default();
        loop {
            let (a, b) = (viewed.peek()?, rebuilt.peek()?);
            let (key, same) = match (a, b) {
                (None, None) => return Ok(comparison),
                (Some((a, one)), Some((b, other))) if a == b => (a.clone(), is_same(a, one, other)),
                (Some((a, _)), b) if b.is_none_or(|(b, _)| a < b) => (a.clone(), false),
                (_, Some((b, _))) => (b.clone(), false),
                (Some((a, _)), None) => (a.clone(), false),
            };
            comparison.count(&key, same);
            viewed.pass(&key);
            rebuilt.pass(&key);
        }
    }

    fn open(&self, place: ViewPlace) -> Result<(Arc<Store>, RecoveryReport), String> {
        let config = StoreConfig {
            region: self.region.clone(),
            shards: self.shards,
            segment_bytes: 1 << 16,
            checkpoint_log_bytes: u64::MAX,
            disk_reserve_bytes: 0,
            ..StoreConfig::default()
        };
        let disk: Arc<dyn Disk> = Arc::new(ScratchDisk::over(self.disk.clone()));
        let (store, writers, report) = Store::open(config, disk, place, self.boot.clone(), NOBODY, &mut |_| ())
            .map_err(|error| error.to_string())?;
        drop(writers);
        store.drain_all().map_err(|error| error.to_string())?;
        Ok((store, report))
    }
}

impl Comparison {
    fn count(&mut self, key: &ViewKey, same: bool) {
        match key.tree() {
            LEDGER => self.ledger += 1,
            _ => self.records += 1,
        }
        if !same {
            self.differences += 1;
            self.first.get_or_insert_with(|| name_of(key));
        }
    }
}

fn name_of(key: &ViewKey) -> String {
    match key.tree() {
        LEDGER => format!("a ledger entry of keyspace {}", key.keyspace().0),
        _ => format!("key {:?} of keyspace {}", String::from_utf8_lossy(&key.user_key()), key.keyspace().0),
    }
}

/// A field may have seen more on one side: a complete state that is replayed over it tells it, truly, what was absorbed.
fn is_same(key: &ViewKey, one: &Item, other: &Item) -> bool {
    match (one, other) {
        (Item::Record(a), Item::Record(b)) => {
            let of = |record: &isle_model::Record| (record.is_live(), record.digest(key.keyspace(), &key.user_key()));
            of(a) == of(b)
        }
        (Item::Ledger(a), Item::Ledger(b)) => codec::encode_ledger_entry(a) == codec::encode_ledger_entry(b),
        _ => false,
    }
}

/// The items of a store's view, in key order, some at a time.
struct Items {
    store: Arc<Store>,
    ahead: std::vec::IntoIter<(ViewKey, Item)>,
    next: Option<(ViewKey, Item)>,
    last: Option<ViewKey>,
    is_over: bool,
}

impl Items {
    fn of(store: Arc<Store>) -> Items {
        Items { store, ahead: Vec::new().into_iter(), next: None, last: None, is_over: false }
    }

    fn peek(&mut self) -> Result<Option<&(ViewKey, Item)>, String> {
        while self.next.is_none() && !self.is_over {
            self.next = self.ahead.next();
            if self.next.is_none() {
                let more = self.store.memory.view.load().after(self.last.as_ref(), STEP);
                let more = more.map_err(|error| error.to_string())?;
                self.is_over = more.is_empty();
                self.last = more.last().map(|(key, _)| key.clone());
                self.ahead = more.into_iter();
            }
        }
        Ok(self.next.as_ref())
    }

    fn pass(&mut self, key: &ViewKey) {
        if self.next.as_ref().is_some_and(|(at, _)| at == key) {
            self.next = None;
        }
    }
}
