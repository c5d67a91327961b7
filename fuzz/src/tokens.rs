//! Tokens that clients bring back: as they come, and with their MAC set right, as if the cluster's key were known.

use hmac::{Hmac, Mac};
use isle::page_token::PageKey;
use isle_model::{Context, KeyspaceId, TokenKey};
use sha2::Sha256;

use crate::Verdict;

pub const SECRET: [u8; 32] = [7; 32];
pub const KEYSPACE: KeyspaceId = KeyspaceId(1);
pub const KEY: &[u8] = b"key";
/// Of a scan with two parts.
pub const QUESTION: [&[u8]; 2] = [b"keyspace", b"start"];
pub const MAC_BYTES: usize = 16;

fn sealed(body: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&SECRET).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    let mut out = body.to_vec();
    out.extend_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
    out
}

/// The first byte says whether the rest is a token, or the body of one.
pub fn version(input: &[u8]) -> Verdict {
    let Some((mode, rest)) = input.split_first() else { return Verdict::Refused };
    let keyspace = KEYSPACE.0.to_be_bytes();
    let key_bytes = (KEY.len() as u64).to_be_bytes();
    let token = match mode & 1 {
        1 => sealed(rest, &[b"isle version token", &keyspace, &key_bytes, KEY, rest]),
        _ => rest.to_vec(),
    };
    let secret = TokenKey::new(SECRET);
    let decoded = Context::decode(&secret, KEYSPACE, KEY, &token);
    if let Ok(context) = &decoded {
        let again = Context::decode(&secret, KEYSPACE, KEY, &context.encode(&secret, KEYSPACE, KEY));
        assert_eq!(again.as_ref(), Ok(context));
        assert!(context.incarnations().count() <= token.len());
    }
    Verdict::of(&decoded)
}

/// As above.
pub fn page(input: &[u8]) -> Verdict {
    let Some((mode, rest)) = input.split_first() else { return Verdict::Refused };
    let key = PageKey::new(SECRET);
    let token = match (mode & 1, rest.split_first()) {
        (1, Some((_, next))) => {
            let lengths = [QUESTION[0], QUESTION[1], next].map(|part| (part.len() as u64).to_be_bytes());
            let parts: [&[u8]; 7] =
                [b"isle page token", &lengths[0], QUESTION[0], &lengths[1], QUESTION[1], &lengths[2], next];
            sealed(rest, &parts)
        }
        _ => rest.to_vec(),
    };
    let opened = key.open(&QUESTION, &token);
    if let Ok(next) = &opened {
        assert_eq!(key.seal(&QUESTION, next), token);
    }
    Verdict::of(&opened)
}
