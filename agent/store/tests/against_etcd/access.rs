//! TLS, users and permissions, right and wrong.

use std::{path::PathBuf, time::Duration};

use etcd_client::{Certificate, ConnectOptions, Identity, Permission, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft_core::record::{Connection, Guard, Scope, Transaction, Write};
use weft_store::{Secret, Store, StoreError, Tls, User};

use crate::{
    PATIENCE, basic_scopes, config,
    etcd::{Etcd, scratch},
    follow, network_key, open,
    proxy::{Mode, Proxy},
    reader::Reader,
};

/// An authority, etcd's certificate and ours, as PEM files.
struct Pki {
    dir: TempDir,
    ca: String,
    client: (String, String),
}

impl Pki {
    fn new() -> Self {
        let dir = scratch();
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(params, ca_key);
        let make = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params =
                CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            std::fs::write(dir.path().join(format!("{name}.pem")), &certificate).unwrap();
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
            (certificate, key.serialize_pem())
        };
        make("server");
        let client = make("client");
        std::fs::write(dir.path().join("ca.pem"), &ca).unwrap();
        Self { dir, ca, client }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn etcd(&self) -> Etcd {
        let (ca, certificate, key) = (
            self.file("ca.pem"),
            self.file("server.pem"),
            self.file("server.key"),
        );
        let args = [
            "--client-cert-auth",
            "--trusted-ca-file",
            ca.to_str().unwrap(),
            "--cert-file",
            certificate.to_str().unwrap(),
            "--key-file",
            key.to_str().unwrap(),
        ];
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.client.0, &self.client.1));
        Etcd::with(1, "https", &args, ConnectOptions::new().with_tls(tls)).await
    }

    fn tls(&self) -> Tls {
        Tls {
            ca: Some(self.file("ca.pem")),
            identity: Some((self.file("client.pem"), self.file("client.key"))),
            domain: None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_connection_with_certificates_both_ways() {
    let pki = Pki::new();
    let etcd = pki.etcd().await;
    let mut config = config(&[etcd.url().replace("https://", "")]);
    config.tls = Some(pki.tls());
    let (store, mut reader) = follow(config).await;
    etcd.put("networks/blue", "{}").await;
    reader
        .until("a change", |reader| reader.has(&Scope::Networks, "networks/blue"))
        .await;
    assert!(store.health().endpoint.starts_with("https://"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_authority_or_a_missing_certificate_is_told() {
    let pki = Pki::new();
    let stranger = Pki::new();
    let etcd = pki.etcd().await;
    let cases = [
        (
            Tls {
                ca: Some(stranger.file("ca.pem")),
                ..pki.tls()
            },
            "certificate",
        ),
        (
            Tls {
                ca: None,
                ..pki.tls()
            },
            "certificate",
        ),
        (
            Tls {
                domain: Some("elsewhere.example".to_owned()),
                ..pki.tls()
            },
            "certificate",
        ),
        (
            Tls {
                identity: None,
                ..pki.tls()
            },
            "",
        ),
        (
            Tls {
                identity: Some((stranger.file("client.pem"), stranger.file("client.key"))),
                ..pki.tls()
            },
            "",
        ),
    ];
    for (tls, word) in cases {
        let mut config = config(&[etcd.url()]);
        config.tls = Some(tls.clone());
        let stop = CancellationToken::new();
        let (store, events) = Store::open(config, stop.clone()).await.unwrap();
        let mut reader = Reader::new(events);
        store.want(basic_scopes().into());
        reader
            .until("it is told", |reader| {
                matches!(reader.connections.last(), Some(Connection::Down { .. }))
            })
            .await;
        let Some(Connection::Down { why }) = reader.connections.last() else {
            unreachable!()
        };
        println!("{why}");
        assert!(
            why.contains(&etcd.url()) && why.to_lowercase().contains(word),
            "{tls:?}: {why}"
        );
        let error = store
            .get(&network_key("blue"), Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_that_can_never_work() {
    let pki = Pki::new();
    let open = |endpoints: &[&str], tls: Option<Tls>| {
        let endpoints: Vec<_> = endpoints.iter().map(|url| (*url).to_owned()).collect();
        let mut config = config(&endpoints);
        config.tls = tls;
        async move {
            Store::open(config, CancellationToken::new())
                .await
                .map(drop)
                .unwrap_err()
                .to_string()
        }
    };
    let gone = pki.file("gone.pem");
    let cases = [
        (open(&[], None).await, "no etcd endpoint"),
        (open(&["ftp://a:1"], None).await, "http://host:port"),
        (open(&["http://"], None).await, "http://host:port"),
        (open(&["http://a b:1"], None).await, "a b"),
        (open(&["http://a:1"], Some(pki.tls())).await, "write https"),
        (
            open(
                &["https://a:1"],
                Some(Tls {
                    ca: Some(gone.clone()),
                    ..pki.tls()
                }),
            )
            .await,
            "gone.pem",
        ),
        (
            open(
                &["https://a:1"],
                Some(Tls {
                    ca: Some(pki.file("client.key")),
                    ..pki.tls()
                }),
            )
            .await,
            "client.key holds no PEM",
        ),
        (
            open(
                &["https://a:1"],
                Some(Tls {
                    identity: Some((pki.file("client.pem"), pki.file("client.pem"))),
                    ..pki.tls()
                }),
            )
            .await,
            "private key file",
        ),
    ];
    for (error, part) in cases {
        println!("{error}");
        assert!(error.contains(part), "{part:?} in {error:?}");
    }
}

pub(crate) const PASSWORD: &str = "correct-horse-battery";

/// etcd with authentication on: root, and the user `weft` with a role that may do all below the prefix.
pub(crate) async fn with_users(args: &[&str]) -> Etcd {
    let etcd = Etcd::with(1, "http", args, ConnectOptions::new()).await;
    let client = etcd.client().await;
    let mut auth = client.auth_client();
    auth.user_add("root", "secret", None).await.unwrap();
    auth.role_add("root").await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("weft", PASSWORD, None).await.unwrap();
    auth.role_add("weft").await.unwrap();
    auth.role_grant_permission("weft", everything()).await.unwrap();
    auth.user_grant_role("weft", "weft").await.unwrap();
    auth.auth_enable().await.unwrap();
    etcd
}

fn everything() -> Permission {
    Permission::read_write("/weft/v1/").with_prefix()
}

async fn as_root(etcd: &Etcd) -> etcd_client::Client {
    let options = ConnectOptions::new().with_user("root", "secret");
    etcd_client::Client::connect([etcd.url()], Some(options))
        .await
        .unwrap()
}

fn user(password: &str) -> Option<User> {
    Some(User {
        name: "weft".to_owned(),
        password: Secret::new(password),
    })
}

fn create(name: &str) -> Transaction {
    Transaction {
        guards: vec![Guard::Absent(network_key(name))],
        writes: vec![Write::Put(network_key(name), b"{}".to_vec())],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_whose_token_expires() {
    let etcd = with_users(&["--auth-token-ttl", "1"]).await;
    let mut config = config(&[etcd.url()]);
    config.user = user(PASSWORD);
    config.timing.lease = Duration::from_secs(6);
    let (store, events) = open(config).await;
    let mut reader = Reader::new(events);
    store.want(basic_scopes().into());
    store.presence(b"here".to_vec());
    reader.listed(&basic_scopes()).await;
    for n in 0..3 {
        // Without requests a token is forgotten after a second or two.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let name = format!("n{n}");
        store.commit(&create(&name), PATIENCE).await.unwrap();
        // A new watch needs a valid token too.
        let blue = Scope::Endpoints(crate::network(&name));
        store.want(basic_scopes().into_iter().chain([blue.clone()]).collect());
        reader.listed(&[blue]).await;
        reader
            .until("the change", |reader| {
                reader.has(&Scope::Networks, &format!("networks/{name}"))
            })
            .await;
    }
    assert_eq!(store.health().leases, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_no_user_is_told_and_never_shown() {
    let etcd = with_users(&[]).await;
    for (wrong, user) in [("hunter2-wrong", user("hunter2-wrong")), ("\0", None)] {
        let mut config = config(&[etcd.url()]);
        config.user = user;
        let (store, events) = open(config).await;
        let mut reader = Reader::new(events);
        store.want(basic_scopes().into());
        reader
            .until("it is told", |reader| {
                matches!(reader.connections.last(), Some(Connection::Down { .. }))
            })
            .await;
        let error = store
            .commit(&create("blue"), Duration::from_secs(2))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Credentials { .. }), "{error:?}");
        let all = format!(
            "{error} {error:?} {:?} {:?} {:?}",
            reader.connections,
            store.health(),
            store.store
        );
        println!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert!(
            error
                .to_string()
                .contains("check the configured user and password"),
            "{error}"
        );
        assert!(!all.contains(wrong), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_for_etcd_without_authentication_does_no_harm() {
    let etcd = Etcd::one().await;
    let mut config = config(&[etcd.url()]);
    config.user = user(PASSWORD);
    let (_store, _reader) = follow(config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_permission_is_told_and_asked_for_with_growing_pauses() {
    let etcd = with_users(&[]).await;
    let root = as_root(&etcd).await;
    root.kv_client()
        .put("/weft/v1/networks/blue", "{}", None)
        .await
        .unwrap();
    let proxy = Proxy::before(&etcd.url()).await;
    let mut config = config(std::slice::from_ref(&proxy.url));
    config.user = user(PASSWORD);
    config.timing.relist_most = Duration::from_millis(500);
    let (store, mut reader) = follow(config).await;
    // etcd looks at permissions when a watch begins: so it is begun anew.
    root.auth_client()
        .role_revoke_permission(
            "weft",
            "/weft/v1/",
            Some(etcd_client::RoleRevokePermissionOptions::new().with_prefix()),
        )
        .await
        .unwrap();
    root.auth_client()
        .role_grant_permission("weft", Permission::read_write("/weft/v1/networks/").with_prefix())
        .await
        .unwrap();
    proxy.reset(Mode::Forward);
    crate::eventually("it is told", || {
        store
            .health()
            .last_error
            .is_some_and(|error| error.contains("permission denied"))
    })
    .await;
    let error = store
        .get(&weft_store_schema::Key::Peer(crate::node()), PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert!(
        error.to_string().contains("reading peers/host1") && error.to_string().contains("\"weft\""),
        "{error}"
    );
    // Asked again and again, but not in a hot loop.
    let before = store.health().lists;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = store.health().lists - before;
    assert!((1..=12).contains(&asked), "{asked} listings in two seconds");
    // What is still permitted goes on.
    root.kv_client()
        .put("/weft/v1/networks/green", "{}", None)
        .await
        .unwrap();
    reader
        .until("a change of what is permitted", |reader| {
            reader.has(&Scope::Networks, "networks/green")
        })
        .await;
    root.kv_client()
        .put("/weft/v1/peers/host7", "{}", None)
        .await
        .unwrap();
    root.auth_client()
        .role_grant_permission("weft", everything())
        .await
        .unwrap();
    reader
        .until("permitted again", |reader| {
            reader.has(&Scope::Peers, "peers/host7")
        })
        .await;
}
