// What a layer does between its matrix products, each in one pass over memory: bf16 in, f32 inside, and out bf16, or e4m3
// for products in FP8.
//
// A row's values depend on that row alone, and its sums on its width: how many threads add up a row, and in which order,
// never follows from how many rows there are or from which others a block has.
//
// Memory sets the pace. So a thread moves 16 bytes at a time, asks for all that it will need before it uses any of it, and
// reads each value once.
//
// Sizes are checked by kernels.rs, which launches these with the constants below: rows and widths are multiples of 16
// bytes and begin at one, heads have 128 values, and all counts fit in 31 bits. Only where a row begins takes 64.

#include <cuda_bf16.h>
#include <cuda_fp8.h>

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Values that a thread moves at once.
constexpr int EIGHT = 8;

constexpr int HEAD_DIM = 128;
// Lanes that hold a head.
constexpr int HEAD_LANES = HEAD_DIM / EIGHT;

// Rows of a block of rms_norm.
constexpr int NORM_ROWS = 2;
// Heads of a warp of norm_and_turn, two at a time.
constexpr int WARP_HEADS = 8;
// Eights that a thread of gated_silu, and a lane of gather, has under way at once.
constexpr int SILU_EIGHTS = 1;
constexpr int GATHER_EIGHTS = 8;
// Rows of a block of rms_norm_fp8; and how many eights of a row a thread of gated_silu_fp8 and of quantize_rows holds.
constexpr int NORM_FP8_ROWS = 2;
constexpr int SILU_FP8_EIGHTS = 4;
constexpr int QUANTIZE_EIGHTS = 2;

constexpr int THREADS_MAX = 1024;
// Of gated_silu_fp8. That there is room for two such blocks leaves a thread 48 registers, enough, and room for four of 320.
constexpr int SILU_FP8_THREADS_MAX = 640;

struct Floats {
    float at[EIGHT];
};

__device__ __forceinline__ Floats widened(const uint4 &bits) {
    __nv_bfloat162 pairs[EIGHT / 2];
    memcpy(pairs, &bits, sizeof pairs);
    Floats values;
#pragma unroll
    for (int pair = 0; pair < EIGHT / 2; pair++) {
        const float2 two = __bfloat1622float2(pairs[pair]);
        values.at[2 * pair] = two.x;
        values.at[2 * pair + 1] = two.y;
    }
    return values;
}

__device__ __forceinline__ uint4 narrowed(const Floats &values) {
    __nv_bfloat162 pairs[EIGHT / 2];
#pragma unroll
    for (int pair = 0; pair < EIGHT / 2; pair++) {
        pairs[pair] = __floats2bfloat162_rn(values.at[2 * pair], values.at[2 * pair + 1]);
    }
    uint4 bits;
    memcpy(&bits, pairs, sizeof bits);
    return bits;
}

// Eight of the factors that f32 tables hold, which are read over and over: from the cache.
__device__ __forceinline__ Floats factors(const float4 *__restrict__ table, int eight) {
    const float4 left = table[2 * eight], right = table[2 * eight + 1];
    return {{left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w}};
}

__device__ __forceinline__ float squares(const Floats &values) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
        sum += values.at[i] * values.at[i];
    }
    return sum;
}

// The sum over as many neighbouring lanes, a power of two, in each of them. Called by all lanes of a warp.
template <int LANES>
__device__ __forceinline__ float lane_sum(float value) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    }
    return value;
}

// The largest of a warp's values, none of them below zero, in each lane. Called by all of them.
__device__ __forceinline__ float lane_max(float value) {
    return __uint_as_float(__reduce_max_sync(ALL_LANES, __float_as_uint(value)));
}

// Left alone, the compiler lets loads wait until registers are free for them. Those above this line it leaves there, if
// what they read may be written meanwhile for all it knows: they must not be of __restrict__ pointers.
__device__ __forceinline__ void asked_for() {
    __syncwarp();
}

