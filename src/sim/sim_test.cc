// SPDX-License-Identifier: Apache-2.0
// The simulator's own parts, and a few schedules of each level.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "sim/history.h"
#include "sim/sim_device.h"
#include "sim/world.h"

namespace kvrm {
namespace {

SimTotals RunSchedules(SimLevel level, std::uint64_t num_schedules) {
  SimTotals totals;
  for (std::uint64_t seed = 1; seed <= num_schedules; ++seed)
    totals.Add(RunSchedule(MakeSchedule(level, seed, 150), SimTrace(nullptr)));
  return totals;
}

#if defined(KVRM_DEBUG_CHECKS) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSchedules = 200;
#else
constexpr std::uint64_t kSchedules = 1000;
#endif

TEST(Sim, CacheSchedulesReachWhatTheyAreMeantTo) {
  const SimTotals totals = RunSchedules(SimLevel::kKv, kSchedules);
  EXPECT_GT(totals.num_rows, 20 * kSchedules);
  EXPECT_GT(totals.num_copies, kSchedules);
  EXPECT_GT(totals.num_maps, kSchedules / 2);
  EXPECT_GT(totals.num_cow_blocks, kSchedules / 10);
  EXPECT_GT(totals.num_prefix_hits, kSchedules / 10);
  EXPECT_GT(totals.num_evictions, kSchedules / 10);
  EXPECT_GT(totals.num_run_overflows, kSchedules / 2);
}

TEST(Sim, EngineSchedulesReachWhatTheyAreMeantTo) {
  const SimTotals totals = RunSchedules(SimLevel::kEngine, kSchedules / 4);
  EXPECT_GT(totals.num_requests, kSchedules);
  EXPECT_GT(totals.num_steps, 10 * kSchedules);
  EXPECT_GT(totals.num_preemptions, kSchedules / 40);
}

TEST(Sim, TheSameSeedIsTheSameSchedule) {
  const SimSchedule schedule = MakeSchedule(SimLevel::kKv, 42, 150);
  const SimTotals first = RunSchedule(schedule, SimTrace(nullptr));
  const SimTotals second = RunSchedule(schedule, SimTrace(nullptr));
  EXPECT_GT(first.num_rows, 0u);
  EXPECT_EQ(first.num_rows, second.num_rows);
  EXPECT_EQ(first.num_copies, second.num_copies);
}

}  // namespace
}  // namespace kvrm
