//! Matrix products: rows that are read where they lie, columns that were packed, sums in f32.
//!
//! A block of at most [`ROWS_MAX`] rows is multiplied by one strip of [`STRIP`] columns after the other. In f32, a strip's
//! columns are taken a few at a time along the inner dimension, so that they stay in a core's first cache while all rows
//! go by, and weights that are stored as bf16 are widened there: kept narrow, they take half the memory, and half the
//! time to come from it. A sum is put down and taken up again in between, which changes no bit of it.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use half::bf16;

use super::math::silu;
use super::path::{LANES, Path, Simd, Work};

/// Columns of a strip. The layout of gates and ups, sixteen of each, is the same whatever the width of a panel.
pub(super) const STRIP: usize = 32;

/// Most rows of a product: a block's sums and its rows are then within a core's second cache.
pub(super) const ROWS_MAX: usize = 96;

/// Inner values that are taken at a time in f32: 32 columns of them are 32 KiB.
const INNER: usize = 256;

/// Rows of values, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, V> {
    pub(super) values: &'a [V],
    pub(super) stride: usize,
    pub(super) rows: usize,
}

/// Packed values, in the type that they are stored in.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// Columns in panels; see [`super::panels`].
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) elements: Elements<'a>,
    /// Inner values to multiply.
    pub(super) inner: usize,
    /// The first of them: of a panel's values, so many come before.
    pub(super) start: usize,
    /// Values from one panel to the next.
    pub(super) pitch: usize,
    /// Outputs of all strips.
    pub(super) outputs: usize,
    /// Outputs that a strip counts for: 32, or 16 of gates that stand beside their 16 ups.
    pub(super) step: usize,
}

impl Columns<'_> {
    fn strips(&self) -> usize {
        self.outputs.div_ceil(self.step)
    }
}

/// Where a product's sums go.
pub(super) enum Sink<'a, V> {
    /// f32, replacing what is there; rows are `stride` values apart.
    Set { values: &'a mut [f32], stride: usize },
    /// f32, added to what is there.
    Add { values: &'a mut [f32], stride: usize },
    /// For strips of 16 gate columns and 16 up columns: `silu(gate) * up`, 16 values a strip.
    GatedSilu { values: &'a mut [V], stride: usize },
}

/// A cache line, and a register where it is wide: room for values of any type that begins at one.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([f32; LANES]);

/// One thread's room for a product.
pub(super) struct Scratch {
    /// `[ROWS_MAX, STRIP]`.
    sums: Vec<Line>,
    /// `[INNER, STRIP]`, of which a panel takes its part.
    widened: Vec<Line>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        let zeros = |values: usize| vec![Line::zeroed(); values / LANES];
        Self { sums: zeros(ROWS_MAX * STRIP), widened: zeros(INNER * STRIP) }
    }

    pub(super) fn sums(&mut self, rows: usize) -> &mut [f32] {
        &mut cast_slice_mut(&mut self.sums)[..rows * STRIP]
    }
}

/// `rows` by `columns` to `sink`: `[rows, inner] x [inner, outputs]`.
pub(super) struct Multiply<'a, P: Path> {
    pub(super) path: P,
    pub(super) rows: Rows<'a, P::Value>,
    pub(super) columns: Columns<'a>,
    pub(super) sink: Sink<'a, P::Value>,
    pub(super) scratch: &'a mut Scratch,
}

impl<P: Path> Work for Multiply<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let path = self.path;
        for strip in 0..self.columns.strips() {
            path.multiply_strip(self.rows, self.columns, strip, self.scratch);
            let at = strip * self.columns.step;
            let width = self.columns.step.min(self.columns.outputs - at);
            take_strip(path, self.scratch.sums(self.rows.rows), &mut self.sink, at, width);
        }
    }
}

