//! What `infra/bench/signer` measures with: minting and verifying beside bare Ed25519, a server whose one route checks an
//! access token on the signer's own HTTP server, and a load generator.
#![allow(clippy::expect_used, reason = "a benchmark that can't go on says why and ends")]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use axum::Router;
use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vecmill_signer::claims::Scope;
use vecmill_signer::config::Config;
use vecmill_signer::edge;
use vecmill_signer::keys::{KeySet, SigningKey};
use vecmill_signer::mint::{AccessRequest, Minter};
use vecmill_signer::server::{self, App};
use vecmill_signer::store::{FirstTenant, Store, TenantSettings};
use vecmill_signer::verify::{Keys, Verifier};

const ISSUER: &str = "bench";
/// More than a verifier remembers: come round, each is as good as new.
const TOKENS: usize = 20_000;
/// Of one measurement of the crypto; the five take turns.
const TURN: Duration = Duration::from_millis(500);
const USAGE: &str = "usage: bench-signer crypto TURNS | keys SECONDS CONNECTIONS | prepare DIR | serve DIR ADDRESS | load ADDRESS TOKEN_FILE SECONDS CONNECTIONS";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["crypto", turns] => crypto(turns.parse().expect("a number of turns")).await,
        ["keys", seconds, connections] => {
            let seconds = Duration::from_secs(seconds.parse().expect("seconds"));
            keys(seconds, connections.parse().expect("a number of connections")).await;
        }
        ["prepare", dir] => prepare(Path::new(dir)),
        ["serve", dir, address] => serve(Path::new(dir), address).await,
        ["load", address, token, seconds, connections] => {
            let token = std::fs::read_to_string(token).expect("a token file");
            let seconds = Duration::from_secs(seconds.parse().expect("seconds"));
            let request =
                format!("GET / HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\r\n", token.trim());
            let connections = connections.parse().expect("a number of connections");
            // All three gateways answer with three bytes: `ok` or `no` and a line break.
            println!("{:.0}", load(address, &request, "\r\n\r\nok\n", seconds, connections).await);
        }
        _ => eprintln!("{USAGE}"),
    }
}

fn request() -> AccessRequest {
    AccessRequest {
        tenant: "acme".parse().expect("a name"),
        scopes: vec![Scope::JobsSubmit, Scope::JobsRead],
        key_id: "abcdefghijklmnop".to_owned(),
        client_addr: Some("192.0.2.1".to_owned()),
        limits: TenantSettings::default().limits,
        sources: Vec::new(),
        parent: None,
        epoch: 0,
    }
}

/// Operations a second of each, in turns on one thread; prints the medians.
async fn crypto(turns: usize) {
    let minter = Minter::new(ISSUER.to_owned(), SigningKey::generate().expect("random source"));
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(minter.public_keys()));
    let (token, _) = minter.mint_access(request()).expect("signed");
    let tokens: Vec<String> = (0..TOKENS).map(|_| minter.mint_access(request()).expect("signed").0).collect();
    let mut unseen = tokens.iter().cycle();
    let pair = Ed25519KeyPair::generate().expect("random source");
    let message = token.rsplit_once('.').expect("signed").0.as_bytes();
    let signature = pair.sign(message);
    let public = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref());
    let mut rates = [const { Vec::new() }; 5];
    for _ in 0..turns {
        rates[0].push(rate(|| _ = black_box(pair.sign(black_box(message)))));
        rates[1].push(rate(|| drop(black_box(minter.mint_access(request())))));
        rates[2].push(rate(|| public.verify(black_box(message), signature.as_ref()).expect("genuine")));
        let mut first_sight = async || {
            let token = unseen.next().expect("it goes round");
            drop(black_box(verifier.access(black_box(token)).await.expect("good")));
        };
        rates[3].push(rate_async(&mut first_sight).await);
        let again = async || drop(black_box(verifier.access(black_box(&token)).await.expect("good")));
        rates[4].push(rate_async(again).await);
    }
    let [sign, mint, verify, first_sight, again] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("Ed25519 sign    {sign:>9.0} /s a core");
    println!("tokens minted   {mint:>9.0} /s a core  {:.2} of the signatures", mint / sign);
    println!("Ed25519 verify  {verify:>9.0} /s a core");
    println!("tokens verified {first_sight:>9.0} /s a core  {:.2} of the verifications", first_sight / verify);
    println!("seen before     {again:>9.0} /s a core  {:.2} of the verifications", again / verify);
}

