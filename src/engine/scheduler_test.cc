// SPDX-License-Identifier: Apache-2.0
// The scheduler in simulated time: what streams notice of others, whose turn it is, and when
// requests end for want of time.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <ostream>
#include <vector>

#include "engine/timed_world_for_test.h"

namespace kvrm {
namespace {

constexpr int kVictims = 8;
constexpr std::size_t kQuietTokens = 300;
constexpr std::size_t kVictimTokens = 3000;

EngineOptions Options() {
  return {.max_rows = 32,
          .max_context = 20'000,
          .kv_tokens = 200'000,
          .max_runs = 64,
          .max_queued = 64};
}

std::vector<RequestId> SubmitMany(TimedWorld& world, int count, std::uint32_t num_prompt,
                                  std::uint32_t num_output) {
  std::vector<RequestId> ids;
  for (int i = 0; i < count; ++i)
    ids.push_back(world.Submit(num_prompt, num_output));
  return ids;
}

struct Ratios {
  double p50 = 0;
  double p99 = 0;
  double p999 = 0;
  double worst = 0;
  int num_served = 0;  // of what disturbed, while the streams ran
};

std::vector<RequestId> Run(TimedWorld& world, const std::function<void(TimedWorld&)>& disturb) {
  const std::vector<RequestId> ids = SubmitMany(world, kVictims, 200, kVictimTokens);
  while (world.record(ids[0]).token_ns.size() < kQuietTokens)
    world.Step();
  disturb(world);
  while (world.record(ids[0]).finish == FinishReason::kNone)
    world.Step();
  return ids;
}

// Eight streams run alone for a while, then beside what `disturb` brings. Each of their gaps over
// that at the same token of a run without it, where their histories are as long.
Ratios Disturb(const EngineOptions& options, const TimedExecutor::Cost& cost,
               const std::function<void(TimedWorld&)>& disturb) {
  TimedWorld quiet(options, cost);
  const std::vector<RequestId> quiet_ids = Run(quiet, [](TimedWorld&) {});
  TimedWorld world(options, cost);
  const std::vector<RequestId> ids = Run(world, disturb);
  std::vector<double> ratios;
  for (int v = 0; v < kVictims; ++v) {
    const std::vector<std::int64_t>& a =
        quiet.record(quiet_ids[static_cast<std::size_t>(v)]).token_ns;
    const std::vector<std::int64_t>& b = world.record(ids[static_cast<std::size_t>(v)]).token_ns;
    // The first to end ends the run; the others began later.
    const std::size_t end = std::min(a.size(), b.size());
    EXPECT_GT(end, kVictimTokens - 300);
    for (std::size_t t = kQuietTokens + 1; t < end; ++t)
      ratios.push_back(static_cast<double>(b[t] - b[t - 1]) / static_cast<double>(a[t] - a[t - 1]));
  }
  std::sort(ratios.begin(), ratios.end());
  int num_served = 0;
  for (const auto& [id, record] : world.records())
    num_served += id > ids.back() && record.finish == FinishReason::kLength ? 1 : 0;
  const Ratios result = {.p50 = QuantileOf(ratios, 0.5),
                         .p99 = QuantileOf(ratios, 0.99),
                         .p999 = QuantileOf(ratios, 0.999),
                         .worst = ratios.back(),
                         .num_served = num_served};
  std::printf("of the quiet gap: p50 %.2f, p99 %.2f, p99.9 %.2f, worst %.2f; %d served beside\n",
              result.p50, result.p99, result.p999, result.worst, result.num_served);
  return result;
}

struct ModelCase {
  const char* name = "";
  TimedExecutor::Cost cost;
  std::uint32_t num_long_prompt = 0;
};
void PrintTo(const ModelCase& c, std::ostream* out) {
  *out << c.name;
}

class Victims : public testing::TestWithParam<ModelCase> {};

TEST_P(Victims, OfALongPromptKeepTheirPace) {
  // The last chunks read all of it: as many tokens as a step of this model can still read.
  const std::uint32_t num_prompt = GetParam().num_long_prompt;
  const Ratios ratios =
      Disturb(Options(), GetParam().cost, [=](TimedWorld& w) { w.Submit(num_prompt, 1); });
  EXPECT_EQ(ratios.num_served, 1);
  EXPECT_LE(ratios.p999, 2.0);
  EXPECT_LE(ratios.worst, 3.0);
}

TEST_P(Victims, OfThirtyAtOnceKeepTheirPace) {
  const Ratios ratios =
      Disturb(Options(), GetParam().cost, [](TimedWorld& w) { SubmitMany(w, 30, 128, 64); });
  EXPECT_EQ(ratios.num_served, 30);
  EXPECT_LE(ratios.p999, 2.0);
  EXPECT_LE(ratios.worst, 3.0);
}

// The control: without a pace the same traffic is felt, or these tests would show nothing.
TEST_P(Victims, SufferWithoutAPace) {
  EngineOptions options = Options();
  options.pace.itl_factor = 0;
  const Ratios ratios =
      Disturb(options, GetParam().cost, [](TimedWorld& w) { SubmitMany(w, 30, 128, 64); });
  EXPECT_GT(ratios.p999, 4.0);
}

INSTANTIATE_TEST_SUITE_P(OfModels, Victims,
                         testing::Values(ModelCase{"middle", MiddleModelSeconds, 8'000},
                                         ModelCase{"tiny", TinyModelSeconds, 2'000}));

}  // namespace
}  // namespace kvrm
