//! The peer port, called by one who says that he is the peer: hellos, cursors, fetches and states that no node would ask for.

use futures::StreamExt;
use isle_model::{Dot, Hlc, Incarnation, Vector};
use isle_proto::v1::peer_client::PeerClient;
use isle_proto::{convert, storage, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::{EVIL, KS, SHARDS, Victim, reason};

/// What a node would say that has nothing.
pub fn hello() -> v1::Hello {
    let row = storage::IncarnationRow { incarnation: 0xe1, region: EVIL.to_owned(), parent: 0, left_at: vec![] };
    v1::Hello {
        protocol_version: isle_node::peer::PROTOCOL,
        cluster: "isle".to_owned(),
        region: EVIL.to_owned(),
        incarnation: 0xe1,
        rows: vec![row],
        feature_level: isle_node::peer::FEATURE_LEVEL,
        shard_count: SHARDS,
        ..Default::default()
    }
}

fn message(message: v1::to_sender::Message) -> v1::ToSender {
    v1::ToSender { message: Some(message) }
}

fn first(hello: v1::Hello) -> v1::ToSender {
    message(v1::to_sender::Message::Hello(hello))
}

pub fn vector(entries: &[(u64, u64)]) -> storage::Vector {
    convert::vector(&Vector::from_entries(entries.iter().map(|(i, seq)| (Incarnation(*i), *seq))))
}

pub fn cursor(keyspace: u64, shard: u32, entries: &[(u64, u64)]) -> v1::StreamCursor {
    v1::StreamCursor { keyspace, shard, vector: Some(vector(entries)) }
}

async fn peer(victim: &Victim) -> PeerClient<Channel> {
    PeerClient::new(victim.peer_channel().await).max_encoding_message_size(256 << 20)
}

struct Subscription {
    to: mpsc::Sender<v1::ToSender>,
    from: Streaming<v1::ToReceiver>,
}

async fn subscribe(victim: &Victim, said: v1::ToSender) -> Result<Subscription, Status> {
    let (to, words) = mpsc::channel(16);
    to.send(said).await.unwrap();
    let from = peer(victim).await.subscribe(ReceiverStream::new(words)).await?.into_inner();
    Ok(Subscription { to, from })
}

impl Subscription {
    /// The first message that is a hello.
    async fn hello(&mut self) -> v1::Hello {
        match self.from.next().await.unwrap().unwrap().message.unwrap() {
            v1::to_receiver::Message::Hello(hello) => hello,
            other => panic!("not a hello: {other:?}"),
        }
    }

    /// The error that ends it.
    async fn end(mut self) -> Option<Status> {
        let end = async {
            loop {
                match self.from.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(status)) => return Some(status),
                    None => return None,
                }
            }
        };
        tokio::time::timeout(crate::support::PATIENCE, end).await.expect("it does not end")
    }
}

async fn refused(victim: &Victim, said: v1::ToSender) -> Status {
    match subscribe(victim, said).await {
        Err(status) => status,
        Ok(subscription) => subscription.end().await.expect("it is taken"),
    }
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_refused_and_says_why() {
    let mut victim = Victim::new().await;
    let unfit = [
        (v1::Hello { cluster: "another".to_owned(), ..hello() }, "cluster"),
        (v1::Hello { protocol_version: 99, ..hello() }, "protocol"),
        (v1::Hello { shard_count: 5, ..hello() }, "shards"),
        (v1::Hello { region: "stranger".to_owned(), ..hello() }, "is no peer"),
        // The node's own name.
        (v1::Hello { region: "solo".to_owned(), ..hello() }, "is no peer"),
        (v1::Hello { region: "../../etc".to_owned(), ..hello() }, "is no peer"),
    ];
    for (unfit, fact) in unfit {
        let status = refused(&victim, first(unfit)).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "CLUSTER_MISMATCH"));
        assert!(status.message().contains(fact), "{status}");
    }
    let corrupt = [
        first(v1::Hello { incarnation: 0, ..hello() }),
        first(v1::Hello { region: String::new(), ..hello() }),
        first(v1::Hello { region: "x".repeat(1000), ..hello() }),
        v1::ToSender { message: None },
        message(v1::to_sender::Message::Probe(v1::Probe { id: 1 })),
    ];
    for said in corrupt {
        let status = refused(&victim, said).await;
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DataLoss, "CHECKSUM_MISMATCH"), "{status}");
    }
    victim.is_unharmed().await;
}

