//! The table of attacks, put to the library and to each endpoint of the signer that takes an access token.

#[allow(unreachable_pub, reason = "`vecmill-tests` compiles the file too, where it is reachable")]
mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vecmill_signer::claims::{Digest, JobId};
use vecmill_signer::keys::KeySet;
use vecmill_signer::store::{NewKey, TenantSettings};
use vecmill_signer::verify::{Keys, Verifier};

use self::table::{Bench, Kind};
use crate::support::{ISSUER, NOW, Signer, access_claims, embed_claims, grant_claims, http, submission_claims, with};

const SEED: u8 = 9;
/// Fewer would leave kinds of attack out; the table has several times as many.
const ATTACKS_MIN: usize = 60;
/// Of each endpoint: method, path, a body that it would answer with 200.
type Endpoint = (&'static str, &'static str, fn() -> String);
/// An endpoint behind each kind of check that a route's access can mean; the check itself is one piece of code before all
/// of them, and the matrix of routes shows that none is without it.
const ENDPOINTS: [Endpoint; 5] = [
    ("POST", "/v1/grants", grant_request),
    // One that renews itself would live for ever.
    ("POST", "/v1/submissions", String::new),
    ("POST", "/v1/embed-tokens", || json!({"model": "vecmill/mini"}).to_string()),
    ("GET", "/v1/admin/tenants/acme", String::new),
    ("GET", "/v1/admin/signing-keys", String::new),
];

fn grant_request() -> String {
    json!({
        "job": JobId::from_digest(&[1; 32]), "manifest_sha256": Digest::of(b"manifest"), "model": "vecmill/mini",
        "dimensions": 64, "rows": 10, "window_s": 3600,
    })
    .to_string()
}

fn benches(kid: &str) -> [(Kind, Bench); 4] {
    [
        (Kind::Submission, Bench::new(Kind::Submission, SEED, kid, submission_claims(), access_claims())),
        (Kind::Embed, Bench::new(Kind::Embed, SEED, kid, embed_claims(), access_claims())),
        (Kind::Access, Bench::new(Kind::Access, SEED, kid, access_claims(), grant_claims())),
        (Kind::Grant, Bench::new(Kind::Grant, SEED, kid, grant_claims(), access_claims())),
    ]
}

fn public() -> [u8; 32] {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[SEED; 32]).expect("32 bytes are a seed");
    pair.public_key().as_ref().try_into().expect("32 bytes")
}

/// The key set that publishes the bench's key, and the key's id in it.
fn published() -> (KeySet, String) {
    let mut keys = KeySet::default();
    keys.insert(public());
    let kid = keys.to_jwks()["keys"][0]["kid"].as_str().expect("a kid").to_owned();
    (keys, kid)
}

async fn passes(verifier: &Verifier, kind: Kind, token: &str) -> Result<(), String> {
    match kind {
        Kind::Access => verifier.access_at(token, NOW).await.map(drop),
        Kind::Submission => verifier.submission_at(token, NOW).await.map(drop),
        Kind::Embed => verifier.embed_at(token, NOW).await.map(drop),
        Kind::Grant => verifier.grant_at(token, NOW).await.map(drop),
    }
    .map_err(|refusal| refusal.code().to_owned())
}

#[tokio::test]
async fn the_library_refuses_every_attack_and_takes_each_control() {
    let (keys, kid) = published();
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(keys));
    for (kind, bench) in benches(&kid) {
        let attacks = bench.attacks();
        assert!(attacks.len() >= ATTACKS_MIN, "{}", attacks.len());
        let mut passed = Vec::new();
        let mut codes = BTreeMap::<String, usize>::new();
        for attack in &attacks {
            assert_eq!(passes(&verifier, kind, &bench.control()).await, Ok(()), "the control beside {}", attack.name);
            match passes(&verifier, kind, &attack.token).await {
                Ok(()) => passed.push(&attack.name),
                Err(code) => *codes.entry(code).or_default() += 1,
            }
        }
        assert!(passed.is_empty(), "{kind:?}: these passed: {passed:#?}");
        // Each check refuses some: none of them is shadowed by another.
        for code in [
            "too_long",
            "malformed",
            "wrong_algorithm",
            "wrong_type",
            "forbidden_header",
            "unknown_key",
            "bad_signature",
            "expired",
            "not_yet_valid",
            "wrong_issuer",
            "wrong_audience",
            "lifetime_too_long",
            "bad_claims",
        ] {
            assert!(codes.contains_key(code), "{kind:?}: nothing was refused as {code}: {codes:?}");
        }
    }
}

