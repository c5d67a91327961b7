#![allow(clippy::unwrap_used)]
use super::*;

const GOOD: &str = r#"
cluster = "shop"
region = "eu-west-1"
data_dir = "data"

[listen]
client = "127.0.0.1:9000"

[limits]
log_budget_age = "2h"
queue_bytes_max = "16MiB"

[[peers]]
region = "us-east-1"
endpoint = "http://10.0.0.2:7401"
client_endpoint = "https://us.example.com"

[[keyspaces]]
id = 1
name = "default"

[[keyspaces]]
id = 2
name = "carts"
"#;

fn faults(text: &str) -> Vec<String> {
    let faults = Draft::default().file("isle.toml", text).finish().unwrap_err();
    faults.0.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_is_read_over_the_defaults() {
    let config = Draft::default().file("isle.toml", GOOD).finish().unwrap();
    assert_eq!(config.cluster, "shop");
    assert_eq!(config.listen.client.port(), 9000);
    assert_eq!(config.listen.peer.port(), 7401);
    assert_eq!(config.limits.queue_bytes_max, 16 << 20);
    assert_eq!(config.limits.log_budget_age, Duration::from_secs(7200));
    assert_eq!(config.peers[0].client_endpoint.as_deref(), Some("https://us.example.com"));
    assert_eq!(config.keyspaces[1], Keyspace::new(2, "carts"));
}

#[test]
fn flags_beat_the_environment_and_it_beats_the_file() {
    let variables = [("ISLE_LISTEN_CLIENT", "127.0.0.1:1"), ("ISLE_CLUSTER", "of-env"), ("ISLE_SERVICE_HOST", "x")];
    let variables = variables.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let draft = Draft::default().file("isle.toml", GOOD).environment(variables);
    let config = draft.flag("--cluster", "cluster", "of-flag").finish().unwrap();
    assert_eq!((config.cluster.as_str(), config.listen.client.port()), ("of-flag", 1));
}

#[test]
fn every_fault_is_named_at_once_with_its_line() {
    let text = "region = \"eu\"\nshards = 0\ncolour = 3\n[listen]\nclient = \"0.0.0.0:7400\"\npeer = \"nonsense\"\n";
    let faults = faults(text);
    let named = |start: &str| faults.iter().filter(|f| f.starts_with(start)).count();
    assert_eq!(named("isle.toml:3: unknown key \"colour\""), 1, "{faults:?}");
    assert_eq!(named("isle.toml:6: listen.peer: \"nonsense\""), 1, "{faults:?}");
    assert_eq!(named("isle.toml:2: shards = 0"), 1, "{faults:?}");
    assert_eq!(named("isle.toml:5: 0.0.0.0:7400 is not loopback"), 1, "{faults:?}");
    assert_eq!(named("data_dir: data_dir must be set"), 1, "{faults:?}");
    assert_eq!(faults.len(), 5, "{faults:?}");
}

#[test]
fn unknown_keys_in_tables_are_refused() {
    let faults = faults(&GOOD.replace("name = \"carts\"", "name = \"carts\"\nteir = \"hot\""));
    assert_eq!(faults, ["isle.toml:25: unknown key or wrong type: keyspaces.teir"]);
}

#[test]
fn a_bad_row_is_named_by_its_line() {
    let faults = faults(&GOOD.replace("id = 2", "id = 1").replace("http://10.0.0.2:7401", "https://10.0.0.2:7401"));
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("isle.toml:15: \"https://10.0.0.2:7401\" must begin with http"), "{faults:?}");
    assert!(faults[1].starts_with("isle.toml:22: id 1 is given twice"), "{faults:?}");
}

#[test]
fn a_file_that_is_not_toml_names_its_line() {
    let faults = faults("region = \"eu\"\nshards = = 3\n");
    assert!(faults[0].starts_with("isle.toml:2: "), "{faults:?}");
}

#[test]
fn beyond_loopback_needs_tls_or_insecure() {
    let open = GOOD.replace("127.0.0.1:9000", "0.0.0.0:9000");
    assert_eq!(faults(&open).len(), 1);
    let insecure = format!("insecure = true\n{open}");
    assert!(Draft::default().file("isle.toml", &insecure).finish().is_ok());
    let tls = format!("{open}\n[tls]\ncert = \"c\"\nkey = \"k\"\nca = \"a\"\n").replace("http://10", "https://10");
    assert!(Draft::default().file("isle.toml", &tls).finish().is_ok());
}

#[test]
fn half_a_tls_section_is_refused() {
    let faults = faults(&format!("{GOOD}\n[tls]\ncert = \"c\"\n").replace("http://10", "https://10"));
    assert_eq!(faults, ["tls.key: [tls] needs tls.key", "tls.ca: [tls] needs tls.ca"]);
}

#[test]
fn every_key_has_a_variable_of_its_own() {
    let mut names: Vec<String> = KEYS.iter().map(Key::variable).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), KEYS.len());
}

#[test]
fn the_defaults_shown_are_the_defaults() {
    let mut config = Config::default();
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        (key.set)(&mut config, key.default).unwrap();
    }
    assert_eq!(config, Config::default());
    assert!(help().contains("limits.log_budget_bytes") && help().contains("[4GiB]"));
}
