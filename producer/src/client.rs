//! Asking a gateway: the same jobs from outside the cluster, with an API key and nothing else.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::multipart::{Form, Part};
use reqwest::{Body, Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use vecmill_signer::claims::{Digest, JobId};
use vecmill_signer::client::ApiKey;
use vecmill_signer::edge::{self, ClientTls};

use crate::contract::FinalManifest;
use crate::digest::Hasher;
use crate::status::JobStatus;
use crate::submit::Submitted;

/// Time for a TCP and TLS handshake.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest silence of a gateway that is answering.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Tries of one request in all.
const TRIES: u32 = 6;
/// Pause before the second try, where the gateway names none; it doubles from there.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause that is waited for: over a day's quota, the caller should hear of it.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Bytes of a file read at once.
const BLOCK_BYTES: usize = 1 << 18;
/// Longest event of a watch: a status names up to a hundred chunks that were given up.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Why a gateway did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address can't be used. It is not repeated: it may carry a password.
    #[error("{0}")]
    Address(&'static str),
    /// No answer.
    #[error("the gateway can't be reached: {0}")]
    Unreachable(String),
    /// The gateway said no.
    #[error("the gateway refused ({status} {code}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("the gateway's answer makes no sense: {0}")]
    Protocol(String),
    /// A local file can't be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
}

impl GatewayError {
    fn file(path: &Path, error: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), error }
    }
}

/// A client of one gateway with one API key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayClient {
    http: Client,
    base: Url,
    key: ApiKey,
}

/// A finished part, as the gateway lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct RemotePart {
    /// Its number.
    pub part: u32,
    /// Its SHA-256.
    pub sha256: Digest,
}

/// The finished parts of a job.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteParts {
    /// The parts, in input order.
    pub data: Vec<RemotePart>,
    /// Whether these are all.
    pub complete: bool,
}

/// A line of a batch's input that can't be used.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteBadLine {
    /// For programs.
    pub code: String,
    /// Which line; none where there is no job for another reason.
    pub line: Option<u64>,
    /// For people.
    pub message: String,
}

/// A batch, as far as a submission needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct RemoteBatch {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub status: String,
    /// What was submitted, once its chunks are queued.
    pub submitted: Option<Submitted>,
    errors: Option<RemoteErrors>,
}

#[derive(Clone, Debug, Deserialize)]
struct RemoteErrors {
    data: Vec<RemoteBadLine>,
}

impl RemoteBatch {
    /// The lines that can't be used, at most a thousand of them.
    pub fn bad_lines(&self) -> &[RemoteBadLine] {
        self.errors.as_ref().map(|errors| errors.data.as_slice()).unwrap_or_default()
    }
}

impl GatewayClient {
    /// A client of the gateway at `url`, such as `https://vecmill.example`. Connects at first use, straight to it: proxies are
    /// not used and redirects not followed, for the API key goes along.
    pub fn new(url: &str, key: ApiKey, tls: &ClientTls) -> Result<Self, GatewayError> {
        let wrong = GatewayError::Address("the gateway's address must be http://HOST[:PORT] or https://HOST[:PORT]");
        let Ok(base) = Url::parse(url) else { return Err(wrong) };
        let plain = matches!(base.scheme(), "http" | "https")
            && base.username().is_empty()
            && base.password().is_none()
            && base.query().is_none()
            && base.fragment().is_none();
        let Some(host) = base.host_str().filter(|_| plain) else { return Err(wrong) };
        if base.scheme() == "http" && !edge::is_loopback(host) && !tls.takes_plain_http() {
            return Err(GatewayError::Address(
                "the gateway's address is plain http to another machine, where the API key could be read on the way: use \
                 https://, or --insecure-signer (VECMILL_INSECURE_SIGNER=true) on a network you trust",
            ));
        }
        let no_client =
            GatewayError::Address("the HTTP client could not be built: do certificate and key belong together?");
        let builder = tls.apply(Client::builder()).map(|builder| {
            builder
                .connect_timeout(CONNECT_MAX)
                .read_timeout(SILENCE_MAX)
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
        });
        let http = builder.and_then(|builder| builder.build().ok()).ok_or(no_client)?;
        Ok(Self { http, base, key })
    }