// A block ROWS rows, a thread the same eight values of each: their weights are read once, and the rows' sums wait for each
// other once. Threads: a row's eights, rounded up to whole warps.
template <int ROWS>
__device__ __forceinline__ void rms_norm_rows(const uint4 *__restrict__ input, const float4 *__restrict__ weight,
                                              uint4 *__restrict__ output, int rows, int eights, float eps) {
    __shared__ float sums[ROWS][WARP];
    const int column = threadIdx.x, warp = column / WARP, lane = column % WARP, warps = blockDim.x / WARP;
    const bool has_column = column < eights;
    const int rows_left = rows - blockIdx.x * ROWS;
    const size_t start = (size_t)blockIdx.x * ROWS * eights + column;
    uint4 values[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        values[row] = has_column && row < rows_left ? input[start + row * eights] : uint4{0, 0, 0, 0};
    }
    const Floats weights = factors(weight, has_column ? column : 0);
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float sum = lane_sum<WARP>(squares(widened(values[row])));
        if (lane == 0) {
            sums[row][warp] = sum;
        }
    }
    __syncthreads();
    const float width = eights * EIGHT;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float sum_of_warps = lane < warps ? sums[row][lane] : 0.0f;
        const float scale = rsqrtf(__fdividef(lane_sum<WARP>(sum_of_warps), width) + eps);
        Floats normed = widened(values[row]);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            normed.at[i] *= scale * weights.at[i];
        }
        if (has_column && row < rows_left) {
            output[start + row * eights] = narrowed(normed);
        }
    }
}

// input and output: [rows, 8 * eights]. weight: [8 * eights].
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rms_norm(const uint4 *input, const float4 *weight, uint4 *output, int rows, int eights, float eps) {
    rms_norm_rows<NORM_ROWS>(input, weight, output, rows, eights, eps);
}

// A block a row, a warp HEADS heads that share a weight, a half-warp one of them at a time. So the row's angles are read
// once by a warp, and lane l of a head holds values 8l to 8l + 7, whose partners are in lane l ^ 8 of the same half.
//
// Normed and turned, a value is scale * (own * w * cos -+ partner * w' * sin): the products of weights and angles are the
// same for all heads of the warp, and only the partner's eight values have to cross lanes.
template <int HEADS>
__device__ __forceinline__ void norm_and_turn_row(uint4 *values, int heads, int first,
                                                  const float4 *__restrict__ first_weight, int second,
                                                  const float4 *__restrict__ second_weight,
                                                  const float4 *__restrict__ cos, const float4 *__restrict__ sin,
                                                  float eps) {
    constexpr int TURNS = HEADS / 2;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % HEAD_LANES;
    const int half = threadIdx.x % WARP / HEAD_LANES;
    const int first_warps = (first + HEADS - 1) / HEADS;
    const bool is_first = warp < first_warps;
    const int head = (is_first ? warp * HEADS : first + (warp - first_warps) * HEADS) + half;
    const int end = is_first ? first : first + second;
    values += (size_t)blockIdx.x * heads * HEAD_LANES + lane;
    uint4 held[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        // Where there is none any more, the last once again, for nothing: no load then depends on a condition.
        held[turn] = values[min(head + 2 * turn, end - 1) * HEAD_LANES];
    }
    asked_for();

    constexpr int PARTNER = HEAD_LANES / 2;
    const float4 *weight = is_first ? first_weight : second_weight;
    // Eights of a row's cosines, and of its sines.
    const size_t angles = (size_t)blockIdx.x * PARTNER;
    Floats own = factors(weight, lane), others = factors(weight, lane ^ PARTNER);
    const Floats c = factors(cos + 2 * angles, lane % PARTNER), s = factors(sin + 2 * angles, lane % PARTNER);
    const float sign = lane < PARTNER ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
        own.at[i] *= c.at[i];
        others.at[i] *= sign * s.at[i];
    }

    // All lanes go through all turns, with a head or without: sums and partners need them.
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        uint4 partners;
        partners.x = __shfl_xor_sync(ALL_LANES, held[turn].x, PARTNER);
        partners.y = __shfl_xor_sync(ALL_LANES, held[turn].y, PARTNER);
        partners.z = __shfl_xor_sync(ALL_LANES, held[turn].z, PARTNER);
        partners.w = __shfl_xor_sync(ALL_LANES, held[turn].w, PARTNER);
        Floats turned = widened(held[turn]);
        const Floats other = widened(partners);
        const float scale = rsqrtf(lane_sum<HEAD_LANES>(squares(turned)) / HEAD_DIM + eps);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            turned.at[i] = scale * (turned.at[i] * own.at[i] + other.at[i] * others.at[i]);
        }
        const int at = head + 2 * turn;
        if (at < end) {
            values[at * HEAD_LANES] = narrowed(turned);
        }
    }
}

