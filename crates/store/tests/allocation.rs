//! No decoder is led to allocate out of proportion to what it was given: neither by a length that the bytes do not have, nor
//! by many small parts. What the most wasteful input costs is a constant factor, so the bound on a message bounds its memory.
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "an allocator cannot be counted otherwise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use isle_proto::storage as s;
use isle_store::codec;
use prost::Message;

/// Twice what the largest part takes for its two bytes, and as much again while a list grows.
const FACTOR: usize = 600;
const SLACK: usize = 16 << 10;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: everything is left to the system's allocator; only sizes are noted beside it, in cells that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.set(NOW.get().wrapping_add(layout.size()));
        PEAK.set(PEAK.get().max(NOW.get()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.set(NOW.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

fn peak_of<T>(run: impl FnOnce() -> T) -> usize {
    // A fresh count: what was allocated before may be freed by now, and the cells must not run below zero.
    NOW.set(1 << 40);
    PEAK.set(1 << 40);
    drop(run());
    PEAK.get() - (1 << 40)
}

fn decode_with_all(bytes: &Bytes) -> usize {
    let peaks = [
        peak_of(|| codec::decode_entry(bytes.clone())),
        peak_of(|| codec::decode_delta(bytes.clone())),
        peak_of(|| codec::delta_head(bytes.clone())),
        peak_of(|| codec::decode_record(bytes.clone())),
        peak_of(|| codec::decode_ledger_entry(bytes.clone())),
        peak_of(|| codec::decode_state_chunk(bytes.clone())),
        peak_of(|| codec::decode_view_mark(bytes.clone())),
        peak_of(|| codec::delta_of_entry(bytes)),
    ];
    peaks.into_iter().max().unwrap()
}

fn check(what: &str, bytes: Vec<u8>) {
    let bytes = Bytes::from(bytes);
    let peak = decode_with_all(&bytes);
    assert!(peak <= FACTOR * bytes.len() + SLACK, "{what}: {} bytes made {peak}", bytes.len());
}

#[test]
fn a_length_that_the_bytes_do_not_have_allocates_nothing() {
    for tag in 1..=11u8 {
        for claimed in
            [&[0xff, 0xff, 0xff, 0xff, 0x07][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]]
        {
            check("a claimed length", [&[tag << 3 | 2], claimed, &[1, 2, 3]].concat());
        }
    }
}

#[test]
fn many_small_parts_cost_in_proportion() {
    const MANY: usize = 50_000;
    let absorbed = vec![s::Absorbed::default(); MANY];
    let ledger = vec![s::LedgerEntry::default(); MANY];
    let fields = vec![s::Field::default(); MANY];
    let chunk = |chunk: s::StateChunk| chunk.encode_to_vec();
    check("absorbed", chunk(s::StateChunk { absorbed: absorbed.clone(), ..Default::default() }));
    check("records", chunk(s::StateChunk { records: vec![Default::default(); MANY], ..Default::default() }));
    check("ledger", chunk(s::StateChunk { ledger: ledger.clone(), ..Default::default() }));
    check("fields", s::Record { fields: fields.clone() }.encode_to_vec());
    let register = s::Register { siblings: vec![Default::default(); MANY], ..Default::default() };
    let content = Some(s::field::Content::Register(register));
    check("siblings", s::Record { fields: vec![s::Field { content, ..Default::default() }] }.encode_to_vec());
    let delta =
        |body| s::Delta { dot: Some(s::Dot { incarnation: 1, seq: 1 }), body: Some(body), ..Default::default() };
    let write = s::Write { key: vec![1].into(), fields, ledger };
    check("a write", delta(s::delta::Body::Write(write)).encode_to_vec());
    let vector = s::Vector { entries: vec![Default::default(); MANY] };
    let stated = vec![s::Absorbed { region: "a".to_owned(), vector: Some(vector) }];
    check("a vector", delta(s::delta::Body::Statement(s::Statement { absorbed: stated })).encode_to_vec());
    check("a statement", delta(s::delta::Body::Statement(s::Statement { absorbed })).encode_to_vec());
    let entry = |rows| s::LogEntry { entry: Some(s::log_entry::Entry::Rows(s::Rows { rows })) }.encode_to_vec();
    check("rows", entry(vec![Default::default(); MANY]));
    let row = s::IncarnationRow { incarnation: 1, region: "a".to_owned(), parent: 0, left_at: vec![0; MANY] };
    check("left_at", entry(vec![row]));
    let meta = s::Meta { streams: vec![Default::default(); MANY], last_seqs: vec![0; MANY], ..Default::default() };
    let meta_crc = crc32fast::hash(&meta.encode_to_vec());
    check("a mark", s::ViewMark { meta: Some(meta), meta_crc, ..Default::default() }.encode_to_vec());
}

#[test]
fn nesting_without_end_is_refused() {
    // Unknown groups within groups: what a decoder skips by calling itself.
    check("groups", vec![15 << 3 | 3; 1 << 20]);
}
