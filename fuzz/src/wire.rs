//! What comes over the network, from peers and from clients, and what an operator writes into a file.

use bytes::Bytes;
use isle::services::peer_wire::{self, Identity};
use isle::services::{forward_wire, operation, wire};
use isle::{config, status_table};
use isle_model::Region;
use isle_model::policy::Policy;
use isle_node::fuzzing;
use isle_node::peer::DeltaBatch;
use isle_proto::{policy, v1};
use prost::Message;
use tonic::{Code, Status};

use crate::Verdict;

/// Bit 0: the rest is raw, and is packed with sizes and checksum set right; otherwise it is packed bytes under a header.
pub fn delta_batch(input: &[u8]) -> Verdict {
    let Some((mode, rest)) = input.split_first() else { return Verdict::Refused };
    let batch = match mode & 1 {
        1 => {
            let zstd = zstd::bulk::compress(rest, 1).expect("memory takes what is written to it");
            let crc = crc32fast::hash(rest);
            DeltaBatch { rows: vec![], count: count(rest), raw_len: rest.len() as u32, crc, zstd: zstd.into() }
        }
        _ => {
            let Some((head, zstd)) = rest.split_first_chunk::<12>() else { return Verdict::Refused };
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let zstd = Bytes::copy_from_slice(zstd);
            DeltaBatch { rows: vec![], count: word(0), raw_len: word(4), crc: word(8), zstd }
        }
    };
    Verdict::of(&fuzzing::unpack(&batch))
}

/// How many items the lengths lead over.
fn count(mut raw: &[u8]) -> u32 {
    let mut count = 0;
    while let Some((length, rest)) = raw.split_first_chunk::<4>() {
        let Some(rest) = rest.get(u32::from_le_bytes(*length) as usize..) else { break };
        raw = rest;
        count += 1;
    }
    count
}

/// The first byte says which message.
pub fn peer_message(input: &[u8]) -> Verdict {
    let Some((kind, rest)) = input.split_first() else { return Verdict::Refused };
    let identity = Identity { cluster: "c".to_owned(), region: Region::new("us") };
    let refused = |_| ();
    let understood = match kind % 9 {
        0 => of(rest, |message: v1::ToSender| match message.message {
            Some(v1::to_sender::Message::Hello(hello)) => hello_again(hello),
            message => peer_wire::of_receiver(v1::ToSender { message }).map(drop).map_err(refused),
        }),
        1 => of(rest, |message: v1::ToReceiver| match message.message {
            Some(v1::to_receiver::Message::Hello(hello)) => hello_again(hello),
            message => peer_wire::of_sender(v1::ToReceiver { message }).map(drop).map_err(refused),
        }),
        2 => of(rest, |message: v1::FetchRequest| {
            let asked = peer_wire::to_fetch_request(&identity, message).map_err(refused)?;
            let again = peer_wire::to_fetch_request(&identity, peer_wire::fetch_request(&identity, asked.clone()));
            assert_eq!(again.map(|again| again.after), Ok(asked.after));
            Ok(())
        }),
        3 => of(rest, |message: v1::FetchResponse| peer_wire::to_fetch_reply(message).map(drop).map_err(refused)),
        4 => of(rest, |message: v1::StateResponse| {
            // With its checksum set right, or no chunk would ever be decoded.
            let mut message = message;
            if let Some(block) = &mut message.block {
                let length = (block.uncompressed_bytes as usize).min(1 << 20);
                let raw = zstd::bulk::decompress(&block.data, length).unwrap_or_default();
                block.crc32 = crc32fast::hash(&raw);
            }
            peer_wire::to_state_reply(message).map(drop).map_err(refused)
        }),
        6 => of(rest, |message: v1::ForwardRequest| {
            forward_wire::to_forward_request(&identity, message).map(drop).map_err(refused)
        }),
        7 => of(rest, |message: v1::ForwardResponse| {
            forward_wire::to_forward_replies(&identity.region, message).map(drop).map_err(|_| ())
        }),
        8 => of(rest, |message: v1::ReadResponse| forward_wire::to_read_reply(message).map(drop).map_err(|_| ())),
        _ => of(rest, |message: v1::StateRequest| {
            peer_wire::to_state_request(&identity, message).map(drop).map_err(refused)
        }),
    };
    Verdict::of(&understood)
}

