// SPDX-License-Identifier: Apache-2.0
// Matrix products of every table: bit-for-bit invariance of a row under batching, partition and
// packing; distance from the exact value within bounds that follow from the number of operations.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "kernels/test_weights.h"

namespace kvrm {
namespace {

#ifdef KVRM_BREAK_INVARIANCE
constexpr bool kBroken = true;
#else
constexpr bool kBroken = false;
#endif

template <typename T>
T* Align64(std::vector<T>& storage) {
  const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
  return storage.data() + (64 - address % 64) % 64 / sizeof(T);
}

// One weight matrix as a table wants it.
class Operand {
 public:
  Operand(const CpuKernels& table, DType type, std::uint32_t rows, std::uint32_t cols,
          std::vector<std::uint8_t> file)
      : table_(table),
        kernel_(table.mat[static_cast<int>(type)]),
        file_(std::move(file)),
        w_{file_.data(), rows, cols, type} {
    if (kernel_.packed_bytes == nullptr) return;
    storage_.assign(kernel_.packed_bytes(rows, cols) + 64, 0xa5);
    w_.data = Align64(storage_);
    // In three pieces, as workers would.
    const std::uint32_t a = rows / 3 / kOutTile * kOutTile;
    const std::uint32_t b = rows * 2 / 3 / kOutTile * kOutTile;
    kernel_.pack(Align64(storage_), file_.data(), rows, cols, b, rows);
    kernel_.pack(Align64(storage_), file_.data(), rows, cols, 0, a);
    kernel_.pack(Align64(storage_), file_.data(), rows, cols, a, b);
  }

  std::vector<float> Row(std::uint32_t row) const {
    std::vector<float> values(w_.cols);
    kernel_.row(w_, row, values.data());
    return values;
  }

  // y[num_tokens][rows] = y or 0 plus the product, in the given partition of the outputs.
  void MatMul(const std::vector<float>& x, std::uint32_t num_tokens, const float* bias,
              bool accumulate, const std::vector<std::uint32_t>& cuts,
              std::vector<float>* y) const {
    const ActKernel& act = table_.act[static_cast<int>(kernel_.act)];
    const std::size_t stride = act.bytes(w_.cols);
    std::vector<std::uint8_t> storage(stride * num_tokens + 64);
    std::uint8_t* prepared = Align64(storage);
    for (std::uint32_t t = 0; t < num_tokens; ++t)
      act.prepare(x.data() + std::size_t{t} * w_.cols, prepared + t * stride, w_.cols, 0, w_.cols);
    std::vector<std::uint8_t> scratch(kMatMulScratchBytes + 64, 0xff);
    y->resize(std::size_t{num_tokens} * w_.rows);
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
      kernel_.matmul({.w = w_,
                      .x = prepared,
                      .x_stride = stride,
                      .y = y->data(),
                      .y_stride = w_.rows,
                      .bias = bias,
                      .num_tokens = num_tokens,
                      .out_begin = cuts[i],
                      .out_end = cuts[i + 1],
                      .accumulate = accumulate,
                      .scratch = Align64(scratch)});
  }