/// Takes a strip's sums: the first `width` outputs are a row's values from `at` on.
#[inline(always)]
fn take_strip<P: Path>(path: P, sums: &[f32], sink: &mut Sink<'_, P::Value>, at: usize, width: usize) {
    let simd = path.simd();
    match sink {
        Sink::Set { values, stride } => {
            for (sums, values) in sums.chunks_exact(STRIP).zip(values.chunks_mut(*stride)) {
                for (sums, values) in sums.chunks_exact(LANES).zip(values[at..at + width].chunks_mut(LANES)) {
                    simd.store_part(values, simd.load_part(sums));
                }
            }
        }
        Sink::Add { values, stride } => {
            for (sums, values) in sums.chunks_exact(STRIP).zip(values.chunks_mut(*stride)) {
                for (sums, values) in sums.chunks_exact(LANES).zip(values[at..at + width].chunks_mut(LANES)) {
                    simd.store_part(values, simd.add(simd.load_part(values), simd.load_part(sums)));
                }
            }
        }
        Sink::GatedSilu { values, stride } => {
            for (sums, values) in sums.chunks_exact(STRIP).zip(values.chunks_mut(*stride)) {
                let (gate, up) = sums.split_at(LANES);
                let gated = simd.mul(silu(simd, simd.load_part(gate)), simd.load_part(up));
                path.store_values(&mut values[at..at + width], gated);
            }
        }
    }
}

/// [`Path::multiply_strip`] in f32, in tiles of `HEIGHT` rows and `WIDTH` times sixteen columns.
#[inline(always)]
pub(super) fn multiply_strip_f32<S: Simd, const HEIGHT: usize, const WIDTH: usize>(
    simd: S,
    rows: Rows<'_, f32>,
    columns: Columns<'_>,
    strip: usize,
    scratch: &mut Scratch,
) {
    let (panel_width, panels) = (WIDTH * LANES, STRIP / (WIDTH * LANES));
    let Scratch { sums, widened } = scratch;
    let sums = &mut cast_slice_mut::<_, f32>(sums)[..rows.rows * STRIP];
    sums.fill(0.0);
    for panel in 0..panels {
        for first in (0..columns.inner).step_by(INNER) {
            let inner = INNER.min(columns.inner - first);
            let at = (strip * panels + panel) * columns.pitch + (columns.start + first) * panel_width;
            let (values, next) = match columns.elements {
                Elements::F32(values) => {
                    let values = &values[at..at + inner * panel_width];
                    (values, Ahead::of(values))
                }
                Elements::Bf16(values) => {
                    let values = &values[at..at + inner * panel_width];
                    widen(simd, values, widened);
                    (&cast_slice(widened)[..inner * panel_width], Ahead::of(values))
                }
            };
            let mut row = 0;
            // Tiles of nearly equal height: a last tile of one row would take as long as one of three.
            let tiles = rows.rows.div_ceil(HEIGHT);
            for tile in 0..tiles {
                next.fetch(simd, tile, tiles);
                let after = (tile + 1) * rows.rows / tiles;
                let tile_rows = &rows.values[row * rows.stride + first..];
                let product = Tile { rows: tile_rows, stride: rows.stride, columns: values, inner };
                let tile_sums = &mut sums[row * STRIP + panel * panel_width..];
                add_tile_of::<_, HEIGHT>(simd, after - row, product, tile_sums);
                row = after;
            }
        }
    }
}

/// The columns that are multiplied next: weights lie in the order in which they are read. They come from memory while
/// these are multiplied, a part with each tile.
pub(super) struct Ahead {
    from: *const u8,
    bytes: usize,
}

impl Ahead {
    /// As many bytes as these values, behind them. There may be nothing behind them: nothing is fetched then.
    #[inline(always)]
    pub(super) fn of<T>(values: &[T]) -> Self {
        Self { from: values.as_ptr_range().end.cast(), bytes: size_of_val(values) }
    }

    /// Begins to fetch a part.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&self, simd: S, part: usize, parts: usize) {
        let lines = self.bytes / size_of::<Line>();
        for line in part * lines / parts..(part + 1) * lines / parts {
            simd.prefetch(self.from.wrapping_add(line * size_of::<Line>()));
        }
    }
}

