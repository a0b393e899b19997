// SPDX-License-Identifier: Apache-2.0
// The kernels over single rows: every length with odd tails, within bounds that follow from the
// number of operations, and not one element beyond.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "kernels/test_weights.h"

namespace kvrm {
namespace {

constexpr float kGuard = 12345.0f;

// |actual - expected| <= bound.
void ExpectNear(float actual, double expected, double bound, const char* table, std::uint32_t n) {
  EXPECT_LE(std::abs(static_cast<double>(actual) - expected), bound) << table << " length " << n;
}

// A sum of n squares is off by n roundings at most, its root by half of that, and scale, product
// and eps by five more.
TEST(RmsNorm, EveryLengthIsWithinItsDerivedBound) {
  for (const CpuKernels* table : Tables()) {
    for (std::uint32_t n = 1; n <= 129; ++n) {
      Rng rng(n);
      const std::vector<float> x = Normals(rng, n);
      const std::vector<float> w = Normals(rng, n);
      std::vector<float> y(n + 1, kGuard);
      table->rms_norm(x.data(), w.data(), 1e-5f, y.data(), n);
      double sum = 0;
      for (const float value : x)
        sum += static_cast<double>(value) * static_cast<double>(value);
      for (std::uint32_t i = 0; i < n; ++i) {
        const double expected = static_cast<double>(x[i]) * static_cast<double>(w[i]) /
                                std::sqrt(sum / n + static_cast<double>(1e-5f));
        ExpectNear(y[i], expected, (n / 2.0 + 5) * kRounding * std::abs(expected), table->name, n);
      }
      EXPECT_EQ(y[n], kGuard) << table->name;
    }
  }
}

TEST(RmsNorm, WorksInPlace) {
  Rng rng(1);
  const std::vector<float> x = Normals(rng, 77);
  for (const CpuKernels* table : Tables()) {
    std::vector<float> apart(77);
    std::vector<float> in_place = x;
    table->rms_norm(x.data(), x.data(), 1e-6f, apart.data(), 77);
    table->rms_norm(in_place.data(), x.data(), 1e-6f, in_place.data(), 77);
    EXPECT_EQ(in_place, apart) << table->name;
  }
}

// Two products and a sum: three roundings of at most |a| + |b|.
void CheckRope(const CpuKernels& table, RopeStyle style, std::uint32_t head_dim,
               std::uint32_t rope_dim) {
  Rng rng(head_dim + rope_dim);
  const std::vector<float> x = Normals(rng, 3 * head_dim);
  std::vector<float> cosine, sine;
  for (std::uint32_t i = 0; i < rope_dim / 2; ++i) {
    const float angle = Normal(rng);
    cosine.push_back(std::cos(angle));
    sine.push_back(std::sin(angle));
  }
  std::vector<float> y = x;
  table.rope({.x = y.data(),
              .cosine = cosine.data(),
              .sine = sine.data(),
              .num_heads = 3,
              .head_dim = head_dim,
              .rope_dim = rope_dim,
              .style = style});
  for (std::uint32_t h = 0; h < 3; ++h) {
    for (std::uint32_t i = 0; i < rope_dim / 2; ++i) {
      const bool pairs = style == RopeStyle::kInterleaved;
      const std::size_t a = h * head_dim + (pairs ? 2 * i : i);
      const std::size_t b = pairs ? a + 1 : a + rope_dim / 2;
      const double c = static_cast<double>(cosine[i]), s = static_cast<double>(sine[i]);
      const double x0 = static_cast<double>(x[a]), x1 = static_cast<double>(x[b]);
      const double bound = 3 * kRounding * (std::abs(x0) + std::abs(x1));
      ExpectNear(y[a], x0 * c - x1 * s, bound, table.name, rope_dim);
      ExpectNear(y[b], x0 * s + x1 * c, bound, table.name, rope_dim);
    }
    for (std::uint32_t d = rope_dim; d < head_dim; ++d)
      EXPECT_EQ(y[h * head_dim + d], x[h * head_dim + d]) << table.name;
  }
}

TEST(Rope, BothStylesRotateTheirPairsAndLeaveTheRest) {
  for (const CpuKernels* table : Tables()) {
    for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalves}) {
      for (std::uint32_t dim = 2; dim <= 130; dim += 2)
        CheckRope(*table, style, dim, dim);
      CheckRope(*table, style, 64, 16);
      CheckRope(*table, style, 80, 34);
      CheckRope(*table, style, 128, 64);
    }
  }
}

