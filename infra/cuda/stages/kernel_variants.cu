// The engine's kernels in other sizes, and laid out in other ways, for kernels.py to time beside them. Each takes the
// arguments of the kernel whose name it begins with.

#include "kernels.cu"

#define ENTRY extern "C" __global__ void __launch_bounds__(THREADS_MAX)

#define RMS_NORM(rows_a_block)                                                                                         \
    ENTRY rms_norm_rows_##rows_a_block(const uint4 *input, const float4 *weight, uint4 *output, int rows, int eights,   \
                                       float eps) {                                                                    \
        rms_norm_rows<rows_a_block>(input, weight, output, rows, eights, eps);                                         \
    }
RMS_NORM(1)
RMS_NORM(2)
RMS_NORM(4)

// A warp a row, which waits for no other; the row's eights in its lanes' registers.
template <int EIGHTS>
__device__ __forceinline__ void rms_norm_warp_a_row(const uint4 *input, const float4 *__restrict__ weight, uint4 *output,
                                                    int rows, int eights, float eps) {
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    input += (size_t)row * eights;
    output += (size_t)row * eights;
    uint4 values[EIGHTS];
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        const int column = n * WARP + lane;
        values[n] = column < eights ? input[column] : uint4{0, 0, 0, 0};
    }
    asked_for();
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        sum += squares(widened(values[n]));
    }
    const float scale = rsqrtf(__fdividef(lane_sum<WARP>(sum), eights * EIGHT) + eps);
#pragma unroll
    for (int n = 0; n < EIGHTS; n++) {
        const int column = n * WARP + lane;
        if (column < eights) {
            const Floats weights = factors(weight, column);
            Floats normed = widened(values[n]);
#pragma unroll
            for (int i = 0; i < EIGHT; i++) {
                normed.at[i] *= scale * weights.at[i];
            }
            output[column] = narrowed(normed);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    rms_norm_warp(const uint4 *input, const float4 *weight, uint4 *output, int rows, int eights, float eps) {
    rms_norm_warp_a_row<10>(input, weight, output, rows, eights, eps);
}

#define NORM_AND_TURN(heads_a_warp)                                                                                    \
    ENTRY norm_and_turn_heads_##heads_a_warp(uint4 *values, int heads, int first, const float4 *first_weight,          \
                                             int second, const float4 *second_weight, const float4 *cos,               \
                                             const float4 *sin, float eps) {                                           \
        norm_and_turn_row<heads_a_warp>(values, heads, first, first_weight, second, second_weight, cos, sin, eps);     \
    }
NORM_AND_TURN(2)
NORM_AND_TURN(4)
NORM_AND_TURN(8)

#define GATED_SILU(eights_a_thread)                                                                                    \
    ENTRY gated_silu_eights_##eights_a_thread(const uint4 *gate_up, uint4 *output, int eights) {                       \
        gated_silu_part<eights_a_thread>(gate_up, output, blockIdx.x, blockIdx.y, gridDim.y, eights);                  \
    }
GATED_SILU(1)
GATED_SILU(2)
GATED_SILU(4)

// Parts along x: blocks that run at the same time lie side by side in memory. At most 65,535 rows.
#define GATED_SILU_ACROSS(eights_a_thread)                                                                             \
    ENTRY gated_silu_across_##eights_a_thread(const uint4 *gate_up, uint4 *output, int eights) {                       \
        gated_silu_part<eights_a_thread>(gate_up, output, blockIdx.y, blockIdx.x, gridDim.x, eights);                  \
    }
GATED_SILU_ACROSS(1)
GATED_SILU_ACROSS(2)
GATED_SILU_ACROSS(4)

#define GATHER(eights_a_lane)                                                                                          \
    ENTRY gather_eights_##eights_a_lane(const uint4 *source, size_t stride, unsigned source_rows,                      \
                                        const unsigned *rows, uint4 *output, int count, int units) {                   \
        gather_row<eights_a_lane>(source, stride, source_rows, rows, output, count, units);                            \
    }
GATHER(2)
GATHER(4)
GATHER(8)

#define RMS_NORM_FP8(rows_a_block)                                                                                     \
    ENTRY rms_norm_fp8_rows_##rows_a_block(const uint4 *input, const float4 *weight, uint2 *output, float *scales,     \
                                           int rows, int eights, float eps) {                                          \
        rms_norm_fp8_rows<rows_a_block>(input, weight, output, scales, rows, eights, eps);                             \
    }
RMS_NORM_FP8(1)
RMS_NORM_FP8(2)
RMS_NORM_FP8(4)

#define GATED_SILU_FP8(eights_a_thread)                                                                                \
    ENTRY gated_silu_fp8_eights_##eights_a_thread(const uint4 *gate_up, uint2 *output, float *scales, int eights) {    \
        gated_silu_fp8_row<eights_a_thread>(gate_up, output, scales, eights);                                          \
    }
GATED_SILU_FP8(2)
GATED_SILU_FP8(3)
GATED_SILU_FP8(4)

// Room for three blocks, as the engine's own has for four: 32 registers.
extern "C" __global__ void __launch_bounds__(640, 3)
    gated_silu_fp8_crowded_2(const uint4 *gate_up, uint2 *output, float *scales, int eights) {
    gated_silu_fp8_row<2>(gate_up, output, scales, eights);
}

#define QUANTIZE_ROWS(eights_a_thread)                                                                                 \
    ENTRY quantize_rows_eights_##eights_a_thread(const uint4 *input, uint2 *output, float *scales, int eights) {       \
        quantize_row<eights_a_thread>(input, output, scales, eights);                                                  \
    }
QUANTIZE_ROWS(1)
QUANTIZE_ROWS(2)
QUANTIZE_ROWS(4)
