//! S3, as Vecmill uses it: whole small objects under keys that the contract makes, listings, and streams of what tenants
//! upload and download.

mod list;
mod upload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
        retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::head_object::HeadObjectOutput,
};
use aws_smithy_http_client::{
    Builder as HttpClientBuilder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncWriteExt,
    sync::{Mutex, OnceCell},
};
use vecmill_signer::{
    claims::Digest,
    edge::{self, ClientTls},
};

/// Tries of one S3 request inside the SDK. Longer outages are the wait ladder's business, which holds no
/// memory and no connection.
const ATTEMPTS_MAX: u32 = 3;
/// Tells whether the server keeps conditions. No tenant's name begins with an underscore.
const CONDITIONS_KEY: &str = "_conditional-writes";
/// Tries of a conditional write that another's comes in between of.
const CONFLICTS_MAX: u32 = 10;

/// Where the objects lie. Credentials come from the SDK's standard chain (environment, profile, pod identity).
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct StoreSettings {
    /// URL of the S3-compatible server; leave out for AWS itself
    #[arg(long = "s3-endpoint", env = "VECMILL_S3_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// PEM file of the authorities that must have signed the S3 server's certificate; the system's when left out
    // An id of its own: by the field's name alone it would be one argument with `--ca-file`.
    #[arg(id = "s3_ca_file", long = "s3-ca-file", env = "VECMILL_S3_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Bucket in which all of Vecmill's objects lie
    #[arg(long = "s3-bucket", env = "VECMILL_S3_BUCKET", value_name = "NAME", default_value = "vecmill")]
    pub bucket: String,
    /// Region of the bucket
    #[arg(long = "s3-region", env = "AWS_REGION", value_name = "NAME", default_value = "us-east-1")]
    pub region: String,
}

pub use self::{list::Object, upload::Upload};

/// An access key, where it is not to come from the standard chain.
pub struct StoreCredentials {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
}

impl StoreSettings {
    /// What is wrong with the settings, a sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Some(url) = &self.endpoint {
            // The value is not repeated: a password may have found its way into it.
            if !(url.starts_with("http://") || url.starts_with("https://")) {
                mistakes.push(
                    "--s3-endpoint (VECMILL_S3_ENDPOINT) must be a URL that begins with http:// or https://".to_owned(),
                );
            }
            if url.contains('@') {
                mistakes.push(
                    "--s3-endpoint (VECMILL_S3_ENDPOINT) holds a user or a password: give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".to_owned(),
                );
            }
        }
        if let Some(Err(error)) = self.ca_file.as_deref().map(ClientTls::read_ca) {
            mistakes.push(format!("--s3-ca-file (VECMILL_S3_CA_FILE): {error}"));
        }
        if self.bucket.is_empty() {
            mistakes.push("--s3-bucket (VECMILL_S3_BUCKET) is empty: name the bucket".to_owned());
        }
        mistakes
    }
}

/// S3 could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("S3 could not {action} {key}: {message}")]
pub struct StoreError {
    action: &'static str,
    key: String,
    message: String,
    too_long: bool,
    not_understood: bool,
}

impl StoreError {
    /// Whether the object is longer than the caller takes: S3 is well, and asking again gives the same.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Whether it is the object that is at fault and not S3: too long, or not what its place promises. Whoever looks through
    /// many objects passes over such a one, or it would keep all that lie behind it.
    pub fn is_of_the_object(&self) -> bool {
        self.too_long || self.not_understood
    }

    fn new<E, R>(action: &'static str, key: &str, error: SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug,
    {
        let message = match error.code() {
            Some(code) => format!("{code}: {}", error.message().unwrap_or("no further word")),
            None => explained(&error).unwrap_or_else(|| DisplayErrorContext(&error).to_string()),
        };
        Self { action, key: key.to_owned(), message, too_long: false, not_understood: false }
    }

    fn too_long(key: &str, message: String) -> Self {
        Self { too_long: true, ..Self::other("read", key, message) }
    }

    fn other(action: &'static str, key: &str, message: impl ToString) -> Self {
        Self { action, key: key.to_owned(), message: message.to_string(), too_long: false, not_understood: false }
    }
}

/// The sentence for a failed connection; the SDK's own words are for developers.
fn explained<E: std::error::Error + 'static, R: std::fmt::Debug>(error: &SdkError<E, R>) -> Option<String> {
    let SdkError::DispatchFailure(failure) = error else { return None };
    let connector = failure.as_connector_error()?;
    Some(edge::explain(connector))
}

/// An HTTP client that trusts these authorities alone.
fn trusting(ca_pem: Vec<u8>) -> SharedHttpClient {
    let roots = TrustStore::empty().with_pem_certificate(ca_pem);
    let context = TlsContext::builder().with_trust_store(roots).build();
    let builder = HttpClientBuilder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    match context {
        Ok(context) => builder.tls_context(context).build_https(),
        // Never the system's authorities in the place of those that were asked for.
        Err(_) => HttpClientBuilder::new().build_http(),
    }
}

