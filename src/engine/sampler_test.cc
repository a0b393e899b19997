// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"

namespace kvrm {
namespace {

std::vector<float> RandomLogits(std::uint32_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> logits(n);
  for (float& logit : logits)
    logit = static_cast<float>(rng.Uniform() * 12.0 - 6.0);
  return logits;
}

// A sampler, and the statistics of what it samples from.
class StatsSampler {
 public:
  explicit StatsSampler(std::uint32_t vocab_size, const CpuKernels& kernels = SelectCpuKernels())
      : kernels_(kernels),
        sampler_(vocab_size, kernels),
        maxima_(NumLogitChunks(vocab_size)),
        sums_(maxima_.size()) {}

  Sampled Sample(const std::vector<float>& logits, const SamplingParams& params,
                 std::uint32_t output_idx) {
    kernels_.logit_stats(logits.data(), static_cast<std::uint32_t>(logits.size()), maxima_.data(),
                         sums_.data());
    return sampler_.Sample(logits, {.maxima = maxima_, .sums = sums_}, params, output_idx);
  }

 private:
  const CpuKernels& kernels_;
  Sampler sampler_;
  std::vector<float> maxima_;
  std::vector<float> sums_;
};

TEST(Sampler, GreedyTakesTheLowestOfTheLikeliest) {
  const std::vector<float> logits = {0.0f, 3.0f, 3.0f, -1.0f};
  StatsSampler sampler(4);
  const Sampled sampled = sampler.Sample(logits, {.temperature = 0.0f}, 0);
  EXPECT_EQ(sampled.token, 1);
  const double sum = 1.0 + 2.0 * std::exp(3.0) + std::exp(-1.0);
  EXPECT_NEAR(static_cast<double>(sampled.logprob), 3.0 - std::log(sum), 1e-6);
}

TEST(Sampler, LogprobDoesNotDependOnTruncation) {
  const std::vector<float> logits = RandomLogits(500, 1);
  StatsSampler sampler(500);
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Sampled sampled =
        sampler.Sample(logits, {.temperature = 0.7f, .top_p = 0.5f, .top_k = 10, .seed = 9}, i);
    EXPECT_NEAR(sampled.logprob, LogProb(logits, sampled.token), 1e-5f);
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  // Probabilities 1/2, 1/4, 1/8, 1/8. 40,000 draws: five standard deviations are below 0.0125.
  const std::vector<float> logits = {std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};
  StatsSampler sampler(4);
  int counts[4] = {};
  const int n = 40000;
  for (int i = 0; i < n; ++i) {
    ++counts[sampler.Sample(logits, {.seed = 7}, static_cast<std::uint32_t>(i)).token];
  }
  const double expected[4] = {0.5, 0.25, 0.125, 0.125};
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(counts[i] / double{n}, expected[i], 0.0125) << i;
}

TEST(Sampler, TopKKeepsExactlyTheLikeliestK) {
  const std::vector<float> logits = RandomLogits(300, 2);
  StatsSampler sampler(300);
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (const std::int32_t k : {2, 5, 40}) {
    float least = std::numeric_limits<float>::infinity();
    for (std::uint32_t i = 0; i < 4000; ++i) {
      const Sampled sampled =
          sampler.Sample(logits, {.temperature = 50.0f, .top_k = k, .seed = 3}, i);
      least = std::min(least, logits[static_cast<std::size_t>(sampled.token)]);
    }
    EXPECT_EQ(least, sorted[static_cast<std::size_t>(k) - 1]);
  }
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesP) {
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f),
                                     std::log(0.05f)};
  StatsSampler sampler(4);
  const auto largest_token = [&](float top_p) {
    std::int32_t largest = 0;
    for (std::uint32_t i = 0; i < 3000; ++i) {
      largest = std::max(largest, sampler.Sample(logits, {.top_p = top_p, .seed = 5}, i).token);
    }
    return largest;
  };
  EXPECT_EQ(largest_token(0.4f), 0);
  EXPECT_EQ(largest_token(0.7f), 1);
  EXPECT_EQ(largest_token(0.9f), 2);
  EXPECT_EQ(largest_token(1.0f), 3);
}

TEST(Sampler, MinPDropsWhatIsFarBelowTheLikeliest) {
  const std::vector<float> logits = {0.0f, std::log(0.3f), std::log(0.05f)};
  StatsSampler sampler(3);
  for (std::uint32_t i = 0; i < 3000; ++i) {
    EXPECT_LT(sampler.Sample(logits, {.min_p = 0.1f, .seed = 5}, i).token, 2);
  }
}

