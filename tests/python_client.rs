//! A Python client that has nothing but reflection, over plain connections and over TLS: `examples/python`.
//!
//! It runs in an environment of its own, made once under the build directory and made anew where the requirements change. Where
//! Python or its packages cannot be had it is skipped, and says so; with `ISLE_TEST_PYTHON=required` it fails instead.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "the test's own settings are no input of a node")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python").join(file)
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() { Ok(()) } else { Err(said(&output)) }
}

/// A Python with the packages that the example needs.
fn python() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = home.join("bin/python");
    let (wanted, noted) = (std::fs::read(example("requirements.txt")).unwrap(), home.join("installed.txt"));
    if std::fs::read(&noted).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let _ = std::fs::remove_dir_all(&home);
    succeeds(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--timeout", "20", "--retries", "1"];
    succeeds(Command::new(&python).args(install).arg("-r").arg(example("requirements.txt")))?;
    std::fs::write(noted, wanted).unwrap();
    Ok(python)
}

fn runs(python: &Path, endpoint: &str, more: &[&str]) {
    let output = Command::new(python).arg(example("isle.py")).arg(endpoint).args(more).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for step in ["put and get: 'né', served by solo", "a stale version is refused", "500 written", "500 read back"] {
        assert!(said.contains(step), "{step:?} is not in: {said}");
    }
}

/// One test, for both share the environment.
#[test]
fn a_client_with_nothing_but_reflection_reads_and_writes() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) if std::env::var("ISLE_TEST_PYTHON").is_ok_and(|how| how == "required") => panic!("{reason}"),
        Err(reason) => return eprintln!("skipped: no Python with grpcio here: {reason}"),
    };
    let plain = tempfile::tempdir().unwrap();
    let node = support::serve(plain.path(), &[]);
    runs(&python, &node.endpoint, &[]);

    let dir = tempfile::tempdir().unwrap();
    let settings = certificate(dir.path());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let node = support::serve(&dir.path().join("data"), &settings);
    let ca = dir.path().join("ca.pem");
    runs(&python, &format!("https://127.0.0.1:{}", node.port), &["--ca", ca.to_str().unwrap()]);
}

/// An authority, and a certificate for 127.0.0.1 as settings of a node.
fn certificate(dir: &Path) -> Vec<String> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // With the same name as what it signs, it would be taken for a certificate that signed itself.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = names.signed_by(&key, &authority).unwrap();
    let pem = [("ca", authority.pem()), ("cert", certificate.pem()), ("key", key.serialize_pem())];
    pem.map(|(kind, pem)| {
        let path = dir.join(format!("{kind}.pem"));
        std::fs::write(&path, pem).unwrap();
        format!("tls.{kind}={}", path.display())
    })
    .to_vec()
}
