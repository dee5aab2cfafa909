//! How commands speak: results on standard output, everything else on standard error, failures as exit codes.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use vecmill_signer::client::ClientError;

use crate::{
    client::GatewayError, fetch::FetchError, life::LedgerError, prepare::PrepareError, publish::PublishError,
    split::SplitError, status::StatusError, store::StoreError, submit::SubmitError, topology::TopologyError,
};

/// Why a command ends without having done its work.
#[derive(Debug)]
pub(super) enum Failure {
    /// Something is not there at the moment; the same command may work later.
    Unavailable(String),
    /// Settings are missing or wrong; all of them, a sentence each.
    Settings(Vec<String>),
    /// The signer said no.
    Refused(String),
    /// The input is at fault.
    Input(String),
    /// The job ended without being completed.
    NotCompleted(String),
}

impl Failure {
    /// What to tell.
    pub(super) fn sentences(&self) -> &[String] {
        match self {
            Self::Unavailable(sentence)
            | Self::Refused(sentence)
            | Self::Input(sentence)
            | Self::NotCompleted(sentence) => std::slice::from_ref(sentence),
            Self::Settings(sentences) => sentences,
        }
    }

    pub(super) fn report(self) -> ExitCode {
        for sentence in self.sentences() {
            eprintln!("vecmill: {sentence}");
        }
        ExitCode::from(match self {
            Self::Unavailable(_) => 1,
            Self::Settings(_) => 2,
            Self::Refused(_) => 3,
            Self::Input(_) => 4,
            Self::NotCompleted(_) => 5,
        })
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        match &error {
            GatewayError::Refused { status: 401 | 403, .. } => Self::Refused(error.to_string()),
            GatewayError::Refused { status: 400..=428, .. } | GatewayError::File { .. } => {
                Self::Input(error.to_string())
            }
            GatewayError::Address(_) => Self::Settings(vec![error.to_string()]),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { .. } => Self::Refused(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<StatusError> for Failure {
    fn from(error: StatusError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Gateway(error) => error.into(),
            FetchError::Foreign { .. } => Self::Input(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Spec(error) => Self::Settings(vec![error.to_string()]),
            SubmitError::Signer(error) => error.into(),
            SubmitError::Prepare(
                PrepareError::Strict { .. }
                | PrepareError::Empty { .. }
                | PrepareError::Changed { .. }
                | PrepareError::Read(_)
                | PrepareError::Split(SplitError::Read(_) | SplitError::TooManyChunks)
                | PrepareError::Source(_),
            ) => Self::Input(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

/// Prints a result as JSON on one line.
pub(super) fn print_json(result: &impl Serialize) {
    println!("{}", serde_json::to_string(result).unwrap_or_default());
}

/// A bar on standard error; silent where nobody looks.
pub(super) fn bar(length: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), draw_target());
    let template = format!("{{msg:12}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}}");
    bar.with_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A spinner with a count, for work of unknown length.
pub(super) fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, draw_target()).with_message(message);
    let style = ProgressStyle::with_template("{msg:12} {spinner} {human_pos} texts {per_sec}");
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn draw_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}
