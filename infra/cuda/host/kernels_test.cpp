// Runs the kernels on the host and compares with the same sums written plainly: what an index or a sign does wrong shows
// on a machine without a GPU. Each row is run alone too: it must have the same bits. usage: kernels_test

#include "../../../worker/src/engine/cuda/kernels.cu"

#include <random>

static std::mt19937 generator(1);

// Memory as a GPU gives it, aligned; with values behind the end that nothing may read or write.
template <typename Value>
struct Memory {
    static constexpr size_t BEHIND = 64;
    size_t count;
    std::unique_ptr<Value, void (*)(void *)> values;

    explicit Memory(size_t count)
        : count(count), values((Value *)std::aligned_alloc(256, (count + BEHIND + 255) / 256 * 256 * sizeof(Value)),
                               std::free) {
        std::memset(values.get(), 0xff, (count + BEHIND) * sizeof(Value));
    }
    Memory(const Memory &other) : Memory(other.count) { std::memcpy(values.get(), other.at(0), count * sizeof(Value)); }
    Value &operator[](size_t place) { return values.get()[place]; }
    const Value &operator[](size_t place) const { return values.get()[place]; }
    Value *at(size_t place) const { return values.get() + place; }
    void expect_end(const char *what) const {
        for (size_t byte = 0; byte < BEHIND * sizeof(Value); byte++) {
            if (((unsigned char *)at(count))[byte] != 0xff) {
                std::printf("%s: wrote beyond the end\n", what);
                std::exit(1);
            }
        }
    }
};
using Bf16 = Memory<uint16_t>;
using F32 = Memory<float>;

// Values as bf16 has them.
static Bf16 random_bf16(size_t count) {
    std::normal_distribution<float> normal(0.0f, 2.0f);
    Bf16 values(count);
    for (size_t place = 0; place < count; place++) {
        values[place] = narrow(normal(generator));
    }
    return values;
}

static F32 random_f32(size_t count) {
    std::uniform_real_distribution<float> uniform(-1.5f, 1.5f);
    F32 values(count);
    for (size_t place = 0; place < count; place++) {
        values[place] = uniform(generator);
    }
    return values;
}

// Equal but for the rounding to bf16, which may fall to either side, and for `slack`.
static void expect(const char *what, size_t place, uint16_t found, double expected, double slack = 1e-6) {
    const double difference = std::abs(widen(found) - expected);
    if (!(difference <= std::abs(expected) / 128.0 + slack)) {
        std::printf("%s: value %zu is %g, not %g\n", what, place, widen(found), expected);
        std::exit(1);
    }
}

static void expect_bits(const char *what, size_t row, const void *alone, const void *among, size_t bytes) {
    if (std::memcmp(alone, among, bytes) != 0) {
        std::printf("%s: row %zu is not the same alone and among others\n", what, row);
        std::exit(1);
    }
}

// Whole warps for so many threads.
static unsigned warps(unsigned threads) { return (threads + WARP - 1) / WARP * WARP; }

static void run_rms_norm(const uint16_t *input, const F32 &weight, uint16_t *output, unsigned rows, int width) {
    const int eights = width / EIGHT;
    launch({(rows + NORM_ROWS - 1) / NORM_ROWS, 1}, warps(eights), rms_norm, (const uint4 *)input,
           (const float4 *)weight.at(0), (uint4 *)output, int(rows), eights, 1e-6f);
}

static void test_rms_norm(unsigned rows, int width) {
    const auto input = random_bf16(size_t(rows) * width);
    const auto weight = random_f32(width);
    Bf16 output(input.count), alone(width);
    run_rms_norm(input.at(0), weight, output.at(0), rows, width);
    output.expect_end("rms_norm");
    for (size_t row = 0; row < rows; row++) {
        double squares = 0.0;
        for (int i = 0; i < width; i++) {
            squares += std::pow(widen(input[row * width + i]), 2);
        }
        for (int i = 0; i < width; i++) {
            const size_t place = row * width + i;
            expect("rms_norm", place, output[place], widen(input[place]) / std::sqrt(squares / width + 1e-6) * weight[i]);
        }
        run_rms_norm(input.at(row * width), weight, alone.at(0), 1, width);
        expect_bits("rms_norm", row, alone.at(0), output.at(row * width), width * sizeof(uint16_t));
    }
}

