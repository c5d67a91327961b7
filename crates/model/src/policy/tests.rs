#![allow(clippy::unwrap_used)]

use super::*;

fn members() -> Members {
    [("ap", "jp"), ("eu-1", "eu"), ("eu-2", "eu"), ("us", "us")]
        .map(|(region, jurisdiction)| {
            (Region::new(region), Member { jurisdiction: jurisdiction.to_owned(), ..Member::default() })
        })
        .into()
}

fn fields(faults: &[Fault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.field.as_ref()).collect()
}

fn names<'a>(regions: impl Iterator<Item = &'a Region>) -> Vec<&'a str> {
    regions.map(Region::as_str).collect()
}

#[test]
fn the_defaults_of_every_scope_are_sound_and_built() {
    for scope in [Scope::Affine, Scope::Local, Scope::Global] {
        assert_eq!(Policy::of_scope(scope).faults(&members()), [], "{scope}");
        assert_eq!(Policy::of_scope(scope).unimplemented(), [], "{scope}");
    }
}

#[test]
fn every_broken_rule_is_named_at_once() {
    let policy = Policy {
        writes: Writes::Strong,
        conflict: ConflictRule::Siblings,
        tier: Tier::Warm(WARM_INTERVAL),
        replication: Replication::Sync(9),
        residency: "eu,mars".parse().unwrap(),
        ..Policy::default()
    };
    let faults = policy.faults(&members());
    assert_eq!(fields(&faults), ["home", "conflict", "tier", "replication", "replication", "residency"], "{faults:?}");
}

#[test]
fn what_has_no_home_forwards_nothing() {
    let forwarded = Policy { writes: Writes::Forward, ..Policy::of_scope(Scope::Global) };
    assert_eq!(fields(&forwarded.faults(&members())), ["writes"]);
    let homed = Policy { home: Some(HomeRule::Hash), ..Policy::of_scope(Scope::Local) };
    assert_eq!(fields(&homed.faults(&members())), ["home"]);
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let request_ids = RequestIds::Required;
    let policy = Policy { tier: Tier::Cold(COLD_INTERVAL), ttl: Some(WARM_INTERVAL), request_ids, ..Policy::default() };
    let unimplemented = policy.unimplemented();
    assert_eq!(fields(&unimplemented), ["tier", "ttl", "request_ids"]);
    assert!(unimplemented.iter().all(|fault| SETTINGS.contains(&fault.field.as_ref())), "{unimplemented:?}");
}

#[test]
fn residency_decides_the_holders_and_fails_closed() {
    let policy = |residency: &str| Policy { residency: residency.parse().unwrap(), ..Policy::default() };
    assert_eq!(names(policy("all").holders(&members())), ["ap", "eu-1", "eu-2", "us"]);
    assert_eq!(names(policy("eu").holders(&members())), ["eu-1", "eu-2"]);
    assert_eq!(names(policy("eu,region:us").holders(&members())), ["eu-1", "eu-2", "us"]);
    assert!(!policy("all").admits(&Region::new("stranger"), &members()));
    // A region without a jurisdiction is in none, not in one that is called nothing.
    let nowhere = Residency::Within { jurisdictions: BTreeSet::from([String::new()]), regions: BTreeSet::new() };
    let faults = Policy { residency: nowhere, ..Policy::default() }.faults(&members());
    assert!(fields(&faults).contains(&"residency"), "{faults:?}");
}

#[test]
fn the_longest_prefix_names_the_home() {
    let home: HomeRule = "prefixes(eu/=eu-1,eu/it/=eu-2,*=us)".parse().unwrap();
    let policy = Policy { home: Some(home), ..Policy::default() };
    let home_of = |key: &str| policy.home_of(key.as_bytes(), &members()).unwrap();
    assert_eq!(home_of("eu/de/1").as_str(), "eu-1");
    assert_eq!(home_of("eu/it/1").as_str(), "eu-2");
    assert_eq!(home_of("else").as_str(), "us");
    let outside = Policy { residency: "eu".parse().unwrap(), ..policy };
    assert_eq!(fields(&outside.faults(&members())), ["home"], "us may not hold it");
}

