//! Keyspaces of one served region, over gRPC: made, looked at, changed under masks and etags, deleted; and every refusal.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use isle_client::policy::{Policy, Replication, Scope, Writes};
use isle_client::{ChangeOptions, Client, Error, Options, Retry, Value, WriteOptions, v1};
use isle_proto::v1::keyspaces_client::KeyspacesClient;
use support::{Process, serve};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

struct Served {
    node: Process,
    client: Client,
    _dir: TempDir,
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let node = serve(dir.path(), &["jurisdiction=eu"]);
    let options = Options { retry: Retry::never(), ..Options::default() };
    let client = Client::connect_with(&node.endpoint, options).await.unwrap();
    Served { node, client, _dir: dir }
}

impl Served {
    async fn raw(&self) -> KeyspacesClient<Channel> {
        let channel = Channel::from_shared(self.node.endpoint.clone()).unwrap().connect().await.unwrap();
        KeyspacesClient::new(channel).max_encoding_message_size(16 << 20)
    }

    async fn names(&self) -> Vec<String> {
        self.client.list_keyspaces().await.unwrap().into_iter().map(|keyspace| keyspace.name).collect()
    }
}

fn policy(settings: &[(&str, &str)]) -> Policy {
    Policy::of_settings(settings.iter().copied()).unwrap()
}

fn etag(etag: &str) -> ChangeOptions {
    ChangeOptions { etag: etag.to_owned(), dry_run: false }
}

fn told(error: &Error) -> (Code, &str) {
    (error.code, error.reason.as_str())
}

fn fields(error: &Error) -> Vec<&str> {
    error.violations.iter().map(|violation| violation.field.trim_start_matches("keyspace.policy.")).collect()
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("isle names its errors").reason
}

fn named(name: &str, policy: v1::Policy) -> Option<v1::Keyspace> {
    Some(v1::Keyspace { name: name.to_owned(), policy: Some(policy), ..Default::default() })
}

#[tokio::test]
async fn a_keyspace_is_made_shown_changed_and_deleted() {
    let served = served().await;
    let client = &served.client;
    let wanted = policy(&[
        ("home", "prefixes(a/=solo,*=solo)"),
        ("residency", "eu,region:solo"),
        ("read_default", "bounded(2s)"),
        ("labels", "team=carts"),
        ("value_bytes_max", "4096"),
    ]);
    let made = client.create_keyspace("carts", &wanted, false).await.unwrap();
    assert_eq!((made.name.as_str(), &made.policy), ("carts", &wanted));
    assert!(made.id > 1 && !made.etag.is_empty());
    assert_eq!(client.get_keyspace("carts").await.unwrap(), made);
    assert_eq!(served.names().await, ["carts", "default"]);

    let anywhere = policy(&[("writes", "anywhere")]);
    let changed = client.update_keyspace("carts", &anywhere, &["writes"], etag(&made.etag)).await.unwrap();
    assert_eq!(changed.policy, Policy { writes: Writes::Anywhere, ..wanted });
    assert!(changed.id == made.id && changed.etag != made.etag);
    // What is so already stays as it is, under the etag that it has.
    let again = client.update_keyspace("carts", &anywhere, &["writes"], ChangeOptions::default()).await.unwrap();
    assert_eq!(again, changed);

    assert_eq!(client.delete_keyspace("carts", etag(&changed.etag)).await.unwrap(), changed);
    assert_eq!(served.names().await, ["default"]);
    assert_eq!(told(&client.get_keyspace("carts").await.unwrap_err()), (Code::NotFound, "KEYSPACE_NOT_FOUND"));
}

#[tokio::test]
async fn a_keyspace_takes_keys_at_once_and_none_comes_back_under_its_name() {
    let served = served().await;
    let client = &served.client;
    let put = || client.put("carts", "k", Value::from("v"), WriteOptions::default());
    let get = || client.get("carts", "k", v1::ReadOptions::default());
    assert_eq!(told(&put().await.unwrap_err()), (Code::NotFound, "KEYSPACE_NOT_FOUND"));
    let first = client.create_keyspace("carts", &Policy::default(), false).await.unwrap();
    put().await.unwrap();
    assert_eq!(get().await.unwrap().record.value, Some(Value::from("v")));
    assert!(!client.get("default", "k", v1::ReadOptions::default()).await.unwrap().found);
    client.delete_keyspace("carts", ChangeOptions::default()).await.unwrap();
    assert_eq!(told(&get().await.unwrap_err()), (Code::NotFound, "KEYSPACE_NOT_FOUND"));
    let second = client.create_keyspace("carts", &Policy::default(), false).await.unwrap();
    assert!(second.id > first.id);
    assert!(!get().await.unwrap().found);
}

