//! The master key, and what is derived from it: the pepper of API keys and the seal of private signing keys.
//!
//! The master key lies in a file beside, not in, the database, so that a copy of the database alone opens nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::api_key::ApiKey;
use crate::mint::SigningKey;

/// A master key file holds 43 characters and a line end; anything longer is another file.
const FILE_LEN_MAX: u64 = 64;
/// An Ed25519 key in PEM is 119 characters, 179 with its public half.
const PEM_LEN_MAX: u64 = 1024;
const NONCE_LEN: usize = 12;

/// Why the master key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is no such file.
    #[error("there is no master key file {0}")]
    Missing(PathBuf),
    /// The file can't be read or made.
    #[error("the key file {path} can't be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner may read it.
    #[error("the key file {0} may be read by others; make it so that only its owner can (chmod 600)")]
    Exposed(PathBuf),
    /// It holds something else.
    #[error("the master key file {0} does not hold a master key (43 characters of base64url)")]
    NotAKey(PathBuf),
    /// A mounted signing key holds something else.
    #[error(
        "the signing key file {0} does not hold an Ed25519 key in PEM; make one with `openssl genpkey -algorithm ed25519`"
    )]
    NotASigningKey(PathBuf),
    /// A sealed key does not open.
    #[error("the master key does not open this database's signing keys: they belong to another master key")]
    WrongKey,
    /// The system's random source failed, or the crypto library refused to work.
    #[error("the crypto library failed")]
    Crypto,
}

/// Keys derived from the master key, each for one purpose. The master key itself is not kept.
pub struct Vault {
    pepper: Zeroizing<[u8; 32]>,
    seal: RandomizedNonceKey,
}

impl Vault {
    /// Reads the master key from `path`, which only its owner may read.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        let io_error = |source| VaultError::Io { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VaultError::Missing(path.to_owned())),
            opened => opened.map_err(io_error)?,
        };
        // Asked of the open file, not of the path: nobody can swap the file in between.
        if file.metadata().map_err(io_error)?.mode() & 0o077 != 0 {
            return Err(VaultError::Exposed(path.to_owned()));
        }
        let mut text = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize));
        (&mut file).take(FILE_LEN_MAX).read_to_string(&mut text).map_err(io_error)?;
        let mut master = Zeroizing::new([0; 32]);
        match URL_SAFE_NO_PAD.decode_slice(text.trim_end(), master.as_mut()) {
            Ok(32) => Self::derive(&master),
            _ => Err(VaultError::NotAKey(path.to_owned())),
        }
    }

    /// Reads the master key from `path`, making one first if there is no file. Of two processes that do so at once, both
    /// end with the same key: the file appears whole or not at all, and only once.
    pub fn open_or_create(path: &Path) -> Result<Self, VaultError> {
        match Self::open(path) {
            Err(VaultError::Missing(_)) => {}
            opened => return opened,
        }
        let io_error = |source| VaultError::Io { path: path.to_owned(), source };
        let mut master = Zeroizing::new([0; 32]);
        rand::fill(master.as_mut()).map_err(|_| VaultError::Crypto)?;
        let mut line = Zeroizing::new(String::with_capacity(FILE_LEN_MAX as usize));
        URL_SAFE_NO_PAD.encode_string(master.as_ref(), &mut line);
        line.push('\n');

        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}.draft", std::process::id()));
        let draft = PathBuf::from(draft);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()))
            // Unlike a rename, a link never replaces a file that is there.
            .and_then(|()| fs::hard_link(&draft, path));
        let removed = fs::remove_file(&draft);
        match written {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(error)),
            _ => removed.map_err(io_error)?,
        }
        Self::open(path)
    }

    fn derive(master: &[u8; 32]) -> Result<Self, VaultError> {
        let seal = mac(master, &[b"vecmill signing key seal v1"]);
        Ok(Self {
            pepper: Zeroizing::new(mac(master, &[b"vecmill api key pepper v1"])),
            seal: RandomizedNonceKey::new(&AES_256_GCM, Zeroizing::new(seal).as_ref())
                .map_err(|_| VaultError::Crypto)?,
        })
    }

    /// What is stored of an API key. The id goes in too, so that a digest can't be moved to another key's row.
    pub(crate) fn digest(&self, key: &ApiKey) -> [u8; 32] {
        mac(&self.pepper, &[key.id().as_bytes(), b".", key.secret().as_bytes()])
    }

    /// Encrypts a private key for the database: nonce, ciphertext, tag.
    pub(crate) fn seal(&self, key: &SigningKey) -> Result<Vec<u8>, VaultError> {
        let mut sealed = key.seed().to_vec();
        let nonce =
            self.seal.seal_in_place_append_tag(Aad::from(key.kid()), &mut sealed).map_err(|_| VaultError::Crypto)?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// Decrypts a private key that was sealed under `kid`.
    pub(crate) fn unseal(&self, kid: &str, sealed: &[u8]) -> Result<SigningKey, VaultError> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(VaultError::WrongKey)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| VaultError::WrongKey)?;
        let mut opened = Zeroizing::new(sealed.to_vec());
        let seed = self.seal.open_in_place(nonce, Aad::from(kid), &mut opened).map_err(|_| VaultError::WrongKey)?;
        SigningKey::from_seed(seed).ok().filter(|key| key.kid() == kid).ok_or(VaultError::WrongKey)
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault([redacted])")
    }
}

