//! `vecmill-signer serve`.

use std::io::IsTerminal as _;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat, Paths, ServeArgs};
use crate::server::{self, App};

pub(super) async fn run(paths: &Paths, args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::check(paths, args)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&args.log)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let app = App::open(&config).await?;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("can't listen on {}", config.listen))?;
    // Before anybody is told that the service is there.
    let shutdown = server::shutdown_signal();
    tracing::info!(address = %listener.local_addr()?, issuer = config.issuer, lanes = config.lanes, tls = config.tls.is_some(), "listening");
    server::serve(listener, Arc::new(app), shutdown).await.context("the server failed")
}