/// One bucket on an S3-compatible server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    bucket: String,
    /// Held over a conditional write, where the server's own look and write are not one step.
    turn: Option<Arc<Mutex<()>>>,
    /// Whether the server keeps conditional writes, once that was tried.
    conditional: Arc<OnceCell<bool>>,
}

impl Store {
    /// Sets up a client with the standard chain's credentials; sends nothing yet.
    pub async fn connect(settings: &StoreSettings) -> Self {
        Self::set_up(settings, None).await
    }

    /// Sets up a client with the given credentials.
    pub async fn connect_with(settings: &StoreSettings, credentials: StoreCredentials) -> Self {
        let StoreCredentials { id, secret } = credentials;
        Self::set_up(settings, Some(Credentials::new(id, secret, None, None, "given"))).await
    }

    async fn set_up(settings: &StoreSettings, credentials: Option<Credentials>) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(3))
            .read_timeout(Duration::from_secs(30))
            .operation_attempt_timeout(Duration::from_secs(120))
            .build();
        let mut shared = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(settings.region.clone()))
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX));
        // Read once more, for the check was another moment; what can't be read any more trusts nobody.
        if let Some(ca) = settings.ca_file.as_deref().map(ClientTls::read_ca) {
            shared = shared.http_client(trusting(ca.unwrap_or_default()));
        }
        if let Some(credentials) = credentials {
            shared = shared.credentials_provider(credentials);
        }
        let mut config = aws_sdk_s3::config::Builder::from(&shared.load().await);
        if let Some(endpoint) = &settings.endpoint {
            // Several S3-compatible servers reject or corrupt the SDK's CRC trailers; our own SHA-256 covers
            // every object whose bytes matter.
            config = config
                .endpoint_url(endpoint)
                .force_path_style(true)
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        Self {
            client: Client::from_conf(config.build()),
            bucket: settings.bucket.clone(),
            turn: None,
            conditional: Arc::default(),
        }
    }

    /// Another bucket on the same server.
    pub fn of_bucket(&self, bucket: &str) -> Self {
        Self { bucket: bucket.to_owned(), conditional: Arc::default(), ..self.clone() }
    }

    /// The same store with conditional writes one after the other: for a server that looks and writes in two steps, and that only
    /// this process asks.
    pub fn in_turns(self) -> Self {
        Self { turn: Some(Arc::default()), ..self }
    }

    /// Whether the bucket answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        match self.client.head_bucket().bucket(&self.bucket).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::new("open the bucket", &self.bucket, error)),
        }
    }

    /// An object's bytes, or `None` where there is none. More than `bytes_max` is an error.
    pub async fn get(&self, key: &str, bytes_max: usize) -> Result<Option<Bytes>, StoreError> {
        let answer = match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => answer,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => return Ok(None),
            Err(error) => return Err(StoreError::new("read", key, error)),
        };
        let bytes = answer.content_length().unwrap_or_default();
        if bytes > bytes_max as i64 {
            return Err(StoreError::too_long(key, format!("it has {bytes} bytes, at most {bytes_max} are taken")));
        }
        let body = answer.body.collect().await.map_err(|error| StoreError::other("read", key, error))?;
        Ok(Some(body.into_bytes()))
    }

    /// An object's length and its bytes as they come, or `None` where there is none.
    pub async fn open(&self, key: &str) -> Result<Option<(u64, ByteStream)>, StoreError> {
        match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(answer) => Ok(Some((answer.content_length().unwrap_or_default().unsigned_abs(), answer.body))),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => Ok(None),
            Err(error) => Err(StoreError::new("read", key, error)),
        }
    }

    /// A JSON document, or `None` where there is none.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str, bytes_max: usize) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(key, bytes_max).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            // The library's own words quote values, which may be a tenant's text.
            let message =
                format!("it is not the document that lies here ({:?} in line {})", error.classify(), error.line());
            StoreError { not_understood: true, ..StoreError::other("understand", key, message) }
        })
    }

    /// Writes an object, whole.
    pub async fn put(&self, key: &str, bytes: impl Into<Bytes>, content_type: &str) -> Result<(), StoreError> {
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
        match put.body(ByteStream::from(bytes.into())).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::new("write", key, error)),
        }
    }

    /// Writes an object only where there is none; gives whether it was written. Of many who try at once, one succeeds
    /// (`If-None-Match: *`). One who is told no may have succeeded all the same, where the first answer was lost on the way.
    ///
    /// Every job's course rests on this. A server that ignores the condition is an error, found before the first such write.
    pub async fn put_new(&self, key: &str, bytes: impl Into<Bytes>, content_type: &str) -> Result<bool, StoreError> {
        let _turn = match &self.turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        if !*self.conditional.get_or_try_init(|| self.try_conditions()).await? {
            let message =
                "the server ignores `If-None-Match: *`, on which Vecmill relies: use one that keeps conditional writes";
            return Err(StoreError::other("write", key, message));
        }
        self.put_if_none(key, bytes.into(), content_type).await
    }

    /// Writes an object twice that may be there: a server that keeps conditions refuses the second time, if not the first.
    async fn try_conditions(&self) -> Result<bool, StoreError> {
        let written = self.put_if_none(CONDITIONS_KEY, Bytes::new(), "text/plain").await?;
        Ok(!written || !self.put_if_none(CONDITIONS_KEY, Bytes::new(), "text/plain").await?)
    }

    async fn put_if_none(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<bool, StoreError> {
        let mut tried = 1;
        loop {
            let put = self.client.put_object().bucket(&self.bucket).key(key).content_type(content_type);
            match put.if_none_match("*").body(ByteStream::from(bytes.clone())).send().await {
                Ok(_) => return Ok(true),
                Err(error) if error.code() == Some("PreconditionFailed") => return Ok(false),
                // AWS' word for a write of another at the same moment: whichever it is, the next try tells.
                Err(error) if error.code() == Some("ConditionalRequestConflict") && tried < CONFLICTS_MAX => tried += 1,
                Err(error) => return Err(StoreError::new("write", key, error)),
            }
        }
    }

    /// Writes a JSON document.
    pub async fn put_json<T: Serialize>(&self, key: &str, document: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(document).map_err(|error| StoreError::other("encode", key, error))?;
        self.put(key, bytes, "application/json").await
    }

    /// Begins an object whose bytes come piece by piece. What is not finished is never seen.
    pub fn upload(&self, key: &str) -> Upload {
        Upload::new(self.client.clone(), self.bucket.clone(), key.to_owned())
    }

    /// Whether an object is there.
    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.modified_s(key).await?.is_some())
    }

    /// When an object was last written, as Unix seconds, or `None` where there is none.
    pub async fn modified_s(&self, key: &str) -> Result<Option<f64>, StoreError> {
        let found = self.head(key).await?;
        Ok(found.map(|found| found.last_modified().map(|time| time.as_secs_f64()).unwrap_or_default()))
    }

    /// An object's length, or `None` where there is none.
    pub async fn bytes(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let found = self.head(key).await?;
        Ok(found.map(|found| found.content_length().unwrap_or_default().unsigned_abs()))
    }

    /// What S3 says of an object, or `None` where there is none.
    async fn head(&self, key: &str) -> Result<Option<HeadObjectOutput>, StoreError> {
        match self.client.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(None),
            Err(error) => Err(StoreError::new("look for", key, error)),
        }
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::new("delete", key, error)),
        }
    }

    /// Streams an object into a file; gives its size and SHA-256.
    pub async fn download(&self, key: &str, path: &Path) -> Result<(u64, Digest), StoreError> {
        self.download_within(None, key, path, u64::MAX).await
    }

    /// [`Self::download`] from any bucket that the credentials open. More than `bytes_max` is an error.
    pub async fn download_within(
        &self,
        bucket: Option<&str>,
        key: &str,
        path: &Path,
        bytes_max: u64,
    ) -> Result<(u64, Digest), StoreError> {
        let bucket = bucket.unwrap_or(&self.bucket);
        let answer = self
            .client
            .get_object()
            .bucket(bucket)
            .key(key)
            .send()
            .await
            .map_err(|error| StoreError::new("read", &format!("s3://{bucket}/{key}"), error))?;
        let failed = |error: &dyn std::fmt::Display| StoreError::other("download", key, error);
        let mut body = answer.body;
        let mut file = tokio::fs::File::create(path).await.map_err(|error| failed(&error))?;
        let mut hasher = crate::digest::Hasher::default();
        let mut left = bytes_max;
        while let Some(bytes) = body.try_next().await.map_err(|error| failed(&error))? {
            let still = left.checked_sub(bytes.len() as u64);
            left = still.ok_or_else(|| StoreError::too_long(key, format!("at most {bytes_max} bytes are taken")))?;
            hasher.update(&bytes);
            file.write_all(&bytes).await.map_err(|error| failed(&error))?;
        }
        file.flush().await.map_err(|error| failed(&error))?;
        Ok(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::put};

    use super::*;

    /// A store on a server that answers every write with `status`.
    async fn answering(status: StatusCode) -> Store {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let settings = StoreSettings {
            endpoint: Some(format!("http://{}", listener.local_addr().expect("an address"))),
            ca_file: None,
            bucket: "bucket".to_owned(),
            region: "us-east-1".to_owned(),
        };
        let routes = Router::new().route("/{*key}", put(move || std::future::ready(status)));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let credentials = StoreCredentials { id: "id".to_owned(), secret: "secret".to_owned() };
        Store::connect_with(&settings, credentials).await
    }

    #[tokio::test]
    async fn a_server_that_ignores_conditions_is_found_out_before_anything_rests_on_them() {
        let store = answering(StatusCode::OK).await;
        let refused = store.put_new("key", Bytes::new(), "text/plain").await.expect_err("it can't be relied on");
        assert!(refused.to_string().contains("If-None-Match"), "{refused}");
    }
}
