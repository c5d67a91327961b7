//! Page tokens of a scan: where it goes on, bound by a MAC to the question it was asked with, so that one made up, or used
//! with another question, is refused and not misread.
//!
//! Layout: version byte, the next key, the first 16 bytes of HMAC-SHA-256.

use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;

const FORMAT: u8 = 1;
const MAC_BYTES: usize = 16;

#[derive(Clone)]
pub struct PageKey([u8; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a token that this cluster gave for this scan")]
pub struct BadPageToken;

impl PageKey {
    pub fn new(cluster_key: [u8; 32]) -> PageKey {
        PageKey(cluster_key)
    }

    /// A token for going on from `next` with the same question.
    pub fn seal(&self, question: &[&[u8]], next: &[u8]) -> Bytes {
        let mut token = vec![FORMAT];
        token.extend_from_slice(next);
        let mac = self.mac(question, next).finalize().into_bytes();
        token.extend_from_slice(&mac[..MAC_BYTES]);
        Bytes::from(token)
    }

    /// Where to go on.
    pub fn open(&self, question: &[&[u8]], token: &[u8]) -> Result<Bytes, BadPageToken> {
        let body_len = token.len().checked_sub(MAC_BYTES).ok_or(BadPageToken)?;
        let (body, mac) = token.split_at(body_len);
        let (format, next) = body.split_first().ok_or(BadPageToken)?;
        if *format != FORMAT {
            return Err(BadPageToken);
        }
        self.mac(question, next).verify_truncated_left(mac).map_err(|_| BadPageToken)?;
        Ok(Bytes::copy_from_slice(next))
    }

    fn mac(&self, question: &[&[u8]], next: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(b"isle page token");
        for part in question.iter().chain([&next]) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_opens_with_its_question_alone() {
        let key = PageKey::new([7; 32]);
        let token = key.seal(&[b"ks", b"a"], b"next");
        assert_eq!(key.open(&[b"ks", b"a"], &token).unwrap(), "next");
        assert_eq!(key.open(&[b"ksa", b""], &token), Err(BadPageToken));
        assert_eq!(PageKey::new([8; 32]).open(&[b"ks", b"a"], &token), Err(BadPageToken));
    }

    #[test]
    fn a_token_cut_or_changed_is_refused() {
        let key = PageKey::new([7; 32]);
        let token = key.seal(&[b"ks"], b"next");
        for cut in 0..token.len() {
            assert_eq!(key.open(&[b"ks"], &token[..cut]), Err(BadPageToken));
        }
        let mut changed = token.to_vec();
        changed[2] ^= 1;
        assert_eq!(key.open(&[b"ks"], &changed), Err(BadPageToken));
    }
}