fn of<M: Message + Default>(bytes: &[u8], check: impl FnOnce(M) -> Result<(), ()>) -> Result<(), ()> {
    M::decode(bytes).map_err(|_| ()).and_then(check)
}

fn hello_again(hello: v1::Hello) -> Result<(), ()> {
    let hello = peer_wire::to_hello(hello).map_err(|_| ())?;
    assert_eq!(peer_wire::to_hello(peer_wire::hello(&hello)).as_ref(), Ok(&hello));
    Ok(())
}

/// The first byte says which message.
pub fn client_message(input: &[u8]) -> Verdict {
    let Some((kind, rest)) = input.split_first() else { return Verdict::Refused };
    let sound = |result: Result<(), Status>| result.map_err(|status| assert_ne!(status.code(), Code::Ok));
    let value = |value: Option<v1::Value>| {
        let model = wire::to_value(value.clone(), "value")?;
        // A float that is no number is not equal to itself.
        let same = Some(wire::value(&model)) == value || format!("{value:?}").contains("NaN");
        assert!(same, "{value:?} came back as {model:?}");
        Ok(())
    };
    let options = |read: Option<v1::ReadOptions>| wire::consistency(read).map(drop);
    let understood = match kind % 10 {
        0 => of(rest, |message: v1::PutRequest| {
            sound(operation::put(message.clone()).map(drop).and_then(|()| value(message.value)))
        }),
        1 => of(rest, |message: v1::PatchRequest| {
            sound(message.set.into_values().try_for_each(|field| value(Some(field))))
        }),
        2 => of(rest, |message: v1::GetRequest| sound(options(message.read))),
        3 => of(rest, |message: v1::ScanRequest| sound(options(message.read))),
        4 => of(rest, |message: v1::BatchGetRequest| sound(options(message.read))),
        5 => of(rest, |_: v1::BatchWriteRequest| Ok(())),
        6 => of(rest, |_: v1::WriteRequest| Ok(())),
        7 => of(rest, |message: v1::CreateKeyspaceRequest| policy_again(message.keyspace.and_then(|k| k.policy))),
        8 => of(rest, |message: v1::UpdateKeyspaceRequest| {
            let (sent, paths) =
                (message.keyspace.and_then(|k| k.policy), message.update_mask.unwrap_or_default().paths);
            let merged = policy::masked(&Policy::default(), sent.unwrap_or_default(), &paths).map_err(|_| ())?;
            policy_again(Some(merged))
        }),
        _ => of(rest, |message: v1::DeleteRequest| sound(operation::delete(message).map(drop))),
    };
    Verdict::of(&understood)
}

fn policy_again(sent: Option<v1::Policy>) -> Result<(), ()> {
    let read = policy::to_policy(sent.unwrap_or_default()).map_err(|faults| assert!(!faults.is_empty()))?;
    assert_eq!(policy::to_policy(policy::policy(&read)), Ok(read));
    Ok(())
}

/// A status as a peer may send it: its details are bytes like any other.
pub fn status(input: &[u8]) -> Verdict {
    use isle_node::peer::PeerError;
    let Some((code, details)) = input.split_first() else { return Verdict::Refused };
    let details = Bytes::copy_from_slice(details);
    let status = Status::with_details(Code::from_i32(i32::from(code % 17)), "said", details);
    let error = status_table::to_peer(&status);
    // What a peer says is told on without growing.
    assert!(error.to_string().len() <= 256 + 4 * input.len());
    if matches!(error, PeerError::Unreachable { .. }) { Verdict::Refused } else { Verdict::Sound }
}

pub fn config(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    Verdict::of(&config::Draft::default().file("isle.toml", text).finish())
}
