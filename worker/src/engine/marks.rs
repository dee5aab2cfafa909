//! Where the time of a pass on tensors goes: a mark behind each of its operations.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use candle_core::{Result, Tensor};

use super::place::Place;

/// What an operation does, of which its time can be judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) operation: &'static str,
    /// Multiplications and additions of its products.
    pub(super) flop: u64,
    /// Bytes that have to be read and written, each once.
    pub(super) bytes: u64,
}

/// An operation's part in one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operation {
    /// What it is.
    pub name: &'static str,
    /// Whether it belongs to the last layer, most of which is for pooled rows alone.
    pub last_layer: bool,
    /// Seconds, with the gap before it.
    pub seconds: f64,
    /// Multiplications and additions of its products.
    pub flop: u64,
    /// Bytes that have to be read and written, each once.
    pub bytes: u64,
}

/// A batch's time, operation by operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Operations {
    /// Rows that were computed: tokens, but those of shared beginnings once.
    pub rows: usize,
    /// In the order in which they are computed.
    pub operations: Vec<Operation>,
    /// On a GPU: the most bytes that the batch had allocated at once, and what was predicted.
    pub memory: Option<(u64, u64)>,
}

/// A moment of the place that computes.
enum Moment {
    Host(Instant),
    #[cfg(feature = "cuda")]
    Gpu(candle_core::cuda_backend::cudarc::driver::CudaEvent),
}

/// Takes the time behind each operation, or, mostly, does not.
pub(super) struct Marks(Option<Recording>);

struct Recording {
    place: Place,
    last_layer: Cell<bool>,
    begun: Moment,
    taken: RefCell<Vec<Taken>>,
}

/// A mark.
struct Taken {
    work: Work,
    last_layer: bool,
    at: Moment,
}

impl Marks {
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// From now on.
    pub(super) fn recording(place: &Place) -> Result<Self> {
        let (last_layer, begun, taken) = (Cell::new(false), now(place)?, RefCell::default());
        Ok(Self(Some(Recording { place: place.clone(), last_layer, begun, taken })))
    }

    /// What was queued since the last mark read or wrote each of `tensors`.
    pub(super) fn moved(&self, operation: &'static str, tensors: &[&Tensor]) -> Result<()> {
        self.after(|| Work { operation, flop: 0, bytes: tensors.iter().map(|tensor| bytes(tensor)).sum() })
    }

    /// What was queued since the last mark is a product of `rows`, `[rows, inner]`, with weights, that makes `output` or is
    /// added to it.
    pub(super) fn product(&self, operation: &'static str, rows: &Tensor, output: &Tensor, added: bool) -> Result<()> {
        let ((_, inner), (_, outer)) = (rows.dims2()?, output.dims2()?);
        self.after(|| Work {
            operation,
            flop: 2 * (rows.elem_count() * outer) as u64,
            bytes: bytes(rows)
                + (inner * outer * rows.dtype().size_in_bytes()) as u64
                + bytes(output) * if added { 2 } else { 1 },
        })
    }

    /// What was queued since the last mark is `work`.
    pub(super) fn after(&self, work: impl FnOnce() -> Work) -> Result<()> {
        if let Some(Recording { place, last_layer, taken, .. }) = &self.0 {
            taken.borrow_mut().push(Taken { work: work(), last_layer: last_layer.get(), at: now(place)? });
        }
        Ok(())
    }

    /// What follows is the last layer's, or no longer.
    pub(super) fn last_layer(&self, is: bool) {
        if let Some(recording) = &self.0 {
            recording.last_layer.set(is);
        }
    }

    /// Waits for the operations.
    pub(super) fn operations(self) -> Result<Vec<Operation>> {
        let Some(Recording { begun, taken, .. }) = self.0 else { return Ok(Vec::new()) };
        let mut before = begun;
        taken
            .into_inner()
            .into_iter()
            .map(|Taken { work: Work { operation, flop, bytes }, last_layer, at }| {
                let seconds = before.seconds_until(&at)?;
                before = at;
                Ok(Operation { name: operation, last_layer, seconds, flop, bytes })
            })
            .collect()
    }
}

pub(super) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

fn now(place: &Place) -> Result<Moment> {
    Ok(match place {
        Place::Cpu => Moment::Host(Instant::now()),
        #[cfg(feature = "cuda")]
        Place::Cuda(gpu) => Moment::Gpu(gpu.timed_event()?),
    })
}

impl Moment {
    fn seconds_until(&self, later: &Self) -> Result<f64> {
        match (self, later) {
            (Self::Host(earlier), Self::Host(later)) => Ok(later.duration_since(*earlier).as_secs_f64()),
            #[cfg(feature = "cuda")]
            (Self::Gpu(earlier), Self::Gpu(later)) => {
                let milliseconds = earlier.elapsed_ms(later).map_err(candle_core::Error::wrap)?;
                Ok(f64::from(milliseconds) / 1e3)
            }
            #[cfg(feature = "cuda")]
            _ => candle_core::bail!("moments of two places"),
        }
    }
}
