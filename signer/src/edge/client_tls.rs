//! Whom a client trusts, and what it shows of itself.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity};
use zeroize::Zeroizing;

use super::server_tls::{certificates, private_key, read, roots};

/// Files for TLS to the signer, RabbitMQ and Redis.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ClientTlsArgs {
    /// PEM file of the authorities that must have signed the signer's and Redis' certificates, instead of the system's;
    /// for RabbitMQ, besides the system's
    #[arg(long, env = "VECMILL_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show to servers that ask for one
    #[arg(long, env = "VECMILL_CLIENT_CERT_FILE", value_name = "FILE")]
    pub client_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's private key
    #[arg(long, env = "VECMILL_CLIENT_KEY_FILE", value_name = "FILE")]
    pub client_key_file: Option<PathBuf>,
    /// Talk to a signer on another machine over plain http: whoever is on the way can read the API key and swap the
    /// public keys
    #[arg(long, env = "VECMILL_INSECURE_SIGNER")]
    pub insecure_signer: bool,
}

/// Why TLS for clients can't be set up: a sentence that names flag and file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClientTlsError(String);

/// The files' contents, checked. The default trusts the system's authorities and shows nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    insecure_signer: bool,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls")
            .field("own_ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

impl ClientTlsArgs {
    /// Reads and checks the files.
    pub fn load(&self) -> Result<ClientTls, ClientTlsError> {
        let ca = match &self.ca_file {
            None => None,
            Some(file) => Some(
                roots(file)
                    .and_then(|_| read(file))
                    .map_err(|mistake| ClientTlsError(format!("--ca-file (VECMILL_CA_FILE): {mistake}")))?,
            ),
        };
        let identity = match (&self.client_cert_file, &self.client_key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(identity(cert, key).map_err(|mistake| {
                ClientTlsError(format!(
                    "--client-cert-file, --client-key-file (VECMILL_CLIENT_CERT_FILE, VECMILL_CLIENT_KEY_FILE): {mistake}"
                ))
            })?),
            _ => {
                let sentence = "--client-cert-file and --client-key-file (VECMILL_CLIENT_CERT_FILE, \
                                VECMILL_CLIENT_KEY_FILE) are of use only together";
                return Err(ClientTlsError(sentence.to_owned()));
            }
        };
        Ok(ClientTls { ca, identity, insecure_signer: self.insecure_signer })
    }
}

fn identity(cert: &Path, key: &Path) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), String> {
    certificates(cert)?;
    private_key(key)?;
    Ok((read(cert)?, Zeroizing::new(read(key)?)))
}

impl ClientTls {
    /// PEM of the authorities that alone are trusted, where the system's are not to be.
    pub fn ca_pem(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// The same from a file of its own, for a server that has another authority.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn read_ca(file: &Path) -> Result<Vec<u8>, ClientTlsError> {
        roots(file).and_then(|_| read(file)).map_err(ClientTlsError)
    }

    /// PEM of the certificate to show, and of its private key.
    pub fn identity_pem(&self) -> Option<(&[u8], &[u8])> {
        self.identity.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice()))
    }

    /// Whether a signer, or a gateway, on another machine may be asked over plain http.
    pub fn takes_plain_http(&self) -> bool {
        self.insecure_signer
    }

    /// An HTTP client's builder with this trust. `None` where the files, though well-formed, make no identity.
    pub fn apply(&self, mut builder: ClientBuilder) -> Option<ClientBuilder> {
        super::provider();
        if let Some(pem) = &self.ca {
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(pem).ok()?);
        }
        if let Some((cert, key)) = &self.identity {
            let both = Zeroizing::new([cert, b"\n".as_slice(), key].concat());
            builder = builder.identity(Identity::from_pem(&both).ok()?);
        }
        Some(builder)
    }
}
