// SPDX-License-Identifier: Apache-2.0
// The simulator's own parts, and a few schedules of each level.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "sim/exhaustive.h"
#include "sim/history.h"
#include "sim/sim_device.h"
#include "sim/world.h"

namespace kvrm {
namespace {

SimTotals RunSchedules(SimLevel level, std::uint64_t num_schedules) {
  SimTotals totals;
  for (std::uint64_t seed = 1; seed <= num_schedules; ++seed)
    totals.Add(RunSchedule(MakeSchedule(level, seed, 300), SimTrace(nullptr)));
  return totals;
}

#if defined(KVRM_DEBUG_CHECKS) || defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSchedules = 400;
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
  EXPECT_GT(totals.num_parks, kSchedules);
  EXPECT_GT(totals.num_resumes, kSchedules / 2);
  EXPECT_GT(totals.num_resumed_blocks, kSchedules / 2);
  EXPECT_GT(totals.num_proved_reads, 1000 * kSchedules);
}

TEST(Sim, EngineSchedulesReachWhatTheyAreMeantTo) {
  const SimTotals totals = RunSchedules(SimLevel::kEngine, kSchedules / 4);
  EXPECT_GT(totals.num_requests, kSchedules);
  EXPECT_GT(totals.num_steps, 10 * kSchedules);
  EXPECT_GT(totals.num_preemptions, kSchedules / 40);
  EXPECT_GT(totals.num_parks, kSchedules / 40);
  EXPECT_GT(totals.num_resumes, kSchedules / 80);
  EXPECT_GT(totals.num_proved_reads, 1000 * kSchedules);
}

TEST(Sim, TheSameSeedIsTheSameSchedule) {
  const SimSchedule schedule = MakeSchedule(SimLevel::kKv, 42, 150);
  const SimTotals first = RunSchedule(schedule, SimTrace(nullptr));
  const SimTotals second = RunSchedule(schedule, SimTrace(nullptr));
  EXPECT_GT(first.num_rows, 0u);
  EXPECT_EQ(first.num_rows, second.num_rows);
  EXPECT_EQ(first.num_copies, second.num_copies);
}

TEST(Sim, EveryProgramOfSevenOperationsOnThreeBlocks) {
  for (const KvView view : {KvView::kExtents, KvView::kStagedWindows, KvView::kMapped}) {
    const ExhaustiveReport report = Explore(7, view);
    EXPECT_EQ(report.failure, "") << KvViewName(view);
    EXPECT_GT(report.num_states, 1000u);
    EXPECT_EQ(report.num_ops, 7u);
  }
}

TEST(History, DigestSaysEveryTokenItsPlaceAndEveryHole) {
  const auto digest = [](std::vector<std::int32_t> tokens, bool hole) {
    History history(2);
    for (const std::int32_t token : tokens)
      history.Append(token);
    if (hole) history.Drop(0, 1);
    return history.digest();
  };
  const std::uint64_t whole = digest({1, 2, 3, 4}, false);
  EXPECT_EQ(digest({1, 2, 3, 4}, false), whole);
  EXPECT_NE(digest({2, 1, 3, 4}, false), whole);
  EXPECT_NE(digest({9, 2, 3, 4}, false), whole);
  EXPECT_NE(digest({1, 2, 3, 4}, true), whole);
  // What was computed behind a hole stays different although all else is the same.
  History late(2);
  for (const std::int32_t token : {1, 2, 3})
    late.Append(token);
  late.Drop(0, 1);
  late.Append(4);
  EXPECT_NE(late.digest(), digest({1, 2, 3, 4}, true));
  late.Truncate(3);
  late.Append(4);
  History again(2);
  for (const std::int32_t token : {1, 2, 3})
    again.Append(token);
  again.Drop(0, 1);
  again.Append(4);
  EXPECT_EQ(late.digest(), again.digest());
}

TEST(SimDevice, CopiesLandInPiecesAndAllByWait) {
  SimDevice device({.twice_percent = 50, .piece_bytes = 8});
  Rng rng(1);
  device.Use(&rng);
  const std::span<std::byte> memory = device.Reserve(128, "test");
  std::fill_n(memory.begin(), 64, std::byte{7});
  const CopyOp copy = {.source = memory.data(), .target = memory.data() + 64, .bytes = 64};
  const FlightId flight = device.Submit({&copy, 1});
  EXPECT_FALSE(device.Landed(flight));
  device.Tick();
  EXPECT_EQ(std::ranges::count(memory.subspan(64), std::byte{7}), 8);
  EXPECT_FALSE(device.FirstLanded(1, kAllDeadlines));
  device.Wait(flight);
  EXPECT_TRUE(device.FirstLanded(1, kAllDeadlines));
  EXPECT_TRUE(device.Landed(flight));
  EXPECT_EQ(std::ranges::count(memory.subspan(64), std::byte{7}), 64);
}

TEST(SimDevice, ARefusedMappingShowsNothing) {
  SimDevice device({.refuse_percent = 100});
  Rng rng(1);
  device.Use(&rng);
  device.ReservePool(256, 128, true, 64);
  EXPECT_FALSE(device.Map(64, 128, 64));
  EXPECT_FALSE(device.Shown(1).has_value());
  device.EndFaults();
  EXPECT_TRUE(device.Map(64, 128, 64));
  EXPECT_EQ(device.Shown(1), 2u);
}

}  // namespace
}  // namespace kvrm