/// The signing key in a mounted file, which only its owner may read, or its owner and a group: what Kubernetes mounts.
pub(crate) fn mounted_key(path: &Path) -> Result<SigningKey, VaultError> {
    let io_error = |source| VaultError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.mode() & 0o007 != 0 {
        return Err(VaultError::Exposed(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::with_capacity(PEM_LEN_MAX as usize));
    (&mut file).take(PEM_LEN_MAX).read_to_string(&mut text).map_err(io_error)?;
    SigningKey::from_pem(&text).map_err(|_| VaultError::NotASigningKey(path.to_owned()))
}

/// HMAC-SHA-256 over the parts in order.
fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        mac.update(part);
    }
    let mut tag = [0; 32];
    tag.copy_from_slice(mac.sign().as_ref());
    tag
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_master_key_is_made_once_and_only_for_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master");
        assert!(matches!(Vault::open(&path), Err(VaultError::Missing(_))));

        let key = ApiKey::generate().expect("random source");
        let digest = Vault::open_or_create(&path).expect("made").digest(&key);
        assert_eq!(Vault::open_or_create(&path).expect("kept").digest(&key), digest);
        assert_eq!(Vault::open(&path).expect("read").digest(&key), digest);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("own file");
        assert!(matches!(Vault::open(&path), Err(VaultError::Exposed(_))));
    }

    #[test]
    fn other_files_are_no_master_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master");
        for content in ["", "short", &"A".repeat(42), &"A".repeat(44), &"A".repeat(4096)] {
            fs::write(&path, content).expect("own file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("own file");
            assert!(matches!(Vault::open_or_create(&path), Err(VaultError::NotAKey(_))), "{} bytes", content.len());
        }
    }

    #[test]
    fn a_sealed_key_opens_with_its_master_key_and_kid_only() {
        let vault = Vault::derive(&[1; 32]).expect("a vault");
        let key = SigningKey::generate().expect("random source");
        let sealed = vault.seal(&key).expect("sealed");
        assert_eq!(vault.unseal(key.kid(), &sealed).expect("opens").public(), key.public());

        let mut flipped = sealed.clone();
        flipped[20] ^= 1;
        let other = Vault::derive(&[2; 32]).expect("a vault");
        for refused in [
            other.unseal(key.kid(), &sealed),
            vault.unseal("another", &sealed),
            vault.unseal(key.kid(), &flipped),
            vault.unseal(key.kid(), &sealed[..5]),
        ] {
            assert!(matches!(refused, Err(VaultError::WrongKey)));
        }
    }
}
