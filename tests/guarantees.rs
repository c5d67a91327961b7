//! Every guarantee names tests that hold it; a name that is gone is a guarantee that nobody keeps.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn every_test_that_a_guarantee_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let is_test = |name: &&str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let named: Vec<(&str, &str)> = quoted
        .windows(2)
        .filter(|pair| pair[0].ends_with(".rs") && is_test(&pair[1]) && pair[1].len() > 20)
        .map(|pair| (pair[0], pair[1]))
        .collect();
    assert!(named.len() > 30, "only {} tests are named", named.len());
    for (file, test) in named {
        let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{file} has no {test}");
    }
}