/// Rows are facts: one that contradicts what is known is refused, and what is known stays.
#[tokio::test]
async fn made_up_incarnations_are_refused_or_harmless() {
    let mut victim = Victim::new().await;
    let mut subscription = subscribe(&victim, first(hello())).await.unwrap();
    let own = subscription.hello().await;
    drop(subscription);
    let row = |incarnation, region: &str, parent| storage::IncarnationRow {
        incarnation,
        region: region.to_owned(),
        parent,
        left_at: vec![u64::MAX; SHARDS as usize],
    };
    let with = |rows: Vec<storage::IncarnationRow>| v1::Hello { rows: [hello().rows, rows].concat(), ..hello() };
    // The node's own incarnation, given to another region or to another parent.
    for stolen in [row(own.incarnation, EVIL, 0), row(own.incarnation, "solo", 0xabc)] {
        let status = refused(&victim, first(with(vec![stolen]))).await;
        assert_eq!(reason(&status), "CHECKSUM_MISMATCH", "{status}");
    }
    // Parents in a circle, parents that nobody knows, and one of the other region.
    let circle = vec![row(0xa1, EVIL, 0xa2), row(0xa2, EVIL, 0xa1)];
    let orphans = (0..2_000).map(|n| row(0x1_0000 + n, EVIL, 0x9_0000 + n)).collect();
    let foreign = vec![row(0xa3, EVIL, own.incarnation)];
    for rows in [circle, orphans, foreign] {
        if let Ok(mut taken) = subscribe(&victim, first(with(rows))).await {
            taken.hello().await;
        }
        victim.serves_on().await;
    }
    let none = storage::IncarnationRow { incarnation: 0, ..row(0, EVIL, 0) };
    assert_eq!(reason(&refused(&victim, first(with(vec![none]))).await), "CHECKSUM_MISMATCH");
    victim.is_unharmed().await;
}

/// Positions in a hello name incarnations that are not, or another region's: a node that believed them would take its own disk
/// to be behind, and wait for ever for what nobody has. This one did.
#[tokio::test]
async fn a_hello_that_knows_too_much_is_refused() {
    let mut victim = Victim::new().await;
    let absorbed = |region: &str, entries: &[(u64, u64)]| v1::StreamsAbsorbed {
        keyspace: KS.0,
        shard: 0,
        absorbed: vec![storage::Absorbed { region: region.to_owned(), vector: Some(vector(entries)) }],
    };
    let too_much = [
        v1::Hello { cursors: vec![cursor(KS.0, 0, &[(0xbad, 1)])], ..hello() },
        v1::Hello { cursors: vec![cursor(KS.0, 0, &[(0xe1, u64::MAX)])], ..hello() },
        v1::Hello { stated: vec![absorbed("solo", &[(0xbad, 9)])], ..hello() },
        v1::Hello { stated: vec![absorbed("solo", &[(0xe1, 9)])], ..hello() },
        v1::Hello { stated: vec![absorbed("nobody", &[(0xe1, 9)])], ..hello() },
        v1::Hello { absorbed: vec![absorbed(EVIL, &[(0xbad2, 9)])], ..hello() },
    ];
    for said in too_much {
        let status = refused(&victim, first(said)).await;
        assert_eq!(reason(&status), "CHECKSUM_MISMATCH", "{status}");
        assert!(status.message().contains("is not known as one of"), "{status}");
        victim.serves_on().await;
    }
    victim.is_unharmed().await;
}