static void run_norm_and_turn(uint16_t *values, unsigned rows, int heads, int first, const F32 &first_weight, int second,
                              const F32 &second_weight, const float *cos, const float *sin) {
    const unsigned row_warps = (first + WARP_HEADS - 1) / WARP_HEADS + (second + WARP_HEADS - 1) / WARP_HEADS;
    launch({rows, 1}, row_warps * WARP, norm_and_turn, (uint4 *)values, heads, first, (const float4 *)first_weight.at(0),
           second, (const float4 *)second_weight.at(0), (const float4 *)cos, (const float4 *)sin, 1e-6f);
}

static void test_norm_and_turn(unsigned rows, int heads, int first, int second) {
    const int dim = HEAD_DIM, half = dim / 2;
    const auto before = random_bf16(size_t(rows) * heads * dim);
    auto after = before, alone = before;
    const auto first_weight = random_f32(dim), second_weight = random_f32(dim);
    const auto angle = random_f32(rows * half);
    F32 cosines(angle.count), sines(angle.count);
    for (size_t place = 0; place < angle.count; place++) {
        cosines[place] = std::cos(angle[place]);
        sines[place] = std::sin(angle[place]);
    }
    run_norm_and_turn(after.at(0), rows, heads, first, first_weight, second, second_weight, cosines.at(0), sines.at(0));
    after.expect_end("norm_and_turn");
    for (size_t row = 0; row < rows; row++) {
        for (int head = 0; head < heads; head++) {
            const size_t start = (row * heads + head) * dim;
            if (head >= first + second) {
                if (std::memcmp(before.at(start), after.at(start), dim * sizeof(uint16_t)) != 0) {
                    std::printf("norm_and_turn: head %d of row %zu is not left alone\n", head, row);
                    std::exit(1);
                }
                continue;
            }
            const auto &weight = head < first ? first_weight : second_weight;
            double squares = 0.0;
            for (int i = 0; i < dim; i++) {
                squares += std::pow(widen(before[start + i]), 2);
            }
            const double scale = 1.0 / std::sqrt(squares / dim + 1e-6);
            for (int i = 0; i < half; i++) {
                const double a = widen(before[start + i]) * scale * weight[i];
                const double b = widen(before[start + half + i]) * scale * weight[half + i];
                const double c = cosines[row * half + i], s = sines[row * half + i];
                // Where the two products cancel, their rounding is what is left.
                const double slack = (std::abs(a) + std::abs(b)) * 1e-6;
                expect("norm_and_turn", start + i, after[start + i], a * c - b * s, slack);
                expect("norm_and_turn", start + half + i, after[start + half + i], b * c + a * s, slack);
            }
        }
        const size_t start = row * heads * dim;
        run_norm_and_turn(alone.at(start), 1, heads, first, first_weight, second, second_weight, cosines.at(row * half),
                          sines.at(row * half));
        expect_bits("norm_and_turn", row, alone.at(start), after.at(start), heads * dim * sizeof(uint16_t));
    }
}

// As kernels.rs cuts a row into parts.
static void run_gated_silu(const uint16_t *gate_up, uint16_t *output, unsigned rows, int inner) {
    const unsigned eights = inner / EIGHT, threads_max = 256;
    const unsigned parts = (eights + threads_max * SILU_EIGHTS - 1) / (threads_max * SILU_EIGHTS);
    const unsigned threads = warps((eights + parts * SILU_EIGHTS - 1) / (parts * SILU_EIGHTS));
    launch({parts, rows}, threads, gated_silu, (const uint4 *)gate_up, (uint4 *)output, int(eights));
}

static void test_gated_silu(unsigned rows, int inner) {
    auto gate_up = random_bf16(size_t(rows) * 2 * inner);
    // Gates as large as they come: their power is infinite, or the quotient too small for a float.
    const float extremes[] = {-1e30f, -200.0f, -89.0f, -88.0f, -87.5f, 87.5f, 200.0f, 1e30f};
    for (int i = 0; i < 8; i++) {
        gate_up[i] = narrow(extremes[i]);
    }
    Bf16 output(size_t(rows) * inner), alone(inner);
    run_gated_silu(gate_up.at(0), output.at(0), rows, inner);
    output.expect_end("gated_silu");
    for (size_t row = 0; row < rows; row++) {
        for (int i = 0; i < inner; i++) {
            const double gate = widen(gate_up[row * 2 * inner + i]), up = widen(gate_up[(row * 2 + 1) * inner + i]);
            expect("gated_silu", row * inner + i, output[row * inner + i], gate / (1.0 + std::exp(-gate)) * up);
        }
        run_gated_silu(gate_up.at(row * 2 * inner), alone.at(0), 1, inner);
        expect_bits("gated_silu", row, alone.at(0), output.at(row * inner), inner * sizeof(uint16_t));
    }
}

