//! bf16 products on CPUs with AMX (Intel's servers since Sapphire Rapids), summed in f32. All else is as with AVX512-BF16,
//! which these CPUs have as well.
//!
//! Two tiles of 16 rows and two of 16 columns make four tiles of sums, which with them are the eight registers that there are.
//! Columns lie in memory as `avx512_bf16` packs them: a pair of inner values of 16 columns is a row of a tile.
//!
//! A step takes 32 inner values, counted from the first, whatever the number of rows: a row's values are the same bits in
//! every batch. Rust has no functions for these instructions yet, so that they stand in assembly.
#![allow(unsafe_code, reason = "instructions that not every CPU has, in assembly, and loads through pointers")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use half::bf16;

use super::avx512::Avx512;
use super::avx512_bf16::Avx512Bf16;
use super::multiply::{Ahead, Columns, Elements, Rows, STRIP, Scratch};
use super::path::{LANES, Layout, Path, Work};

/// Rows of a tile, and columns of a tile of sums.
const TILE: usize = 16;

/// Inner values of a step: a tile's row is 64 bytes.
const STEP: usize = 32;

/// Bytes from one pair of inner values of a panel's columns to the next, and from one row of sums to the next.
const PITCH: usize = STRIP * 2 * size_of::<bf16>();

/// The CPU has AMX for bf16, and the system lets this process use it. The field is private, so that none is made without
/// looking.
#[derive(Debug, Clone, Copy)]
pub(super) struct AmxBf16(Avx512Bf16);

impl Path for AmxBf16 {
    type Simd = Avx512;
    type Value = bf16;
    const LAYOUT: Layout = Avx512Bf16::LAYOUT;

    fn detect() -> Result<Self, &'static str> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        let rest = Avx512Bf16::detect()?;
        if !cpu_has_amx() {
            return Err("this CPU has no AMX");
        }
        if !*PERMITTED.get_or_init(permit) {
            return Err("the system does not let this process use AMX");
        }
        Ok(Self(rest))
    }

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0.simd()
    }

    #[inline]
    fn enter<W: Work>(self, work: W) -> W::Output {
        self.0.enter(work)
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, bf16>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        let Elements::Bf16(values) = columns.elements else { unreachable!("this path packs nothing but bf16") };
        let inner = columns.inner;
        let values = &values[strip * columns.pitch + columns.start * STRIP..][..inner * STRIP];
        let sums = scratch.sums(rows.rows);
        sums.fill(0.0);
        let (steps, rest) = (inner / STEP, inner % STEP);
        let (blocks, behind) = (rows.rows.div_ceil(2 * TILE), Ahead::of(values));
        for block in 0..blocks {
            behind.fetch(self.simd(), block, blocks);
            let first = block * 2 * TILE;
            let height = (rows.rows - first).min(2 * TILE);
            let product = Product {
                rows: &rows.values[first * rows.stride..],
                stride: rows.stride,
                height,
                columns: values,
                sums: &mut sums[first * STRIP..(first + height) * STRIP],
            };
            add_block(product, steps, rest);
        }
        // SAFETY: an `AmxBf16` is a CPU with these instructions. A thread that holds no tiles is cheaper to put aside.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    fn store_values(self, out: &mut [bf16], lanes: __m512) {
        self.0.store_values(out, lanes);
    }

    #[inline(always)]
    fn store_weights(self, scores: &mut [f32; LANES], rounded: &mut [bf16], lanes: __m512) {
        self.0.store_weights(scores, rounded, lanes);
    }

    fn weights<'a>(scores: &'a [f32], rounded: &'a [bf16]) -> &'a [bf16] {
        Avx512Bf16::weights(scores, rounded)
    }

    fn rounded_len(scores: usize) -> usize {
        Avx512Bf16::rounded_len(scores)
    }
}