/// Acks and refetches of streams that are not, at positions that never were.
#[tokio::test]
async fn made_up_cursors_cost_the_one_who_made_them_up() {
    let mut victim = Victim::new().await;
    let made_up: [(u64, u64); 3] = [(0xe1, u64::MAX), (0xbad, 1), (0xbad2, u64::MAX)];
    let everywhere = || {
        let shards = [0, 3, 4, 1_000_000, u32::MAX];
        let keyspaces = [0, 1, 2, u64::MAX];
        keyspaces.iter().flat_map(|ks| shards.map(|shard| cursor(*ks, shard, &made_up))).collect::<Vec<_>>()
    };
    let mut subscription = subscribe(&victim, first(hello())).await.unwrap();
    subscription.hello().await;
    let words = [
        v1::to_sender::Message::Ack(v1::Ack { cursors: everywhere(), bytes: u64::MAX }),
        v1::to_sender::Message::Probe(v1::Probe { id: u64::MAX }),
        v1::to_sender::Message::Probe(v1::Probe { id: 0 }),
    ];
    let refetch = |v1::StreamCursor { keyspace, shard, vector }| {
        v1::to_sender::Message::Refetch(v1::Refetch { keyspace, shard, after: vector })
    };
    for word in words.into_iter().chain(everywhere().into_iter().map(refetch)) {
        let sent = subscription.to.send(message(word)).await;
        // It may have had enough by now.
        if sent.is_err() {
            break;
        }
    }
    victim.serves_on().await;
    drop(subscription);
    // One stream after another that does not exist: what is remembered of them has to have an end.
    let subscription = subscribe(&victim, first(hello())).await.unwrap();
    for round in 0..60u64 {
        let cursors = (0..40_000).map(|n| cursor(round << 32 | n, n as u32, &[(0xbad, 1)])).collect();
        let ack = v1::to_sender::Message::Ack(v1::Ack { cursors, bytes: 0 });
        if subscription.to.send(message(ack)).await.is_err() {
            break;
        }
    }
    victim.serves_on().await;
    drop(subscription);
    victim.is_unharmed().await;
}

/// Messages as large as may be, of parts as small as may be.
#[tokio::test]
async fn many_small_parts_are_no_bomb() {
    let mut victim = Victim::new().await;
    let parts = 8 << 20;
    let bombs = [
        v1::Hello { absorbed: vec![v1::StreamsAbsorbed::default(); parts], ..hello() },
        v1::Hello { cursors: vec![v1::StreamCursor::default(); parts], ..hello() },
        v1::Hello { rows: vec![storage::IncarnationRow::default(); parts], ..hello() },
    ];
    for bomb in bombs {
        // It may be refused while it is still being sent.
        let Err(status) = subscribe(&victim, first(bomb)).await else { panic!("it is taken") };
        assert_ne!(status.code(), Code::Ok);
        victim.serves_on().await;
    }
    victim.is_unharmed().await;
}

#[tokio::test]
async fn fetches_and_states_that_make_no_sense_are_refused() {
    let mut victim = Victim::new().await;
    let caller = || {
        Some(v1::Caller {
            protocol_version: isle_node::peer::PROTOCOL,
            cluster: "isle".to_owned(),
            region: EVIL.to_owned(),
            incarnation: 0,
        })
    };
    let mut peer = peer(&victim).await;
    let fetch = |caller, keyspace, shard| v1::FetchRequest {
        caller,
        origin: "solo".to_owned(),
        keyspace,
        shard,
        after: Some(vector(&[(0xbad, u64::MAX)])),
        bytes_max: u32::MAX,
    };
    for (keyspace, shard) in [(KS.0, 4), (KS.0, u32::MAX), (2, 0), (0, 0), (u64::MAX, u32::MAX)] {
        let status = peer.fetch(fetch(caller(), keyspace, shard)).await.unwrap_err();
        assert_eq!(reason(&status), "CLUSTER_MISMATCH", "{status}");
        let asked =
            v1::StateRequest { caller: caller(), keyspace, shard, start: vec![0; 5000].into(), ..Default::default() };
        assert_eq!(reason(&peer.state(asked).await.unwrap_err()), "CLUSTER_MISMATCH");
    }
    assert_eq!(reason(&peer.fetch(fetch(None, KS.0, 0)).await.unwrap_err()), "CHECKSUM_MISMATCH");
    let stranger = caller().map(|caller| v1::Caller { region: "stranger".to_owned(), ..caller });
    assert_eq!(reason(&peer.fetch(fetch(stranger, KS.0, 0)).await.unwrap_err()), "CLUSTER_MISMATCH");
    // From a position that nobody has: it gives what it has, or says that it cannot yet.
    if let Err(status) = peer.fetch(fetch(caller(), KS.0, 0)).await {
        assert_eq!(reason(&status), "STATE_NOT_READY", "{status}");
    }
    victim.is_unharmed().await;
}

pub fn dot(incarnation: u64, seq: u64) -> Dot {
    Dot::new(Incarnation(incarnation), seq)
}

pub fn far_future() -> Hlc {
    Hlc(u64::MAX - 1)
}