// Rows of `units` times 16 bytes from `before` on, out of wider ones; some twice, and one that is not there.
static void test_gather(unsigned source_rows, size_t stride, size_t before, int units, unsigned count) {
    const auto source = random_bf16(source_rows * stride * EIGHT);
    Memory<unsigned> rows(count);
    for (unsigned row = 0; row < count; row++) {
        rows[row] = generator() % source_rows;
    }
    const unsigned missing = count / 2;
    rows[missing] = source_rows;
    Bf16 output(size_t(count) * units * EIGHT);
    std::memset(output.at(0), 0, output.count * sizeof(uint16_t));
    launch({(count + 7) / 8, 1}, 256, gather, (const uint4 *)source.at(before * EIGHT), stride, source_rows,
           (const unsigned *)rows.at(0), (uint4 *)output.at(0), int(count), units);
    output.expect_end("gather");
    const std::vector<unsigned char> nothing(units * sizeof(uint4), 0xff);
    for (unsigned row = 0; row < count; row++) {
        const void *expected = source.at((rows[row] * stride + before) * EIGHT);
        expect_bits("gather", row, row == missing ? nothing.data() : expected, output.at(size_t(row) * units * EIGHT),
                    units * sizeof(uint4));
    }
}

// Rows of all kinds, in turn: as they come, zeros, huge, tiny, too tiny to be told from zero, and one value above all others.
static const double SIZES[] = {1.0, 0.0, 1e15, 1e-25, 1e-35, 1e-4};
constexpr unsigned ROW_KINDS = 6;

static void resize_rows(Bf16 &rows, size_t width, size_t first, size_t count) {
    for (size_t row = 0; row < rows.count / width; row++) {
        const double size = SIZES[row % ROW_KINDS];
        for (size_t i = row * width + first; i < row * width + first + count; i++) {
            rows[i] = narrow(float(widen(rows[i]) * size));
        }
        if (size == 1e-4) {
            rows[row * width + first + count / 3] = narrow(-30.0f);
        }
    }
}

using Fp8 = Memory<uint8_t>;

static double decoded(uint8_t bits) {
    const int exponent = bits >> 3 & 15, eighths = bits & 7;
    if (exponent == 15 && eighths == 7) {
        return NAN;
    }
    const double magnitude = exponent == 0 ? std::ldexp(eighths, -9) : std::ldexp(8 + eighths, exponent - 10);
    return bits & 0x80 ? -magnitude : magnitude;
}

// A row whose largest value is 448, or -448, times its scale, and whose values are as near as e4m3 comes. least: what the
// largest counts as at least.
static void expect_fp8(const char *what, const uint8_t *found, float scale, const std::vector<double> &exact,
                       double least) {
    double largest = 0.0;
    for (double value : exact) {
        largest = std::max(largest, std::abs(value));
    }
    const double expected = std::max(largest, least) / 448.0;
    if (!(std::abs(scale - expected) <= 1e-5 * expected) || !std::isnormal(scale)) {
        std::printf("%s: a scale is %g, not %g\n", what, scale, expected);
        std::exit(1);
    }
    for (size_t i = 0; i < exact.size(); i++) {
        // What f32 leaves of a value may tip it over to the other side of half a step.
        const double value = std::abs(exact[i]), step = std::ldexp(1.0, std::max(std::ilogb(value / scale), -6) - 3);
        if (!(std::abs(decoded(found[i]) * scale - exact[i]) <= 0.5 * step * scale + 1e-5 * value)) {
            std::printf("%s: value %zu is %g * %g, not %g\n", what, i, decoded(found[i]), scale, exact[i]);
            std::exit(1);
        }
        if (value == largest && largest >= least && std::abs(decoded(found[i])) != 448.0) {
            std::printf("%s: the largest value, %g, is %g\n", what, exact[i], decoded(found[i]));
            std::exit(1);
        }
    }
}

