//! How far a download is.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::info;

/// A connection on which nothing comes for this long is taken for dead.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Between two lines of the log about a download.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Shows how far a file is: a bar where somebody looks, lines of the log elsewhere.
#[derive(Clone)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    bytes: Arc<AtomicU64>,
    file: Arc<Mutex<(String, u64, Instant)>>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, bytes: Arc::default(), file: Arc::new(Mutex::new((String::new(), 0, Instant::now()))) }
    }

    /// Returns once nothing has come for [`STALLED_AFTER`].
    pub(super) fn stalled(&self) -> impl Future<Output = ()> + use<> {
        let bytes = self.bytes.clone();
        async move {
            let mut before = None;
            loop {
                let now = bytes.load(Ordering::Relaxed);
                if before == Some(now) {
                    return;
                }
                before = Some(now);
                tokio::time::sleep(STALLED_AFTER).await;
            }
        }
    }
}

impl hf_hub::api::tokio::Progress for Progress {
    async fn init(&mut self, size: usize, filename: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(size as u64);
            bar.set_message(filename.to_owned());
        } else {
            info!(file = filename, bytes = size, "downloading");
        }
        if let Ok(mut file) = self.file.lock() {
            *file = (filename.to_owned(), size as u64, Instant::now());
        }
    }

    async fn update(&mut self, size: usize) {
        let done = self.bytes.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if let Ok(mut file) = self.file.lock()
            && file.2.elapsed() >= LOG_EVERY
        {
            file.2 = Instant::now();
            info!(file = file.0, done, bytes = file.1, "downloading");
        }
    }

    async fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