TEST(Sampler, SameSeedAndIndexGiveTheSameToken) {
  const std::vector<float> logits = RandomLogits(100, 4);
  StatsSampler a(100);
  StatsSampler b(100);
  b.Sample(RandomLogits(100, 5), {.seed = 99}, 3);  // Other work in between changes nothing.
  for (std::uint32_t i = 0; i < 100; ++i) {
    EXPECT_EQ(a.Sample(logits, {.seed = 11}, i).token, b.Sample(logits, {.seed = 11}, i).token);
  }
}

TEST(Sampler, NonFiniteLogitsGiveNoToken) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = RandomLogits(64, 6);
    logits[63] = bad;
    StatsSampler sampler(64);
    EXPECT_EQ(sampler.Sample(logits, {.temperature = 0.0f}, 0).token, -1);
    EXPECT_EQ(sampler.Sample(logits, {.top_k = 4}, 0).token, -1);
  }
}

// How far sums of the sampler's may be from those in double, as shares of the whole: 2e-7 of every
// weight, the rounding of exponents up to 20, 16 additions in float.
constexpr double kSumBound = 4e-6;

// The plain algorithm: every weight in double, every candidate sorted.
class PlainSampler {
 public:
  PlainSampler(const std::vector<float>& logits, const SamplingParams& params)
      : logits_(logits), params_(params) {
    greatest_ = *std::max_element(logits.begin(), logits.end());
    for (std::uint32_t id = 0; id < logits.size(); ++id) {
      if (params.min_p > 0.0f && Weight(id) < static_cast<double>(params.min_p)) continue;
      ids_.push_back(id);
    }
    if (params.top_k > 0 || params.top_p < 1.0f) {
      std::sort(ids_.begin(), ids_.end(), [&](std::uint32_t a, std::uint32_t b) {
        return logits[a] > logits[b] || (logits[a] >= logits[b] && a < b);
      });
    }
    if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < ids_.size())
      ids_.resize(static_cast<std::size_t>(params.top_k));
    for (const std::uint32_t id : ids_)
      sums_.push_back((sums_.empty() ? 0 : sums_.back()) + Weight(id));
  }

  // Where the running weight first is at least `weight`.
  std::size_t Reached(double weight) const {
    const auto at = std::lower_bound(sums_.begin(), sums_.end() - 1, weight);
    return static_cast<std::size_t>(at - sums_.begin());
  }

  std::int32_t Draw(double uniform) const {
    const double kept = sums_[Reached(static_cast<double>(params_.top_p) * sums_.back())];
    const auto at = std::upper_bound(sums_.begin(), sums_.end() - 1, uniform * kept);
    return static_cast<std::int32_t>(ids_[static_cast<std::size_t>(at - sums_.begin())]);
  }

  // Whether sums that are off by at most kSumBound could have given this token.
  bool MayDraw(std::int32_t token, double uniform) const {
    const auto at = std::find(ids_.begin(), ids_.end(), static_cast<std::uint32_t>(token));
    if (at == ids_.end()) return false;
    const auto rank = static_cast<std::size_t>(at - ids_.begin());
    const double slack = kSumBound * sums_.back();
    const double top_p = static_cast<double>(params_.top_p) * sums_.back();
    const std::size_t last = Reached(top_p + slack);
    const double before = rank == 0 ? 0 : sums_[rank - 1];
    return rank <= last && before <= uniform * sums_[last] + slack &&
           sums_[rank] >= uniform * sums_[Reached(top_p - slack)] - slack;
  }

 private:
  double Weight(std::uint32_t id) const {
    return std::exp(static_cast<double>(logits_[id] - greatest_) /
                    static_cast<double>(params_.temperature));
  }

  const std::vector<float>& logits_;
  const SamplingParams params_;
  float greatest_ = 0;
  std::vector<std::uint32_t> ids_;  // candidates, in the order of the draw
  std::vector<double> sums_;        // running weights
};

struct Shape {
  const char* name;
  std::vector<float> logits;
};

std::vector<Shape> Shapes(std::uint32_t n) {
  Rng rng(n, "shapes");
  const auto made = [&](auto make) {
    std::vector<float> logits(n);
    for (std::uint32_t i = 0; i < n; ++i)
      logits[i] = static_cast<float>(make(i));
    return logits;
  };
  const auto normal = [&](std::uint32_t) {
    double sum = -6;
    for (int i = 0; i < 12; ++i)
      sum += rng.Uniform();
    return 2.5 * sum;
  };
  std::vector<Shape> shapes;
  shapes.push_back({"normal", made(normal)});
  shapes.push_back({"zipf", made([&](std::uint32_t) {
                      return -1.2 * std::log(1.0 + static_cast<double>(rng.Below(n)));
                    })});
  shapes.push_back({"equal", made([](std::uint32_t) { return -3.25; })});
  shapes.push_back({"spike", made([&](std::uint32_t i) { return i == n - 1 ? 40.0 : 0.0; })});
  shapes.push_back(
      {"ties", made([&](std::uint32_t) { return static_cast<double>(rng.Below(4)); })});
  shapes.push_back({"rising", made([&](std::uint32_t i) { return 20.0 * i / n; })});
  shapes.push_back({"zeros", made([](std::uint32_t i) { return i % 2 == 0 ? 0.0 : -0.0; })});
  shapes.push_back({"wide", made([&](std::uint32_t) { return (rng.Uniform() - 0.5) * 6e38; })});
  shapes.push_back({"narrow", made([&](std::uint32_t) { return 5.0 + 1e-6 * rng.Uniform(); })});
  return shapes;
}