// Rows in e4m3, as a kernel left them.
struct Fp8Rows {
    Fp8 values;
    F32 scales;
    Fp8Rows(unsigned rows, int width) : values(size_t(rows) * width), scales(rows) {}
    uint2 *output() { return (uint2 *)values.at(0); }
    void expect_end(const char *what) const {
        values.expect_end(what);
        scales.expect_end(what);
    }
    void expect_alone(const char *what, size_t row, const Fp8Rows &alone) const {
        expect_bits(what, row, alone.values.at(0), values.at(row * alone.values.count), alone.values.count);
        expect_bits(what, row, alone.scales.at(0), scales.at(row), sizeof(float));
    }
};

static void run_rms_norm_fp8(const uint16_t *input, const F32 &weight, Fp8Rows &output, unsigned rows, int width) {
    const int eights = width / EIGHT;
    launch({(rows + NORM_FP8_ROWS - 1) / NORM_FP8_ROWS, 1}, warps(eights), rms_norm_fp8, (const uint4 *)input,
           (const float4 *)weight.at(0), output.output(), output.scales.at(0), int(rows), eights, 1e-6f);
    output.expect_end("rms_norm_fp8");
}

static void test_rms_norm_fp8(unsigned rows, int width) {
    auto input = random_bf16(size_t(rows) * width);
    resize_rows(input, width, 0, width);
    const auto weight = random_f32(width);
    Fp8Rows output(rows, width), alone(1, width);
    run_rms_norm_fp8(input.at(0), weight, output, rows, width);
    for (size_t row = 0; row < rows; row++) {
        double squares = 0.0;
        for (int i = 0; i < width; i++) {
            squares += std::pow(widen(input[row * width + i]), 2);
        }
        const double norm = 1.0 / std::sqrt(squares / width + 1e-6);
        std::vector<double> exact(width);
        for (int i = 0; i < width; i++) {
            exact[i] = widen(input[row * width + i]) * norm * weight[i];
        }
        expect_fp8("rms_norm_fp8", output.values.at(row * width), output.scales[row], exact, ROW_MAX_LEAST * norm);
        run_rms_norm_fp8(input.at(row * width), weight, alone, 1, width);
        output.expect_alone("rms_norm_fp8", row, alone);
    }
}

static void run_gated_silu_fp8(const uint16_t *gate_up, Fp8Rows &output, unsigned rows, int inner) {
    const int eights = inner / EIGHT;
    const unsigned threads = warps((eights + SILU_FP8_EIGHTS - 1) / SILU_FP8_EIGHTS);
    launch({rows, 1}, threads, gated_silu_fp8, (const uint4 *)gate_up, output.output(), output.scales.at(0), eights);
    output.expect_end("gated_silu_fp8");
}

static void test_gated_silu_fp8(unsigned rows, int inner) {
    auto gate_up = random_bf16(size_t(rows) * 2 * inner);
    resize_rows(gate_up, 2 * inner, inner, inner);
    const float extremes[] = {-1e30f, -200.0f, -89.0f, -88.0f, -87.5f, 87.5f, 200.0f, 1e5f};
    for (int i = 0; i < 8; i++) {
        gate_up[i] = narrow(extremes[i]);
    }
    Fp8Rows output(rows, inner), alone(1, inner);
    run_gated_silu_fp8(gate_up.at(0), output, rows, inner);
    for (size_t row = 0; row < rows; row++) {
        std::vector<double> exact(inner);
        for (int i = 0; i < inner; i++) {
            const double gate = widen(gate_up[row * 2 * inner + i]), up = widen(gate_up[(row * 2 + 1) * inner + i]);
            exact[i] = gate / (1.0 + std::exp(-gate)) * up;
        }
        expect_fp8("gated_silu_fp8", output.values.at(row * inner), output.scales[row], exact, ROW_MAX_LEAST);
        run_gated_silu_fp8(gate_up.at(row * 2 * inner), alone, 1, inner);
        output.expect_alone("gated_silu_fp8", row, alone);
    }
}

