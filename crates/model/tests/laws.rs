//! The laws as properties: 10,000 cases each, over records, registers and counters that random histories made.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;

use isle_model::{
    Absorbed, BadToken, Context, Covered, Dot, Epoch, Fate, Field, FieldKey, FieldName, Generation, Heard, Hlc,
    HlcClock, Incarnation, IncarnationTree, KeyspaceId, Kind, LedgerEntry, Lineage, Mutation, Precondition, Reading,
    Record, Region, Register, Row, ShardId, Sibling, TokenKey, Total, Value, Vector,
};
use proptest::prelude::*;
use world::{KEYSPACE, Rng, World, key_bytes, shard_of};

fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) }
}

/// A history, one number a step: proptest cuts a failing one down.
fn history(steps: usize) -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(any::<u64>(), steps / 2..steps)
}

/// Runs a history and gathers, of one key, every state that any region ever held.
fn states(steps: &[u64], lying: bool, key: usize) -> (World, Vec<Record>) {
    let mut world = World::new(steps.len() as u64, lying);
    let mut out = vec![Record::new()];
    for step in steps {
        world.step(*step).unwrap();
        for record in world.nodes.iter().filter_map(|n| n.records.get(&key)).map(|held| &held.record) {
            if !out.contains(record) {
                out.push(record.clone());
            }
        }
    }
    (world, out)
}

/// What all regions know of incarnations, taken together.
fn all_rows(world: &World) -> IncarnationTree {
    let mut tree = IncarnationTree::new();
    for (incarnation, row) in world.nodes.iter().flat_map(|n| n.tree.rows()) {
        tree.insert(incarnation, row.clone()).unwrap();
    }
    tree
}

fn merged(a: &Record, b: &Record, lineage: Lineage<'_>) -> Record {
    let mut out = a.clone();
    out.merge(b, lineage);
    out
}

fn pick<'a>(states: &'a [Record], rng: &mut Rng) -> &'a Record {
    &states[rng.below(states.len())]
}