// In place on [rows, heads, HEAD_DIM]: RMS-norms the first heads with one weight and the next with another, then turns
// each pair of values (i, i + HEAD_DIM / 2) by its row's angle; further heads are left alone.
// Weights: [HEAD_DIM]. cos and sin: [rows, HEAD_DIM / 2].
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    norm_and_turn(uint4 *values, int heads, int first, const float4 *first_weight, int second,
                  const float4 *second_weight, const float4 *cos, const float4 *sin, float eps) {
    norm_and_turn_row<WARP_HEADS>(values, heads, first, first_weight, second, second_weight, cos, sin, eps);
}

// gate * up / (1 + e^-gate). Both the power and the quotient are approximate, to some units in the last place of f32 (the
// power, where it is large, to 90 of them): far below what rounding to bf16 does. Beyond 2^126 the quotient is 0 where the
// exact one is below 1e-36, and at an infinite power it is 0 too: large negative gates give zeros.
__device__ __forceinline__ float gated(float gate, float up) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// Parts of a row along the grid's x, rows along its y: nothing has to be divided to find a value's place, and blocks that run
// at the same time lie side by side in memory.
template <int EIGHTS>
__device__ __forceinline__ void gated_silu_part(const uint4 *__restrict__ gate_up, uint4 *__restrict__ output, int row,
                                                int part, int parts, int eights) {
    const uint4 *gates = gate_up + (size_t)row * 2 * eights, *ups = gates + eights;
    output += (size_t)row * eights;
    const int threads = blockDim.x;
    for (int start = part * threads * EIGHTS + threadIdx.x; start < eights; start += parts * threads * EIGHTS) {
        uint4 gate[EIGHTS], up[EIGHTS];
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            const int column = start + n * threads;
            gate[n] = column < eights ? gates[column] : uint4{0, 0, 0, 0};
            up[n] = column < eights ? ups[column] : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            const int column = start + n * threads;
            Floats values = widened(gate[n]);
            const Floats factor = widened(up[n]);
#pragma unroll
            for (int i = 0; i < EIGHT; i++) {
                values.at[i] = gated(values.at[i], factor.at[i]);
            }
            if (column < eights) {
                output[column] = narrowed(values);
            }
        }
    }
}

// gate_up: [rows, 2 * 8 * eights], gate then up. output: [rows, 8 * eights], silu(gate) * up.
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    gated_silu(const uint4 *gate_up, uint4 *output, int eights) {
    gated_silu_part<SILU_EIGHTS>(gate_up, output, blockIdx.y, blockIdx.x, gridDim.x, eights);
}

// A warp a row.
template <int EIGHTS>
__device__ __forceinline__ void gather_row(const uint4 *source, size_t stride, unsigned source_rows,
                                           const unsigned *rows, uint4 *output, int count, int units) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= count) {
        return;
    }
    const unsigned from = rows[row];
    const bool is_there = from < source_rows;
    source += is_there ? from * stride : 0;
    output += (size_t)row * units;
    const int lane = threadIdx.x % WARP;
    // All lanes go round equally often.
    for (int start = 0; start < units; start += EIGHTS * WARP) {
        uint4 held[EIGHTS];
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            const int unit = start + n * WARP + lane;
            held[n] = is_there && unit < units ? source[unit] : uint4{~0u, ~0u, ~0u, ~0u};
        }
        asked_for();
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            const int unit = start + n * WARP + lane;
            if (unit < units) {
                output[unit] = held[n];
            }
        }
    }
}