 private:
  const CpuKernels& table_;
  const MatKernel& kernel_;
  const std::vector<std::uint8_t> file_;
  PackedMatrix w_;
  std::vector<std::uint8_t> storage_;
};

bool SameBits(const float* a, const float* b, std::size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

std::string Name(const CpuKernels& table, DType type) {
  return std::string(table.name) + " " + DTypeName(type);
}

// Each token alone and all outputs at once, against `num_tokens` together in random pieces.
void CheckInvariance(const CpuKernels& table, DType type, std::uint32_t rows, std::uint32_t cols,
                     std::uint64_t seed) {
  Rng rng(seed);
  const Operand operand(table, type, rows, cols, RandomWeights(rng, type, rows, cols));
  constexpr std::uint32_t kMaxTokens = 75;
  const std::vector<float> x = Normals(rng, std::size_t{kMaxTokens} * cols);
  const std::vector<float> bias = Normals(rng, rows);
  const std::vector<float> before = Normals(rng, std::size_t{kMaxTokens} * rows);
  bool same = true;
  for (const bool accumulate : {false, true}) {
    std::vector<float> alone;
    for (std::uint32_t t = 0; t < kMaxTokens; ++t) {
      std::vector<float> y(&before[t * rows], &before[t * rows] + rows);
      operand.MatMul({&x[std::size_t{t} * cols], &x[std::size_t{t} * cols] + cols}, 1, bias.data(),
                     accumulate, {0, rows}, &y);
      alone.insert(alone.end(), y.begin(), y.end());
    }
    for (std::uint32_t n = 1; n <= kMaxTokens;
         n += n < 10 ? 1 : 1 + static_cast<std::uint32_t>(rng.Below(5))) {
      std::vector<std::uint32_t> cuts = {0};
      while (cuts.back() < rows)
        cuts.push_back(
            std::min(rows, cuts.back() + kOutTile * static_cast<std::uint32_t>(rng.Between(1, 7))));
      std::vector<float> y = before;
      operand.MatMul(x, n, bias.data(), accumulate, cuts, &y);
      same = same && SameBits(y.data(), alone.data(), std::size_t{n} * rows);
    }
  }
  const bool control = kBroken && cols >= 64 && std::string(table.name) != "reference";
  EXPECT_EQ(same, !control) << Name(table, type) << " rows " << rows << " cols " << cols;
}

TEST(MatMulInvariance, BatchAndPartitionNeverChangeABit) {
  for (const CpuKernels* table : Tables()) {
    for (const DType type : kAllTypes) {
      CheckInvariance(*table, type, 147, 256, 1);
      CheckInvariance(*table, type, 32, 768, 2);
      if (DTypeBlockElements(type) <= 32) CheckInvariance(*table, type, 80, 96, 3);
      if (DTypeBlockElements(type) == 1) CheckInvariance(*table, type, 17, 75, 4);
    }
  }
}

// What the default mode defines for one element, in double, with the sum of magnitudes of its
// terms.
struct Exact {
  double value = 0;
  double magnitude = 0;
  double terms = 0;

  void Add(double term) {
    value += term;
    magnitude += std::abs(term);
    terms += 1;
  }
};

Exact ExactFloat(DType type, const std::uint8_t* row, const float* x, std::uint32_t cols) {
  Exact exact;
  for (std::uint32_t k = 0; k < cols; ++k) {
    float w[kQuantElements];
    const std::uint32_t begin = IsQuantised(type) ? k / kQuantElements * kQuantElements : k;
    DecodeWeights(type, row, begin, IsQuantised(type) ? kQuantElements : 1, w);
    exact.Add(static_cast<double>(w[k - begin]) * static_cast<double>(x[k]));
  }
  return exact;
}

Exact ExactQuantised(DType type, const std::uint8_t* row, const std::uint8_t* act,
                     std::uint32_t cols) {
  Exact exact;
  for (std::uint32_t b = 0; b < cols / kQuantElements; ++b) {
    QuantBlock block;
    DecodeQuantBlock(type, row, b, &block);
    const QuantScales scales = DecodeScales(type, block);
    Q8Scale scale;
    std::memcpy(&scale, act + (cols + 63) / 64 * 64 + b * sizeof(scale), sizeof(scale));
    std::int32_t dot[2] = {};
    for (std::uint32_t i = 0; i < kQuantElements; ++i)
      dot[i / 16] +=
          (block.q[i] - QuantZero(type)) * std::bit_cast<std::int8_t>(act[b * kQuantElements + i]);
    const double d = static_cast<double>(scale.scale);
    if (type == DType::kQ6_K) {
      exact.Add(static_cast<double>(scales.scale[0]) * d * dot[0]);
      exact.Add(static_cast<double>(scales.scale[1]) * d * dot[1]);
    } else {
      exact.Add(static_cast<double>(scales.scale[0]) * d * (dot[0] + dot[1]));
      exact.Add(-static_cast<double>(scales.min) * static_cast<double>(scale.sum_scale));
    }
  }
  return exact;
}

// A term is rounded at most three times before it is added, and each partial sum once: to first
// order |y - exact| <= (terms + 2) 2^-24 sum |term|. The integer part has no error at all.
void CheckDistance(const CpuKernels& table, DType type, std::uint32_t rows, std::uint32_t cols) {
  Rng rng(cols);
  const std::vector<std::uint8_t> file = RandomWeights(rng, type, rows, cols);
  std::vector<float> x = Normals(rng, cols);
  const Operand operand(table, type, rows, cols, file);
  std::vector<float> y;
  operand.MatMul(x, 1, nullptr, false, {0, rows}, &y);
  const ActFormat format = table.mat[static_cast<int>(type)].act;
  const bool floats = format != ActFormat::kQ8;
  if (format == ActFormat::kBf16) {
    for (float& value : x)
      value = Bf16ToFloat(FloatToBf16(value));
  }
  std::vector<std::uint8_t> act(kScalarKernels.act[static_cast<int>(ActFormat::kQ8)].bytes(cols));
  if (!floats)
    kScalarKernels.act[static_cast<int>(ActFormat::kQ8)].prepare(x.data(), act.data(), cols, 0,
                                                                 cols);
  for (std::uint32_t o = 0; o < rows; ++o) {
    const std::uint8_t* row = file.data() + o * FileRowBytes(type, cols);
    const Exact exact = floats ? ExactFloat(type, row, x.data(), cols)
                               : ExactQuantised(type, row, act.data(), cols);
    EXPECT_LE(std::abs(static_cast<double>(y[o]) - exact.value),
              (exact.terms + 2) * kRounding * exact.magnitude)
        << Name(table, type) << " row " << o << " cols " << cols;
  }
}

TEST(MatMul, EverySumIsWithinItsDerivedBound) {
  for (const CpuKernels* table : Tables()) {
    for (const DType type : kAllTypes) {
      const std::uint32_t step = DTypeBlockElements(type);
      for (std::uint32_t cols = step; cols <= 130 || cols <= 6 * step; cols += step)
        CheckDistance(*table, type, 19, cols);
    }
  }
}

// Rounding to 8 bits in blocks of 32 costs about (max / 127) / sqrt(12) per element, 0.5 % of a
// normal one; the product of many has the same relative error.
TEST(MatMul, QuantisedActivationsCostLessThanOnePercent) {
  constexpr std::uint32_t kRows = 256;
  constexpr std::uint32_t kCols = 1024;
  for (const CpuKernels* table : Tables()) {
    for (const DType type : kAllTypes) {
      Rng rng(7);
      const std::vector<std::uint8_t> file = RandomWeights(rng, type, kRows, kCols);
      const std::vector<float> x = Normals(rng, kCols);
      std::vector<float> y, truth;
      Operand(*table, type, kRows, kCols, file).MatMul(x, 1, nullptr, false, {0, kRows}, &y);
      Operand(*FindCpuKernels("reference"), type, kRows, kCols, file)
          .MatMul(x, 1, nullptr, false, {0, kRows}, &truth);
      double error = 0, norm = 0;
      for (std::uint32_t o = 0; o < kRows; ++o) {
        error += std::pow(static_cast<double>(y[o] - truth[o]), 2);
        norm += std::pow(static_cast<double>(truth[o]), 2);
      }
      // An element rounded to bfloat16 is off by at most 2^-8.
      const bool pairs = table->mat[static_cast<int>(type)].act == ActFormat::kBf16;
      EXPECT_LE(std::sqrt(error / norm), IsQuantised(type) ? 1e-2
                                         : pairs           ? 0x1p-8
                                                           : 1e-5)
          << Name(*table, type);
    }
  }
}

TEST(Pack, ARowReadBackIsTheFilesRow) {
  for (const CpuKernels* table : Tables()) {
    for (const DType type : kAllTypes) {
      constexpr std::uint32_t kRows = 51;
      constexpr std::uint32_t kCols = 512;
      Rng rng(3);
      const std::vector<std::uint8_t> file = RandomWeights(rng, type, kRows, kCols);
      const Operand operand(*table, type, kRows, kCols, file);
      for (std::uint32_t row = 0; row < kRows; ++row) {
        std::vector<float> expected(kCols);
        for (std::uint32_t k = 0; k < kCols; k += kQuantElements)
          DecodeWeights(type, file.data() + row * FileRowBytes(type, kCols), k, kQuantElements,
                        &expected[k]);
        EXPECT_TRUE(SameBits(operand.Row(row).data(), expected.data(), kCols))
            << Name(*table, type) << " row " << row;
      }
    }
  }
}

TEST(Pack, ThePackedFormIsTheFilesSizeWithinThreePercent) {
  for (const CpuKernels* table : Tables()) {
    for (const DType type : kAllTypes) {
      const auto packed_bytes = table->mat[static_cast<int>(type)].packed_bytes;
      if (packed_bytes == nullptr) continue;
      EXPECT_LE(static_cast<double>(packed_bytes(2048, 2048)),
                1.03 * 2048 * static_cast<double>(FileRowBytes(type, 2048)))
          << Name(*table, type);
    }
  }
}

TEST(Activations, EveryTablePreparesTheSameBytes) {
  constexpr std::uint32_t kCols = 32 * 9;
  Rng rng(5);
  std::vector<float> x = Normals(rng, kCols);
  for (std::uint32_t i = 0; i < 32; ++i) {
    x[32 + i] = 0;
    x[64 + i] *= 1e-38f;
    x[96 + i] *= 1e37f;
    x[192 + i] = static_cast<float>(i) - 15.5f;  // Ties.
  }
  x[130] = INFINITY;
  x[170] = std::bit_cast<float>(0xffc00001u);
  for (int format = 0; format < kNumActFormats; ++format) {
    const std::size_t bytes = kScalarKernels.act[format].bytes(kCols);
    EXPECT_EQ(bytes % 64, 0u);
    std::vector<std::uint8_t> expected(bytes);
    kScalarKernels.act[format].prepare(x.data(), expected.data(), kCols, 0, kCols);
    for (const CpuKernels* table : Tables()) {
      ASSERT_EQ(table->act[format].bytes(kCols), bytes);
      std::vector<std::uint8_t> prepared(bytes);
      table->act[format].prepare(x.data(), prepared.data(), kCols, 96, kCols);
      table->act[format].prepare(x.data(), prepared.data(), kCols, 0, 96);
      EXPECT_EQ(prepared, expected) << table->name << " format " << format;
    }
  }
}

TEST(Activations, ABlockOfEightBitsIsNearAndShowsWhatIsNotFinite) {
  Rng rng(6);
  std::vector<float> x = Normals(rng, 96);
  x[40] = INFINITY;
  x[64] = 3;  // The greatest of its block by far.
  const ActKernel& act = kScalarKernels.act[static_cast<int>(ActFormat::kQ8)];
  std::vector<std::uint8_t> prepared(act.bytes(96));
  act.prepare(x.data(), prepared.data(), 96, 0, 96);
  for (std::uint32_t b = 0; b < 3; ++b) {
    Q8Scale scale;
    std::memcpy(&scale, &prepared[128 + b * sizeof(scale)], sizeof(scale));
    EXPECT_EQ(std::isnan(scale.scale), b == 1);
    if (b == 1) continue;
    for (std::uint32_t i = 32 * b; i < 32 * b + 32; ++i) {
      const int q = std::bit_cast<std::int8_t>(prepared[i]);
      EXPECT_LE(std::abs(x[i] - scale.scale * static_cast<float>(q)), scale.scale * 0.50001f);
    }
  }
}

TEST(Activations, AScaleMakesFloatsOfSumsOfBytesExactly) {
  Rng rng(7);
  const ActKernel& act = kScalarKernels.act[static_cast<int>(ActFormat::kQ8)];
  for (int power = -104; power <= 112; ++power) {
    std::vector<float> x = Normals(rng, 32);
    for (float& value : x)
      value = std::ldexp(std::clamp(value, -4.0f, 4.0f), power);
    std::vector<std::uint8_t> prepared(act.bytes(32));
    act.prepare(x.data(), prepared.data(), 32, 0, 32);
    Q8Scale scale;
    std::memcpy(&scale, &prepared[64], sizeof(scale));
    float greatest = 0;
    for (const float value : x)
      greatest = std::max(greatest, std::abs(value));
    ASSERT_EQ(std::isnan(scale.scale), greatest >= 0x1p110f);
    ASSERT_EQ(scale.scale == 0, greatest < 0x1p-100f);
    if (!(scale.scale > 0)) continue;
    ASSERT_EQ(static_cast<double>(scale.magic_scale), 0x1.8p23 * static_cast<double>(scale.scale));
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < 32; ++i)
      sum += std::bit_cast<std::int8_t>(prepared[i]);
    EXPECT_EQ(scale.start[kStart8] - kQ8MagicBits, -8 * sum);
    EXPECT_EQ(scale.sum_scale, scale.scale * static_cast<float>(sum));
    for (const std::int32_t n : {-4194303, -1, 0, 1, 517, 4194303}) {
      const auto bits = std::bit_cast<float>(kQ8MagicBits + n);
      EXPECT_EQ(std::fma(bits, scale.scale, -scale.magic_scale),
                static_cast<float>(static_cast<double>(n) * static_cast<double>(scale.scale)));
    }
  }
}

TEST(Select, UnknownNamesHaveNoTableAndEveryEntryOfATableIsFilled) {
  EXPECT_EQ(FindCpuKernels("avx1024"), nullptr);
  for (const CpuKernels* table : Tables()) {
    for (const MatKernel& mat : table->mat) {
      EXPECT_TRUE(mat.matmul != nullptr && mat.row != nullptr);
      EXPECT_EQ(mat.pack == nullptr, mat.packed_bytes == nullptr);
    }
    for (const ActKernel& act : table->act)
      EXPECT_TRUE(act.bytes != nullptr && act.prepare != nullptr);
    EXPECT_TRUE(table->rms_norm != nullptr && table->rope != nullptr &&
                table->store_kv != nullptr && table->attention != nullptr &&
                table->swiglu != nullptr && table->exp != nullptr &&
                table->logit_stats != nullptr && table->logit_weights != nullptr &&
                table->select != nullptr)
        << table->name;
  }
}

}  // namespace
}  // namespace kvrm
