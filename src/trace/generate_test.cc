// SPDX-License-Identifier: Apache-2.0
#include "trace/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include "trace/distributions.h"
#include "trace/prompt.h"

namespace kvrm {
namespace {

std::vector<double> Gaps(const Workload& workload) {
  std::vector<double> gaps;
  for (std::size_t i = 1; i < workload.requests.size(); ++i) {
    gaps.push_back(
        static_cast<double>(workload.requests[i].arrival_ns - workload.requests[i - 1].arrival_ns) *
        1e-9);
  }
  return gaps;
}

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double Cv(const std::vector<double>& values) {
  const double mean = Mean(values);
  double sum = 0.0;
  for (const double value : values)
    sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size())) / mean;
}

TEST(Generate, SameSeedSameWorkload) {
  for (int f = 0; f < kNumWorkloadFamilies; ++f) {
    const auto family = static_cast<WorkloadFamily>(f);
    const auto text = [family](std::uint64_t seed) {
      const Workload workload = Generate({.family = family, .seed = seed, .num_requests = 50});
      std::string all;
      for (const TraceRequest& request : workload.requests)
        all += std::to_string(request.arrival_ns) + " " + std::to_string(request.prompt_tokens) +
               " " + std::to_string(request.output_tokens) + "\n";
      return all;
    };
    EXPECT_EQ(text(7), text(7)) << WorkloadFamilyName(family);
    EXPECT_NE(text(7), text(8)) << WorkloadFamilyName(family);
  }
}

TEST(Generate, EveryFamilyHasTheNumberAskedForAndValidLinks) {
  for (int f = 0; f < kNumWorkloadFamilies; ++f) {
    const auto family = static_cast<WorkloadFamily>(f);
    const Workload workload = Generate({.family = family, .seed = 3, .num_requests = 333});
    ASSERT_EQ(workload.requests.size(), 333u) << WorkloadFamilyName(family);
    for (std::size_t i = 0; i < workload.requests.size(); ++i) {
      const TraceRequest& request = workload.requests[i];
      EXPECT_GE(request.prompt_tokens, 1u);
      EXPECT_GE(request.output_tokens, 1u);
      if (request.arrival == Arrival::kAfter) {
        EXPECT_LT(request.after, i);
      }
      EXPECT_LE(request.num_hashes * workload.hash_block_tokens, request.prompt_tokens);
      EXPECT_LE(request.first_hash + request.num_hashes, workload.hash_ids.size());
    }
  }
}

TEST(Generate, ArrivalsHaveTheRateAndTheVariationAskedFor) {
  GenerateOptions options = {.seed = 5, .num_requests = 40000, .rate_rps = 10.0};
  const auto gaps = [&options](ArrivalProcess process) {
    options.arrivals = process;
    return Gaps(Generate(options));
  };
  EXPECT_NEAR(Cv(gaps(ArrivalProcess::kPoisson)), 1.0, 0.03);
  EXPECT_NEAR(Mean(gaps(ArrivalProcess::kPoisson)), 0.1, 0.003);
  EXPECT_NEAR(Cv(gaps(ArrivalProcess::kGamma)), 3.0, 0.2);
  EXPECT_NEAR(Mean(gaps(ArrivalProcess::kGamma)), 0.1, 0.005);
  EXPECT_NEAR(Mean(gaps(ArrivalProcess::kOnOff)), 0.1, 0.02);
  EXPECT_GT(Cv(gaps(ArrivalProcess::kOnOff)), 1.3);
  EXPECT_LT(Cv(gaps(ArrivalProcess::kSteady)), 1e-6);
}

TEST(Generate, ChatHasTheMediansAndTheBoundsOfItsName) {
  Workload workload = Generate({.family = WorkloadFamily::kChat,
                                .arrivals = ArrivalProcess::kClosed,
                                .seed = 2,
                                .num_requests = 20001});
  EXPECT_EQ(workload.num_clients, 8u);
  std::vector<std::uint32_t> prompts, outputs;
  for (const TraceRequest& request : workload.requests) {
    EXPECT_EQ(request.arrival, Arrival::kClosed);
    prompts.push_back(request.prompt_tokens);
    outputs.push_back(request.output_tokens);
  }
  std::ranges::sort(prompts);
  std::ranges::sort(outputs);
  EXPECT_GE(prompts.front(), 16u);
  EXPECT_LE(prompts.back(), 1024u);
  EXPECT_GE(outputs.front(), 16u);
  EXPECT_LE(outputs.back(), 256u);
  EXPECT_NEAR(prompts[10000], 128, 4);
  EXPECT_NEAR(outputs[10000], 96, 3);
}

TEST(Generate, DistributionsHaveTheirMeans) {
  Rng rng(11);
  double gamma = 0.0, geometric = 0.0, normal = 0.0, pareto = 1e9;
  constexpr int kDraws = 200000;
  for (int i = 0; i < kDraws; ++i) {
    gamma += DrawGamma(rng, 0.25, 8.0) / kDraws;
    geometric += static_cast<double>(DrawGeometric(rng, 24.0)) / kDraws;
    normal += DrawNormal(rng) / kDraws;
    pareto = std::min(pareto, DrawPareto(rng, 32.0, 1.2));
  }
  EXPECT_NEAR(gamma, 2.0, 0.05);
  EXPECT_NEAR(geometric, 24.0, 0.3);
  EXPECT_NEAR(normal, 0.0, 0.02);
  EXPECT_GE(pareto, 32.0);
}