#[inline(always)]
fn widen<S: Simd>(simd: S, values: &[bf16], out: &mut [Line]) {
    let (values, _) = values.as_chunks();
    for (values, out) in values.iter().zip(out) {
        simd.store(&mut out.0, simd.widen(values));
    }
}

/// A few rows, `stride` values apart, and a panel's columns.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    rows: &'a [f32],
    stride: usize,
    columns: &'a [f32],
    inner: usize,
}

/// [`add_tile`] of a height that is known when the program runs, `HEIGHT` at most.
#[inline(always)]
fn add_tile_of<S: Simd, const HEIGHT: usize>(simd: S, height: usize, tile: Tile<'_>, sums: &mut [f32]) {
    match height {
        1 => simd.add_tile::<1>(tile, sums),
        2 => simd.add_tile::<2>(tile, sums),
        3 => simd.add_tile::<3>(tile, sums),
        4 => simd.add_tile::<4>(tile, sums),
        5 => simd.add_tile::<5>(tile, sums),
        6 => simd.add_tile::<6>(tile, sums),
        // A path without registers for them does not have them compiled.
        7 if HEIGHT > 6 => simd.add_tile::<7>(tile, sums),
        8 if HEIGHT > 6 => simd.add_tile::<8>(tile, sums),
        9 if HEIGHT > 6 => simd.add_tile::<9>(tile, sums),
        10 if HEIGHT > 6 => simd.add_tile::<10>(tile, sums),
        11 if HEIGHT > 6 => simd.add_tile::<11>(tile, sums),
        12 if HEIGHT > 6 => simd.add_tile::<12>(tile, sums),
        _ => unreachable!("a tile of {height} rows where {HEIGHT} are the most"),
    }
}

/// Adds to `sums`, rows [`STRIP`] values apart, the products of `HEIGHT` rows and a panel's columns, one after the other
/// in the order of the inner dimension.
///
/// The sums are as many as registers hold beside the columns and a value of a row: 12 rows by 32 columns are 24 of 32
/// registers of AVX-512, 6 by 16 are 12 of 16 of AVX2. Each step makes more products than it loads values, so the
/// multipliers set the pace.
#[inline(always)]
#[allow(unsafe_code, reason = "the inner loop can't afford a bounds check a load; the assertions are the check")]
pub(super) fn add_tile<S: Simd, const HEIGHT: usize, const WIDTH: usize>(simd: S, tile: Tile<'_>, sums: &mut [f32]) {
    let Tile { rows, stride, columns, inner } = tile;
    assert!(rows.len() >= (HEIGHT - 1) * stride + inner);
    assert!(columns.len() >= inner * WIDTH * LANES);
    assert!(sums.len() >= (HEIGHT - 1) * STRIP + WIDTH * LANES);
    let mut lanes = [[simd.splat(0.0); WIDTH]; HEIGHT];
    for (row, lanes) in lanes.iter_mut().enumerate() {
        for (place, lanes) in lanes.iter_mut().enumerate() {
            *lanes = simd.load_part(&sums[row * STRIP + place * LANES..][..LANES]);
        }
    }
    let (row_values, columns) = (rows.as_ptr(), columns.as_ptr().cast::<[f32; LANES]>());
    for step in 0..inner {
        let mut column = [simd.splat(0.0); WIDTH];
        for (place, column) in column.iter_mut().enumerate() {
            // SAFETY: `columns` has `inner` times `WIDTH` times sixteen values (asserted).
            *column = simd.load(unsafe { &*columns.add(step * WIDTH + place) });
        }
        for (row, lanes) in lanes.iter_mut().enumerate() {
            // SAFETY: the last row begins at (HEIGHT - 1) * stride and has `inner` values (asserted).
            let value = unsafe { simd.splat_from(row_values.add(row * stride + step)) };
            for (lanes, column) in lanes.iter_mut().zip(column) {
                *lanes = simd.mul_add(value, column, *lanes);
            }
        }
    }
    for (row, lanes) in lanes.into_iter().enumerate() {
        for (place, lanes) in lanes.into_iter().enumerate() {
            simd.store_part(&mut sums[row * STRIP + place * LANES..][..LANES], lanes);
        }
    }
}
