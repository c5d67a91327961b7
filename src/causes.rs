//! An error with what caused it, on one line. Many errors already say their cause; it is not said again.

use std::error::Error;

pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !out.ends_with(&text) {
            out.push_str(": ");
            out.push_str(&text);
        }
        source = cause.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the certificate does not fit")]
    struct Unfit;

    #[derive(Debug, thiserror::Error)]
    #[error("the key cannot be read: {0}")]
    struct Key(#[from] Unfit);

    #[derive(Debug, thiserror::Error)]
    #[error("[tls]: {0}")]
    struct Tls(#[from] Key);

    #[derive(Debug, thiserror::Error)]
    #[error("serving failed")]
    struct Serve(#[source] Tls);

    /// Each of these layers shows its cause and names it as its source too: a wrong key was told three times.
    #[test]
    fn a_cause_is_told_once() {
        let told = causes(&Serve(Tls(Key(Unfit))));
        assert_eq!(told, "serving failed: [tls]: the key cannot be read: the certificate does not fit");
    }
}
