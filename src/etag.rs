//! The etag of a keyspace: its revision, in a form that nobody takes for a number to count with.

const MARK: char = 'r';

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an etag that isle gave")]
pub struct BadEtag;

pub fn of(revision: u64) -> String {
    format!("{MARK}{revision:x}")
}

/// The revision; `None` of an empty one, which stands for any.
pub fn parse(etag: &str) -> Result<Option<u64>, BadEtag> {
    if etag.is_empty() {
        return Ok(None);
    }
    let digits = etag.strip_prefix(MARK).ok_or(BadEtag)?;
    let revision = u64::from_str_radix(digits, 16).map_err(|_| BadEtag)?;
    if of(revision) == etag { Ok(Some(revision)) } else { Err(BadEtag) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_is_taken_back_as_it_was_given() {
        for revision in [0, 1, 0xabc, u64::MAX] {
            assert_eq!(parse(&of(revision)), Ok(Some(revision)));
        }
        assert_eq!(parse(""), Ok(None));
        for made_up in ["1", "r", "r+1", "rX", "r01", "rABC", "r11111111111111111"] {
            assert_eq!(parse(made_up), Err(BadEtag), "{made_up}");
        }
    }
}