#[tokio::test]
async fn the_table_says_nothing_twice() {
    for (_, bench) in benches("k1") {
        let attacks = bench.attacks();
        let names: BTreeMap<_, _> = attacks.iter().map(|attack| (&attack.name, &attack.token)).collect();
        let tokens: BTreeMap<_, _> = attacks.iter().map(|attack| (&attack.token, &attack.name)).collect();
        let twice: Vec<_> = attacks.iter().filter(|attack| tokens[&attack.token] != &attack.name).collect();
        assert!(
            twice.is_empty(),
            "{:?}",
            twice.iter().map(|attack| (&attack.name, tokens[&attack.token])).collect::<Vec<_>>()
        );
        assert_eq!(names.len(), attacks.len(), "two attacks of one name");
        assert!(!tokens.contains_key(&bench.control()), "an attack that changes nothing");
    }
}

/// To refuse costs no more than to accept: a flood of bad tokens is no lever, and time tells no more than the answer.
#[tokio::test]
async fn no_refusal_takes_longer_than_a_few_acceptances() {
    let (keys, kid) = published();
    for (kind, bench) in benches(&kid) {
        // The best of several: what other processes take is no property of the token.
        let accepted = fastest(&keys, kind, &bench.control()).await;
        for attack in bench.attacks() {
            let refused = fastest(&keys, kind, &attack.token).await;
            assert!(refused < accepted * 10, "{}: {refused:?}, a good one {accepted:?}", attack.name);
        }
    }
}

async fn fastest(keys: &KeySet, kind: Kind, token: &str) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..7 {
        // One that has not seen the token: a second sight costs less.
        let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(keys.clone()));
        let begun = Instant::now();
        let _ = passes(&verifier, kind, token).await;
        best = best.min(begun.elapsed());
    }
    best
}

/// A signer that publishes the bench's key among its own, and honest claims for the API keys it knows.
struct Target {
    signer: Signer,
    kid: String,
    access: Value,
    submission: Value,
    embed: Value,
    grant: Value,
}

impl Target {
    async fn start() -> Self {
        let signer = Signer::start_after(TenantSettings::default(), publish).await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let live = |claims: Value, lives: u64, key: &str| {
            let claims = with(with(claims, "iat", json!(now)), "nbf", json!(now));
            with(with(claims, "exp", json!(now + lives)), key, json!(signer.keys.admin.id()))
        };
        let access_claims = || with(access_claims(), "scope", json!("jobs:submit jobs:read embed admin"));
        let (access, grant) = (live(access_claims(), 300, "client_id"), live(grant_claims(), 3600, "key_id"));
        let submission = live(submission_claims(), 86_400, "client_id");
        let embed = live(embed_claims(), 90, "client_id");
        Self { kid: published().1, access, submission, embed, grant, signer }
    }

    fn bench(&self, kind: Kind) -> Bench {
        let (claims, other) = match kind {
            Kind::Access => (&self.access, &self.grant),
            Kind::Submission => (&self.submission, &self.access),
            Kind::Embed => (&self.embed, &self.access),
            Kind::Grant => (&self.grant, &self.access),
        };
        Bench::new(kind, SEED, &self.kid, claims.clone(), other.clone())
    }

    /// Sends a token as raw bytes, for an HTTP library would refuse to send some; gives status, headers and body.
    async fn send(&self, (method, path, body): Endpoint, token: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.signer.address).await.expect("the signer listens");
        let body = body();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: signer\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nAuthorization: Bearer {token}\r\n\r\n{body}",
            body.len()
        );
        // The server may close before it has read a header that is too long.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        let _ = reading.expect("an answer in time");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let headers = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:")).collect::<Vec<_>>();
        (status, headers.join("\n"), body.to_owned())
    }
}

/// Publishes the bench's key beside the signer's own, as a rotation would: an older key, which signs no more.
async fn publish(database: std::path::PathBuf) {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a database");
    sqlx::query("INSERT INTO signing_keys (kid, public, sealed, created_s) VALUES (?, ?, zeroblob(60), 1)")
        .bind(published().1)
        .bind(public().to_vec())
        .execute(&mut connection)
        .await
        .expect("a key more");
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn each_endpoint_refuses_every_attack_in_the_same_words() {
    let target = Target::start().await;
    for endpoint in ENDPOINTS {
        let control = target.bench(Kind::Access).control();
        let (status, _, body) = target.send(endpoint, &control).await;
        assert_eq!(status, 200, "the control at {}: {body}", endpoint.1);
        let (status, headers, body) = target.send(endpoint, "x").await;
        assert_eq!(status, 401);
        assert!(headers.contains("invalid_token"), "{headers}");
        let refusal = (headers, body);
        let mut wrong = Vec::new();
        for kind in [Kind::Access, Kind::Submission, Kind::Embed, Kind::Grant] {
            let bench = target.bench(kind);
            let mut tokens = bench.attacks();
            if kind == Kind::Submission && endpoint.1 == "/v1/grants" {
                assert_eq!(target.send(endpoint, &bench.control()).await.0, 200, "a submission token is for grants");
            } else if kind != Kind::Access {
                // Not even an honest grant opens the signer, and a submission token nothing else of it.
                tokens.push(table::Attack { name: "an honest one".to_owned(), token: bench.control() });
            }
            for attack in tokens {
                // For these benches, that is an honest access token.
                if kind != Kind::Access && attack.name == "an honest token of the other kind" {
                    continue;
                }
                let (status, headers, body) = target.send(endpoint, &attack.token).await;
                // What HTTP itself can't carry is refused before the token is looked at, whatever it says.
                let carried = !attack.token.is_empty()
                    && attack.token.len() <= 15 << 10
                    && attack.token.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic() || byte >= 0x80);
                let same = status == 401 && (&headers, &body) == (&refusal.0, &refusal.1);
                if !(same || (!carried && matches!(status, 400 | 401 | 431))) {
                    wrong.push(format!("{kind:?}, {}: {status} {headers} {body}", attack.name));
                }
            }
        }
        assert!(wrong.is_empty(), "{}: {wrong:#?}", endpoint.1);
        assert_eq!(target.send(endpoint, &control).await.0, 200, "a bearer token may be shown again while it lives");
    }
}

