// What a layer does between its matrix products, each in one pass over memory: bf16 in and out, f32 inside.
// A row's values depend on that row alone, and its sums on its width: never on how many rows there are.
// Sizes are checked by kernels.rs: widths are multiples of eight values, heads have 128.

#include <cuda_bf16.h>

// Eight values. They go to and from memory as the 16 bytes of a uint4, the most a thread moves at once; member by member
// the compiler would move them in four steps.
struct Eight {
    __nv_bfloat162 pairs[4];
};

constexpr int WARP = 32;
constexpr int HEAD_DIM = 128;

__device__ __forceinline__ Eight load(const uint4 *from) {
    const uint4 bits = *from;
    Eight values;
    memcpy(&values, &bits, sizeof values);
    return values;
}

__device__ __forceinline__ void store(uint4 *to, const Eight &values) {
    uint4 bits;
    memcpy(&bits, &values, sizeof bits);
    *to = bits;
}

// The sum over a warp's lanes, in each of them.
__device__ __forceinline__ float warp_sum(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// The sum over a block's threads, in each of them. Called by all threads, once in a kernel.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float sums[WARP];
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        sums[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) {
        sum += sums[warp];
    }
    return sum;
}

// input and output: [rows, width]. weight: [width]. A block a row.
extern "C" __global__ void rms_norm(const uint4 *input, const float2 *weight, uint4 *output, int width, float eps) {
    const int eights = width / 8;
    input += (size_t)blockIdx.x * eights;
    output += (size_t)blockIdx.x * eights;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < eights; i += blockDim.x) {
        const Eight values = load(input + i);
        for (int pair = 0; pair < 4; pair++) {
            const float2 value = __bfloat1622float2(values.pairs[pair]);
            squares += value.x * value.x + value.y * value.y;
        }
    }
    const float scale = rsqrtf(block_sum(squares) / width + eps);
    // The row is read again: from the cache, where the first pass left it.
    for (int i = threadIdx.x; i < eights; i += blockDim.x) {
        const Eight values = load(input + i);
        Eight normed;
        for (int pair = 0; pair < 4; pair++) {
            const float2 value = __bfloat1622float2(values.pairs[pair]);
            const float2 factor = weight[4 * i + pair];
            normed.pairs[pair] = __floats2bfloat162_rn(value.x * scale * factor.x, value.y * scale * factor.y);
        }
        store(output + i, normed);
    }
}

// In place on [rows, heads, HEAD_DIM]: RMS-norms the first heads with one weight and the next with another, then turns
// each pair of values (i, i + HEAD_DIM / 2) by its row's angle; further heads are left alone.
// Weights: [HEAD_DIM]. cos and sin: [rows, HEAD_DIM / 2]. A warp a head; a lane holds two neighbouring pairs.
extern "C" __global__ void norm_and_turn(__nv_bfloat162 *values, size_t rows, int heads, int first,
                                         const float2 *first_weight, int second, const float2 *second_weight,
                                         const float2 *cos, const float2 *sin, float eps) {
    const size_t task = (size_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const int turned = first + second;
    const size_t row = task / turned;
    const int head = task % turned;
    const int lane = threadIdx.x % WARP;
    // The same for all lanes of a warp: none is missed in the sum.
    if (row >= rows) {
        return;
    }
    __nv_bfloat162 *left = values + (row * heads + head) * (HEAD_DIM / 2) + lane;
    __nv_bfloat162 *right = left + HEAD_DIM / 4;
    float2 a = __bfloat1622float2(*left);
    float2 b = __bfloat1622float2(*right);
    const float squares = warp_sum(a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y);
    const float scale = rsqrtf(squares / HEAD_DIM + eps);
    const float2 *weight = head < first ? first_weight : second_weight;
    const float2 left_weight = weight[lane];
    const float2 right_weight = weight[lane + HEAD_DIM / 4];
    a.x *= scale * left_weight.x;
    a.y *= scale * left_weight.y;
    b.x *= scale * right_weight.x;
    b.y *= scale * right_weight.y;
    const float2 c = cos[row * (HEAD_DIM / 4) + lane];
    const float2 s = sin[row * (HEAD_DIM / 4) + lane];
    *left = __floats2bfloat162_rn(a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y);
    *right = __floats2bfloat162_rn(b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y);
}

// gate_up: [rows, 2 * inner], gate then up. output: [rows, inner], silu(gate) * up. A thread eight outputs.
extern "C" __global__ void gated_silu(const uint4 *gate_up, uint4 *output, size_t rows, int inner) {
    const int eights = inner / 8;
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const size_t row = i / eights;
    const size_t column = i % eights;
    if (row >= rows) {
        return;
    }
    const Eight gates = load(gate_up + row * 2 * eights + column);
    const Eight ups = load(gate_up + (row * 2 + 1) * eights + column);
    Eight gated;
    for (int pair = 0; pair < 4; pair++) {
        const float2 gate = __bfloat1622float2(gates.pairs[pair]);
        const float2 up = __bfloat1622float2(ups.pairs[pair]);
        gated.pairs[pair] =
            __floats2bfloat162_rn(gate.x / (1.0f + __expf(-gate.x)) * up.x, gate.y / (1.0f + __expf(-gate.y)) * up.y);
    }
    store(output + i, gated);
}
