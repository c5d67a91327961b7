//! The coverage-guided fuzzer: `just fuzz TARGET` runs it with the flags that it needs, on stable Rust.
#![no_main]
#![allow(
    clippy::disallowed_methods,
    reason = "which target to run is told by the environment: arguments are the fuzzer's"
)]

use std::sync::OnceLock;

use isle_fuzz::{TARGETS, Target, target};

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("ISLE_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        target(&name).unwrap_or_else(|| panic!("ISLE_FUZZ_TARGET is {name:?}, not one of {names:?}"))
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    chosen().check(input);
});