proptest! {
    #![proptest_config(cases())]

    /// Law 1, for whole records: registers, counters and homes at once.
    #[test]
    fn merge_is_commutative_associative_and_idempotent(steps in history(44), lying: bool, key in 0usize..4, seed: u64) {
        let (world, states) = states(&steps, lying, key);
        let tree = all_rows(&world);
        let lineage = tree.shard(shard_of(key));
        let rng = &mut Rng(seed);
        for _ in 0..4 {
            let (a, b, c) = (pick(&states, rng), pick(&states, rng), pick(&states, rng));
            prop_assert_eq!(merged(a, b, lineage), merged(b, a, lineage));
            prop_assert_eq!(merged(&merged(a, b, lineage), c, lineage), merged(a, &merged(b, c, lineage), lineage));
            prop_assert_eq!(&merged(a, a, lineage), a);
            prop_assert_eq!(merged(&merged(a, b, lineage), b, lineage), merged(a, b, lineage));
        }
    }

    /// Law 2: what is shown outranks, and is covered by, nothing that any merged state knew; `World::write` holds every
    /// write's rank against all it covers. Law 3: siblings stand side by side exactly when neither has seen the other.
    #[test]
    fn siblings_are_exactly_the_concurrent_writes(steps in history(44), key in 0usize..4, seed: u64) {
        let (world, states) = states(&steps, false, key);
        let tree = all_rows(&world);
        let lineage = tree.shard(shard_of(key));
        let rng = &mut Rng(seed);
        let (a, b) = (pick(&states, rng), pick(&states, rng));
        let both = merged(a, b, lineage);
        for (field, content) in both.fields() {
            let Field::Register(content) = content else { continue };
            let nothing = Register::default();
            let (in_a, in_b) = (a.register(field).unwrap_or(&nothing), b.register(field).unwrap_or(&nothing));
            let is_shown: BTreeSet<Dot> = content.siblings().iter().map(|s| s.dot).collect();
            for (mine, theirs) in [(in_a, in_b), (in_b, in_a)] {
                for sibling in mine.siblings() {
                    let covered = theirs.seen().covers(sibling.dot, lineage) && theirs.sibling(sibling.dot).is_none();
                    prop_assert_eq!(is_shown.contains(&sibling.dot), !covered);
                }
            }
            // The vector of a write is what it covers; the history keeps it exactly.
            for x in &is_shown {
                for y in is_shown.iter().filter(|y| *y != x) {
                    prop_assert!(!world.covers(key, field, *x, *y), "{x} covers {y} and both are shown");
                }
            }
            let reading = Reading::of(&both, lineage);
            if field.kind == Kind::Value && is_shown.len() > 1 {
                prop_assert!(reading.conflict);
                let (_, siblings) = reading.values.iter().find(|(name, _)| *name == field.name).unwrap();
                prop_assert!(siblings.windows(2).all(|w| w[0].rank(lineage) > w[1].rank(lineage)));
                prop_assert_eq!(content.highest(lineage), siblings.first());
            }
        }
    }

    /// Laws 4 and 6 and the counters, to the end: agreement, nothing vanished, nothing resurrected, no tombstone kept.
    /// (`World::finish` says what it asserts.)
    #[test]
    fn histories_end_in_agreement(steps in history(40)) {
        if let Err(story) = world::run(1, false, &steps) {
            prop_assert!(false, "{}", story);
        }
    }

    /// However often the regions restart, a vector has an entry a region.
    #[test]
    fn vectors_stay_as_small_as_the_regions_are_many(restarts in proptest::collection::vec((0usize..3, 0u64..4), 1..60)) {
        let shard = ShardId(0);
        let mut tree = IncarnationTree::new();
        let mut at: Vec<(Incarnation, u64)> = Vec::new();
        let mut minted = Rng(restarts.len() as u64);
        for region in ["A", "B", "C"] {
            let incarnation = Incarnation(minted.next());
            tree.insert(incarnation, Row { region: Region::new(region), parent: None, left_at: vec![0] }).unwrap();
            at.push((incarnation, 0));
        }
        let mut seen = Vector::new();
        let mut all = Vec::new();
        for (region, writes) in restarts {
            for _ in 0..writes {
                at[region].1 += 1;
                let dot = Dot::new(at[region].0, at[region].1);
                seen.add(dot, tree.shard(shard));
                all.push(dot);
            }
            let (parent, left_at) = at[region];
            let row = Row { region: tree.region(parent).unwrap().clone(), parent: Some(parent), left_at: vec![left_at] };
            at[region] = (Incarnation(minted.next()), 0);
            tree.insert(at[region].0, row).unwrap();
            prop_assert!(seen.len() <= 3);
        }
        prop_assert!(all.iter().all(|dot| seen.covers(*dot, tree.shard(shard))));
    }

    #[test]
    fn tokens_come_back_as_they_were(steps in history(30), key in 0usize..4, n in 0usize..3, flip: usize) {
        let (world, _) = states(&steps, false, key);
        let node = &world.nodes[n];
        let record = node.records.get(&key).map(|held| held.record.clone()).unwrap_or_default();
        let context = Context::of(&record, node.tree.shard(shard_of(key)));
        let secret = TokenKey::new([3; 32]);
        let token = context.encode(&secret, KEYSPACE, &key_bytes(key));
        prop_assert_eq!(Context::decode(&secret, KEYSPACE, &key_bytes(key), &token), Ok(context.clone()));
        prop_assert!(context.is_current(&record));
        let mut flipped = token.clone();
        flipped[flip / 8 % token.len()] ^= 1 << (flip % 8);
        prop_assert!(Context::decode(&secret, KEYSPACE, &key_bytes(key), &flipped).is_err());
        for other in [
            Context::decode(&secret, KEYSPACE, &key_bytes((key + 1) % 4), &token),
            Context::decode(&secret, KeyspaceId(8), &key_bytes(key), &token),
            Context::decode(&TokenKey::new([4; 32]), KEYSPACE, &key_bytes(key), &token),
        ] {
            prop_assert_eq!(other, Err(BadToken::NotOurs));
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_token(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Context::decode(&TokenKey::new([3; 32]), KEYSPACE, b"k", &bytes).is_err());
    }

    /// The clock only rises, and no stamp from too far ahead moves it.
    #[test]
    fn clocks_only_rise(heard in proptest::collection::vec((0u64..100_000, 0u64..200_000, any::<u16>()), 1..40)) {
        let mut clock = HlcClock::default();
        for (now_ms, ms, count) in heard {
            let before = clock.last();
            let stamp = Hlc(Hlc::from_ms(ms).0 | u64::from(count));
            match clock.hear(stamp, now_ms, 10_000) {
                Heard::Taken => prop_assert!(ms <= now_ms + 10_000 && clock.last() >= stamp.max(before)),
                Heard::TooFarAhead { by_ms } => {
                    prop_assert_eq!(by_ms, ms - now_ms);
                    prop_assert!(by_ms > 10_000 && clock.last() == before);
                }
            }
            let before = clock.last();
            let given = clock.tick(now_ms);
            prop_assert!(given > before && given >= Hlc::from_ms(now_ms) && given == clock.last());
        }
    }

    /// What several regions note of one loser merges alike in every order.
    #[test]
    fn ledger_entries_merge_like_sets(a in entry(), b in entry(), c in entry()) {
        let join = |a: &LedgerEntry, b: &LedgerEntry| {
            let mut out = a.clone();
            out.merge(b);
            out
        };
        prop_assert_eq!(join(&a, &b), join(&b, &a));
        prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
        prop_assert_eq!(&join(&a, &a), &a);
        prop_assert_eq!(join(&a, &b).fate, a.fate.max(b.fate));
        prop_assert_eq!(join(&a, &b).value.is_some(), a.value.is_some() || b.value.is_some());
    }

    /// Parts that no region would make, rows in a circle among them, are merged without a panic or an endless walk.
    #[test]
    fn hostile_parts_harm_nobody(seed: u64) {
        let rng = &mut Rng(seed);
        let mut tree = IncarnationTree::new();
        for i in 0..12 {
            let parent = (rng.below(4) > 0).then(|| Incarnation(rng.below(12) as u64));
            let left_at = (0..rng.below(3)).map(|_| rng.next() >> rng.below(64)).collect();
            let region = Region::new(["A", "B"][rng.below(2)]);
            tree.insert(Incarnation(i), Row { region, parent, left_at }).unwrap();
        }
        let lineage = tree.shard(ShardId(rng.below(3) as u32));
        let (mut a, b) = (hostile(rng), hostile(rng));
        let (absorbed, whole) = (hostile_vector(rng), merged(&a, &b, lineage));
        let (here, mut taken_there) = (hostile_vector(rng), b.clone());
        taken_there.complete(&a, Absorbed { here: &absorbed, there: &here }, lineage);
        a.complete(&b, Absorbed { here: &here, there: &absorbed }, lineage);
        prop_assert_eq!(a.digest(KEYSPACE, b"k"), taken_there.digest(KEYSPACE, b"k"), "two states complete each other alike");
        for record in [&a, &b, &whole] {
            let _ = (Reading::of(record, lineage), record.digest(KEYSPACE, b"k"), record.size());
            let context = Context::of(record, lineage);
            let token = context.encode(&TokenKey::new([3; 32]), KEYSPACE, b"k");
            prop_assert_eq!(Context::decode(&TokenKey::new([3; 32]), KEYSPACE, b"k", &token), Ok(context));
        }
    }

    /// After a Put and a Patch made concurrently, Get shows both fields; a Delete, concurrent with either, empties only
    /// what it saw. A counter keeps just the increments that the delete did not see.
    #[test]
    fn concurrent_put_patch_and_delete_keep_what_was_not_seen(before in any::<bool>(), amount in 1i64..100, order in 0usize..6) {
        let mut world = World::new(order as u64, false);
        let put = |text| Mutation::Put { value: Value::string(text) };
        let patch = Mutation::Patch { set: vec![(FieldName::new("x"), Value::string("patched"))], remove: vec![] };
        let add = |amount| Mutation::Increment { field: FieldName::new("n"), amount };
        if before {
            world.write(0, 0, &put("old"), &Precondition::None, None).unwrap();
            world.write(0, 0, &add(7), &Precondition::None, None).unwrap();
            world.exchange([1, 2, 0]);
        }
        world.write(0, 0, &patch, &Precondition::None, None).unwrap();
        world.write(0, 0, &add(amount), &Precondition::None, None).unwrap();
        world.write(1, 0, &put("new"), &Precondition::None, None).unwrap();
        world.write(2, 0, &Mutation::Delete, &Precondition::None, None).unwrap();
        world.exchange([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order]);
        for node in &world.nodes {
            let reading = Reading::of(&node.records[&0].record, node.tree.shard(shard_of(0)));
            let shown: Vec<_> = reading.values.iter().map(|(n, s)| (n.as_str(), s[0].value.clone(), s.len())).collect();
            prop_assert_eq!(shown, vec![("", Value::string("new"), 1), ("x", Value::string("patched"), 1)]);
            // The Put had seen the 7 as well, and the Delete; nobody but its region the later increment.
            prop_assert_eq!(&reading.counters, &vec![(FieldName::new("n"), amount)]);
        }
        world.check().unwrap();
    }
}

fn entry() -> impl Strategy<Value = LedgerEntry> {
    let dot = |i: u64| Dot::new(Incarnation(i), 1);
    (any::<bool>(), 0u64..4, 0u64..4, 0usize..3, 0usize..3, 0u64..4).prop_map(
        move |(has_value, winner, at, place, fate, covered_by)| LedgerEntry {
            keyspace: KEYSPACE,
            key: key_bytes(0),
            field: FieldKey::value("x"),
            loser: dot(9),
            value: has_value.then(|| Sibling {
                dot: dot(9),
                epoch: Epoch(0),
                generation: Generation(1),
                hlc: Hlc(5),
                value: Value::string("lost"),
            }),
            winner: (winner > 0).then(|| dot(winner)),
            seen_at: Hlc(at),
            seen_in: Region::new(["A", "B", "C"][place]),
            fate: [Fate::Open, Fate::Superseded, Fate::Lost][fate],
            covered_by: (covered_by > 0).then(|| dot(covered_by)),
        },
    )
}

fn hostile_dot(rng: &mut Rng) -> Dot {
    Dot::new(Incarnation(rng.below(14) as u64), rng.next() >> rng.below(64))
}

fn hostile_vector(rng: &mut Rng) -> Vector {
    Vector::from_entries((0..rng.below(14)).map(|_| hostile_dot(rng)).map(|dot| (dot.incarnation, dot.seq)))
}

fn hostile(rng: &mut Rng) -> Record {
    let sibling = |rng: &mut Rng| Sibling {
        dot: hostile_dot(rng),
        epoch: Epoch(rng.next()),
        generation: Generation(rng.next()),
        hlc: Hlc(rng.next()),
        value: Value::bytes(vec![0xff]),
    };
    let register = |rng: &mut Rng| {
        let siblings = (0..rng.below(4)).map(|_| sibling(rng)).collect();
        Register::from_parts(siblings, hostile_vector(rng), Generation(rng.next()), Epoch(rng.next()))
    };
    let (value, home) = (register(rng), register(rng));
    let totals = (0..rng.below(4)).map(|_| (Incarnation(rng.below(14) as u64), rng.next(), rng.next(), rng.next()));
    let totals = totals.map(|(i, seq, start, total)| (i, Total { seq, start, total: total as i64 })).collect();
    let covered = (0..rng.below(4)).map(|_| (Incarnation(rng.below(14) as u64), rng.next(), rng.next()));
    let covered = covered.map(|(i, seq, total)| (i, Covered { seq, total: total as i64 })).collect();
    let counter = isle_model::Counter::from_parts(totals, covered, hostile_vector(rng));
    Record::from_fields(vec![
        (FieldKey::value("x"), Field::Register(value)),
        (FieldKey::counter("n"), Field::Counter(counter)),
        (FieldKey::home(), Field::Register(home)),
    ])
    .unwrap()
}

/// A chain of restarts and a vector as long as any that is let in are walked once, not once for each pair.
#[test]
fn long_chains_and_vectors_are_quick() {
    let mut tree = IncarnationTree::new();
    for i in 1..=4096u64 {
        let parent = (i > 1).then(|| Incarnation(i - 1));
        tree.insert(Incarnation(i), Row { region: Region::new("A"), parent, left_at: vec![3] }).unwrap();
    }
    let mut all = Vector::new();
    all.join(&Vector::from_entries((1..=4096).map(|i| (Incarnation(i), 3))), tree.shard(ShardId(0)));
    assert_eq!(all, Vector::of(Dot::new(Incarnation(4096), 3)));
}

fn one_register(key: FieldKey, dot: Dot) -> Record {
    let value = Value::string("A");
    let sibling = Sibling { dot, epoch: Epoch(0), generation: Generation(1), hlc: Hlc(1), value };
    let register = Register::from_parts(vec![sibling], Vector::of(dot), Generation(1), Epoch(0));
    Record::from_fields(vec![(key, Field::Register(register))]).unwrap()
}

/// A delete made elsewhere covers half of a counter that a client has read: its version is not current any more.
#[test]
fn a_partly_deleted_counter_has_another_version() {
    let tree = IncarnationTree::new();
    let dot = Dot::new(Incarnation(1), 3);
    let record = |covered| {
        let totals = vec![(dot.incarnation, Total { seq: 3, start: 1, total: 6 })];
        let counter = isle_model::Counter::from_parts(totals, covered, Vector::of(dot));
        Record::from_fields(vec![(FieldKey::counter("n"), Field::Counter(counter))]).unwrap()
    };
    let before = record(vec![]);
    let after = record(vec![(dot.incarnation, Covered { seq: 1, total: 2 })]);
    let read = Context::of(&before, tree.shard(ShardId(0)));
    assert!(read.is_current(&before) && !read.is_current(&after));
}

/// Two regions each removed the field that the other had not; both left the home. One that forgot the record could never
/// again agree with one that had not.
#[test]
fn a_record_whose_home_is_live_is_not_forgotten() {
    let tree = IncarnationTree::new();
    let record = one_register(FieldKey::home(), Dot::new(Incarnation(1), 1));
    let me = Region::new("A");
    assert!(!record.is_live() && record.home(tree.shard(ShardId(0))).is_none());
    assert!(!isle_model::Streams::new().may_forget(&record, &[], &me, tree.shard(ShardId(0))));
}

/// A write elsewhere, by a client that had been shown another value, covers one that only this region holds.
#[test]
fn the_value_of_a_loser_is_filled_in_by_whoever_holds_it() {
    let tree = IncarnationTree::new();
    let (lineage, loser) = (tree.shard(ShardId(0)), Dot::new(Incarnation(1), 1));
    let (before, after) = (one_register(FieldKey::value("x"), loser), Record::new());
    let entry = LedgerEntry {
        keyspace: KEYSPACE,
        key: key_bytes(0),
        field: FieldKey::value("x"),
        loser,
        value: None,
        winner: None,
        seen_at: Hlc(2),
        seen_in: Region::new("B"),
        fate: Fate::Lost,
        covered_by: Some(Dot::new(Incarnation(2), 1)),
    };
    let taken = isle_model::write::taken(&[entry], &before, &after, lineage);
    assert_eq!(taken[0].value.as_ref(), before.register(&FieldKey::value("x")).unwrap().sibling(loser));
}
