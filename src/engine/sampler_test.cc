// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
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

TEST(Sampler, GreedyTakesTheLowestOfTheLikeliest) {
  const std::vector<float> logits = {0.0f, 3.0f, 3.0f, -1.0f};
  Sampler sampler(4);
  const Sampled sampled = sampler.Sample(logits, {.temperature = 0.0f}, 0);
  EXPECT_EQ(sampled.token, 1);
  const double sum = 1.0 + 2.0 * std::exp(3.0) + std::exp(-1.0);
  EXPECT_NEAR(static_cast<double>(sampled.logprob), 3.0 - std::log(sum), 1e-6);
}

TEST(Sampler, LogprobDoesNotDependOnTruncation) {
  const std::vector<float> logits = RandomLogits(500, 1);
  Sampler sampler(500);
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Sampled sampled =
        sampler.Sample(logits, {.temperature = 0.7f, .top_p = 0.5f, .top_k = 10, .seed = 9}, i);
    EXPECT_EQ(sampled.logprob, LogProb(logits, sampled.token));
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  // Probabilities 1/2, 1/4, 1/8, 1/8. 40,000 draws: five standard deviations are below 0.0125.
  const std::vector<float> logits = {std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};
  Sampler sampler(4);
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
  Sampler sampler(300);
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
  Sampler sampler(4);
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
  Sampler sampler(3);
  for (std::uint32_t i = 0; i < 3000; ++i) {
    EXPECT_LT(sampler.Sample(logits, {.min_p = 0.1f, .seed = 5}, i).token, 2);
  }
}

TEST(Sampler, SameSeedAndIndexGiveTheSameToken) {
  const std::vector<float> logits = RandomLogits(100, 4);
  Sampler a(100);
  Sampler b(100);
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
    Sampler sampler(64);
    EXPECT_EQ(sampler.Sample(logits, {.temperature = 0.0f}, 0).token, -1);
    EXPECT_EQ(sampler.Sample(logits, {.top_k = 4}, 0).token, -1);
  }
}

}  // namespace
}  // namespace kvrm
