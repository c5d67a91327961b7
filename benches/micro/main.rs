//! Microbenchmarks: what one step of a write's way costs, without a network.
//!
//! ```text
//! model    merge of two records, planning a put
//! codec    a delta to bytes and back
//! log      append and sync
//! store    commit into the overlay, and draining it into the view
//! node     the put path in one process
//! ```
//! `cargo bench -p isle-bench` runs all, `cargo bench -p isle-bench -- merge` those with `merge` in their names.
#![allow(clippy::unwrap_used, reason = "as in tests: what fails here ends the run, and that is the report")]

mod codec;
mod log;
mod model;
mod node;
mod store;

/// The server's: what is measured without it would be another program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}
