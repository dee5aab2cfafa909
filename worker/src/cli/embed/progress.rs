//! A progress bar on standard error: for people, on long work, and where it does not run into the output.

use std::{
    fs::File,
    io::IsTerminal,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// Work that is shorter needs no bar.
const LONG: Duration = Duration::from_secs(2);

/// What was done so far.
pub(super) struct Progress {
    begun: Instant,
    wanted: bool,
    bar: Option<ProgressBar>,
    bytes_read: Arc<AtomicU64>,
    /// Where the input is a file.
    bytes: Option<u64>,
    texts: u64,
    tokens: u64,
}

impl Progress {
    /// Begins. `to_file` says that standard output is free.
    pub(super) fn new(input: &File, bytes_read: Arc<AtomicU64>, to_file: bool) -> Self {
        let free = to_file || !std::io::stdout().is_terminal();
        Self {
            begun: Instant::now(),
            wanted: free && std::io::stderr().is_terminal() && !input.is_terminal(),
            bar: None,
            bytes_read,
            bytes: input.metadata().ok().filter(|input| input.is_file()).map(|input| input.len()),
            texts: 0,
            tokens: 0,
        }
    }

    /// A text is done.
    pub(super) fn count(&mut self, tokens: u32) {
        self.texts += 1;
        self.tokens += u64::from(tokens);
    }

    /// Draws, once the work has become long.
    pub(super) fn show(&mut self) {
        let elapsed = self.begun.elapsed();
        if !self.wanted || elapsed < LONG {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| bar(self.bytes));
        let rate = self.tokens as f64 / elapsed.as_secs_f64();
        bar.set_position(self.bytes_read.load(Ordering::Relaxed));
        bar.set_message(format!("{} texts, {} tokens/s", HumanCount(self.texts), HumanCount(rate as u64)));
    }

    /// Says something on standard error without running into the bar.
    pub(super) fn suspend(&self, say: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(bytes: Option<u64>) -> ProgressBar {
    let template =
        if bytes.is_some() { "{msg} {wide_bar} {bytes}/{total_bytes} {eta}" } else { "{spinner} {msg}, {bytes} read" };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}
