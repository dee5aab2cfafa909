//! Weights in the order in which the microkernels read them.
//!
//! Columns are cut in panels, as many as a tile of sums is wide. Within a panel the inner values follow each other, and for
//! each of them (for each group of them, where an instruction multiplies several) the panel's columns lie side by side. A
//! strip is one panel or several; columns beyond the last output are 0.

use bytemuck::Pod;
use half::bf16;
use memmap2::MmapMut;
use rayon::prelude::*;

use super::multiply::{Columns, Elements, STRIP};
use super::path::{LANES, Layout, Path, Value};
use crate::engine::{LoadError, weights::Matrix};

/// Memory in huge pages where the system has them: a first touch of 4 KiB at a time takes longer than to read the weights,
/// and each row of a product goes through more of them than the processor keeps translated.
struct Memory(MmapMut);

impl Memory {
    /// `bytes` zeros.
    fn zero(bytes: usize) -> Result<Self, LoadError> {
        let memory = MmapMut::map_anon(bytes).map_err(LoadError::Memory)?;
        // A system without them gives small ones.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self(memory))
    }
}

/// Weights `[outputs, inner]`.
pub(super) struct Panels {
    memory: Memory,
    /// Whether they are bf16: because the path multiplies that, or because they are stored so, to be widened on the way.
    narrow: bool,
    layout: Layout,
    inner: usize,
    outputs: usize,
    /// Outputs that a strip counts for: 32, or 16 of gates that stand beside their 16 ups.
    step: usize,
}

impl Panels {
    /// Packs weights.
    ///
    /// # Errors
    /// There is no memory for them.
    pub(super) fn pack<P: Path>(weights: &Matrix<'_>) -> Result<Self, LoadError> {
        let source = |column: usize| (column < weights.rows()).then_some((weights, column));
        Self::fill::<P>(weights.is_bf16(), weights.rows(), weights.columns(), STRIP, source)
    }

    /// Packs two matrices of one shape as strips of 16 outputs of `gate` and the same 16 of `up`.
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub(super) fn pack_gated<P: Path>(gate: &Matrix<'_>, up: &Matrix<'_>) -> Result<Self, LoadError> {
        let source = |column: usize| {
            let (strip, column) = (column / STRIP, column % STRIP);
            let output = strip * LANES + column % LANES;
            (output < gate.rows()).then_some((if column < LANES { gate } else { up }, output))
        };
        Self::fill::<P>(gate.is_bf16() && up.is_bf16(), gate.rows(), gate.columns(), LANES, source)
    }

    /// `source` says which row of which matrix a column is.
    fn fill<'a, P: Path>(
        is_bf16: bool,
        outputs: usize,
        inner: usize,
        step: usize,
        source: impl Fn(usize) -> Option<(&'a Matrix<'a>, usize)> + Sync,
    ) -> Result<Self, LoadError> {
        let (layout, narrow) = (P::LAYOUT, is_bf16 || P::Value::NARROW);
        let values = outputs.div_ceil(step) * STRIP * inner;
        let bytes = values * if narrow { size_of::<bf16>() } else { size_of::<f32>() };
        let mut memory = Memory::zero(bytes)?;
        if narrow {
            fill_panels(bytemuck::cast_slice_mut(&mut memory.0), layout, inner, bf16::from_f32, source);
        } else {
            fill_panels(bytemuck::cast_slice_mut(&mut memory.0), layout, inner, std::convert::identity, source);
        }
        Ok(Self { memory, narrow, layout, inner, outputs, step })
    }

    pub(super) fn columns(&self) -> Columns<'_> {
        Columns {
            elements: match self.narrow {
                true => Elements::Bf16(bytemuck::cast_slice(&self.memory.0)),
                false => Elements::F32(bytemuck::cast_slice(&self.memory.0)),
            },
            inner: self.inner,
            start: 0,
            pitch: self.inner * self.layout.panel,
            outputs: self.outputs,
            step: self.step,
        }
    }
}

fn fill_panels<'a, T: Pod + Send + Sync>(
    panels: &mut [T],
    layout: Layout,
    inner: usize,
    store: impl Fn(f32) -> T + Copy + Sync,
    source: impl Fn(usize) -> Option<(&'a Matrix<'a>, usize)> + Sync,
) {
    let Layout { panel: width, group } = layout;
    panels.par_chunks_exact_mut(inner * width).enumerate().for_each(|(panel, out)| {
        let mut values = vec![T::zeroed(); inner];
        for column in 0..width {
            let Some((matrix, row)) = source(panel * width + column) else { continue };
            matrix.row(row, &mut values, store);
            for (place, values) in values.chunks_exact(group).enumerate() {
                out[(place * width + column) * group..][..group].copy_from_slice(values);
            }
        }
    });
}
