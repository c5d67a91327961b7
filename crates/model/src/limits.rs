//! Every limit of isle, in one place. A request over a limit is refused before anything is written.

/// Longest key, in bytes. The shortest is 1.
pub const KEY_BYTES_MAX: usize = 4 * 1024;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Most fields in a record, deleted ones that are not yet forgotten included.
pub const FIELDS_MAX: usize = 1024;
/// Longest field name, in bytes.
pub const FIELD_NAME_BYTES_MAX: usize = 256;
/// Most items in a batch.
pub const BATCH_ITEMS_MAX: usize = 1000;
/// Most bytes in a batch.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest record, all its fields together, in bytes.
pub const RECORD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most rows in a scan page; fewer bytes than a batch besides.
pub const PAGE_ITEMS_MAX: usize = 1000;
/// Longest region or keyspace name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most shards a cluster may be made with.
pub const SHARDS_MAX: u32 = 256;
/// Shards of a cluster when nothing else is said.
pub const SHARDS_DEFAULT: u32 = 4;
/// Largest version token, in bytes: room for a record of as many fields as may be, with names as long as may be, made in
/// three regions concurrently.
pub const TOKEN_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most incarnations in a vector that comes from outside.
pub const VECTOR_ENTRIES_MAX: usize = 4096;
/// A stamp further ahead than this never advances the local clock, in milliseconds.
pub const CLOCK_DRIFT_MS_MAX: u64 = 10_000;
/// Most prefixes in a keyspace's home map, and the longest of them, in bytes.
pub const PREFIXES_MAX: usize = 1000;
pub const PREFIX_BYTES_MAX: usize = 256;
/// Most labels of a keyspace, and the longest name or value of one, in bytes.
pub const LABELS_MAX: usize = 64;
pub const LABEL_BYTES_MAX: usize = 256;
/// Most keyspaces of a cluster: they all are in every node's memory and every handshake.
pub const KEYSPACES_MAX: usize = 1000;
