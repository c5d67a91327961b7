//! Which keys are nowhere: a Bloom filter in memory over the keys of overlay and view, so that the first write of a key looks for
//! nothing that is not there.
//!
//! The law it keeps: it never denies a key that is there. A key is noted when it is staged, and nothing is denied before every
//! key that was in the view at the start has been noted, which the census does in the background. A key that is taken out again
//! stays noted: it costs one look.
//!
//! Each key sets bits in one cache line (blocked Bloom filters: Putze, Sanders and Singler, 2007). A layer that is full is
//! followed by one eight times as large (scalable ones: Almeida et al., 2007), so that a lookup meets few of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_128;

/// Keys of the first layer. The last of six holds two thousand million.
const FIRST_KEYS: u64 = 1 << 16;
const GROWTH: u64 = 8;
const LAYERS: usize = 6;
/// With six bits a key this denies about 98 of 100 absent keys.
const BITS_PER_KEY: u64 = 12;
const BITS_SET: u32 = 6;

/// A cache line.
const BLOCK_WORDS: usize = 8;
type Block = [AtomicU64; BLOCK_WORDS];

#[derive(Default)]
pub(crate) struct KeyFilter {
    complete: AtomicBool,
    layers: [OnceLock<Layer>; LAYERS],
}

struct Layer {
    blocks: Box<[Block]>,
    /// How many more keys it takes before it denies too little.
    left: AtomicU64,
}

impl KeyFilter {
    /// Every key of the view is noted: what is not may be denied from now on.
    pub(crate) fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    pub(crate) fn denies(&self, key: &[u8]) -> bool {
        self.is_complete() && !self.has(Place::of(key))
    }

    /// Notes a key before it is there.
    pub(crate) fn note(&self, key: &[u8]) {
        let place = Place::of(key);
        if self.has(place) {
            return;
        }
        // Counted once: others may make the next layer meanwhile, and none may be left out.
        let made = self.layers().count();
        let has_room = |layer: &Layer| layer.left.load(Ordering::Relaxed) > 0;
        let at = match made.checked_sub(1).and_then(|last| self.layers[last].get()).is_some_and(has_room) {
            true => made - 1,
            // Beyond the last, which is never reached, keys crowd: less is denied, and nothing wrongly.
            false => made.min(LAYERS - 1),
        };
        let layer = self.layers[at].get_or_init(|| Layer::new(FIRST_KEYS * GROWTH.pow(at as u32)));
        layer.add(place);
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn has(&self, place: Place) -> bool {
        self.layers().any(|layer| layer.has(place))
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().map_while(OnceLock::get)
    }
}

impl Layer {
    fn new(keys: u64) -> Layer {
        let blocks = keys * BITS_PER_KEY / (64 * BLOCK_WORDS as u64);
        Layer { blocks: (0..blocks).map(|_| Block::default()).collect(), left: AtomicU64::new(keys) }
    }

    fn block(&self, place: Place) -> &Block {
        // The upper half of a product spreads as evenly as a remainder, and costs less (Lemire, 2016).
        &self.blocks[((u128::from(place.block) * self.blocks.len() as u128) >> 64) as usize]
    }

    fn has(&self, place: Place) -> bool {
        let block = self.block(place);
        place.bits().all(|(word, mask)| block[word].load(Ordering::Relaxed) & mask != 0)
    }

    /// The bits are seen by whoever looks for the key after its item has been staged or taken out of the overlay: that takes the
    /// shard's lock.
    fn add(&self, place: Place) {
        let block = self.block(place);
        place.bits().for_each(|(word, mask)| _ = block[word].fetch_or(mask, Ordering::Relaxed));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    }
}

#[derive(Clone, Copy)]
struct Place {
    block: u64,
    within: u64,
}

impl Place {
    fn of(key: &[u8]) -> Place {
        let hash = xxh3_128(key);
        Place { block: (hash >> 64) as u64, within: hash as u64 }
    }

    /// Word and mask of each bit: nine bits of the hash name one of a block's 512.
    fn bits(self) -> impl Iterator<Item = (usize, u64)> {
        (0..BITS_SET).map(move |at| {
            let bit = (self.within >> (9 * at)) & 511;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(n: u64) -> [u8; 8] {
        n.to_be_bytes()
    }

    #[test]
    fn nothing_noted_is_denied_and_most_of_the_rest_is_over_several_layers() {
        let filter = KeyFilter::default();
        let noted = FIRST_KEYS * 3;
        (0..noted).for_each(|n| filter.note(&key(n)));
        assert!(!filter.denies(&key(noted)), "it is not known yet what else there is");
        filter.complete();
        assert!((0..noted).all(|n| !filter.denies(&key(n))));
        assert_eq!(filter.layers().count(), 2);
        let denied = (noted..2 * noted).filter(|n| filter.denies(&key(*n))).count() as u64;
        assert!(denied > noted * 95 / 100, "{denied} of {noted}");
        let absent = (noted..2 * noted).find(|n| filter.denies(&key(*n))).unwrap();
        filter.note(&key(absent));
        assert!(!filter.denies(&key(absent)));
    }
}
