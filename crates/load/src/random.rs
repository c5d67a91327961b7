//! Where all chance of a run comes from: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
//! OOPSLA 2014).
//!
//! The law: a printed seed gives the same run in every version of this crate. `rand`'s generators do not promise that over
//! their releases, and a cryptographic one would cost the client more than the request it fills.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    /// A generator of its own for one purpose, so that drawing more for one does not shift another.
    pub fn of(seed: u64, purpose: &str) -> Random {
        let named = purpose.bytes().fold(seed, |mixed, byte| mix(mixed ^ u64::from(byte)));
        Random::new(named)
    }

    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// In [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In [0, end). The bias of the multiplication is below 2^-32 for every size that is used here.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(end)) >> 64) as u64
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// SplitMix64's finalizer. It is a bijection: distinct numbers stay distinct.
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_generator() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.word()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn fractions_and_bounded_numbers_stay_in_range_and_reach_its_ends() {
        let mut random = Random::new(7);
        let drawn: Vec<u64> = (0..10_000).map(|_| random.below(10)).collect();
        assert!((0..10).all(|number| drawn.contains(&number)) && drawn.iter().all(|number| *number < 10));
        assert!((0..10_000).map(|_| random.fraction()).all(|fraction| (0.0..1.0).contains(&fraction)));
    }
}