// Copies rows of 16-byte units. source: source_rows of them, from each to the next `stride` units. rows: which of them.
// output: [count, units]. A row that is not there gives bits that are all set: not a number in any type of float.
extern "C" __global__ void gather(const uint4 *source, size_t stride, unsigned source_rows, const unsigned *rows,
                                  uint4 *output, int count, int units) {
    gather_row<GATHER_EIGHTS>(source, stride, source_rows, rows, output, count, units);
}

// Rows in e4m3, "fn": its largest number is 448, and it has no infinity. A row comes with the scale that its values are to
// be multiplied by: its largest magnitude / 448. Values are rounded to the nearest, ties to even.
//
// The magnitude counts as ROW_MAX_LEAST at least: a row of zeros has zeros, and a scale that is a number, above zero. Where
// a value is infinite or no number, so is what e4m3 and the scale make of it: products see it.
constexpr float FP8_MAX = 448.0f;
constexpr float ROW_MAX_LEAST = 0x1p-100f;

__device__ __forceinline__ float largest(const Floats &values) {
    float found = 0.0f;
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
        found = fmaxf(found, fabsf(values.at[i]));
    }
    return found;
}

__device__ __forceinline__ Floats times(Floats values, const Floats &factors) {
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
        values.at[i] *= factors.at[i];
    }
    return values;
}

// row_max: ROW_MAX_LEAST or larger.
__device__ __forceinline__ uint2 to_fp8(const Floats &values, float row_max) {
    const float factor = FP8_MAX / row_max;
    __nv_fp8x2_storage_t pairs[EIGHT / 2];
#pragma unroll
    for (int pair = 0; pair < EIGHT / 2; pair++) {
        const float2 two = {values.at[2 * pair] * factor, values.at[2 * pair + 1] * factor};
        // The largest may come out above 448 by a rounding.
        pairs[pair] = __nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E4M3);
    }
    uint2 bits;
    memcpy(&bits, pairs, sizeof bits);
    return bits;
}

// As rms_norm_rows. A row is normed by its scale alone: value * weight is what is rounded, and what the norm divides all of
// the row by goes into the scale. So its largest is known as soon as its sum is.
template <int ROWS>
__device__ __forceinline__ void rms_norm_fp8_rows(const uint4 *__restrict__ input, const float4 *__restrict__ weight,
                                                  uint2 *__restrict__ output, float *__restrict__ scales, int rows,
                                                  int eights, float eps) {
    // The sum of squares, and the largest.
    __shared__ float2 of_warps[ROWS][WARP];
    const int column = threadIdx.x, warp = column / WARP, lane = column % WARP, warps = blockDim.x / WARP;
    const bool has_column = column < eights;
    const int first = blockIdx.x * ROWS, rows_left = rows - first;
    const size_t start = (size_t)first * eights + column;
    uint4 values[ROWS];
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        values[row] = has_column && row < rows_left ? input[start + row * eights] : uint4{0, 0, 0, 0};
    }
    const Floats weights = factors(weight, has_column ? column : 0);
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const Floats wide = widened(values[row]);
        const float sum = lane_sum<WARP>(squares(wide)), most = lane_max(largest(times(wide, weights)));
        if (lane == 0) {
            of_warps[row][warp] = {sum, most};
        }
    }
    __syncthreads();
    const float width = eights * EIGHT;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        const float2 of_warp = lane < warps ? of_warps[row][lane] : float2{0.0f, 0.0f};
        const float sum = lane_sum<WARP>(of_warp.x), row_max = fmaxf(lane_max(of_warp.y), ROW_MAX_LEAST);
        if (has_column && row < rows_left) {
            output[start + row * eights] = to_fp8(times(widened(values[row]), weights), row_max);
            if (column == 0) {
                scales[first + row] = row_max / FP8_MAX * rsqrtf(__fdividef(sum, width) + eps);
            }
        }
    }
}