#[tokio::test]
async fn an_etag_lets_a_change_happen_to_what_its_maker_saw_or_not_at_all() {
    let served = served().await;
    let client = &served.client;
    let made = client.create_keyspace("carts", &policy(&[("labels", "n=0")]), false).await.unwrap();
    let labelled = policy(&[("labels", "n=1")]);
    let changed = client.update_keyspace("carts", &labelled, &["labels"], etag(&made.etag)).await.unwrap();
    let late = policy(&[("labels", "n=2")]);
    let stale = client.update_keyspace("carts", &late, &["labels"], etag(&made.etag)).await.unwrap_err();
    assert_eq!(told(&stale), (Code::Aborted, "ETAG_MISMATCH"));
    assert_eq!((&stale.facts["etag"], stale.facts["keyspace"].as_str()), (&changed.etag, "carts"));
    let stale = client.delete_keyspace("carts", etag(&made.etag)).await.unwrap_err();
    assert_eq!((told(&stale), &stale.facts["etag"]), ((Code::Aborted, "ETAG_MISMATCH"), &changed.etag));
    assert_eq!(client.get_keyspace("carts").await.unwrap(), changed);
    let made_up = client.update_keyspace("carts", &late, &["labels"], etag("7")).await.unwrap_err();
    assert_eq!((told(&made_up), fields(&made_up)), ((Code::InvalidArgument, "INVALID_FIELD"), vec!["keyspace.etag"]));
    // Without one, it is what there is that is changed.
    client.update_keyspace("carts", &late, &["labels"], ChangeOptions::default()).await.unwrap();
    // One of a change that has not come here yet: nobody may build on what is older.
    let ahead = client.update_keyspace("carts", &labelled, &["labels"], etag("rffffffff")).await.unwrap_err();
    assert_eq!(told(&ahead), (Code::Unavailable, "METADATA_UNAVAILABLE"));
    assert!(ahead.retry_after.is_some());
}