static void run_quantize_rows(const uint16_t *input, Fp8Rows &output, unsigned rows, int width) {
    const int eights = width / EIGHT;
    const unsigned threads = warps((eights + QUANTIZE_EIGHTS - 1) / QUANTIZE_EIGHTS);
    launch({rows, 1}, threads, quantize_rows, (const uint4 *)input, output.output(), output.scales.at(0), eights);
    output.expect_end("quantize_rows");
}

static void test_quantize_rows(unsigned rows, int width) {
    auto input = random_bf16(size_t(rows) * width);
    resize_rows(input, width, 0, width);
    // The largest there are.
    input[0] = narrow(3e38f);
    Fp8Rows output(rows, width), alone(1, width);
    run_quantize_rows(input.at(0), output, rows, width);
    for (size_t row = 0; row < rows; row++) {
        std::vector<double> exact(width);
        for (int i = 0; i < width; i++) {
            exact[i] = widen(input[row * width + i]);
        }
        expect_fp8("quantize_rows", output.values.at(row * width), output.scales[row], exact, ROW_MAX_LEAST);
        run_quantize_rows(input.at(row * width), alone, 1, width);
        output.expect_alone("quantize_rows", row, alone);
    }
}

// What is no finite number is none afterwards either, and spoils no other row.
static void test_not_finite() {
    constexpr int width = 264;
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        for (int place : {0, 100, width - 1}) {
            const auto good = random_bf16(3 * width);
            auto input = good;
            input[width + place] = narrow(bad);
            const auto weight = random_f32(width);
            Fp8Rows normed(3, width), normed_good(3, width), quantized(3, width), quantized_good(3, width);
            run_rms_norm_fp8(input.at(0), weight, normed, 3, width);
            run_rms_norm_fp8(good.at(0), weight, normed_good, 3, width);
            run_quantize_rows(input.at(0), quantized, 3, width);
            run_quantize_rows(good.at(0), quantized_good, 3, width);
            for (const auto &[found, among_good] : {std::pair(&normed, &normed_good), {&quantized, &quantized_good}}) {
                if (std::isfinite(decoded(found->values[width + place]) * found->scales[1])) {
                    std::printf("in e4m3, %g is a number\n", bad);
                    std::exit(1);
                }
                for (size_t row : {0, 2}) {
                    expect_bits("beside a bad row", row, among_good->values.at(row * width), found->values.at(row * width),
                                width);
                }
            }
        }
    }
}

int main() {
    // Widths of the models, and such as leave threads without work; blocks with all of their rows, and without.
    for (int width : {8, 128, 264, 1024, 2560, 4096, 8192}) {
        test_rms_norm(3, width);
    }
    test_rms_norm(1, 2560);
    test_rms_norm(8, 1024);
    // The models' layers, the parts of their last, and counts that leave warps and half-warps without a head.
    test_norm_and_turn(5, 48, 32, 8);
    test_norm_and_turn(2, 32, 16, 8);
    test_norm_and_turn(3, 16, 8, 0);
    test_norm_and_turn(3, 32, 32, 0);
    test_norm_and_turn(7, 3, 1, 1);
    test_norm_and_turn(2, 30, 11, 9);
    test_norm_and_turn(1, 256, 247, 7);
    for (int inner : {8, 128, 1000, 3072, 9728}) {
        test_gated_silu(3, inner);
    }
    // Keys and values out of rows of heads, embeddings, angles, and less than a warp has lanes.
    test_gather(6, 768, 512, 256, 9);
    test_gather(11, 320, 0, 320, 17);
    test_gather(5, 16, 0, 16, 8);
    test_gather(3, 7, 2, 1, 3);
    test_gather(1, 5, 0, 5, 1);
    for (int width : {8, 264, 2560}) {
        test_rms_norm_fp8(ROW_KINDS + 1, width);
    }
    test_rms_norm_fp8(1, 8192);
    for (int inner : {8, 264, 1000, 3072, 9728}) {
        test_gated_silu_fp8(ROW_KINDS, inner);
    }
    test_gated_silu_fp8(1, SILU_FP8_THREADS_MAX * SILU_FP8_EIGHTS * EIGHT);
    for (int width : {8, 264, 1000, 2560, 9728}) {
        test_quantize_rows(ROW_KINDS, width);
    }
    test_quantize_rows(1, THREADS_MAX * QUANTIZE_EIGHTS * EIGHT);
    test_not_finite();
    std::puts("kernels on the host: as expected");
}
