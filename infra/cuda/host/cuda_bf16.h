// Enough of CUDA, on the host, to run kernels.cu block by block: a thread of the host for each thread of a block.
// Found before NVIDIA's header of the same name when the kernels are compiled as plain C++.
#pragma once

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
// One block runs at a time.
#define __shared__ static

struct uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct Index {
    unsigned x;
};
inline thread_local Index threadIdx, blockIdx, blockDim;

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
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To the nearest, ties to even.
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {widen(pair.x), widen(pair.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {narrow(x), narrow(y)}; }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline float __expf(float value) { return std::exp(value); }

constexpr unsigned LANES = 32;
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
inline std::vector<float> lanes;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline float __shfl_xor_sync(unsigned, float value, int distance) {
    std::barrier<> &warp = *warp_barriers[threadIdx.x / LANES];
    lanes[threadIdx.x] = value;
    warp.arrive_and_wait();
    const float other = lanes[threadIdx.x ^ unsigned(distance)];
    warp.arrive_and_wait();
    return other;
}

// Runs a kernel's blocks one after the other.
template <typename Kernel, typename... Arguments>
void launch(unsigned blocks, unsigned threads, Kernel kernel, Arguments... arguments) {
    for (unsigned block = 0; block < blocks; block++) {
        block_barrier = std::make_unique<std::barrier<>>(threads);
        warp_barriers.clear();
        for (unsigned warp = 0; warp < threads / LANES; warp++) {
            warp_barriers.push_back(std::make_unique<std::barrier<>>(LANES));
        }
        lanes.assign(threads, 0.0f);
        std::vector<std::thread> running;
        for (unsigned thread = 0; thread < threads; thread++) {
            running.emplace_back([=] {
                threadIdx = {thread};
                blockIdx = {block};
                blockDim = {threads};
                kernel(arguments...);
            });
        }
        for (std::thread &thread : running) {
            thread.join();
        }
    }
}