#[test]
fn a_holder_that_goes_takes_only_its_own_hashed_homes_with_it() {
    let policy = Policy { home: Some(HomeRule::Hash), ..Policy::default() };
    let (all, mut fewer) = (members(), members());
    fewer.remove(&Region::new("us"));
    let mut of_each = BTreeMap::<Region, usize>::new();
    for n in 0..4_000u32 {
        let key = format!("key-{n}");
        let before = policy.home_of(key.as_bytes(), &all).unwrap();
        if before.as_str() != "us" {
            assert_eq!(policy.home_of(key.as_bytes(), &fewer).unwrap(), before, "{key}");
        }
        *of_each.entry(before).or_default() += 1;
    }
    assert!(of_each.values().all(|keys| (800..1_200).contains(keys)), "{of_each:?}");
}

#[test]
fn a_running_keyspace_keeps_its_scope_and_its_homes() {
    let old = Policy::default();
    let global = Policy::of_scope(Scope::Global);
    assert_eq!(fields(&global.faults_after(&old)), ["scope", "home"]);
    let anywhere = Policy { writes: Writes::Anywhere, ..Policy::default() };
    assert_eq!(anywhere.faults_after(&old), [], "what was serialised may cease to be");
    assert_eq!(fields(&old.faults_after(&anywhere)), ["writes"]);
}

#[test]
fn what_is_shown_is_read_as_the_same() {
    fn same<T: std::str::FromStr + std::fmt::Display>(texts: &[&str])
    where
        T::Err: std::fmt::Debug,
    {
        for text in texts {
            assert_eq!(text.parse::<T>().unwrap().to_string(), *text);
        }
    }
    same::<Scope>(&["affine", "local", "global"]);
    same::<Writes>(&["forward", "anywhere", "strong"]);
    same::<Replication>(&["async", "sync(2)"]);
    same::<Tier>(&["hot", "warm(1h)", "cold(1d)", "warm(1m30s)"]);
    same::<ReadDefault>(&["eventual", "session", "bounded(1s500ms)", "strong"]);
    same::<HomeRule>(&["creator", "hash", "prefixes(a%2cb=us,eu/=eu-1,*=ap)"]);
    same::<Residency>(&["all", "eu", "eu,us,region:ap"]);
}

/// Stored metadata is this text: a prefix that began with a tab lost it, and its keys their home.
#[test]
fn prefixes_and_labels_keep_white_space() {
    for odd in ["\ta", "a\n", "\u{a0}", " ", "a b "] {
        let prefixes = [(odd.to_owned(), Region::new("us")), (String::new(), Region::new("ap"))].into();
        let home = HomeRule::Prefixes(prefixes);
        assert_eq!(home.to_string().parse(), Ok(home), "{odd:?}");
        let labels = [(odd.to_owned(), odd.to_owned())].into();
        let policy = Policy { labels, ..Policy::default() };
        let shown = policy.settings();
        let settings = shown.iter().map(|(name, text)| (*name, text.as_str()));
        assert_eq!(Policy::of_settings(settings), Ok(policy), "{odd:?}");
    }
}

#[test]
fn what_is_no_setting_is_refused() {
    for text in ["", "sync", "sync()", "sync(-1)", "sync(1", "async(1)"] {
        assert!(text.parse::<Replication>().is_err(), "{text:?}");
    }
    for text in ["prefixes()", "prefixes(a)", "prefixes(a=,b=us)", "prefixes(a=us,a=eu-1)", "prefixes(%zz=us)", "homes"]
    {
        assert!(text.parse::<HomeRule>().is_err(), "{text:?}");
    }
    for text in ["", "eu,,us", "eu,all", "planet:mars"] {
        assert!(text.parse::<Residency>().is_err(), "{text:?}");
    }
}

#[test]
fn a_policy_is_read_from_the_settings_it_shows() {
    let labels = [("cost centre", "a=b,c"), ("team", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let policy = Policy {
        ttl: Some(WARM_INTERVAL),
        replication: Replication::Sync(1),
        labels: labels.into(),
        ..Policy::default()
    };
    let shown = policy.settings();
    let settings = shown.iter().map(|(name, text)| (*name, text.as_str()));
    assert_eq!(Policy::of_settings(settings), Ok(policy));
    let global = Policy::of_settings([("replication", "sync(1)"), ("scope", "global")]).unwrap();
    assert_eq!(global, Policy { replication: Replication::Sync(1), ..Policy::of_scope(Scope::Global) });
}

#[test]
fn every_setting_that_is_not_read_is_named() {
    let faults =
        Policy::of_settings([("scope", "planet"), ("teir", "hot"), ("labels", "a"), ("ttl", "5")]).unwrap_err();
    assert_eq!(fields(&faults), ["scope", "teir", "labels", "ttl"], "{faults:?}");
}