#[tokio::test]
async fn a_mask_decides_what_is_taken() {
    let served = served().await;
    let mut raw = served.raw().await;
    let old = policy(&[("labels", "team=a"), ("value_bytes_max", "10"), ("read_default", "bounded(1s)")]);
    served.client.create_keyspace("carts", &old, false).await.unwrap();
    let mut update = async |sent: v1::Policy, paths: Option<&[&str]>| {
        let paths = paths.map(|paths| paths.iter().map(|path| (*path).to_owned()).collect());
        let update_mask = paths.map(|paths| prost_types::FieldMask { paths });
        let request = v1::UpdateKeyspaceRequest { keyspace: named("carts", sent), update_mask, validate_only: false };
        raw.update_keyspace(request).await.map(|_| ())
    };
    let now = async || served.client.get_keyspace("carts").await.unwrap().policy;
    let sent = || v1::Policy { value_bytes_max: Some(20), ..v1::Policy::default() };

    // Named and sent.
    update(sent(), Some(&["policy.value_bytes_max"])).await.unwrap();
    let mut expected = Policy { value_bytes_max: 20, ..old.clone() };
    assert_eq!(now().await, expected);
    // Named and not sent: the default. Not named: as it was.
    update(sent(), Some(&["policy.read_default", "name", "etag"])).await.unwrap();
    expected.read_default = Policy::default().read_default;
    assert_eq!(now().await, expected);
    // No mask, and an empty one: what is sent.
    update(v1::Policy { value_bytes_max: Some(30), ..v1::Policy::default() }, None).await.unwrap();
    expected.value_bytes_max = 30;
    assert_eq!(now().await, expected);
    update(v1::Policy { value_bytes_max: Some(40), ..v1::Policy::default() }, Some(&[])).await.unwrap();
    expected.value_bytes_max = 40;
    assert_eq!(now().await, expected);
    // All of it.
    update(sent(), Some(&["*"])).await.unwrap();
    assert_eq!(now().await, Policy { value_bytes_max: 20, ..Policy::default() });
    // What is no setting changes nothing, not even beside one that is.
    let status = update(sent(), Some(&["policy.labels", "policy.colour"])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "update_mask");
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_and_changes_nothing() {
    let served = served().await;
    let client = &served.client;
    let dry = |etag: &str| ChangeOptions { etag: etag.to_owned(), dry_run: true };
    let would = client.create_keyspace("carts", &Policy::of_scope(Scope::Global), true).await.unwrap();
    assert_eq!((would.id, would.etag.as_str(), would.policy), (0, "", Policy::of_scope(Scope::Global)));
    assert_eq!(served.names().await, ["default"]);

    let made = client.create_keyspace("carts", &Policy::default(), false).await.unwrap();
    let anywhere = policy(&[("writes", "anywhere")]);
    let would = client.update_keyspace("carts", &anywhere, &["writes"], dry(&made.etag)).await.unwrap();
    assert_eq!((would.policy.writes, would.etag.as_str()), (Writes::Anywhere, ""));
    assert_eq!(client.delete_keyspace("carts", dry("")).await.unwrap(), made);
    assert_eq!(client.get_keyspace("carts").await.unwrap(), made);

    // It is refused for all that the call itself would be refused for.
    let exists = client.create_keyspace("carts", &Policy::default(), true).await.unwrap_err();
    assert_eq!(told(&exists), (Code::AlreadyExists, "KEYSPACE_EXISTS"));
    let stale = client.delete_keyspace("carts", dry("r0")).await.unwrap_err();
    assert_eq!(told(&stale), (Code::Aborted, "ETAG_MISMATCH"));
    let impossible = client.create_keyspace("other", &policy(&[("replication", "sync(1)")]), true).await.unwrap_err();
    assert_eq!(told(&impossible), (Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"));
}

#[tokio::test]
async fn an_impossible_mix_is_refused_with_every_rule_it_breaks() {
    let served = served().await;
    let mix = policy(&[
        ("scope", "local"),
        ("writes", "forward"),
        ("replication", "sync(2)"),
        ("tier", "warm(1h)"),
        ("residency", "mars"),
    ]);
    let refused = served.client.create_keyspace("carts", &mix, false).await.unwrap_err();
    assert_eq!(told(&refused), (Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"));
    let mut broken = fields(&refused);
    broken.dedup();
    for field in ["writes", "replication", "tier", "residency"] {
        assert!(broken.contains(&field) && refused.message.contains(field), "{field}: {refused:?}");
    }
    assert_eq!(served.names().await, ["default"]);
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name_and_not_ignored() {
    let served = served().await;
    let later = [
        ("tier", "cold(1d)"),
        ("ttl", "1h"),
        ("conflict", "siblings"),
        ("read_default", "session"),
        ("request_ids", "required"),
        ("request_id_window", "1h"),
    ];
    for setting in later {
        let refused = served.client.create_keyspace("carts", &policy(&[setting]), false).await.unwrap_err();
        assert_eq!(told(&refused), (Code::Unimplemented, "NOT_SERVED"), "{setting:?}");
        assert_eq!(refused.facts["field"], setting.0);
        let update = policy(&[setting]);
        let refused = served.client.update_keyspace("default", &update, &[setting.0], ChangeOptions::default()).await;
        assert_eq!(told(&refused.unwrap_err()), (Code::Unimplemented, "NOT_SERVED"), "{setting:?}");
    }
    let strong = policy(&[("writes", "strong"), ("home", "hash"), ("ttl", "1h")]);
    let refused = served.client.create_keyspace("carts", &strong, false).await.unwrap_err();
    assert_eq!((refused.facts["field"].as_str(), fields(&refused)), ("writes,ttl", vec!["writes", "ttl"]));
    assert_eq!(served.names().await, ["default"]);
}

#[tokio::test]
async fn a_running_keyspace_keeps_its_scope_its_home_and_its_concurrent_writes() {
    let served = served().await;
    let client = &served.client;
    client.create_keyspace("carts", &Policy::default(), false).await.unwrap();
    let global = Policy::of_scope(Scope::Global);
    let moved = client.update_keyspace("carts", &global, &[], ChangeOptions::default()).await.unwrap_err();
    assert_eq!(
        (told(&moved), fields(&moved)),
        ((Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"), vec!["scope", "home"])
    );
    // `default` is written anywhere.
    let forward = Policy { writes: Writes::Forward, ..Policy::default() };
    let back = client.update_keyspace("default", &forward, &["writes"], ChangeOptions::default()).await.unwrap_err();
    assert_eq!((told(&back), fields(&back)), ((Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"), vec!["writes"]));
}

#[tokio::test]
async fn what_is_not_sound_is_refused_by_name() {
    let served = served().await;
    let client = &served.client;
    let long = "n".repeat(65);
    for name in ["", "a b", "a/b", long.as_str()] {
        let refused = client.create_keyspace(name, &Policy::default(), false).await.unwrap_err();
        assert_eq!(told(&refused), (Code::InvalidArgument, "INVALID_FIELD"), "{name:?}");
        assert_eq!(refused.field(), Some("keyspace.name"));
    }
    client.create_keyspace(&"n".repeat(64), &Policy::default(), false).await.unwrap();
    for refused in [
        client.get_keyspace("nowhere").await.unwrap_err(),
        client.delete_keyspace("nowhere", ChangeOptions::default()).await.unwrap_err(),
        client.update_keyspace("nowhere", &Policy::default(), &[], ChangeOptions::default()).await.unwrap_err(),
    ] {
        assert_eq!(
            (told(&refused), refused.facts["keyspace"].as_str()),
            ((Code::NotFound, "KEYSPACE_NOT_FOUND"), "nowhere")
        );
    }
    let exists = client.create_keyspace("default", &Policy::default(), false).await.unwrap_err();
    assert_eq!(
        (told(&exists), exists.facts["keyspace"].as_str()),
        ((Code::AlreadyExists, "KEYSPACE_EXISTS"), "default")
    );

    let mut raw = served.raw().await;
    let faulty = v1::Policy {
        scope: 77,
        tier: Some(v1::Tier { kind: -1, interval: None }),
        ttl: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        ..v1::Policy::default()
    };
    let mut create = async |keyspace| {
        raw.create_keyspace(v1::CreateKeyspaceRequest { keyspace, validate_only: false }).await.map(|_| ()).unwrap_err()
    };
    let status = create(named("carts", faulty)).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    let violations = status.get_details_bad_request().unwrap().field_violations;
    let named_fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(named_fields, ["keyspace.policy.scope", "keyspace.policy.tier", "keyspace.policy.ttl"]);
    assert_eq!(reason(&create(None).await), "INVALID_FIELD");
    // More than the largest policy needs is not even read.
    let labels = (0..40_000).map(|n| (format!("label-{n}"), "x".repeat(40))).collect();
    let large = create(named("carts", v1::Policy { labels, ..v1::Policy::default() })).await;
    assert_eq!((large.code(), reason(&large).as_str()), (Code::InvalidArgument, "INVALID_FIELD"), "{large}");
    let labels = (0..65).map(|n| (format!("label-{n}"), String::new())).collect();
    let many = create(named("carts", v1::Policy { labels, ..v1::Policy::default() })).await;
    assert_eq!((many.code(), reason(&many).as_str()), (Code::InvalidArgument, "INCOMPATIBLE_SETTINGS"), "{many}");
}

#[tokio::test]
async fn pages_hold_every_keyspace_once_in_order_and_tokens_are_not_made_up() {
    let served = served().await;
    let client = &served.client;
    let mut expected = vec!["default".to_owned()];
    for name in ["e", "a", "c", "g"] {
        client.create_keyspace(name, &Policy::default(), false).await.unwrap();
        expected.push(name.to_owned());
    }
    expected.sort();
    let (mut seen, mut token) = (Vec::new(), Bytes::new());
    loop {
        let page = client.keyspace_page(2, token).await.unwrap();
        assert!(page.keyspaces.len() <= 2);
        seen.extend(page.keyspaces.into_iter().map(|keyspace| keyspace.name));
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, expected);
    let forged = client.keyspace_page(2, "made up".into()).await.unwrap_err();
    assert_eq!((told(&forged), forged.field()), ((Code::InvalidArgument, "INVALID_FIELD"), Some("page_token")));
    let negative = v1::ListKeyspacesRequest { page_size: -1, ..Default::default() };
    let negative = served.raw().await.list_keyspaces(negative).await.unwrap_err();
    assert_eq!(reason(&negative), "INVALID_FIELD");
}

#[tokio::test]
async fn an_expired_deadline_changes_nothing() {
    let served = served().await;
    let keyspace = named("late", v1::Policy::default());
    let mut request = Request::new(v1::CreateKeyspaceRequest { keyspace, validate_only: false });
    request.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    let status = served.raw().await.create_keyspace(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    assert_eq!(served.names().await, ["default"]);
}

#[tokio::test]
async fn changes_at_once_without_etags_all_come_about() {
    let served = served().await;
    let client = &served.client;
    client.create_keyspace("carts", &Policy::default(), false).await.unwrap();
    let change = |settings: &'static [(&'static str, &'static str)]| async move {
        let (sent, names) = (policy(settings), settings.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        client.update_keyspace("carts", &sent, &names, ChangeOptions::default()).await
    };
    let (a, b, c) = tokio::join!(
        change(&[("labels", "team=a")]),
        change(&[("writes", "anywhere")]),
        change(&[("value_bytes_max", "77")])
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    let now = client.get_keyspace("carts").await.unwrap().policy;
    assert_eq!((now.writes, now.value_bytes_max, now.labels.len()), (Writes::Anywhere, 77, 1));
    assert_eq!(now.replication, Replication::Async);
}