fn rate(mut once: impl FnMut()) -> f64 {
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < TURN {
        (0..16).for_each(|_| once());
        count += 16;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

async fn rate_async(mut once: impl AsyncFnMut()) -> f64 {
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < TURN {
        for _ in 0..16 {
            once().await;
        }
        count += 16;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// Writes a token (good for five minutes), the key set, and the public key for a verifier that reads no JWK.
fn prepare(dir: &Path) {
    let minter = Minter::new(ISSUER.to_owned(), SigningKey::generate().expect("random source"));
    let (token, _) = minter.mint_access(request()).expect("signed");
    let jwks = minter.public_keys().to_jwks();
    let x = URL_SAFE_NO_PAD.decode(jwks["keys"][0]["x"].as_str().expect("a key")).expect("base64url");
    let hex: String = x.iter().map(|byte| format!("{byte:02x}")).collect();
    let kid = jwks["keys"][0]["kid"].as_str().expect("a kid").to_owned();
    for (name, text) in [("token", token), ("jwks.json", jwks.to_string()), ("public.hex", hex), ("kid", kid)] {
        std::fs::write(dir.join(name), text).expect("written");
    }
}

/// The signer's HTTP server with one route, which says `ok` to a good access token.
async fn serve(dir: &Path, address: &str) {
    let keys = KeySet::from_jwks(&std::fs::read(dir.join("jwks.json")).expect("a key set")).expect("a key set");
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Fixed(keys));
    let routes = Router::new().route("/", get(check)).with_state(verifier);
    let listener = TcpListener::bind(address).await.expect("the address is free");
    edge::serve(listener, None, routes, edge::Bounds::default(), std::future::pending(), Duration::ZERO)
        .await
        .expect("served");
}

async fn check(State(verifier): State<Verifier>, headers: HeaderMap) -> (StatusCode, &'static str) {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some(token) = token else { return (StatusCode::UNAUTHORIZED, "no\n") };
    match verifier.access(token).await {
        Ok(_) => (StatusCode::OK, "ok\n"),
        Err(_) => (StatusCode::UNAUTHORIZED, "no\n"),
    }
}

/// API keys checked and access tokens minted for them a second, by the whole service on one thread over its SQLite file.
async fn keys(time: Duration, connections: usize) {
    let home = tempfile::tempdir().expect("a folder");
    let (database, master_key_file) = (home.path().join("signer.db"), home.path().join("master-key"));
    let store = Store::open_or_create(&database).await.expect("a database");
    let first = FirstTenant { id: "acme".parse().expect("a name"), settings: TenantSettings::default() };
    let key = store.bootstrap(&master_key_file, &first, "bench").await.expect("bootstrapped").writer;
    store.close().await;
    let (told, listening) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let config = Config {
                listen: "127.0.0.1:0".parse().expect("an address"),
                database: database.into(),
                master_key_file,
                issuer: ISSUER.to_owned(),
                public_url: None,
                signing_key_file: None,
                lanes: 16,
                tls: None,
                gateways: Vec::new(),
                bounds: edge::Bounds::default(),
                old_revocations: false,
                failed_logins_per_minute: 30,
            };
            let app = App::open(&config).await.expect("an app");
            let listener = TcpListener::bind(config.listen).await.expect("a port");
            told.send(listener.local_addr().expect("bound")).expect("somebody waits");
            server::serve(listener, app.into(), std::future::pending()).await.expect("served");
        });
    });
    let address = listening.recv().expect("it listens").to_string();
    let form = format!("grant_type=client_credentials&client_id={}&client_secret={}", key.id(), key.expose());
    let request = format!(
        "POST /oauth/token HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let rate = load(&address, &request, "\"tenant\":\"acme\"}", time, connections).await;
    println!("keys to tokens  {rate:>9.0} /s, over HTTP, one thread of the service");
}

/// Asks on some connections for some time, each asking again when it is answered well, which ends with `good`; gives answers
/// a second.
async fn load(address: &str, request: &str, good: &'static str, time: Duration, connections: usize) -> f64 {
    let end = Instant::now() + time;
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let (address, request) = (address.to_owned(), request.to_owned());
        tasks.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(&address).await.expect("it listens");
            stream.set_nodelay(true).expect("a socket");
            let (mut answer, mut count) = (vec![0; 4096], 0_u64);
            while Instant::now() < end {
                stream.write_all(request.as_bytes()).await.expect("it listens");
                let mut filled = 0;
                loop {
                    let read = stream.read(&mut answer[filled..]).await.expect("an answer");
                    assert!(read > 0, "the server closed the connection");
                    filled += read;
                    if answer[..filled].ends_with(good.as_bytes()) {
                        break;
                    }
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "refused");
                }
                count += 1;
            }
            count
        }));
    }
    let begun = Instant::now();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("no panic");
    }
    count as f64 / begun.elapsed().as_secs_f64()
}