/// AMX's tiles and its bf16 products, and a system that keeps tiles when it puts a thread aside (Intel's manual, volume 1,
/// chapter 18).
fn cpu_has_amx() -> bool {
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    #[target_feature(enable = "xsave")]
    fn kept_by_the_system() -> u64 {
        // SAFETY: register 0 is there wherever the instruction is.
        unsafe { _xgetbv(0) }
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the instruction is there, as was just asked.
    let kept = || is_x86_feature_detected!("xsave") && unsafe { kept_by_the_system() } & TILE_STATE == TILE_STATE;
    features & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE && kept()
}

/// Asks Linux for the use of tiles, for all threads of the process: they would make each thread's state larger, so that it
/// keeps them from programs that do not ask.
#[cfg(target_os = "linux")]
fn permit() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and changes nothing but what is allowed.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permit() -> bool {
    false
}

/// Up to 32 rows, `stride` values apart, by a panel; and `[height, STRIP]` sums that the product is added to.
struct Product<'a> {
    rows: &'a [bf16],
    stride: usize,
    height: usize,
    columns: &'a [bf16],
    sums: &'a mut [f32],
}

/// Adds `steps` times 32 inner values, and then `rest`.
#[inline(always)]
fn add_block(product: Product<'_>, steps: usize, rest: usize) {
    let Product { rows, stride, height, columns, sums } = product;
    let inner = steps * STEP + rest;
    // The instructions read and write through pointers: these are the check.
    assert!((1..=2 * TILE).contains(&height) && rest.is_multiple_of(2) && rest < STEP);
    assert!(rows.len() >= (height - 1) * stride + inner);
    assert!(columns.len() >= inner * STRIP && sums.len() >= height * STRIP);
    let (rows, columns, sums) = (rows.as_ptr(), columns.as_ptr(), sums.as_mut_ptr());
    for (first, steps, width) in [(0, steps, STEP), (steps * STEP, usize::from(rest > 0), rest)] {
        if steps > 0 {
            let tiles = Tiles::of(height, width);
            // SAFETY: an `AmxBf16` is a CPU with these instructions. The tiles' sizes are the product's: of rows, `height`
            // with `width` inner values a step, from the first to the last that are there (asserted); of columns, as many
            // pairs; of sums, `height`.
            unsafe {
                add_steps(&tiles, height > TILE, rows.add(first), stride, columns.add(first * STRIP), steps, sums)
            }
        }
    }
}

/// How large the eight tiles are, as the instruction that sets them reads it (palette 1).
///
/// 0 to 3 are sums, of the first rows by the first and the second columns, and of the further rows likewise; 4 and 5 rows,
/// 6 and 7 columns.
#[repr(C, align(64))]
struct Tiles {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// For `height` rows, and `inner` values of each in a step. Where there are no further rows, their tiles are not used.
    #[inline(always)]
    fn of(height: usize, inner: usize) -> Self {
        let heights = [height.min(TILE), height.saturating_sub(TILE).max(1)];
        let mut tiles = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut set = |tile: usize, rows: usize, bytes: usize| {
            (tiles.rows[tile], tiles.row_bytes[tile]) = (rows as u8, bytes as u16);
        };
        for (part, height) in heights.into_iter().enumerate() {
            set(2 * part, height, TILE * size_of::<f32>());
            set(2 * part + 1, height, TILE * size_of::<f32>());
            set(4 + part, height, inner * size_of::<bf16>());
            set(6 + part, inner / 2, TILE * 2 * size_of::<bf16>());
        }
        tiles
    }
}

