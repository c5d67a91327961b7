//! Every target over what isle makes itself, over its corpus, and over mutations of both: no decoder panics, and none allocates
//! out of proportion to what it was given.
//!
//! The mutations follow from the seed that is printed. `ISLE_FUZZ_SEED` sets it; `ISLE_TORTURE_SECONDS` makes the test go on
//! with one seed after another for so long.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "the test's own settings and its own time are no input of a node")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use isle_fuzz::{TARGETS, Target, Verdict, corpus_dir, seeds};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Mutations of a target under one seed.
const ROUND: u64 = 10_000;
/// What nobody makes.
const NONSENSE: [u8; 16] = [0xff; 16];
/// What an input may grow to: large enough for many small parts, small enough for many inputs.
const INPUT_BYTES_MAX: usize = 16 << 10;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the corpus holds, and what isle makes itself, in an order that does not depend on the file system.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut all = seeds::of(target.name);
    all.push(NONSENSE.to_vec());
    if let Ok(files) = std::fs::read_dir(corpus_dir(target.name)) {
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        all.extend(paths.iter().map(|path| std::fs::read(path).unwrap()));
    }
    all
}

#[test]
fn what_isle_makes_is_sound() {
    for target in TARGETS {
        let seeds = seeds::of(target.name);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        for (at, seed) in seeds.iter().enumerate() {
            assert_eq!(target.check(seed), Verdict::Sound, "seed {at} of {}", target.name);
        }
    }
}

#[test]
fn the_corpus_is_survived_and_reaches_both_verdicts() {
    for target in TARGETS {
        let corpus = corpus(target);
        let verdicts: Vec<Verdict> = corpus.iter().map(|input| tried(target, 0, 0, input)).collect();
        assert!(verdicts.contains(&Verdict::Sound) && verdicts.contains(&Verdict::Refused), "{}", target.name);
    }
}

#[test]
fn decoders() {
    let seed = setting("ISLE_FUZZ_SEED").unwrap_or(1);
    let corpora: Vec<(&Target, Vec<Vec<u8>>)> = TARGETS.iter().map(|target| (target, corpus(target))).collect();
    let Some(seconds) = setting("ISLE_TORTURE_SECONDS") else {
        println!("seed {seed}");
        corpora.iter().for_each(|(target, corpus)| round(target, corpus, seed));
        return;
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (mut tried, mut at) = (0, seed);
    while Instant::now() < deadline {
        for (target, corpus) in &corpora {
            round(target, corpus, at);
            tried += ROUND;
        }
        at += 1;
    }
    println!("seeds {seed} to {}", at - 1);
    // One that was lost has ended the test.
    println!("scenario decoders: tried {tried}, survived {tried}, lost 0");
}

fn round(target: &Target, corpus: &[Vec<u8>], seed: u64) {
    for number in 0..ROUND {
        let mut rng = StdRng::seed_from_u64(seed << 32 | number);
        let input = mutated(corpus, &mut rng);
        tried(target, seed, number, &input);
    }
}

fn tried(target: &Target, seed: u64, number: u64, input: &[u8]) -> Verdict {
    let run = catch_unwind(AssertUnwindSafe(|| target.check(input)));
    run.unwrap_or_else(|_| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!("{} is lost at seed {seed}, mutation {number}: {hex}", target.name)
    })
}

/// An input with some strokes of damage.
fn mutated(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        stroke(&mut input, corpus, rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn stroke(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut StdRng) {
    if input.is_empty() {
        input.push(rng.random());
    }
    let at = rng.random_range(0..input.len());
    let to = rng.random_range(at..input.len().min(at + 64)) + 1;
    match rng.random_range(0..9) {
        0 => input[at] ^= 1 << rng.random_range(0..8),
        1 => input[at] = rng.random(),
        2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
        3 => input.truncate(at),
        4 => drop(input.drain(at..to)),
        5 => {
            let part = input[at..to].to_vec();
            // Often enough for lists to grow long.
            let times = 1 << rng.random_range(0..9);
            input.splice(at..at, part.repeat(times));
        }
        // A length or a number that is far too large.
        6 => drop(input.splice(at..to, [0xff; 9].into_iter().chain([1]))),
        7 => {
            let bytes: Vec<u8> = (0..rng.random_range(1..16)).map(|_| rng.random()).collect();
            input.splice(at..at, bytes);
        }
        _ => {
            let other = &corpus[rng.random_range(0..corpus.len())];
            let cut = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[cut..]);
        }
    }
}

/// Where the coverage-guided fuzzer starts from. `just fuzz` asks for it.
#[test]
#[ignore = "writes files"]
fn seeds_are_written() {
    let root = std::path::PathBuf::from(std::env::var("ISLE_FUZZ_SEEDS").expect("ISLE_FUZZ_SEEDS names a folder"));
    for target in TARGETS {
        let folder = root.join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (at, seed) in seeds::of(target.name).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{at}")), seed).unwrap();
        }
    }
}