    /// Uploads a file for a batch under a name; gives its id. Of any length: it is read as it is sent. `sent` is called with
    /// the bytes of each piece.
    pub async fn upload(
        &self,
        path: &Path,
        name: &str,
        sent: impl Fn(u64) + Clone + Send + 'static,
    ) -> Result<String, GatewayError> {
        #[derive(Deserialize)]
        struct File {
            id: String,
        }
        let mut tried = 1;
        loop {
            let file = tokio::fs::File::open(path).await.map_err(|error| GatewayError::file(path, error))?;
            let bytes = file.metadata().await.map_err(|error| GatewayError::file(path, error))?.len();
            let part = Part::stream_with_length(pieces(file, sent.clone()), bytes).file_name(name.to_owned());
            // The file last: a gateway that refuses the rest has not read it yet.
            let form = Form::new().text("purpose", "batch").part("file", part);
            let request = self.request(Method::POST, "v1/files").multipart(form);
            match answer(request).await {
                Err(failure) if tried < TRIES && failure.pause.is_some() => self.pause(&mut tried, &failure).await,
                answered => return Ok(json_of::<File>(answered.map_err(|failure| failure.error)?).await?.id),
            }
        }
    }

    /// Makes a batch: `parameters` as `POST /v1/batches` takes them.
    pub async fn create_batch(&self, parameters: &Value) -> Result<RemoteBatch, GatewayError> {
        self.ask(Method::POST, "v1/batches", Some(parameters)).await
    }

    /// Where a batch stands.
    pub async fn batch(&self, id: &str) -> Result<RemoteBatch, GatewayError> {
        self.ask(Method::GET, &format!("v1/batches/{id}"), None::<&()>).await
    }

    /// The tenant's jobs, the newest last.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, GatewayError> {
        #[derive(Deserialize)]
        struct Jobs {
            data: Vec<JobStatus>,
            last_id: Option<String>,
            has_more: bool,
        }
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let jobs: Jobs = self.ask(Method::GET, &format!("v1/jobs{after}"), None::<&()>).await?;
            all.extend(jobs.data);
            match jobs.last_id {
                Some(last) if jobs.has_more => after = format!("?after={last}"),
                _ => break,
            }
        }
        all.sort_by_key(|status| status.submitted_at);
        Ok(all)
    }

    /// Where a job stands; `None` where there is no such job.
    pub async fn job(&self, job: &JobId) -> Result<Option<JobStatus>, GatewayError> {
        found(self.ask(Method::GET, &format!("v1/jobs/{job}"), None::<&()>).await)
    }

    /// `cancel`, `pause` or `resume` of a job; where it then stands, `None` where there is no such job.
    pub async fn say(&self, job: &JobId, word: &str) -> Result<Option<JobStatus>, GatewayError> {
        found(self.ask(Method::POST, &format!("v1/jobs/{job}/{word}"), None::<&()>).await)
    }

    /// Publishes again what is not done of a job; `None` where there is no such job.
    pub async fn retry(&self, job: &JobId, window_hours: u64) -> Result<Option<Submitted>, GatewayError> {
        let again = json!({"completion_window": format!("{window_hours}h")});
        found(self.ask(Method::POST, &format!("v1/jobs/{job}/retry"), Some(&again)).await)
    }

    /// A job's status as it changes, until it has ended or the connection has.
    pub async fn watch(&self, job: &JobId) -> Result<Events, GatewayError> {
        let response = self.send(|| self.request(Method::GET, &format!("v1/jobs/{job}/events"))).await?;
        Ok(Events { response, held: Vec::new() })
    }

    /// The finished parts of a job; `None` where there is no such job.
    pub async fn parts(&self, job: &JobId) -> Result<Option<RemoteParts>, GatewayError> {
        found(self.ask(Method::GET, &format!("v1/jobs/{job}/parts"), None::<&()>).await)
    }

    /// Downloads a finished part; gives its length and SHA-256.
    pub async fn part(&self, job: &JobId, part: u32, path: &Path) -> Result<(u64, Digest), GatewayError> {
        self.download(&format!("v1/jobs/{job}/parts/{part}"), path).await
    }

    /// Downloads the rows without a vector, as JSON lines; gives the length.
    pub async fn errors(&self, job: &JobId, path: &Path) -> Result<u64, GatewayError> {
        Ok(self.download(&format!("v1/jobs/{job}/errors"), path).await?.0)
    }

    /// The summary of a job that has ended; `None` where there is none.
    pub async fn manifest(&self, job: &JobId) -> Result<Option<FinalManifest>, GatewayError> {
        found(self.ask(Method::GET, &format!("v1/jobs/{job}/manifest"), None::<&()>).await)
    }

    async fn download(&self, path: &str, to: &Path) -> Result<(u64, Digest), GatewayError> {
        let mut response = self.send(|| self.request(Method::GET, path)).await?;
        let wrong = |error| GatewayError::file(to, error);
        let mut file = tokio::fs::File::create(to).await.map_err(wrong)?;
        let mut hasher = Hasher::default();
        while let Some(piece) = response.chunk().await.map_err(|error| unreachable(&error))? {
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(wrong)?;
        }
        file.flush().await.map_err(wrong)?;
        Ok(hasher.finish())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        url.set_query(query);
        self.http.request(method, url).bearer_auth(self.key.expose())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<T, GatewayError> {
        let request = || match body {
            Some(body) => self.request(method.clone(), path).json(body),
            None => self.request(method.clone(), path),
        };
        json_of(self.send(request).await?).await
    }

    /// Sends until there is an answer that another try would not change. All requests may be repeated.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, GatewayError> {
        let mut tried = 1;
        loop {
            match answer(request()).await {
                Err(failure) if tried < TRIES && failure.pause.is_some() => self.pause(&mut tried, &failure).await,
                answered => return answered.map_err(|failure| failure.error),
            }
        }
    }

    async fn pause(&self, tried: &mut u32, failure: &Failure) {
        let own = BACKOFF * 2_u32.pow(*tried - 1);
        tokio::time::sleep(failure.pause.unwrap_or_default().max(own)).await;
        *tried += 1;
    }
}

