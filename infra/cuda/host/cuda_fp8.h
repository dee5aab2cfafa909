// What kernels.cu uses of CUDA's header of the same name, on the host.
#pragma once

#include "cuda_bf16.h"

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

// The bits of a value in e4m3: to the nearest, ties to even, and to 448 beyond it. Eight numbers for each power of two from
// 2^-6 to 2^8, and as many evenly below, down to zero.
inline __nv_fp8_storage_t narrow_e4m3(float value) {
    const unsigned sign = std::signbit(value) ? 0x80 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(magnitude)) {
        return 0x7f;
    }
    if (magnitude >= 448.0f) {
        return __nv_fp8_storage_t(sign | 0x7e);
    }
    const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
    // Eighths, exactly, then rounded: 16 are the next power's first, and have its bits.
    const unsigned eighths = unsigned(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    return __nv_fp8_storage_t(sign | (unsigned(exponent + 6) * 8 + eighths));
}

inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 pair, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t interpretation) {
    if (saturation != __NV_SATFINITE || interpretation != __NV_E4M3) {
        std::printf("only e4m3 that saturates is here\n");
        std::exit(1);
    }
    return __nv_fp8x2_storage_t(narrow_e4m3(pair.x) | narrow_e4m3(pair.y) << 8);
}
