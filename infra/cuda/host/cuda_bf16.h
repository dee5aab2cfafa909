// Enough of CUDA, on the host, to run kernels.cu block by block: a thread of the host for each thread of a block.
// Found before NVIDIA's header of the same name when the kernels are compiled as plain C++.
#pragma once

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block runs at a time.
#define __shared__ static

// As CUDA has them, reading and writing is all or nothing: an address that is not aligned is one that the test stops at.
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct Index {
    unsigned x = 1, y = 1;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

struct __nv_bfloat162 {
    uint16_t x, y;
};
inline float widen(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}
inline uint16_t narrow(float value) {
    if (std::isnan(value)) {
        return 0x7fff;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To the nearest, ties to even.
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {widen(pair.x), widen(pair.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {narrow(x), narrow(y)}; }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline float __expf(float value) { return std::exp(value); }
// As it is documented: 0 for divisors beyond 2^126, and no number where infinity is divided by such a one.
inline float __fdividef(float left, float right) {
    if (std::abs(right) > 0x1p126f) {
        return left * 0.0f;
    }
    return left / right;
}
using std::min;

constexpr unsigned LANES = 32;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
inline std::vector<uint32_t> lanes;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { warp_barriers[threadIdx.x / LANES]->arrive_and_wait(); }
template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int distance) {
    static_assert(sizeof value == sizeof lanes[0]);
    if (mask != 0xffffffffu || distance < 0 || distance >= int(LANES)) {
        std::printf("a shuffle by %d for lanes %x\n", distance, mask);
        std::exit(1);
    }
    std::memcpy(&lanes[threadIdx.x], &value, sizeof value);
    __syncwarp();
    Value other;
    std::memcpy(&other, &lanes[threadIdx.x ^ unsigned(distance)], sizeof other);
    __syncwarp();
    return other;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
    if (mask != 0xffffffffu) {
        std::printf("a maximum of lanes %x\n", mask);
        std::exit(1);
    }
    lanes[threadIdx.x] = value;
    __syncwarp();
    const auto warp = lanes.begin() + threadIdx.x / LANES * LANES;
    const unsigned most = *std::max_element(warp, warp + LANES);
    __syncwarp();
    return most;
}

// Runs a kernel's blocks one after the other, the last first: none may count on another.
template <typename Kernel, typename... Arguments>
void launch(Index grid, unsigned threads, Kernel kernel, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || threads == 0 || threads % LANES != 0 || threads > 1024) {
        std::printf("no GPU takes %u x %u blocks of %u threads, or not all of them in warps\n", grid.x, grid.y, threads);
        std::exit(1);
    }
    for (uint64_t block = uint64_t(grid.x) * grid.y; block-- > 0;) {
        block_barrier = std::make_unique<std::barrier<>>(threads);
        warp_barriers.clear();
        for (unsigned warp = 0; warp < threads / LANES; warp++) {
            warp_barriers.push_back(std::make_unique<std::barrier<>>(LANES));
        }
        lanes.assign(threads, 0);
        std::vector<std::thread> running;
        for (unsigned thread = 0; thread < threads; thread++) {
            running.emplace_back([=] {
                threadIdx = {thread, 0};
                blockIdx = {unsigned(block % grid.x), unsigned(block / grid.x)};
                blockDim = {threads, 1};
                gridDim = grid;
                kernel(arguments...);
            });
        }
        for (std::thread &thread : running) {
            thread.join();
        }
    }
}
