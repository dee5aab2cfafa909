//! TLS between real programs: a signer that serves it, clients that trust somebody, and what is said when it fails.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vecmill_signer::claims::Scope;
use vecmill_signer::client::{ApiKey, SignerClient};
use vecmill_signer::edge::{ClientTls, ClientTlsArgs};
use vecmill_signer::verify::{Keys, RemoteKeys, Verifier};

use crate::support::{Home, ISSUER, Program, eventually};

/// A folder with an authority and what it signs, as PEM files.
struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("written");
        Self { issuer: Issuer::new(params, key), dir }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate for `host`, for servers and clients, and its key.
    fn sign(&self, name: &str, host: &str, until_year: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let file = |kind: &str| self.dir.path().join(format!("{name}.{kind}.pem"));
        std::fs::write(file("cert"), certificate.pem()).expect("written");
        std::fs::write(file("key"), key.serialize_pem()).expect("written");
        (file("cert"), file("key"))
    }
}

/// The signer's program over TLS, and a writer's key.
struct TlsSigner {
    _program: Program,
    url: String,
    key: ApiKey,
    _home: Home,
}

impl TlsSigner {
    fn start(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Self {
        let home = Home::new();
        let made = home.json(&["bootstrap", "--tenant", "acme"]);
        let api_key = made["writer_key"].as_str().expect("a key").parse().expect("an API key");
        let mut env = vec![("VECMILL_SIGNER_ISSUER", ISSUER)];
        let files = [("VECMILL_SIGNER_TLS_CERT_FILE", Some(cert)), ("VECMILL_SIGNER_TLS_KEY_FILE", Some(key))];
        let files = files.into_iter().chain([("VECMILL_SIGNER_TLS_CLIENT_CA_FILE", client_ca)]);
        env.extend(files.filter_map(|(name, path)| Some((name, path?.to_str().expect("UTF-8")))));
        let program = Program::serve(&home, &env);
        let url = program.url.replacen("http", "https", 1);
        Self { _program: program, url, key: api_key, _home: home }
    }

    /// What a client with these files gets: nothing, or the failure's sentence.
    async fn ask(&self, tls: &ClientTls) -> Result<(), String> {
        let client = SignerClient::with_tls(&self.url, self.key.clone(), tls).expect("a client");
        client.access_token(&[Scope::Embed]).await.map(drop).map_err(|error| error.to_string())
    }
}

fn trusting(ca: &Path) -> ClientTls {
    ClientTlsArgs { ca_file: Some(ca.to_owned()), ..<_>::default() }.load().expect("good files")
}

fn showing(ca: &Path, (cert, key): &(PathBuf, PathBuf)) -> ClientTls {
    let args = ClientTlsArgs {
        ca_file: Some(ca.to_owned()),
        client_cert_file: Some(cert.clone()),
        client_key_file: Some(key.clone()),
        ..<_>::default()
    };
    args.load().expect("good files")
}

#[tokio::test]
async fn a_trusted_signer_is_asked_and_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (what, (cert, key), says) in [
        ("expired", ours.sign("old", "127.0.0.1", 2002), "has expired"),
        ("another host's", ours.sign("elsewhere", "signer.example", 2900), "for another host name"),
        ("another authority's", theirs.sign("server", "127.0.0.1", 2900), "not trusted here"),
    ] {
        let signer = TlsSigner::start(&cert, &key, None);
        let told = signer.ask(&trusting(&ours.ca())).await.expect_err(what);
        assert!(told.contains(says) && told.contains("can't be reached"), "{what}: {told}");
        let keys = RemoteKeys::with_tls(&signer.url, &trusting(&ours.ca())).expect("an address");
        let refusal = Verifier::new(ISSUER.to_owned(), Keys::Remote(keys)).ready().await.expect_err(what);
        assert!(refusal.is_transient() && refusal.to_string().contains(says), "{what}: {refusal}");
    }

    let (cert, key) = ours.sign("server", "127.0.0.1", 2900);
    let signer = TlsSigner::start(&cert, &key, None);
    assert_eq!(signer.ask(&trusting(&ours.ca())).await, Ok(()));
    let keys = RemoteKeys::with_tls(&signer.url, &trusting(&ours.ca())).expect("an address");
    assert!(Verifier::new(ISSUER.to_owned(), Keys::Remote(keys)).ready().await.is_ok());
    // The system's authorities have not signed it.
    let told = signer.ask(&ClientTls::default()).await.expect_err("not trusted");
    assert!(told.contains("VECMILL_CA_FILE"), "{told}");
    // Plain HTTP to a port of TLS, and the other way round.
    let plain = SignerClient::new(&signer.url.replace("https", "http"), signer.key.clone()).expect("an address");
    assert!(plain.access_token(&[]).await.expect_err("no answer").is_transient());
}