/// # Safety
/// The CPU has the instructions, and at the pointers lies what `tiles` calls for: rows `stride` values apart, 32 inner values
/// further on in each step; columns in pairs of inner values, [`PITCH`] apart, 16 pairs further on in each step; sums.
#[inline(always)]
unsafe fn add_steps(
    tiles: &Tiles,
    both: bool,
    rows: *const bf16,
    stride: usize,
    columns: *const bf16,
    steps: usize,
    sums: *mut f32,
) {
    let stride = stride * size_of::<bf16>();
    // SAFETY: see above. Tiles are used by these instructions alone, and are set before.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) tiles, options(nostack, readonly, preserves_flags));
        if both {
            asm!(
                "tileloadd tmm0, [{sums} + {pitch}*1]",
                "tileloadd tmm1, [{sums} + {pitch}*1 + 64]",
                "tileloadd tmm2, [{sums} + {pitch}*1 + 2048]",
                "tileloadd tmm3, [{sums} + {pitch}*1 + 2112]",
                "2:",
                "tileloadd tmm6, [{columns} + {pitch}*1]",
                "tileloadd tmm4, [{rows} + {stride}*1]",
                "tileloadd tmm7, [{columns} + {pitch}*1 + 64]",
                "tileloadd tmm5, [{further} + {stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {rows}, 64",
                "add {further}, 64",
                "add {columns}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {pitch}*1], tmm0",
                "tilestored [{sums} + {pitch}*1 + 64], tmm1",
                "tilestored [{sums} + {pitch}*1 + 2048], tmm2",
                "tilestored [{sums} + {pitch}*1 + 2112], tmm3",
                rows = inout(reg) rows => _,
                further = inout(reg) rows.cast::<u8>().add(TILE * stride) => _,
                stride = in(reg) stride,
                columns = inout(reg) columns => _,
                pitch = in(reg) PITCH,
                steps = inout(reg) steps => _,
                sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        } else {
            asm!(
                "tileloadd tmm0, [{sums} + {pitch}*1]",
                "tileloadd tmm1, [{sums} + {pitch}*1 + 64]",
                "2:",
                "tileloadd tmm6, [{columns} + {pitch}*1]",
                "tileloadd tmm4, [{rows} + {stride}*1]",
                "tileloadd tmm7, [{columns} + {pitch}*1 + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {rows}, 64",
                "add {columns}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {pitch}*1], tmm0",
                "tilestored [{sums} + {pitch}*1 + 64], tmm1",
                rows = inout(reg) rows => _,
                stride = in(reg) stride,
                columns = inout(reg) columns => _,
                pitch = in(reg) PITCH,
                steps = inout(reg) steps => _,
                sums = in(reg) sums,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Products of every height and of inner sizes that end within a step, against plain sums; and the same bits alone.
    #[test]
    fn tiles_of_all_sizes() {
        let Ok(_) = AmxBf16::detect() else {
            eprintln!("not run: {}", AmxBf16::detect().expect_err("no AMX"));
            return;
        };
        let mut values = crate::engine::trial::values(1).map(bf16::from_f32);
        for inner in [2, 16, 30, 32, 34, 64, 128, 190] {
            let stride = inner + 6;
            let rows: Vec<bf16> = values.by_ref().take(32 * stride).collect();
            let columns: Vec<bf16> = values.by_ref().take(inner * STRIP).collect();
            let sums_of = |first: usize, height: usize| {
                let mut sums = vec![0.0; height * STRIP];
                let rows = &rows[first * stride..];
                let product = Product { rows, stride, height, columns: &columns, sums: &mut sums };
                add_block(product, inner / STEP, inner % STEP);
                sums
            };
            for height in 1..=32 {
                let sums = sums_of(0, height);
                for (place, &sum) in sums.iter().enumerate() {
                    let (row, column) = (place / STRIP, place % STRIP);
                    let terms = (0..inner).map(|at| {
                        let weight = columns[at / 2 * 2 * STRIP + 2 * column + at % 2];
                        rows[row * stride + at].to_f64() * weight.to_f64()
                    });
                    let expected: f64 = terms.sum();
                    assert!(
                        (f64::from(sum) - expected).abs() < 1e-4,
                        "{inner} {height} {place}: {sum}, not {expected}"
                    );
                }
                let alone = sums_of(height - 1, 1);
                assert_eq!(alone, sums[(height - 1) * STRIP..], "row {} of {height}, {inner} inner values", height - 1);
            }
        }
    }
}
