//! The certificate of a listener, taken anew when its files change.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::provider;

/// Between two looks at the files. A certificate is renewed days before it ends.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why the listener's TLS can't be set up: a sentence that names the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ServerTlsError(String);

/// TLS for a listener. Clones share the certificate.
#[derive(Debug, Clone)]
pub struct ServerTls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Files,
    current: RwLock<Arc<ServerConfig>>,
}

#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// What tells one state of a file from another.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

impl ServerTls {
    /// Loads the PEM files: the certificate with its chain, its private key, and, where clients must show a certificate,
    /// the authorities that may have signed it. Neither certificate nor key is no TLS; one without the other is a mistake.
    pub fn open(
        cert: Option<&Path>,
        key: Option<&Path>,
        client_ca: Option<&Path>,
    ) -> Result<Option<Self>, ServerTlsError> {
        let (cert, key) = match (cert, key) {
            (Some(cert), Some(key)) => (cert.to_owned(), key.to_owned()),
            (None, None) if client_ca.is_none() => return Ok(None),
            _ => {
                let sentence = "TLS needs both a certificate file and a key file; client certificates need them too";
                return Err(ServerTlsError(sentence.to_owned()));
            }
        };
        let files = Files { cert, key, client_ca: client_ca.map(Path::to_owned) };
        let current = RwLock::new(Arc::new(files.load()?));
        Ok(Some(Self(Arc::new(Shared { files, current }))))
    }

    /// The configuration for the next connection.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the files anew whenever they change. Never returns.
    pub(super) async fn follow(&self) {
        let mut taken = self.0.files.stamp();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamp = self.0.files.stamp();
            if stamp == taken {
                continue;
            }
            match self.0.files.load() {
                Ok(config) => {
                    *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    taken = stamp;
                    tracing::info!("the listener's certificate was taken anew");
                }
                // A certificate without its key is often one second old: the next look decides.
                Err(error) => tracing::warn!(%error, "the listener's new certificate can't be used; the old one stays"),
            }
        }
    }
}

impl Files {
    fn load(&self) -> Result<ServerConfig, ServerTlsError> {
        let chain = certificates(&self.cert).map_err(ServerTlsError)?;
        let key = private_key(&self.key).map_err(ServerTlsError)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| ServerTlsError(format!("TLS can't be set up: {error}")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(roots(file).map_err(ServerTlsError)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
                let refused = |error| ServerTlsError(format!("{} can't verify clients: {error}", file.display()));
                builder.with_client_cert_verifier(verifier.map_err(refused)?)
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            ServerTlsError(format!(
                "{} and {} do not make a TLS server: {error}; do they belong together?",
                self.cert.display(),
                self.key.display()
            ))
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn stamp(&self) -> Stamp {
        let of = |path: &PathBuf| {
            // Follows links: what mounts a renewed secret swaps one.
            let metadata: Option<Metadata> = std::fs::metadata(path).ok();
            metadata.map(|file| (file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
        };
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().map(of).collect()
    }
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("{} holds no certificate: it must be PEM (-----BEGIN CERTIFICATE-----)", file.display())),
    }
}

/// The private key of a PEM file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = zeroize::Zeroizing::new(read(file)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        format!("{} holds no private key: it must be PEM, unencrypted (-----BEGIN PRIVATE KEY-----)", file.display())
    })
}

/// A PEM file's certificates as authorities.
pub(super) fn roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{} holds a certificate that can't be an authority: {error}", file.display()))?;
    }
    Ok(roots)
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("{} can't be read: {error}", file.display()))
}