TEST(SwiGlu, EveryLengthIsWithinItsDerivedBound) {
  for (const CpuKernels* table : Tables()) {
    for (std::uint32_t n = 1; n <= 129; ++n) {
      Rng rng(n);
      std::vector<float> gate = Normals(rng, n);
      for (float& value : gate)
        value *= 8;
      const std::vector<float> up = Normals(rng, n);
      std::vector<float> y(n + 1, kGuard);
      table->swiglu(gate.data(), up.data(), y.data(), n);
      for (std::uint32_t i = 0; i < n; ++i) {
        const double g = static_cast<double>(gate[i]);
        const double expected = g / (1 + std::exp(-g)) * static_cast<double>(up[i]);
        ExpectNear(y[i], expected, (2e-7 + 4 * kRounding) * std::abs(expected), table->name, n);
      }
      EXPECT_EQ(y[n], kGuard) << table->name;
    }
  }
}

TEST(Exp, RelativeErrorIsBelowTwoTenMillionths) {
  constexpr std::uint32_t kCount = 400'000;
  std::vector<float> x(kCount), y(kCount);
  Rng rng(2);
  for (float& value : x)
    value = static_cast<float>(rng.Uniform() * 175.7 - 87.0);
  for (std::uint32_t i = 0; i < 1000; ++i)
    x[i] = 1e-3f * Normal(rng);
  for (const CpuKernels* table : Tables()) {
    table->exp(x.data(), y.data(), kCount);
    double worst = 0;
    for (std::uint32_t i = 0; i < kCount; ++i) {
      const double truth = std::exp(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) / truth - 1));
    }
    EXPECT_LT(worst, 2e-7) << table->name;
  }
}

TEST(Exp, EndsAreExact) {
  const std::vector<float> x = {0.0f, -INFINITY, INFINITY, -200.0f, 100.0f, NAN, -0.0f};
  for (const CpuKernels* table : Tables()) {
    std::vector<float> y(x.size());
    table->exp(x.data(), y.data(), static_cast<std::uint32_t>(x.size()));
    EXPECT_EQ(y[0], 1.0f) << table->name;
    EXPECT_EQ(y[1], 0.0f) << table->name;
    EXPECT_EQ(y[2], INFINITY) << table->name;
    EXPECT_EQ(y[3], 0.0f) << table->name;
    EXPECT_EQ(y[4], INFINITY) << table->name;
    EXPECT_TRUE(std::isnan(y[5])) << table->name;
    EXPECT_EQ(y[6], 1.0f) << table->name;
  }
}

// Sums of at most 128 weights, each off by 2e-7 and the rounding of its exponent, which matters
// most where (x - greatest) scale is 1; up to 16 additions in float.
constexpr double kSumBound = 2e-7 + 18 * kRounding;

