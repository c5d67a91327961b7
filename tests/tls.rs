//! TLS through the seam: clients check the server, peers check each other.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::{Process, done, eventually, failed, isle, serve};
use tempfile::TempDir;

struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1, as settings of a node.
    fn settings(&self, name: &str) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let at = |kind: &str| self.dir.path().join(format!("{name}-{kind}.pem"));
        std::fs::write(at("cert"), certificate.pem()).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        let setting = |key: &str, path: &Path| format!("{key}={}", path.display());
        vec![setting("tls.cert", &at("cert")), setting("tls.key", &at("key")), setting("tls.ca", &self.ca())]
    }
}

fn secure(node: &Process, ca: &Path, arguments: &[&str]) -> std::process::Output {
    let endpoint = format!("https://127.0.0.1:{}", node.port);
    isle().args(["--output", "json", "--endpoint", &endpoint, "--ca"]).arg(ca).args(arguments).output().unwrap()
}

fn strs(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

#[test]
fn clients_speak_tls_to_a_server_they_trust_and_to_no_other() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let data = tempfile::tempdir().unwrap();
    let node = serve(data.path(), &strs(&authority.settings("solo")));
    done(&secure(&node, &authority.ca(), &["put", "default", "k", "v"]));
    assert_eq!(done(&secure(&node, &authority.ca(), &["get", "default", "k"]))["value"], "v");
    failed(&secure(&node, &stranger.ca(), &["get", "default", "k"]), 1);
    failed(&node.isle(&["get", "default", "k"]), 1);
}

#[test]
fn regions_replicate_over_mutual_tls_and_refuse_a_stranger() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    // The second and third dial the first; the first dials a port that the second then takes.
    let (a_port, b_port) = (free(), free());
    let region = |name: &str, peer: &str, at: u16, own_peer: u16, settings: Vec<String>, dir: &Path| {
        let file = dir.join("isle.toml");
        let text = format!("[[peers]]\nregion = \"{peer}\"\nendpoint = \"https://127.0.0.1:{at}\"\n");
        std::fs::write(&file, text).unwrap();
        let mut all = settings;
        all.push(format!("region={name}"));
        all.push(format!("listen.peer=127.0.0.1:{own_peer}"));
        support::serve_with(&dir.join("data"), Some(&file), &strs(&all))
    };
    let a = region("a", "b", b_port, a_port, authority.settings("a"), dirs[0].path());
    let b = region("b", "a", a_port, b_port, authority.settings("b"), dirs[1].path());
    done(&secure(&a, &authority.ca(), &["put", "default", "k", "over mutual TLS"]));
    eventually("the write in the other region", || {
        let read = done(&secure(&b, &authority.ca(), &["get", "default", "k"]));
        if read["value"] == "over mutual TLS" { Ok(()) } else { Err(read.to_string()) }
    });

    // One that another authority vouches for may call itself b as much as it likes.
    let fake = region("b", "a", a_port, free(), stranger.settings("fake"), dirs[2].path());
    let refused = eventually("the refusal", || {
        let status = done(&secure(&fake, &stranger.ca(), &["status"]));
        let of_fake = status["regions"].as_array().unwrap().iter().find(|r| r["region"] == "b").unwrap().clone();
        let error = of_fake["peers"][0]["last_error"].as_str().unwrap().to_owned();
        if error.is_empty() { Err(status.to_string()) } else { Ok(error) }
    });
    assert!(refused.contains("certificate") || refused.contains("tls"), "{refused}");
    assert_eq!(done(&secure(&fake, &stranger.ca(), &["get", "default", "k"]))["found"], false);
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
