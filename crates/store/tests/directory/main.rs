//! Data directories that are damaged, cut off or repaired: what is served from them afterwards was acknowledged, or the damage
//! is named.
#![allow(clippy::unwrap_used)]

mod damage;
mod doctor;
mod power;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use isle_model::write::{Writer, plan};
use isle_model::{Epoch, Hlc, Incarnation, KeyspaceId, Mutation, Precondition, Reading, Region, ShardId, Value};
use isle_store::disk::{Disk, RealDisk};
use isle_store::{BootIdentity, OpenError, RecoveryReport, ShardWriter, Store, StoreConfig, ViewPlace};

const KS: KeyspaceId = KeyspaceId(1);
const SHARDS: u32 = 2;
const KEYS: u64 = 40;

struct Seeded(u64);

impl Seeded {
    fn new(seed: u64) -> Self {
        Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n.max(1)
    }
}

/// What a key was written as, in the order of the log; `None` is a delete.
type Writes = Vec<(String, Option<String>)>;
type Shown = BTreeMap<String, String>;

fn after(writes: &[(String, Option<String>)]) -> Shown {
    let mut shown = Shown::new();
    for (key, value) in writes {
        match value {
            Some(value) => shown.insert(key.clone(), value.clone()),
            None => shown.remove(key),
        };
    }
    shown
}

fn config() -> StoreConfig {
    StoreConfig {
        region: Region::new("a"),
        shards: SHARDS,
        segment_bytes: 1 << 16,
        overlay_drain_bytes: 1 << 13,
        overlay_bytes_max: 1 << 20,
        checkpoint_log_bytes: 1 << 16,
        flush_log_bytes: 1 << 14,
        view_cache_bytes: 1 << 18,
        view_rebuild_bytes_min: u64::MAX,
        tail_ring_bytes: 1 << 14,
        disk_reserve_bytes: 0,
    }
}

fn boot(name: &str) -> BootIdentity {
    BootIdentity { boot_id: name.to_owned(), mount_id: "mount".to_owned() }
}

/// A store as its node holds it.
struct Live {
    store: Arc<Store>,
    writers: Vec<ShardWriter>,
    report: RecoveryReport,
}

impl Live {
    fn open(disk: Arc<dyn Disk>, root: &Path, name: &str, incarnation: u64) -> Result<Live, OpenError> {
        Live::open_with(config(), disk, root, name, incarnation)
    }

    fn open_with(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        root: &Path,
        name: &str,
        incarnation: u64,
    ) -> Result<Live, OpenError> {
        let place = ViewPlace::Directory(root.to_owned());
        let (store, writers, report) =
            Store::open(config, disk, place, boot(name), Incarnation(incarnation), &mut |_| ())?;
        Ok(Live { store, writers, report })
    }

    fn at(root: &Path, incarnation: u64) -> Result<Live, OpenError> {
        Live::open(Arc::new(RealDisk::open(root.to_owned()).unwrap()), root, "boot", incarnation)
    }

    /// Appends one write; `false` where the log takes none.
    fn write(&mut self, key: &str, value: Option<&str>, ms: u64) -> bool {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let shard = ShardId::of(KS, &key, SHARDS);
        let region = self.store.region().clone();
        let mut batch = self.writers[shard.0 as usize].begin();
        let current = batch.newest(KS, &key).unwrap();
        let tree = batch.tree();
        let stamp = batch.stamp(Hlc::from_ms(ms), Epoch(0));
        let writer = Writer {
            region: &region,
            home: &region,
            takes_over: false,
            keyspace: KS,
            stamp,
            lineage: tree.shard(shard),
        };
        let mutation = value.map_or(Mutation::Delete, |value| Mutation::Put { value: Value::string(value) });
        if let Some(write) = plan(&key, &mutation, &Precondition::None, None, &current, writer).unwrap() {
            batch.write(KS, write, stamp).unwrap();
        }
        batch.commit().is_ok()
    }

    fn settle(&self) {
        while self.store.maintain().unwrap() {}
    }

    /// What a key is read as: `Err` where the storage says that it cannot be read.
    fn get(&self, key: &str) -> Result<Option<String>, String> {
        let record = self.store.get(KS, key.as_bytes()).map_err(|error| error.to_string())?.unwrap_or_default();
        let tree = self.store.tree();
        let reading = Reading::of(&record, tree.shard(ShardId::of(KS, key.as_bytes(), SHARDS)));
        let value = reading.values.first().map(|(_, siblings)| siblings[0].value.bytes.to_vec());
        Ok(value.map(|bytes| String::from_utf8(bytes).unwrap()))
    }

    fn shown(&self) -> Shown {
        (0..KEYS).map(key_of).filter_map(|key| Some((key.clone(), self.get(&key).unwrap()?))).collect()
    }
}

fn key_of(n: u64) -> String {
    format!("key-{:02}", n % KEYS)
}

/// The n-th write of every history: a sixth are deletes, and values tell their write.
fn nth(rng: &mut Seeded, n: usize) -> (String, Option<String>) {
    nth_of(rng, n, 700)
}

fn nth_of(rng: &mut Seeded, n: usize, bytes_max: u64) -> (String, Option<String>) {
    let key = key_of(rng.below(KEYS));
    let value = (rng.below(6) > 0).then(|| format!("{n} {}", "x".repeat(rng.below(bytes_max) as usize)));
    (key, value)
}

/// Some hundred writes, all of them synced, with checkpoints taken and the log trimmed behind them now and then.
fn lived(root: &Path, seed: u64, count: usize) -> (Live, Writes) {
    let mut rng = Seeded::new(seed);
    let (mut live, mut writes) = (Live::at(root, 1).unwrap(), Writes::new());
    for n in 0..count {
        let (key, value) = nth(&mut rng, n);
        assert!(live.write(&key, value.as_deref(), 1_000 + n as u64));
        writes.push((key, value));
        if rng.below(10) == 0 {
            live.store.sync().unwrap();
            live.settle();
        }
        if n == count / 2 {
            live.store.trim(live.store.durable()).unwrap();
        }
    }
    live.store.sync().unwrap();
    (live, writes)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { _ = std::fs::copy(path, target).unwrap() }
    }
}

/// The files below a directory, by name.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    all
}

/// The one file of a directory that is of a kind.
fn only(root: &Path, holds: impl Fn(&str) -> bool) -> PathBuf {
    let names: Vec<PathBuf> = files(root).into_keys().filter(|path| holds(&path.display().to_string())).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

/// So many trials, or at least `long` of them for as long as `ISLE_TORTURE_SECONDS` says; prints what came of them, for the
/// table of the torture. A trial that does not survive panics, with its number; one that does says for how many it counts.
#[allow(clippy::disallowed_methods, reason = "how long a test may take is asked of the environment")]
fn scenario(name: &str, short: u64, long: u64, mut survives: impl FnMut(u64) -> u64) {
    let seconds = std::env::var("ISLE_TORTURE_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut tried, mut trial) = (0, 0);
    while until.map_or(tried < short, |until| tried < long || Instant::now() < until) {
        tried += survives(trial);
        trial += 1;
    }
    println!("scenario {name}: tried {tried}, survived {tried}, lost 0");
}
