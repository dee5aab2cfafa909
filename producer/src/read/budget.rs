//! What reading an input may take, stated before anything is decoded, and whether anybody still waits for it.
//!
//! A few bytes can decode to any number of them, and a byte can be a line. Whatever is made of an input is therefore bounded by the
//! bytes of it that have been read: twenty times is what text compresses at best, so an honest input is never near.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::ReadError;

/// Whether work is to end early. Whoever works looks at it at each block and each row.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

/// Says [`Stop`] when it is dropped: kept by the future that waits for blocking work, for a future that is dropped tells its thread
/// nothing.
#[derive(Debug, Default)]
pub struct StopOnDrop(Stop);

impl Stop {
    /// Whether nobody waits any more.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error where nobody waits any more.
    pub fn check(&self) -> io::Result<()> {
        self.spent().map_err(io::Error::from)
    }

    fn spent(&self) -> Result<(), Spent> {
        if self.is_told() { Err(Spent::Stopped) } else { Ok(()) }
    }
}

impl StopOnDrop {
    /// What the worker looks at.
    pub fn stop(&self) -> Stop {
        self.0.clone()
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking work that looks at its [`Stop`], which is told when this future is dropped.
pub async fn stoppable<T: Send + 'static>(work: impl FnOnce(Stop) -> T + Send + 'static) -> T {
    let told = StopOnDrop::default();
    let stop = told.stop();
    let done = tokio::task::spawn_blocking(move || work(stop)).await;
    drop(told);
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// How much may be made of an input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Bytes that any input may decode to: a small file that compresses well is no attack.
    pub(super) bytes_free: u64,
    /// Bytes for each byte of the input beyond.
    pub(super) bytes_times: u64,
    /// Rows of any input, good, bad or blank.
    pub(super) rows_free: u64,
    /// Rows for each byte of the input beyond.
    pub(super) rows_times: u64,
}

impl Allowance {
    /// 64 MiB of decoded bytes are decoded in a tenth of a second. A hundred times is five times what text compresses at best. 16
    /// million rows are seconds of work, and two rows a byte are more than a file can have that is not compressed.
    pub(super) const USUAL: Self = Self { bytes_free: 64 << 20, bytes_times: 100, rows_free: 16 << 20, rows_times: 2 };
}

/// What has been used of an [`Allowance`].
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Used>);

#[derive(Debug)]
struct Used {
    allowance: Allowance,
    stop: Stop,
    /// Bytes of the input that have been read.
    taken: AtomicU64,
    decoded: AtomicU64,
    text: AtomicU64,
    rows: AtomicU64,
}

/// Why reading ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Spent {
    #[error(
        "the input decodes to more than {most} bytes, and {taken} bytes of it may not: compress it less or not at all, or cut it \
         into smaller inputs"
    )]
    Bytes { taken: u64, most: u64 },
    #[error(
        "the input has more than {most} rows or blank lines, and {taken} bytes of it may not: compress it less or not at all, or \
         cut it into smaller inputs"
    )]
    Rows { taken: u64, most: u64 },
    #[error("reading was given up: nobody waits for it any more")]
    Stopped,
}

impl Budget {
    pub(super) fn new(allowance: Allowance, stop: Stop) -> Self {
        let [taken, decoded, text, rows] = Default::default();
        Self(Arc::new(Used { allowance, stop, taken, decoded, text, rows }))
    }

    /// Bytes of the input that have been read.
    pub(super) fn taken(&self) -> u64 {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Counts bytes of the input.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Spent> {
        self.0.taken.fetch_add(bytes, Ordering::Relaxed);
        self.0.stop.spent()
    }

    /// Counts bytes before, or as, they are decoded.
    pub(super) fn decode(&self, bytes: u64) -> Result<(), Spent> {
        self.bytes(&self.0.decoded, bytes)
    }

    /// Counts bytes of text that a row hands out: few decoded bytes can be many rows' texts.
    pub(super) fn text(&self, bytes: u64) -> Result<(), Spent> {
        self.bytes(&self.0.text, bytes)
    }

    /// Counts rows or blank lines.
    pub(super) fn rows(&self, more: u64) -> Result<(), Spent> {
        let Allowance { rows_free, rows_times, .. } = self.0.allowance;
        self.spend(&self.0.rows, more, rows_free, rows_times, |taken, most| Spent::Rows { taken, most })
    }

    fn bytes(&self, counter: &AtomicU64, bytes: u64) -> Result<(), Spent> {
        let Allowance { bytes_free, bytes_times, .. } = self.0.allowance;
        self.spend(counter, bytes, bytes_free, bytes_times, |taken, most| Spent::Bytes { taken, most })
    }

    /// Counts `more`, of which there may be `free` and so many times what has been read of the input.
    fn spend(
        &self,
        counter: &AtomicU64,
        more: u64,
        free: u64,
        times: u64,
        over: impl FnOnce(u64, u64) -> Spent,
    ) -> Result<(), Spent> {
        self.0.stop.spent()?;
        let taken = self.taken();
        let most = free.saturating_add(taken.saturating_mul(times));
        match counter.fetch_add(more, Ordering::Relaxed).saturating_add(more) <= most {
            true => Ok(()),
            false => Err(over(taken, most)),
        }
    }
}

impl Spent {
    /// The one that an I/O error was made of, if it was.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<Spent> for io::Error {
    fn from(spent: Spent) -> Self {
        Self::other(spent)
    }
}

impl From<Spent> for ReadError {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Stopped => Self::Stopped,
            spent => Self::TooMuch(spent.to_string()),
        }
    }
}
