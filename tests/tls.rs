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
        self.settings_for(name, &["127.0.0.1", "localhost"])
    }

    /// A certificate for these names, as settings of a node.
    fn settings_for(&self, name: &str, names: &[&str]) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
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

/// The peers of a node that asks for certificates with the regions' own names.
fn named_peers(peers: &[(&str, u16)]) -> String {
    let peer = |(region, port): &(&str, u16)| {
        format!("[[peers]]\nregion = \"{region}\"\nendpoint = \"https://127.0.0.1:{port}\"\ntls_name = \"{region}\"\n")
    };
    peers.iter().map(peer).collect()
}

fn named(name: &str, as_whom: &str, authority: &Authority, peers: &str, port: u16, dir: &Path) -> Process {
    let file = dir.join(format!("{name}.toml"));
    std::fs::write(&file, peers).unwrap();
    let mut settings = authority.settings_for(name, &["127.0.0.1", name]);
    settings.push(format!("region={as_whom}"));
    settings.push(format!("listen.peer=127.0.0.1:{port}"));
    support::serve_with(&dir.join(name), Some(&file), &strs(&settings))
}

/// What the answering region says of one peer.
fn peer_row(node: &Process, authority: &Authority, peer: &str) -> serde_json::Value {
    let status = done(&secure(node, &authority.ca(), &["status"]));
    let regions = status["regions"].as_array().unwrap();
    let peers = regions.iter().filter_map(|region| region["peers"].as_array()).flatten();
    peers.filter(|row| row["region"] == peer).find(|row| !row["last_error"].is_null()).unwrap().clone()
}

/// All three certificates are of one authority. That of c, which is to be trusted as c, used to be enough to be a or b.
#[test]
fn a_region_is_who_its_certificate_says_and_nobody_else() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (a_port, b_port, c_port) = (free(), free(), free());
    let a = named("a", "a", &authority, &named_peers(&[("b", b_port), ("c", c_port)]), a_port, dir.path());
    done(&secure(&a, &authority.ca(), &["put", "default", "secret", "of a"]));
    // c's machine says that it is b.
    let fake = named("c", "b", &authority, &named_peers(&[("a", a_port)]), b_port, dir.path());
    let refused = eventually("the refusal of c as b", || {
        let error = peer_row(&fake, &authority, "a")["last_error"].as_str().unwrap_or_default().to_owned();
        if error.contains("says that it is region b") { Ok(error) } else { Err(error) }
    });
    assert!(refused.contains("not one for b"), "{refused}");
    // Nor does a take anything from whom it reaches where b should be.
    let error = eventually("a's refusal to dial c as b", || {
        let error = peer_row(&a, &authority, "b")["last_error"].as_str().unwrap_or_default().to_owned();
        if error.contains("certificate") { Ok(error) } else { Err(error) }
    });
    assert!(error.contains("not valid for name"), "{error}");
    assert_eq!(done(&secure(&fake, &authority.ca(), &["get", "default", "secret"]))["found"], false);
    drop(fake);

    let b = named("b", "b", &authority, &named_peers(&[("a", a_port)]), b_port, dir.path());
    eventually("the true b gets it", || {
        let read = done(&secure(&b, &authority.ca(), &["get", "default", "secret"]));
        if read["value"] == "of a" { Ok(()) } else { Err(read.to_string()) }
    });
}

/// No file names it: it is known by the host of the endpoint that it was added with.
#[test]
fn a_region_joins_over_mutual_tls_and_one_of_another_host_does_not() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let (a_port, b_port, c_port) = (free(), free(), free());
    let joins = |name: &str, port: u16, names: &[&str]| {
        let file = dir.path().join(format!("{name}.toml"));
        std::fs::write(
            &file,
            format!("join = true\n[[peers]]\nregion = \"a\"\nendpoint = \"https://127.0.0.1:{a_port}\"\n"),
        )
        .unwrap();
        let mut settings = authority.settings_for(name, names);
        settings.push(format!("region={name}"));
        settings.push(format!("listen.peer=127.0.0.1:{port}"));
        support::serve_with(&dir.path().join(name), Some(&file), &strs(&settings))
    };
    let mut settings = authority.settings("a");
    settings.extend(["region=a".to_owned(), format!("listen.peer=127.0.0.1:{a_port}")]);
    let a = serve(&dir.path().join("a"), &strs(&settings));
    done(&secure(&a, &authority.ca(), &["put", "default", "k", "of a"]));
    let add = |region: &str, port: u16| {
        let endpoint = format!("https://127.0.0.1:{port}");
        eventually("the region is added", || {
            let added = secure(&a, &authority.ca(), &["region", "add", region, "--peer-endpoint", &endpoint]);
            if added.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&added.stderr).into_owned()) }
        });
    };
    let b = joins("b", b_port, &["127.0.0.1"]);
    add("b", b_port);
    eventually("b has it", || {
        let read = secure(&b, &authority.ca(), &["get", "default", "k"]);
        if read.status.success() && done(&read)["value"] == "of a" { Ok(()) } else { Err(format!("{read:?}")) }
    });

    // Of the same authority, and of another host.
    let c = joins("c", c_port, &["localhost"]);
    add("c", c_port);
    let error = eventually("a's refusal of c", || {
        let error = peer_row(&a, &authority, "c")["last_error"].as_str().unwrap_or_default().to_owned();
        if error.contains("certificate") { Ok(error) } else { Err(error) }
    });
    assert!(error.contains("not valid for name"), "{error}");
    let endpoint = format!("https://localhost:{}", c.port);
    let mut read = isle();
    read.args(["--output", "json", "--endpoint", &endpoint, "--ca"]).arg(authority.ca()).args(["get", "default", "k"]);
    assert_eq!(failed(&read.output().unwrap(), 1)["reason"], "NOT_SERVING");
}

#[test]
fn a_key_that_does_not_fit_is_told_once() {
    let authority = Authority::new();
    let mut settings = authority.settings("one");
    settings[1] = authority.settings("other")[1].clone();
    let data = tempfile::tempdir().unwrap();
    let mut command = isle();
    command.args(["serve", "--set", "region=solo", "--data-dir"]).arg(data.path());
    for listen in ["client", "peer", "http"] {
        command.args(["--set", &format!("listen.{listen}=127.0.0.1:0")]);
    }
    settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    let line = told.lines().find(|line| line.contains("[tls]")).unwrap();
    assert_eq!(line.matches("does not fit").count(), 1, "{line}");
    let (_, cause) = line.split_once("does not fit: ").unwrap();
    assert_eq!(line.matches(cause).count(), 1, "{line}");
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
