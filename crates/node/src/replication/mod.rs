//! Replication between regions: each region's own streams, tailed from its log, to every other region.
//!
//! ```text
//!          sender                                     receiver
//!   log ─ outbound ─ egress gate ─ batch_codec ═══▶ inbound ─ shard loops ─ log
//!                ▲                                     │ ack, once durable
//!                └─────────────── Ack, Refetch ◀───────┤
//!   serving (fetch, state) ◀══════ repair ◀── NeedsState, behind, lost streams
//! ```
//! `link` and `schedule` decide, without clock or network; `handshake` says whether two nodes belong together.

pub(crate) mod batch_codec;
pub(crate) mod handshake;
pub(crate) mod inbound;
pub(crate) mod link;
pub(crate) mod outbound;
pub(crate) mod repair;
pub(crate) mod schedule;
pub(crate) mod serving;