#[tokio::test]
async fn a_client_shows_its_certificate_where_it_must() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (cert, key) = ours.sign("server", "127.0.0.1", 2900);
    let signer = TlsSigner::start(&cert, &key, Some(&ours.ca()));
    assert_eq!(signer.ask(&showing(&ours.ca(), &ours.sign("client", "client", 2900))).await, Ok(()));
    let told = signer.ask(&trusting(&ours.ca())).await.expect_err("no certificate");
    assert!(told.contains("asks for a client certificate"), "{told}");
    for (what, shown) in
        [("another authority's", theirs.sign("client", "client", 2900)), ("expired", ours.sign("old", "client", 2002))]
    {
        let told = signer.ask(&showing(&ours.ca(), &shown)).await.expect_err(what);
        assert!(told.contains("does not take our client certificate"), "{what}: {told}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_without_a_restart() {
    let ours = Authority::new();
    let (cert, key) = ours.sign("server", "127.0.0.1", 2002);
    let signer = TlsSigner::start(&cert, &key, None);
    assert!(signer.ask(&trusting(&ours.ca())).await.is_err());
    ours.sign("server", "127.0.0.1", 2900);
    eventually("the new certificate is taken", Duration::from_secs(60), || async {
        signer.ask(&trusting(&ours.ca())).await.is_ok()
    })
    .await;
}

#[test]
fn bad_files_are_named_before_anything_opens() {
    let ours = Authority::new();
    let (cert, key) = ours.sign("a", "a", 2900);
    let (_, other_key) = ours.sign("b", "b", 2900);
    let absent = ours.dir.path().join("absent.pem");
    let told = |args: ClientTlsArgs| args.load().expect_err("bad files").to_string();
    for (args, says) in [
        (ClientTlsArgs { ca_file: Some(absent.clone()), ..<_>::default() }, "absent.pem can't be read"),
        (ClientTlsArgs { ca_file: Some(key.clone()), ..<_>::default() }, "holds no certificate"),
        (ClientTlsArgs { client_cert_file: Some(cert.clone()), ..<_>::default() }, "only together"),
        (
            ClientTlsArgs {
                client_cert_file: Some(cert.clone()),
                client_key_file: Some(cert.clone()),
                ..<_>::default()
            },
            "holds no private key",
        ),
    ] {
        assert!(told(args.clone()).contains(says), "{}", told(args));
    }
    use vecmill_signer::edge::ServerTls;
    for (cert, key, says) in [
        (Some(cert.as_path()), None, "both"),
        (Some(cert.as_path()), Some(other_key.as_path()), "belong together"),
        (Some(absent.as_path()), Some(key.as_path()), "can't be read"),
    ] {
        let told = ServerTls::open(cert, key, None).expect_err("bad files").to_string();
        assert!(told.contains(says), "{told}");
    }
    assert!(ServerTls::open(None, None, None).expect("nothing asked for").is_none());
}

/// Sends bytes as they are; gives what comes back until the server closes.
async fn raw(signer: &crate::support::Signer, request: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(signer.address).await.expect("the signer listens");
    // It may close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.expect("it closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn heads_are_bounded_and_answers_guarded() {
    let signer = crate::support::Signer::start(<_>::default()).await;
    let get = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let answer = raw(&signer, format!("{get}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for header in [
        "x-content-type-options: nosniff",
        "x-frame-options: DENY",
        "content-security-policy: default-src 'none'",
        "cache-control: no-store",
    ] {
        assert!(answer.contains(header), "{header} in {answer}");
    }
    assert!(!answer.contains("strict-transport-security"), "that is for TLS");
    let jwks = raw(&signer, get.replace("healthz", ".well-known/jwks.json").as_bytes()).await;
    assert!(jwks.is_empty(), "a head that never ends is given up: {jwks}");
    let long = raw(&signer, format!("{get}X: {}\r\n\r\n", "x".repeat(64 << 10)).as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 431"), "{long}");
    let many = raw(&signer, format!("{get}{}\r\n", "X: y\r\n".repeat(100)).as_bytes()).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let two =
        raw(&signer, b"POST /v1/grants HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")
            .await;
    assert!(two.starts_with("HTTP/1.1 400"), "{two}");
}

#[tokio::test]
async fn failed_logins_are_limited_and_good_ones_are_not() {
    let signer = crate::support::Signer::start(<_>::default()).await;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client");
    let login = |id: String, secret: String| {
        let form = [("grant_type", "client_credentials".to_owned()), ("client_id", id), ("client_secret", secret)];
        http.post(format!("{}/oauth/token", signer.url())).form(&form).send()
    };
    let key = &signer.keys.writer;
    let mut statuses = Vec::new();
    for _ in 0..=vecmill_signer::config::FAILED_LOGINS_PER_MINUTE {
        assert!(login(key.id().to_owned(), key.expose().to_owned()).await.expect("an answer").status() != 401);
        statuses.push(login(key.id().to_owned(), "wrong".to_owned()).await.expect("an answer"));
    }
    let last = statuses.pop().expect("answers");
    assert!(statuses.iter().all(|answer| answer.status() == 401));
    assert_eq!(last.status(), 429);
    let wait: u64 = last.headers()["retry-after"].to_str().expect("ASCII").parse().expect("seconds");
    assert!((1..=60).contains(&wait));
    assert!(last.text().await.expect("a body").contains("too many logins"));
    // A key that has worked goes on from the address of the flood; what has not waits, and so does a guess of the key.
    let good = async |key: &vecmill_signer::client::ApiKey| {
        login(key.id().to_owned(), key.expose().to_owned()).await.expect("an answer").status().as_u16()
    };
    assert_eq!(good(key).await, 200);
    assert_eq!(good(&signer.keys.admin).await, 429);
    let elsewhere = crate::support::Signer::start(<_>::default()).await;
    assert_eq!(good(&elsewhere.keys.writer).await, 429);
    assert_eq!(good(key).await, 200, "still");
    // Once it is revoked it is one like any other.
    signer.store.revoke_key(None, key.id(), "test").await.expect("revoked");
    assert_eq!((good(key).await, good(key).await), (401, 429));
}