/// Shown as what they are about, not as who asks: nothing is said of them, and nothing comes of it.
#[tokio::test]
async fn introspection_and_revocation_take_no_attack_for_a_token() {
    let target = Target::start().await;
    let (http, key) = (http(), &target.signer.keys.admin);
    let ask = async |path: &str, token: &str| -> (u16, Value) {
        let request = http.post(format!("{}{path}", target.signer.url())).basic_auth(key.id(), Some(key.expose()));
        let answer = request.form(&[("token", token)]).send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or(Value::Null))
    };
    let before = target.signer.store.seq().await.expect("a database");
    for kind in [Kind::Access, Kind::Grant] {
        let bench = target.bench(kind);
        assert_eq!(ask("/oauth/introspect", &bench.control()).await.1["active"], true, "the control");
        for attack in bench.attacks() {
            // Of the other kind and honest: a token all the same, for this endpoint takes both.
            if attack.name == "an honest token of the other kind" {
                continue;
            }
            let (status, told) = ask("/oauth/introspect", &attack.token).await;
            // What is longer than a form may be, or is not there at all, is no form with a token.
            let asked = (1..=8 << 10).contains(&attack.token.len());
            if asked || status == 200 {
                assert_eq!((status, &told), (200, &json!({"active": false})), "{kind:?}, {}", attack.name);
                assert_eq!(ask("/oauth/revoke", &attack.token).await.0, 200, "{kind:?}, {}", attack.name);
            } else {
                assert!([400, 413].contains(&status), "{kind:?}, {}: {status}", attack.name);
            }
        }
    }
    assert_eq!(target.signer.store.seq().await.expect("a database"), before, "nothing was revoked");
}

/// Claims that are true of somebody else: genuinely signed, and still not to be taken.
#[tokio::test]
async fn a_token_is_tied_to_its_key_and_the_key_to_its_tenant() {
    let target = Target::start().await;
    let store = &target.signer.store;
    store
        .create_tenant(&"globex".parse().expect("a name"), &TenantSettings::default(), "test")
        .await
        .expect("a tenant");
    let theirs = NewKey { tenant: "globex".parse().expect("a name"), role: "writer".to_owned(), expires_s: None };
    let theirs = store.create_key(&target.signer.vault, &theirs, "test").await.expect("a key");
    let reader = NewKey { tenant: "acme".parse().expect("a name"), role: "reader".to_owned(), expires_s: None };
    let reader = store.create_key(&target.signer.vault, &reader, "test").await.expect("a key");
    let claims = &target.access;
    let refusal = target.send(ENDPOINTS[0], "x").await;
    for (name, claims, status) in [
        ("another tenant with our key", with(claims.clone(), "sub", json!("globex")), 401),
        ("our tenant with their key", with(claims.clone(), "client_id", json!(theirs.id())), 401),
        ("a tenant that is not there", with(claims.clone(), "sub", json!("nobody")), 401),
        ("a key that is not there", with(claims.clone(), "client_id", json!("a".repeat(16))), 401),
        ("a scope that its key lacks", with(claims.clone(), "client_id", json!(reader.id())), 403),
        ("no scope", with(claims.clone(), "scope", json!("")), 403),
        ("a scope by its beginning", with(claims.clone(), "scope", json!("jobs:submitted jobs: JOBS:SUBMIT")), 403),
        (
            "scopes with other blanks",
            with(claims.clone(), "scope", json!("jobs:read\tjobs:submit\u{a0}jobs:submit")),
            403,
        ),
    ] {
        let bench = Bench::new(Kind::Access, SEED, &target.kid, claims, target.grant.clone());
        let answer = target.send(ENDPOINTS[0], &bench.control()).await;
        assert_eq!(answer.0, status, "{name}: {answer:?}");
        assert!(status != 401 || answer == refusal, "{name}: {answer:?}");
    }
    let bench = Bench::new(Kind::Access, SEED, &target.kid, claims.clone(), target.grant.clone());
    assert_eq!(target.send(ENDPOINTS[0], &bench.control()).await.0, 200, "the control");
}
