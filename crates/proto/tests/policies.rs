//! Any policy comes back from the wire, and from its text form, as it was sent.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use isle_model::Region;
use isle_model::policy::{
    ConflictRule, HomeRule, Policy, ReadDefault, Replication, RequestIds, Residency, Scope, Tier, Writes,
};
use isle_proto::policy::{masked, policy, to_policy};
use isle_proto::v1;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

fn span() -> impl Strategy<Value = Duration> {
    (0u64..315_576_000_000_000).prop_map(Duration::from_millis)
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._-]{1,8}".prop_filter("`all` is no name", |name| name != "all")
}

fn region() -> impl Strategy<Value = Region> {
    name().prop_map(|name| Region::new(&name))
}

/// With what the text form escapes, and white space of every kind.
fn odd() -> impl Strategy<Value = String> {
    vec(prop_oneof![any::<char>(), prop::char::range(' ', '/'), Just('\t'), Just('='), Just('\u{a0}')], 0..6)
        .prop_map(|chars| chars.into_iter().collect())
}

fn home() -> impl Strategy<Value = HomeRule> {
    let prefixes = btree_map(odd(), region(), 1..5).prop_map(HomeRule::Prefixes);
    prop_oneof![Just(HomeRule::Creator), Just(HomeRule::Hash), prefixes]
}

fn residency() -> impl Strategy<Value = Residency> {
    let within = (btree_set(name(), 1..4), btree_set(region(), 0..4))
        .prop_map(|(jurisdictions, regions)| Residency::Within { jurisdictions, regions });
    prop_oneof![Just(Residency::All), within]
}

/// Impossible ones too: whether they can be kept is not the wire's to say.
fn any_policy() -> impl Strategy<Value = Policy> {
    let scope = prop::sample::select(vec![Scope::Affine, Scope::Local, Scope::Global]);
    let writes = prop::sample::select(vec![Writes::Forward, Writes::Anywhere, Writes::Strong]);
    let replication = prop_oneof![Just(Replication::Async), any::<u32>().prop_map(Replication::Sync)];
    let tier = prop_oneof![Just(Tier::Hot), span().prop_map(Tier::Warm), span().prop_map(Tier::Cold)];
    let conflict = prop::sample::select(vec![ConflictRule::Version, ConflictRule::Siblings]);
    let read_default = prop_oneof![
        Just(ReadDefault::Eventual),
        Just(ReadDefault::Session),
        span().prop_map(ReadDefault::Bounded),
        Just(ReadDefault::Strong)
    ];
    let request_ids = prop::sample::select(vec![RequestIds::Optional, RequestIds::Required]);
    let labels = btree_map(odd().prop_filter("a name", |name| !name.is_empty()), odd(), 0..4);
    let first = (scope, option::of(home()), writes, replication, tier, conflict);
    let second = (read_default, residency(), option::of(span()), request_ids, span(), any::<u32>(), labels);
    (first, second).prop_map(|(first, second)| {
        let (scope, home, writes, replication, tier, conflict) = first;
        let (read_default, residency, ttl, request_ids, request_id_window, value_bytes_max, labels) = second;
        // Unset is the scope's default, so that an affine keyspace without a home cannot be said.
        let home = home.or(Policy::of_scope(scope).home);
        Policy {
            scope,
            home,
            writes,
            replication,
            tier,
            conflict,
            read_default,
            residency,
            ttl,
            request_ids,
            request_id_window,
            value_bytes_max,
            labels,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_policy_comes_back_from_the_wire(sent in any_policy()) {
        let bytes = policy(&sent).encode_to_vec();
        prop_assert_eq!(to_policy(v1::Policy::decode(bytes.as_slice()).unwrap()), Ok(sent));
    }

    #[test]
    fn any_policy_comes_back_from_its_text(sent in any_policy()) {
        let shown = sent.settings();
        let settings = shown.iter().map(|(name, text)| (*name, text.as_str()));
        prop_assert_eq!(Policy::of_settings(settings), Ok(sent));
    }

    #[test]
    fn a_mask_of_one_setting_changes_that_one_alone(
        old in any_policy(), sent in any_policy(), at in 0..isle_model::policy::SETTINGS.len()
    ) {
        let setting = isle_model::policy::SETTINGS[at];
        let merged = masked(&old, policy(&sent), &[format!("policy.{setting}")]).unwrap();
        let again = masked(&sent, merged.clone(), &["*".to_owned()]).unwrap();
        prop_assert_eq!(&again, &merged);
        for other in isle_model::policy::SETTINGS.iter().filter(|other| **other != setting) {
            let restored = masked(&old, merged.clone(), &[format!("policy.{other}")]).unwrap();
            prop_assert_eq!(restored, policy(&old), "{} changed with {}", other, setting);
        }
    }
}