TEST(LogitStats, EveryLengthHasItsMaximaAndSums) {
  for (const CpuKernels* table : Tables()) {
    for (std::uint32_t n = 1; n <= 3 * kLogitChunk + 1; n += n < 40 ? 1 : 29) {
      Rng rng(n);
      std::vector<float> x = Normals(rng, n);
      for (float& value : x)
        value = 6 * value - 100;
      const std::size_t num_chunks = (n + kLogitChunk - 1) / kLogitChunk;
      std::vector<float> maxima(num_chunks + 1, kGuard), sums(num_chunks + 1, kGuard);
      std::vector<float> weights(num_chunks + 1, kGuard);
      table->logit_stats(x.data(), n, maxima.data(), sums.data());
      const float greatest = *std::max_element(x.begin(), x.end());
      table->logit_weights(x.data(), n, greatest, 0.7f, weights.data());
      for (std::size_t c = 0; c < num_chunks; ++c) {
        const auto begin = x.begin() + static_cast<std::ptrdiff_t>(c * kLogitChunk);
        const auto end = c + 1 == num_chunks ? x.end() : begin + kLogitChunk;
        ASSERT_EQ(maxima[c], *std::max_element(begin, end)) << table->name << ' ' << n;
        double sum = 0, weight = 0;
        for (auto i = begin; i != end; ++i) {
          sum += std::exp(static_cast<double>(*i) - static_cast<double>(maxima[c]));
          weight += std::exp((static_cast<double>(*i) - static_cast<double>(greatest)) *
                             static_cast<double>(0.7f));
        }
        ExpectNear(sums[c], sum, kSumBound * sum, table->name, n);
        // Exponents down to -40 lose so many more units.
        ExpectNear(weights[c], weight, (kSumBound + 80 * kRounding) * weight, table->name, n);
      }
      EXPECT_EQ(maxima[num_chunks], kGuard) << table->name;
      EXPECT_EQ(sums[num_chunks], kGuard) << table->name;
      EXPECT_EQ(weights[num_chunks], kGuard) << table->name;
    }
  }
}

TEST(LogitStats, WhatIsNotFiniteShowsInItsChunkAlone) {
  for (const CpuKernels* table : Tables()) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (std::uint32_t at = 0; at < 300; at += 13) {
        std::vector<float> x(300, -1.0f);
        x[at] = bad;
        float maxima[3], sums[3];
        table->logit_stats(x.data(), 300, maxima, sums);
        for (std::uint32_t c = 0; c < 3; ++c)
          EXPECT_EQ(std::isnan(sums[c]), c == at / kLogitChunk) << table->name << ' ' << at;
      }
    }
  }
}

TEST(LogitStats, ExtremeLogitsAndScalesGiveFiniteWeights) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<float> x = {kMax, -kMax, 0.0f, kMax};
  for (const CpuKernels* table : Tables()) {
    float maximum = 0, sum = 0, weight = 0;
    table->logit_stats(x.data(), 4, &maximum, &sum);
    EXPECT_EQ(maximum, kMax) << table->name;
    EXPECT_EQ(sum, 2.0f) << table->name;
    table->logit_weights(x.data(), 4, kMax, kMax, &weight);
    EXPECT_EQ(weight, 2.0f) << table->name;
    table->logit_weights(x.data() + 2, 1, 0.0f, 1e-40f, &weight);
    EXPECT_EQ(weight, 1.0f) << table->name;
  }
}

TEST(LogitSelection, TakesTheIdsOfTheHalfOpenRangeInOrder) {
  for (const CpuKernels* table : Tables()) {
    for (std::uint32_t n = 1; n <= 130; ++n) {
      Rng rng(n);
      std::vector<float> x = Normals(rng, n);
      const float low = x[n / 2];
      const float high = x[n / 3];
      std::vector<std::uint32_t> ids(n + 1, 77777), expected;
      for (std::uint32_t id = n / 5; id < n; ++id) {
        if (x[id] >= low && x[id] < high) expected.push_back(id);
      }
      const std::uint32_t count = table->select(
          {.x = x.data(), .begin = n / 5, .end = n, .low = low, .high = high}, ids.data());
      ASSERT_EQ(count, expected.size()) << table->name << ' ' << n;
      expected.resize(n + 1, 77777);
      EXPECT_EQ(ids, expected) << table->name << ' ' << n;
    }
  }
}

}  // namespace
}  // namespace kvrm