/// A failed try, and the pause before the next where that may help.
struct Failure {
    error: GatewayError,
    pause: Option<Duration>,
}

async fn answer(request: RequestBuilder) -> Result<Response, Failure> {
    #[derive(Deserialize)]
    struct Envelope {
        error: Told,
    }
    #[derive(Deserialize)]
    struct Told {
        message: String,
        code: Option<String>,
    }
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Err(Failure { error: unreachable(&error), pause: Some(Duration::ZERO) }),
    };
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    let told_ms = header("retry-after-ms").and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    let told = told_ms.or_else(|| header("retry-after")?.parse().ok().map(Duration::from_secs)).unwrap_or_default();
    let passes =
        matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT)
            && header("x-should-retry") != Some("false")
            && told <= BACKOFF_MAX;
    let (code, message) = match response.json::<Envelope>().await {
        Ok(Envelope { error: Told { message, code } }) => (code.unwrap_or_default(), message),
        Err(_) => (String::new(), "is this the address of a gateway?".to_owned()),
    };
    let error = GatewayError::Refused { status: status.as_u16(), code, message };
    Err(Failure { error, pause: passes.then_some(told) })
}

async fn json_of<T: DeserializeOwned>(response: Response) -> Result<T, GatewayError> {
    response.json().await.map_err(|error| GatewayError::Protocol(error.without_url().to_string()))
}

/// `None` for what is not there.
fn found<T>(answered: Result<T, GatewayError>) -> Result<Option<T>, GatewayError> {
    match answered {
        Err(GatewayError::Refused { status: 404, code, .. }) if !code.is_empty() => Ok(None),
        answered => answered.map(Some),
    }
}

fn unreachable(error: &reqwest::Error) -> GatewayError {
    GatewayError::Unreachable(edge::explain(error))
}

/// A file as a body, block by block.
fn pieces(file: tokio::fs::File, sent: impl Fn(u64) + Send + 'static) -> Body {
    let blocks = futures_util::stream::try_unfold((file, sent), async |(mut file, sent)| {
        use tokio::io::AsyncReadExt as _;
        let mut block = vec![0; BLOCK_BYTES];
        let read = file.read(&mut block).await?;
        block.truncate(read);
        sent(read as u64);
        Ok::<_, std::io::Error>((read > 0).then_some((bytes::Bytes::from(block), (file, sent))))
    });
    Body::wrap_stream(blocks.boxed())
}

/// A watch: server-sent events, each a status.
#[derive(Debug)]
pub struct Events {
    response: Response,
    held: Vec<u8>,
}

impl Events {
    /// The next status; `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<JobStatus>, GatewayError> {
        loop {
            // An event ends with an empty line; comments keep the connection open.
            if let Some(end) = self.held.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.held.drain(..end + 2).collect();
                let data = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
                let Some(data) = data else { continue };
                let status = serde_json::from_slice(data);
                return status.map(Some).map_err(|error| GatewayError::Protocol(error.to_string()));
            }
            if self.held.len() > EVENT_BYTES_MAX {
                return Err(GatewayError::Protocol("an event has no end".to_owned()));
            }
            match self.response.chunk().await.map_err(|error| unreachable(&error))? {
                Some(piece) => self.held.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}
