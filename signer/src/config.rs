//! The server's settings: raw as given, then checked together, before anything opens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cidr::Cidr;
use crate::claims::{DEFAULT_ISSUER, DEFAULT_LANES};
use crate::edge::{self, Bounds, ServerTls};
use crate::store::Database;

/// Most lanes: each is a queue on every broker.
const LANES_MAX: u32 = 4096;

/// A person mistypes a few; a program with a key that was revoked tries again now and then.
pub const FAILED_LOGINS_PER_MINUTE: u32 = 30;

/// Where the policy database is if nothing else is said.
const DATABASE: &str = "vecmill-signer.db";
/// Names Postgres, with a password in it, and so has no flag.
const DATABASE_URL: &str = "VECMILL_SIGNER_DATABASE_URL";

/// Where the signer keeps its state.
#[derive(Debug, Clone, Args)]
pub struct Paths {
    /// The policy database, a SQLite file [default: vecmill-signer.db, or Postgres if VECMILL_SIGNER_DATABASE_URL is set]
    #[arg(long, global = true, env = "VECMILL_SIGNER_DATABASE", value_name = "FILE")]
    pub database: Option<PathBuf>,
    /// Postgres' URL with user and password, from VECMILL_SIGNER_DATABASE_URL or the file VECMILL_SIGNER_DATABASE_URL_FILE
    /// names: a secret has no flag.
    #[arg(skip = crate::secret::secret(DATABASE_URL))]
    pub database_url: Option<String>,
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

impl Paths {
    /// The one database that is meant.
    pub fn database(&self) -> Result<Database, ConfigError> {
        let mistake = |text: &str| Err(ConfigError(vec![format!("{DATABASE_URL} {text}")]));
        match (&self.database, &self.database_url) {
            (Some(_), Some(_)) => mistake("is set, and so is --database (VECMILL_SIGNER_DATABASE): give one of them"),
            (None, Some(url)) if is_postgres(url) => Ok(Database::Postgres(url.clone())),
            (None, Some(_)) => {
                mistake("must begin with postgres:// or postgresql://; a SQLite file goes to --database")
            }
            (Some(path), None) if path.to_str().is_some_and(is_postgres) => Err(ConfigError(vec![format!(
                "--database names a file; give Postgres' URL in {DATABASE_URL}, where its password is not in the list of processes"
            )])),
            (Some(path), None) => Ok(Database::File(path.clone())),
            // Falling back to a file here would serve another policy than the operator meant.
            (None, None) if std::env::var_os("VECMILL_SIGNER_DATABASE_URL_FILE").is_some() => mistake(
                "is empty: VECMILL_SIGNER_DATABASE_URL_FILE must name a readable file whose first line is the URL",
            ),
            (None, None) => Ok(Database::File(DATABASE.into())),
        }
    }
}

fn is_postgres(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
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
    /// Addresses of gateways, as CIDR ranges separated by commas: they check their callers' addresses and count their
    /// failed logins themselves
    #[arg(long, env = "VECMILL_SIGNER_GATEWAYS", value_name = "RANGES", value_delimiter = ',')]
    pub gateways: Vec<Cidr>,
    /// Connections at once
    #[command(flatten)]
    pub bounds: Bounds,
    /// Issuer name in every token; workers and gateways must be told the same
    #[arg(long, env = "VECMILL_SIGNER_ISSUER", value_name = "NAME", default_value = DEFAULT_ISSUER)]
    pub issuer: String,
    /// Address that clients reach this service at, for OAuth's metadata [default: the listening address]
    #[arg(long, env = "VECMILL_SIGNER_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// PEM file (PKCS#8) of an Ed25519 key to sign with, instead of one that the database holds under the master key
    #[arg(long, env = "VECMILL_SIGNER_SIGNING_KEY_FILE", value_name = "FILE")]
    pub signing_key_file: Option<PathBuf>,
    /// Serve what is revoked also as programs of before read it, with names of tenants, keys and jobs in it for anybody: while they
    /// are upgraded, and no longer
    #[arg(long, env = "VECMILL_SIGNER_OLD_REVOCATIONS")]
    pub old_revocations: bool,
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
    pub database: Database,
    /// The master key's file.
    pub master_key_file: PathBuf,
    /// Issuer name.
    pub issuer: String,
    /// Where clients reach the service, without a slash at the end; `None` for the address it listens on.
    pub public_url: Option<String>,
    /// The mounted key to sign with.
    pub signing_key_file: Option<PathBuf>,
    /// Number of queue lanes.
    pub lanes: u32,
    /// Whether what is revoked is served also as programs of before read it.
    pub old_revocations: bool,
    /// Where gateways are.
    pub gateways: Vec<Cidr>,
    /// The listener's certificate.
    pub tls: Option<ServerTls>,
    /// Connections at once.
    pub bounds: Bounds,
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
        let public_url = args.public_url.as_ref().map(|url| url.trim_end_matches('/').to_owned());
        let is_address = |url: &String| {
            let parsed = reqwest::Url::parse(url).ok();
            parsed.is_some_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none()
            })
        };
        if !public_url.as_ref().is_none_or(is_address) {
            mistakes.push("--public-url must be an http:// or https:// address without query or fragment".to_owned());
        }
        let database = paths.database().unwrap_or_else(|ConfigError(wrong)| {
            mistakes.extend(wrong);
            Database::File(PathBuf::new())
        });
        let files = [
            ("--database", database.file().filter(|path| !path.as_os_str().is_empty())),
            ("--master-key-file", Some(paths.master_key_file.as_path())),
        ];
        for (flag, path) in files {
            if let Some(path) = path.filter(|path| !path.is_file()) {
                mistakes
                    .push(format!("{flag}: there is no file {}; `vecmill-signer bootstrap` makes it", path.display()));
            }
        }
        if let Some(path) = args.signing_key_file.as_deref().filter(|path| !path.is_file()) {
            mistakes.push(format!("--signing-key-file: there is no file {}", path.display()));
        }
        match listen {
            Ok(listen) if mistakes.is_empty() => Ok(Self {
                listen,
                database,
                master_key_file: paths.master_key_file.clone(),
                issuer: args.issuer.clone(),
                public_url,
                signing_key_file: args.signing_key_file.clone(),
                lanes,
                old_revocations: args.old_revocations,
                gateways: args.gateways.clone(),
                tls,
                bounds: args.bounds,
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
            bounds: Bounds::default(),
            failed_logins_per_minute: FAILED_LOGINS_PER_MINUTE,
            issuer: "signer".to_owned(),
            public_url: None,
            signing_key_file: None,
            lanes: "16".to_owned(),
            old_revocations: false,
            gateways: Vec::new(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let paths = Paths {
            database: Some("/nonexistent/a".into()),
            database_url: None,
            master_key_file: "/nonexistent/b".into(),
        };
        let wrong = ServeArgs {
            listen: "localhost".to_owned(),
            public_url: Some("ftp://signer".to_owned()),
            signing_key_file: Some("/nonexistent/c".into()),
            issuer: "a b".to_owned(),
            lanes: "0".to_owned(),
            log: "a=b=c".to_owned(),
            ..args()
        };
        let told = Config::check(&paths, &wrong).expect_err("wrong").to_string();
        for flag in [
            "--listen",
            "--issuer",
            "--lanes",
            "--log",
            "--database",
            "--master-key-file",
            "--public-url",
            "--signing-key-file",
        ] {
            assert!(told.contains(flag), "{flag} in {told}");
        }
    }

    #[test]
    fn a_reachable_address_must_be_asked_for() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let paths =
            Paths { database: Some(file.path().into()), database_url: None, master_key_file: file.path().into() };
        assert!(Config::check(&paths, &args()).is_ok());
        let open = ServeArgs { listen: "0.0.0.0:8700".to_owned(), ..args() };
        assert!(Config::check(&paths, &open).is_err());
        assert!(Config::check(&paths, &ServeArgs { insecure_listen: true, ..open.clone() }).is_ok());
        let half = ServeArgs { tls_cert_file: Some(file.path().into()), ..open };
        let told = Config::check(&paths, &half).expect_err("a certificate without its key").to_string();
        assert!(told.contains("--tls-key-file") && told.contains("both"), "{told}");
    }

    #[test]
    fn one_database_is_meant_and_a_password_has_no_flag() {
        let of = |database: Option<&str>, url: Option<&str>| {
            let (database, database_url) = (database.map(PathBuf::from), url.map(str::to_owned));
            Paths { database, database_url, master_key_file: PathBuf::new() }
                .database()
                .map_err(|wrong| wrong.to_string())
        };
        let url = "postgres://signer:secret@db/policy";
        assert_eq!(of(None, None), Ok(Database::File(DATABASE.into())));
        assert_eq!(of(Some("a.db"), None), Ok(Database::File("a.db".into())));
        assert_eq!(of(None, Some(url)), Ok(Database::Postgres(url.to_owned())));
        for (database, url) in [(Some("a.db"), Some(url)), (Some(url), None), (None, Some("mysql://u:secret@db"))] {
            let told = of(database, url).expect_err("refused");
            assert!(told.contains(DATABASE_URL) && !told.contains("secret"), "{told}");
        }
    }
}
