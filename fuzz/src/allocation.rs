//! Counts what a thread allocates. Linked into every program of this crate.
#![allow(unsafe_code, reason = "an allocator cannot be counted otherwise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What is freed by another thread than the one that asked for it must not take the count below zero.
const START: usize = 1 << 40;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(START) };
    static PEAK: Cell<usize> = const { Cell::new(START) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn grow(by: usize) {
    // A thread that is being torn down has no cells any more; nothing is measured there.
    let _ = NOW.try_with(|now| {
        now.set(now.get().wrapping_add(by));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

fn shrink(by: usize) {
    let _ = NOW.try_with(|now| now.set(now.get().wrapping_sub(by)));
}

// SAFETY: everything is left to the system's allocator; only sizes are noted beside it, in cells that allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        grow(new_size);
        // SAFETY: the caller's promises are passed on.
        let moved = unsafe { System.realloc(at, layout, new_size) };
        shrink(layout.size());
        moved
    }
}

/// What a piece of work gave, and how many bytes it held at its most.
pub fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    NOW.set(START);
    PEAK.set(START);
    let out = run();
    (out, PEAK.get() - START)
}
