// Runs the kernels on the host and compares with the same sums written plainly: what an index or a sign does wrong shows
// on a machine without a GPU. usage: kernels_test

#include "../../../worker/src/engine/cuda/kernels.cu"

#include <cstdio>
#include <cstdlib>
#include <random>

static std::mt19937 generator(1);

// Values as bf16 has them.
static std::vector<uint16_t> random_bf16(size_t count) {
    std::normal_distribution<float> normal(0.0f, 2.0f);
    std::vector<uint16_t> values(count);
    for (uint16_t &value : values) {
        value = narrow(normal(generator));
    }
    return values;
}

static std::vector<float> random_f32(size_t count) {
    std::uniform_real_distribution<float> uniform(-1.5f, 1.5f);
    std::vector<float> values(count);
    for (float &value : values) {
        value = uniform(generator);
    }
    return values;
}

// Equal but for the rounding to bf16, which may fall to either side.
static void expect(const char *what, size_t place, uint16_t found, double expected) {
    const double difference = std::abs(widen(found) - expected);
    if (!(difference <= std::abs(expected) / 128.0 + 1e-6)) {
        std::printf("%s: value %zu is %g, not %g\n", what, place, widen(found), expected);
        std::exit(1);
    }
}

static void test_rms_norm(unsigned rows, int width) {
    const auto input = random_bf16(size_t(rows) * width);
    const auto weight = random_f32(width);
    std::vector<uint16_t> output(input.size());
    launch(rows, 128, rms_norm, (const uint4 *)input.data(), (const float2 *)weight.data(), (uint4 *)output.data(), width,
           1e-6f);
    for (size_t row = 0; row < rows; row++) {
        double squares = 0.0;
        for (int i = 0; i < width; i++) {
            squares += std::pow(widen(input[row * width + i]), 2);
        }
        for (int i = 0; i < width; i++) {
            const size_t place = row * width + i;
            expect("rms_norm", place, output[place],
                   widen(input[place]) / std::sqrt(squares / width + 1e-6) * weight[i]);
        }
    }
}

static void test_norm_and_turn(size_t rows, int heads, int first, int second) {
    const int dim = HEAD_DIM, half = dim / 2;
    const auto before = random_bf16(rows * heads * dim);
    auto after = before;
    const auto first_weight = random_f32(dim), second_weight = random_f32(dim);
    const auto angle = random_f32(rows * half);
    std::vector<float> cosines, sines;
    for (float a : angle) {
        cosines.push_back(std::cos(a));
        sines.push_back(std::sin(a));
    }
    const unsigned blocks = unsigned((rows * (first + second) + 7) / 8);
    launch(blocks, 256, norm_and_turn, (__nv_bfloat162 *)after.data(), rows, heads, first,
           (const float2 *)first_weight.data(), second, (const float2 *)second_weight.data(),
           (const float2 *)cosines.data(), (const float2 *)sines.data(), 1e-6f);
    for (size_t row = 0; row < rows; row++) {
        for (int head = 0; head < heads; head++) {
            const size_t start = (row * heads + head) * dim;
            if (head >= first + second) {
                if (std::memcmp(&before[start], &after[start], dim * sizeof(uint16_t)) != 0) {
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
                const double left = a * c - b * s, right = b * c + a * s;
                expect("norm_and_turn", start + i, after[start + i], left + std::copysign(slack, left));
                expect("norm_and_turn", start + half + i, after[start + half + i], right + std::copysign(slack, right));
            }
        }
    }
}

static void test_gated_silu(size_t rows, int inner) {
    const auto gate_up = random_bf16(rows * 2 * inner);
    std::vector<uint16_t> output(rows * inner);
    const unsigned blocks = unsigned((output.size() / 8 + 255) / 256);
    launch(blocks, 256, gated_silu, (const uint4 *)gate_up.data(), (uint4 *)output.data(), rows, inner);
    for (size_t row = 0; row < rows; row++) {
        for (int i = 0; i < inner; i++) {
            const double gate = widen(gate_up[row * 2 * inner + i]), up = widen(gate_up[(row * 2 + 1) * inner + i]);
            expect("gated_silu", row * inner + i, output[row * inner + i], gate / (1.0 + std::exp(-gate)) * up);
        }
    }
}

int main() {
    // Widths of the models, and such as leave threads without work.
    for (int width : {8, 128, 1024, 2560, 4096}) {
        test_rms_norm(3, width);
    }
    test_norm_and_turn(5, 48, 32, 8);
    test_norm_and_turn(3, 16, 8, 0);
    test_norm_and_turn(7, 3, 1, 1);
    for (int inner : {8, 128, 3072, 9728}) {
        test_gated_silu(3, inner);
    }
    std::puts("kernels on the host: as expected");
}