TEST(Prompt, EqualHashIdsGiveEqualTokens) {
  Workload workload;
  workload.hash_block_tokens = 4;
  workload.hash_ids = {1, 2, 1, 3};
  workload.requests = {{.prompt_tokens = 10, .output_tokens = 1, .first_hash = 0, .num_hashes = 2},
                       {.prompt_tokens = 9, .output_tokens = 1, .first_hash = 2, .num_hashes = 2}};
  const PromptVocab vocab = {.first_id = 5, .vocab_size = 1000};
  const std::vector<std::int32_t> a = PromptTokens(workload, 0, vocab);
  const std::vector<std::int32_t> b = PromptTokens(workload, 1, vocab);
  ASSERT_EQ(a.size(), 10u);
  ASSERT_EQ(b.size(), 9u);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 4, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 4, a.begin() + 8, b.begin() + 4));
  EXPECT_NE(a[8], b[8]);  // beyond the ids every prompt is its own
  for (const std::int32_t token : a) {
    EXPECT_GE(token, 5);
    EXPECT_LT(token, 1000);
  }
  EXPECT_EQ(a, PromptTokens(workload, 0, vocab));
  EXPECT_EQ(PromptText(workload, 0).substr(0, 8), PromptText(workload, 1).substr(0, 8));
}

TEST(Prompt, TurnsOfAConversationBeginWithTheLastOnesPrompt) {
  const Workload workload =
      Generate({.family = WorkloadFamily::kMultiTurn, .seed = 4, .num_requests = 20});
  const PromptVocab vocab = {.first_id = 0, .vocab_size = 50000};
  std::uint32_t num_linked = 0;
  for (std::size_t i = 0; i < workload.requests.size(); ++i) {
    const TraceRequest& request = workload.requests[i];
    if (request.arrival != Arrival::kAfter) continue;
    ++num_linked;
    const std::vector<std::int32_t> before = PromptTokens(workload, request.after, vocab);
    const std::vector<std::int32_t> now = PromptTokens(workload, i, vocab);
    ASSERT_GT(now.size(), before.size());
    const auto shared = static_cast<std::ptrdiff_t>(before.size() / workload.hash_block_tokens *
                                                    workload.hash_block_tokens);
    EXPECT_TRUE(std::equal(before.begin(), before.begin() + shared, now.begin()));
  }
  EXPECT_GT(num_linked, 5u);
}

TEST(Shape, SlicesScalesAndCuts) {
  Workload workload;
  for (std::int64_t i = 0; i < 11; ++i)
    workload.requests.push_back(
        {.arrival_ns = i * 1'000'000'000, .prompt_tokens = 100, .output_tokens = 50});
  Workload window = workload;
  Shape({.begin_s = 2.0, .duration_s = 3.0, .time_scale = 0.5, .max_prompt = 10}, &window);
  ASSERT_EQ(window.requests.size(), 3u);
  EXPECT_EQ(window.requests[0].arrival_ns, 0);
  EXPECT_EQ(window.requests[2].arrival_ns, 1'000'000'000);
  EXPECT_EQ(window.requests[0].prompt_tokens, 10u);
  EXPECT_EQ(window.requests[0].output_tokens, 50u);
  Workload faster = workload;
  Shape({.skip = 1, .max_requests = 5, .rate_rps = 8.0}, &faster);
  ASSERT_EQ(faster.requests.size(), 5u);
  EXPECT_DOUBLE_EQ(OfferedRate(faster), 8.0);
}

TEST(Shape, AConversationThatLosesItsBeginArrivesByItself) {
  Workload workload;
  workload.requests = {{.arrival_ns = 5, .prompt_tokens = 1, .output_tokens = 1},
                       {.arrival_ns = 7,
                        .prompt_tokens = 2,
                        .output_tokens = 1,
                        .arrival = Arrival::kAfter,
                        .after = 0},
                       {.arrival_ns = 9,
                        .prompt_tokens = 3,
                        .output_tokens = 1,
                        .arrival = Arrival::kAfter,
                        .after = 1}};
  Shape({.skip = 1}, &workload);
  ASSERT_EQ(workload.requests.size(), 2u);
  EXPECT_EQ(workload.requests[0].arrival, Arrival::kTimed);
  EXPECT_EQ(workload.requests[1].arrival, Arrival::kAfter);
  EXPECT_EQ(workload.requests[1].after, 0u);
  EXPECT_EQ(workload.requests[1].arrival_ns, 9);
}

TEST(Victim, PhasesFollowOneAnotherAndTheLastAsksForTwiceThePool) {
  const Workload workload = GenerateVictim({.pool_tokens = 10000, .max_context = 1024});
  ASSERT_EQ(workload.phases.size(), 5u);
  std::uint64_t asked = 0, num_burst = 0, num_victims = 0;
  for (const TraceRequest& request : workload.requests) {
    if (workload.groups[request.group] == "oversubscription")
      asked += request.prompt_tokens + request.output_tokens;
    num_burst += workload.groups[request.group] == "burst" ? 1u : 0u;
    num_victims += request.arrival == Arrival::kClosed ? 1u : 0u;
  }
  EXPECT_GE(asked, 20000u);
  EXPECT_LT(asked, 20000u + 256u);
  EXPECT_EQ(num_burst, 30u);
  EXPECT_GT(num_victims, 1000u);
}

}  // namespace
}  // namespace kvrm
