//! bf16 matrices in the order in which the microkernel reads them.

use bytemuck::{Pod, Zeroable};
use half::bf16;
use memmap2::MmapMut;
use rayon::prelude::*;

use crate::engine::{LoadError, weights::Matrix};

/// f32 lanes of a 512-bit register.
pub(super) const LANES: usize = 16;

/// Columns of a panel: two registers of sums.
pub(super) const PANEL: usize = 2 * LANES;

/// 16 columns of one pair of inner values: a cache line, and one register. Each `u32` holds the pair's first value in its
/// low half.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; LANES]);

impl Line {
    pub(super) const ZERO: Self = Self([0; LANES]);

    /// A pair of inner values of one column.
    pub(super) fn set(&mut self, column: usize, first: bf16, second: bf16) {
        self.0[column] = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
    }
}

/// Lines in memory of their own, in huge pages where the system has them: a first touch of 4 KiB at a time takes longer
/// than to read the weights, and each row of a product goes through more of them than the processor keeps translated.
struct Lines(MmapMut);

impl Lines {
    /// `len` lines of zeros.
    fn zero(len: usize) -> Result<Self, LoadError> {
        let memory = MmapMut::map_anon(len * size_of::<Line>()).map_err(LoadError::Memory)?;
        // A system without them gives small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self(memory))
    }

    fn all(&self) -> &[Line] {
        bytemuck::cast_slice(&self.0)
    }

    fn all_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Weights `[outputs, inner]`, cut in panels of 32 outputs. A panel has `inner / 2` times two lines; columns beyond the
/// last output are 0.
pub(super) struct Panels {
    lines: Lines,
    inner: usize,
    outputs: usize,
    /// Outputs that a panel counts for: 32, or 16 of gates that stand beside their 16 ups.
    step: usize,
}

impl Panels {
    /// Packs weights, rounded to bf16.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn pack(weights: &Matrix<'_>) -> Result<Self, LoadError> {
        Self::fill(weights.rows(), weights.columns(), PANEL, |output, values| weights.row(output, values))
    }

    /// Packs two matrices of one shape as panels of 16 outputs of `gate` and the same 16 of `up`.
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub(super) fn pack_gated(gate: &Matrix<'_>, up: &Matrix<'_>) -> Result<Self, LoadError> {
        Self::fill(gate.rows(), gate.columns(), LANES, |column, values| {
            let (panel, column) = (column / PANEL, column % PANEL);
            let (matrix, output) = if column < LANES { (gate, column) } else { (up, column - LANES) };
            matrix.row(panel * LANES + output, values);
        })
    }

    /// `column(n, values)` writes the values of column `n` of all panels side by side.
    fn fill(
        outputs: usize,
        inner: usize,
        step: usize,
        column: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Result<Self, LoadError> {
        let mut panels = Self { lines: Lines::zero(outputs.div_ceil(step) * inner)?, inner, outputs, step };
        let widths: Vec<usize> = (0..panels.count()).map(|panel| panels.step.min(outputs - panel * step)).collect();
        let all = panels.lines.all_mut().par_chunks_exact_mut(inner);
        all.zip(&widths).enumerate().for_each(|(panel, (lines, &width))| {
            let mut values = vec![bf16::ZERO; inner];
            for place in (0..PANEL).filter(|place| place % step < width) {
                column(panel * PANEL + place, &mut values);
                for (pair, lines) in values.chunks_exact(2).zip(lines.chunks_exact_mut(2)) {
                    lines[place / LANES].set(place % LANES, pair[0], pair[1]);
                }
            }
        });
        Ok(panels)
    }

    pub(super) fn count(&self) -> usize {
        self.outputs.div_ceil(self.step)
    }

    pub(super) fn inner(&self) -> usize {
        self.inner
    }

    pub(super) fn panel(&self, panel: usize) -> &[Line] {
        &self.lines.all()[panel * self.inner..][..self.inner]
    }

    /// Outputs of a panel: as many as it counts for, or what is left for the last.
    pub(super) fn width(&self, panel: usize) -> usize {
        self.step.min(self.outputs - panel * self.step)
    }
}
