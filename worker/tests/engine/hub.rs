//! Models from a hub: a small HTTP server that speaks its API and can break.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path as Place, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vecmill_worker::engine::synthetic::{self, Shape};
use vecmill_worker::engine::{Compute, ComputeDtype, Model};
use vecmill_worker::hub::{Hub, HubError, is_model_name, is_revision};

use crate::support::{SEED, written};

const MODEL: &str = "owner/model";
const OLD: &str = "00000000000000000000000000000000000000aa";
const NEW: &str = "00000000000000000000000000000000000000bb";
const CHUNK_BYTES: usize = 16 << 10;

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct Served {
    /// Each commit's files.
    commits: BTreeMap<&'static str, Files>,
    /// What `main` is.
    main: &'static str,
    /// The token that must come, if any.
    token: Option<&'static str>,
    /// This many requests for a chunk of weights are answered, the next breaks off in its middle.
    breaks_after: Option<usize>,
    /// Names weights by a digest that is not theirs.
    lies: bool,
    /// Each request: path and range.
    log: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Served>>;

struct Server {
    served: Shared,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    cache: TempDir,
}

impl Server {
    fn start(commits: BTreeMap<&'static str, Files>, main: &'static str) -> Self {
        let served = Arc::new(Mutex::new(Served { commits, main, ..Served::default() }));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/api/models/{owner}/{name}/revision/{revision}", get(list))
            .route("/{owner}/{name}/resolve/{revision}/{*file}", get(file))
            .with_state(served.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { served, address, runtime: Some(runtime), cache: TempDir::new().unwrap() }
    }

    fn hub(&self) -> Hub {
        Hub {
            endpoint: Some(format!("http://{}", self.address)),
            cache: self.cache.path().to_owned(),
            token: None,
            offline: false,
            chunk_bytes: CHUNK_BYTES,
            retry_wait: Duration::from_millis(1),
        }
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }

    fn log(&self) -> Vec<(String, String)> {
        self.served.lock().unwrap().log.clone()
    }
}

async fn list(State(served): State<Shared>, Place((_, _, revision)): Place<(String, String, String)>) -> Response {
    let mut served = served.lock().unwrap();
    served.log.push((format!("list {revision}"), String::new()));
    let commit = if revision == "main" { served.main.to_owned() } else { revision };
    let Some(files) = served.commits.get(commit.as_str()) else { return StatusCode::NOT_FOUND.into_response() };
    let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
    Json(json!({ "sha": commit, "siblings": siblings })).into_response()
}

async fn file(
    State(served): State<Shared>,
    Place((_, _, revision, name)): Place<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut served = served.lock().unwrap();
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    if served.token.is_some_and(|token| header(header::AUTHORIZATION) != format!("Bearer {token}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let range = header(header::RANGE);
    served.log.push((name.clone(), range.clone()));
    let Some(bytes) = served.commits.get(revision.as_str()).and_then(|files| files.get(&name)).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (start, end) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).expect("a range");
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    let end = end.min(bytes.len() - 1);
    let part = Bytes::copy_from_slice(&bytes[start..=end]);
    let mut broken = false;
    if name.ends_with(".safetensors") && range != "bytes=0-0" {
        match &mut served.breaks_after {
            Some(0) => {
                served.breaks_after = None;
                broken = true;
            }
            Some(left) => *left -= 1,
            None => {}
        }
    }
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let etag = match name.ends_with(".safetensors") {
        true if served.lies => digest(b"something else"),
        true => digest(&bytes),
        false => digest(&bytes)[..40].to_owned(),
    };
    let answer = Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header(header::CONTENT_RANGE, format!("bytes {start}-{end}/{}", bytes.len()))
        .header(header::CONTENT_LENGTH, part.len())
        .header(header::ETAG, format!("\"{etag}\""))
        .header("x-repo-commit", revision);
    let body = if broken {
        let half = part.slice(..part.len() / 2);
        Body::from_stream(stream::iter([Ok(half), Err(std::io::Error::other("the connection breaks"))]))
    } else {
        Body::from(part)
    };
    answer.body(body).unwrap()
}

/// A model's files, and some that nobody needs.
fn files(shape: &Shape, seed: u64) -> Files {
    let guard = TempDir::new().unwrap();
    let dir = guard.path().join("model");
    synthetic::write(&dir, shape, seed).unwrap();
    let mut files: Files = ["README.md", "pytorch_model.bin", "onnx/model.onnx"]
        .map(|name| (name.to_owned(), b"not needed".to_vec()))
        .into();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name != "synthetic.json" {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
    let prompts = json!({ "prompts": { "query": "Instruct: x\nQuery:" } });
    files.insert("config_sentence_transformers.json".to_owned(), prompts.to_string().into_bytes());
    files
}

fn one_commit() -> Server {
    Server::start([(OLD, files(&Shape::tiny(), SEED))].into(), OLD)
}

fn load(dir: &Path) -> Model {
    Model::load(dir, &Compute::cpu(ComputeDtype::F32)).unwrap()
}

#[test]
fn a_model_is_downloaded_once_and_then_needs_no_network() {
    let mut server = one_commit();
    let hub = server.hub();
    let snapshot = hub.fetch(MODEL, "main").unwrap();
    assert_eq!(snapshot.commit, OLD);
    let (_guard, original) = written(&Shape::tiny());
    let model = load(&snapshot.dir).with_commit(Some(snapshot.commit.clone()));
    assert_eq!(model.info().revision, load(&original).info().revision, "the same bytes");
    assert_eq!(model.info().commit.as_deref(), Some(OLD));
    assert_eq!(model.info().prompts["query"], "Instruct: x\nQuery:");
    let mut asked: Vec<String> = server.log().into_iter().map(|(path, _)| path).collect();
    asked.sort();
    asked.dedup();
    let needed =
        ["config.json", "config_sentence_transformers.json", "list main", "model.safetensors", "tokenizer.json"];
    assert_eq!(asked, needed, "what is needed and nothing else");

    let before = server.log().len();
    assert_eq!(hub.fetch(MODEL, OLD).unwrap(), snapshot, "a commit never changes");
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(offline.fetch(MODEL, "main").unwrap(), snapshot);
    assert_eq!(server.log().len(), before, "nobody was asked");
    assert_eq!(hub.fetch(MODEL, "main").unwrap(), snapshot);
    assert_eq!(server.log().len(), before + 1, "whether the branch has moved");
    server.stop();
    assert_eq!(hub.fetch(MODEL, "main").unwrap(), snapshot, "without a network, what is there is taken");
}

#[test]
fn a_pinned_commit_stays_when_the_branch_moves() {
    let commits = [(OLD, files(&Shape::tiny(), SEED)), (NEW, files(&Shape::tiny(), SEED + 1))];
    let server = Server::start(commits.into(), NEW);
    let (old, new) = (server.hub().fetch(MODEL, OLD).unwrap(), server.hub().fetch(MODEL, "main").unwrap());
    assert_eq!((old.commit.as_str(), new.commit.as_str()), (OLD, NEW));
    assert_ne!(load(&old.dir).info().revision, load(&new.dir).info().revision);
    let (_guard, original) = written(&Shape::tiny());
    assert_eq!(load(&old.dir).info().revision, load(&original).info().revision);
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let server = one_commit();
    server.served.lock().unwrap().breaks_after = Some(8);
    let snapshot = server.hub().fetch(MODEL, "main").unwrap();
    let (_guard, original) = written(&Shape::tiny());
    assert_eq!(load(&snapshot.dir).info().revision, load(&original).info().revision, "the same bytes");
    assert_eq!(server.served.lock().unwrap().breaks_after, None, "it did break");
    let first = format!("bytes=0-{}", CHUNK_BYTES - 1);
    let firsts = server.log().iter().filter(|(name, range)| name == "model.safetensors" && *range == first).count();
    assert_eq!(firsts, 1, "what was there was not downloaded again");
}

#[test]
fn shards_are_those_of_the_index() {
    let mut commit = files(&Shape { shards: 3, ..Shape::tiny() }, SEED);
    let server = Server::start([(OLD, commit.clone())].into(), OLD);
    load(&server.hub().fetch(MODEL, "main").unwrap().dir);
    commit.remove("model-00002-of-00003.safetensors");
    let server = Server::start([(OLD, commit)].into(), OLD);
    let error = server.hub().fetch(MODEL, "main").unwrap_err();
    assert!(
        matches!(&error, HubError::NotAModel { missing, .. } if missing == "model-00002-of-00003.safetensors"),
        "{error}"
    );
}

#[test]
fn without_a_network_the_sentence_says_what_is_missing_and_what_to_do() {
    let mut server = one_commit();
    let hub = server.hub();
    server.stop();
    let unreachable = hub.fetch(MODEL, "main").unwrap_err();
    let offline = Hub { offline: true, ..hub.clone() }.fetch(MODEL, OLD).unwrap_err();
    assert!(matches!(unreachable, HubError::Unreachable { .. }), "{unreachable}");
    assert!(matches!(&offline, HubError::Offline { missing, .. } if missing == "config.json"), "{offline}");
    for (error, part) in [(unreachable, "is out of reach"), (offline, "HF_HUB_OFFLINE")] {
        let sentence = error.to_string();
        for part in [part, MODEL, "--model-dir (VECMILL_MODEL_DIR)", server.cache.path().to_str().unwrap()] {
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}

#[test]
fn what_the_hub_does_not_give_is_not_asked_for_twice() {
    let server = one_commit();
    let refused = |hub: Hub, revision| match hub.fetch(MODEL, revision) {
        Err(error @ HubError::Refused { status, .. }) => {
            assert!(error.to_string().contains("HF_TOKEN"), "{error}");
            status
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(server.hub(), "gone"), 404);
    assert_eq!(server.log().len(), 1);
    server.served.lock().unwrap().token = Some("hf_secret");
    assert_eq!(refused(server.hub(), "main"), 401);
    let hub = Hub { token: Some("hf_secret".to_owned()), ..server.hub() };
    hub.fetch(MODEL, "main").unwrap();
}

#[test]
fn files_that_are_not_what_the_hub_names_are_not_used() {
    let server = one_commit();
    server.served.lock().unwrap().lies = true;
    let error = server.hub().fetch(MODEL, "main").unwrap_err().to_string();
    assert!(error.contains("SHA-256") && error.contains("model.safetensors"), "{error}");
    server.served.lock().unwrap().lies = false;
    load(&server.hub().fetch(MODEL, "main").unwrap().dir);
}

#[test]
fn names_that_would_lead_elsewhere_are_told() {
    for name in ["Qwen/Qwen3-Embedding-0.6B", "a/b_c.d"] {
        assert!(is_model_name(name), "{name}");
    }
    for name in ["model", "", "a/", "/b", "a/b/c", "../b", "a/..", "a/b?c", "a b/c"] {
        assert!(!is_model_name(name), "{name}");
    }
    for revision in ["main", OLD, "refs/pr/1", "v1.0"] {
        assert!(is_revision(revision), "{revision}");
    }
    for revision in ["", "..", "a/../b", "a//b", "a?b", "/a"] {
        assert!(!is_revision(revision), "{revision}");
    }
}