const SamplingParams kMany[] = {
    {},
    {.temperature = 0.7f},
    {.temperature = 1e-30f},
    {.temperature = 1e30f},
    {.temperature = 0.0f},
    {.top_k = 1},
    {.top_k = 2},
    {.top_k = 40},
    {.temperature = 1.5f, .top_k = 3000},
    {.top_k = 200'000},
    {.top_p = 0.95f},
    {.top_p = 0.3f},
    {.top_p = 1e-6f},
    {.top_p = 0.999999f},
    {.temperature = 0.8f, .top_p = 0.9f},
    {.temperature = 1e-30f, .top_p = 0.9f},
    {.temperature = 1e30f, .top_p = 0.9f},
    {.min_p = 0.05f},
    {.min_p = 1.0f},
    {.temperature = 2.0f, .min_p = 1e-4f},
    {.top_p = 0.9f, .top_k = 100},
    {.top_p = 0.9f, .min_p = 0.001f},
    {.temperature = 1.3f, .top_p = 0.7f, .top_k = 5000, .min_p = 1e-5f},
};

std::string Text(const SamplingParams& params) {
  return "t " + std::to_string(params.temperature) + " k " + std::to_string(params.top_k) + " p " +
         std::to_string(params.top_p) + " min_p " + std::to_string(params.min_p);
}

// Of `num_draws` tokens, how many are not the plain algorithm's; these are ones that it would have
// drawn had its sums differed in their last bits.
std::uint32_t NumOthers(StatsSampler& sampler, const Shape& shape, SamplingParams params,
                        std::uint32_t num_draws) {
  std::uint32_t num_others = 0;
  params.seed = 17;
  const bool greedy = params.temperature <= 0.0f || params.top_k == 1;
  SamplingParams plain_params = params;
  if (greedy) plain_params = {.top_k = 1};
  const PlainSampler plain(shape.logits, plain_params);
  for (std::uint32_t i = 0; i < num_draws; ++i) {
    const Sampled sampled = sampler.Sample(shape.logits, params, i);
    const double uniform = greedy ? 0.0 : Rng(Mix64(params.seed) ^ i, "sample").Uniform();
    EXPECT_TRUE(plain.MayDraw(sampled.token, uniform))
        << shape.name << ' ' << shape.logits.size() << ' ' << Text(params) << " draw " << i
        << " token " << sampled.token << ", plainly " << plain.Draw(uniform);
    if (sampled.token != plain.Draw(uniform)) ++num_others;
    const float logprob = LogProb(shape.logits, sampled.token);
    EXPECT_LE(std::abs(sampled.logprob - logprob), 4e-6f + 2e-7f * std::abs(logprob));
  }
  return num_others;
}

void CheckAgainstPlain(const CpuKernels& kernels, std::uint32_t vocab_size,
                       std::uint32_t num_draws) {
  StatsSampler sampler(vocab_size, kernels);
  for (const Shape& shape : Shapes(vocab_size)) {
    for (const SamplingParams& params : kMany) {
      const std::uint32_t num_others = NumOthers(sampler, shape, params, num_draws);
      // Where a token's weight is many times the bound, hardly a draw falls on its edge. Of nearly
      // equal weights a share may be reached by any of two tokens, which moves every draw.
      if (vocab_size <= 1000 && std::string(shape.name) != "narrow") {
        EXPECT_EQ(num_others, 0u) << shape.name << ' ' << Text(params);
      }
    }
  }
}

TEST(Sampler, DrawsWhatThePlainAlgorithmDraws) {
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16"}) {
    const CpuKernels* kernels = FindCpuKernels(name);
    if (kernels == nullptr) continue;
    for (const std::uint32_t vocab_size : {1u, 2u, 15u, 127u, 128u, 129u, 1000u})
      CheckAgainstPlain(*kernels, vocab_size, 40);
    for (const std::uint32_t vocab_size : {4095u, 4096u, 4097u})
      CheckAgainstPlain(*kernels, vocab_size, 5);
  }
}

TEST(Sampler, DrawsWhatThePlainAlgorithmDrawsFromALargeVocabulary) {
  CheckAgainstPlain(SelectCpuKernels(), 151'936, 2);
}

}  // namespace
}  // namespace kvrm