// input: [rows, 8 * eights]. weight: [8 * eights]. output: as input, in e4m3. scales: [rows].
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rms_norm_fp8(const uint4 *input, const float4 *weight, uint2 *output, float *scales, int rows, int eights,
                 float eps) {
    rms_norm_fp8_rows<NORM_FP8_ROWS>(input, weight, output, scales, rows, eights, eps);
}

// Where a row is held by a block: a thread's eights are a warp apart, the first one here. So warps hold it part by part, and
// one address serves all of a thread's.
template <int EIGHTS>
__device__ __forceinline__ int first_eight() {
    return threadIdx.x / WARP * (EIGHTS * WARP) + threadIdx.x % WARP;
}

// Writes a row that a block holds, and its scale.
template <int EIGHTS>
__device__ __forceinline__ void write_fp8(const Floats (&values)[EIGHTS], uint2 *__restrict__ output,
                                          float *__restrict__ scale, int eights) {
    __shared__ float of_warps[WARP];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    const int start = first_eight<EIGHTS>();
    float most = 0.0f;
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        most = fmaxf(most, largest(values[n]));
    }
    most = lane_max(most);
    if (lane == 0) {
        of_warps[warp] = most;
    }
    __syncthreads();
    const float row_max = fmaxf(lane_max(lane < warps ? of_warps[lane] : 0.0f), ROW_MAX_LEAST);
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        const int column = start + n * WARP;
        if (column < eights) {
            output[column] = to_fp8(values[n], row_max);
        }
    }
    if (threadIdx.x == 0) {
        *scale = row_max / FP8_MAX;
    }
}

// A block a row. Threads: enough for EIGHTS of each to hold it.
template <int EIGHTS>
__device__ __forceinline__ void gated_silu_fp8_row(const uint4 *__restrict__ gate_up, uint2 *__restrict__ output,
                                                   float *__restrict__ scales, int eights) {
    const size_t row = blockIdx.x;
    const uint4 *gates = gate_up + row * 2 * eights, *ups = gates + eights;
    const int start = first_eight<EIGHTS>();
    uint4 gate[EIGHTS], up[EIGHTS];
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        const int column = start + n * WARP;
        gate[n] = column < eights ? gates[column] : uint4{0, 0, 0, 0};
        up[n] = column < eights ? ups[column] : uint4{0, 0, 0, 0};
    }
    Floats values[EIGHTS];
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        values[n] = widened(gate[n]);
        const Floats factor = widened(up[n]);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) {
            values[n].at[i] = gated(values[n].at[i], factor.at[i]);
        }
    }
    write_fp8<EIGHTS>(values, output + row * eights, scales + row, eights);
}

// gate_up: [rows, 2 * 8 * eights], gate then up. output: [rows, 8 * eights], silu(gate) * up in e4m3. scales: [rows].
extern "C" __global__ void __launch_bounds__(SILU_FP8_THREADS_MAX, 2)
    gated_silu_fp8(const uint4 *gate_up, uint2 *output, float *scales, int eights) {
    gated_silu_fp8_row<SILU_FP8_EIGHTS>(gate_up, output, scales, eights);
}

// A block a row. Threads: enough for EIGHTS of each to hold it.
template <int EIGHTS>
__device__ __forceinline__ void quantize_row(const uint4 *__restrict__ input, uint2 *__restrict__ output,
                                             float *__restrict__ scales, int eights) {
    const size_t row = blockIdx.x;
    input += row * eights;
    const int start = first_eight<EIGHTS>();
    uint4 held[EIGHTS];
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        const int column = start + n * WARP;
        held[n] = column < eights ? input[column] : uint4{0, 0, 0, 0};
    }
    Floats values[EIGHTS];
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        values[n] = widened(held[n]);
    }
    write_fp8<EIGHTS>(values, output + row * eights, scales + row, eights);
}

// input: [rows, 8 * eights]. output: the same in e4m3. scales: [rows].
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    quantize_rows(const uint4 *input, uint2 *output, float *scales, int eights) {
    quantize_row<QUANTIZE_EIGHTS>(input, output, scales, eights);
}
