//! The server's settings: raw as given, then checked together, before anything opens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::claims::{DEFAULT_ISSUER, DEFAULT_LANES};
use crate::edge::{self, ServerTls};

/// Most lanes: each is a queue on every broker.
const LANES_MAX: u32 = 4096;

/// A person mistypes a few; a program with a key that was revoked tries again now and then.
pub const FAILED_LOGINS_PER_MINUTE: u32 = 30;

/// Where the signer keeps its state.
#[derive(Debug, Clone, Args)]
pub struct Paths {
    /// The policy database (SQLite)
    #[arg(
        long,
        global = true,
        env = "VECMILL_SIGNER_DATABASE",
        value_name = "FILE",
        default_value = "vecmill-signer.db"
    )]
    pub database: PathBuf,
    /// File with the master key, readable by its owner only
    #[arg(
        long,
        global = true,
        env = "VECMILL_SIGNER_MASTER_KEY_FILE",
        value_name = "FILE",
        default_value = "vecmill-signer.master-key"
    )]
    pub master_key_file: PathBuf,
}

/// How to write the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The server's flags, not yet checked: text, so that all mistakes can be told at once.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, env = "VECMILL_SIGNER_LISTEN", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8700")]
    pub listen: String,
    /// PEM file of the certificate to serve TLS with, and its chain; taken anew when it changes
    #[arg(long, env = "VECMILL_SIGNER_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "VECMILL_SIGNER_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// PEM file of the authorities that must have signed each client's certificate; without it clients show none
    #[arg(long, env = "VECMILL_SIGNER_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Allow plain HTTP at an address that other machines can reach: API keys travel in it
    #[arg(long, env = "VECMILL_SIGNER_INSECURE_LISTEN")]
    pub insecure_listen: bool,
    /// Failed logins a minute, for each address and for each API key, before the answer is 429
    #[arg(
        long,
        env = "VECMILL_SIGNER_FAILED_LOGINS_PER_MINUTE",
        value_name = "N",
        default_value_t = FAILED_LOGINS_PER_MINUTE,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub failed_logins_per_minute: u32,
    /// Issuer name in every token; workers and gateways must be told the same
    #[arg(long, env = "VECMILL_SIGNER_ISSUER", value_name = "NAME", default_value = DEFAULT_ISSUER)]
    pub issuer: String,
    /// Number of queue lanes; the queue topology must have as many
    #[arg(long, env = "VECMILL_SIGNER_LANES", value_name = "NUMBER", default_value_t = DEFAULT_LANES.to_string())]
    pub lanes: String,
    /// What to log, as tracing's filters read it
    #[arg(long, env = "VECMILL_SIGNER_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How to log
    #[arg(long, env = "VECMILL_SIGNER_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// The server's settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The policy database.
    pub database: PathBuf,
    /// The master key's file.
    pub master_key_file: PathBuf,
    /// Issuer name.
    pub issuer: String,
    /// Number of queue lanes.
    pub lanes: u32,
    /// The listener's certificate.
    pub tls: Option<ServerTls>,
    /// Failed logins a minute, for each address and for each API key.
    pub failed_logins_per_minute: u32,
}

/// All mistakes in the settings, one a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings have {} mistake(s)", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl Config {
    /// Checks every setting and reports every mistake.
    pub fn check(paths: &Paths, args: &ServeArgs) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let listen = args.listen.parse::<SocketAddr>();
        let tls = ServerTls::open(
            args.tls_cert_file.as_deref(),
            args.tls_key_file.as_deref(),
            args.tls_client_ca_file.as_deref(),
        );
        let tls = tls.unwrap_or_else(|error| {
            mistakes.push(format!("--tls-cert-file, --tls-key-file, --tls-client-ca-file: {error}"));
            None
        });
        match &listen {
            Err(_) => mistakes.push("--listen must be ADDRESS:PORT, such as 127.0.0.1:8700".to_owned()),
            Ok(address) => mistakes.extend(edge::exposed(
                *address,
                args.tls_cert_file.is_some(),
                args.insecure_listen,
                "--insecure-listen",
                "--tls-cert-file and --tls-key-file",
            )),
        }
        if !(1..=128).contains(&args.issuer.len()) || !args.issuer.bytes().all(|b| b.is_ascii_graphic()) {
            mistakes.push("--issuer must be 1 to 128 visible ASCII characters".to_owned());
        }
        let lanes = args.lanes.parse().unwrap_or(0);
        if !(1..=LANES_MAX).contains(&lanes) {
            mistakes.push(format!("--lanes must be 1 to {LANES_MAX}"));
        }
        if tracing_subscriber::EnvFilter::try_new(&args.log).is_err() {
            mistakes.push("--log is not a filter; try info, or debug,sqlx=warn".to_owned());
        }
        for (flag, path) in [("--database", &paths.database), ("--master-key-file", &paths.master_key_file)] {
            if !path.is_file() {
                mistakes
                    .push(format!("{flag}: there is no file {}; `vecmill-signer bootstrap` makes it", path.display()));
            }
        }
        match listen {
            Ok(listen) if mistakes.is_empty() => Ok(Self {
                listen,
                database: paths.database.clone(),
                master_key_file: paths.master_key_file.clone(),
                issuer: args.issuer.clone(),
                lanes,
                tls,
                failed_logins_per_minute: args.failed_logins_per_minute,
            }),
            _ => Err(ConfigError(mistakes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ServeArgs {
        ServeArgs {
            listen: "127.0.0.1:0".to_owned(),
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            insecure_listen: false,
            failed_logins_per_minute: FAILED_LOGINS_PER_MINUTE,
            issuer: "signer".to_owned(),
            lanes: "16".to_owned(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let paths = Paths { database: "/nonexistent/a".into(), master_key_file: "/nonexistent/b".into() };
        let wrong = ServeArgs {
            listen: "localhost".to_owned(),
            issuer: "a b".to_owned(),
            lanes: "0".to_owned(),
            log: "a=b=c".to_owned(),
            ..args()
        };
        let told = Config::check(&paths, &wrong).expect_err("wrong").to_string();
        for flag in ["--listen", "--issuer", "--lanes", "--log", "--database", "--master-key-file"] {
            assert!(told.contains(flag), "{flag} in {told}");
        }
    }

    #[test]
    fn a_reachable_address_must_be_asked_for() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let paths = Paths { database: file.path().into(), master_key_file: file.path().into() };
        assert!(Config::check(&paths, &args()).is_ok());
        let open = ServeArgs { listen: "0.0.0.0:8700".to_owned(), ..args() };
        assert!(Config::check(&paths, &open).is_err());
        assert!(Config::check(&paths, &ServeArgs { insecure_listen: true, ..open.clone() }).is_ok());
        let half = ServeArgs { tls_cert_file: Some(file.path().into()), ..open };
        let told = Config::check(&paths, &half).expect_err("a certificate without its key").to_string();
        assert!(told.contains("--tls-key-file") && told.contains("both"), "{told}");
    }
}
