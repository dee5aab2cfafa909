//! `vecmill-worker run`: log and signals around the worker.

use std::{io::IsTerminal, process::ExitCode};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

use crate::{panics, settings::Settings, worker};

/// Runs the worker until a signal.
#[tokio::main]
pub(super) async fn run(settings: Settings) -> ExitCode {
    start_log();
    panics::say_only_where();
    let config = match settings.check() {
        Ok(config) => config,
        Err(mistakes) => return super::refuse(&mistakes),
    };
    match worker::run(config, stop_on_signal()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("info,lapin=warn,aws=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if std::env::var("VECMILL_LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.init();
    }
}

/// Becomes true at SIGTERM or Ctrl-C.
fn stop_on_signal() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let terminate = async {
            match signal(SignalKind::terminate()) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = terminate => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.send_replace(true);
        // Until the process ends: a dropped sender would read as a stop, too.
        stop.closed().await;
    });
    stopped
}
