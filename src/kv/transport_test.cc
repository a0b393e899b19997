// SPDX-License-Identifier: Apache-2.0
// Transport and Compactor: what becomes of moves, and which moves are chosen.
#include "kv/transport.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <utility>

#include "device/host_device.h"
#include "kv/compaction.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

constexpr Extent Blocks(std::uint32_t start, std::uint32_t num_blocks) {
  return {BlockId{start}, num_blocks};
}

// Blocks of 1 MiB, so that a group holds four.
struct Bench {
  explicit Bench(std::uint64_t max_move_bytes = 64 << 20, std::uint64_t placement_seed = 0,
                 const TransportOptions& layers = {})
      : device({.copy_thread = layers.num_layers > 1}),
        pool(device.Reserve(64 << 20, "pool")),
        pager({.num_blocks = 64,
               .block_tokens = 16,
               .max_seqs = 4,
               .max_blocks_per_seq = 63,
               .crowded_runs = Compactor::TriggerFor(4),
               .placement =
                   placement_seed != 0 ? PlacementPolicy::kScattered : PlacementPolicy::kInPlace,
               .placement_seed = placement_seed}),
        transport({.block_bytes = 1 << 20,
                   .max_groups = 6,
                   .max_move_bytes_per_step = max_move_bytes,
                   .num_layers = layers.num_layers,
                   .layered_bytes = layers.layered_bytes},
                  pool, {}, device, pager),
        builder(
            {.max_rows = 1, .max_tokens = 1, .max_runs = 4, .max_groups = 6, .block_tokens = 16},
            2) {}
  StepView Flush() {
    CHECK(builder.Begin());
    transport.Flush(builder);
    return builder.Commit(0, 0);
  }

  HostDevice device;
  std::span<std::byte> pool;
  Pager pager;
  Transport transport;
  StepBuilder builder;
};

void ExpectGroup(const TransferGroup& group, std::uint32_t source, std::uint32_t target,
                 std::uint32_t num_blocks) {
  EXPECT_EQ(group.source, BlockId{source});
  EXPECT_EQ(group.target, BlockId{target});
  EXPECT_EQ(group.num_blocks, num_blocks);
}

TEST(Transport, MovesAdjacentAtBothEndsBecomeOneGroupInOrderOfTheirSources) {
  Bench bench;
  bench.transport.Add(Blocks(30, 1), Blocks(42, 1), MovePriority::kCompact);
  bench.transport.Add(Blocks(12, 1), Blocks(22, 1),
                      MovePriority::kCompact);  // Adjacent to the next two.
  bench.transport.Add(Blocks(10, 2), Blocks(20, 2), MovePriority::kCompact);
  bench.transport.Add(Blocks(31, 1), Blocks(40, 1),
                      MovePriority::kCompact);  // Adjacent at its source alone.
  const StepView view = bench.Flush();
  ASSERT_EQ(view.groups.size(), 3u);
  ExpectGroup(view.groups[0], 10, 20, 3);
  ExpectGroup(view.groups[1], 30, 42, 1);
  ExpectGroup(view.groups[2], 31, 40, 1);
}

TEST(Transport, LongMovesAreSplit) {
  Bench bench;
  EXPECT_EQ(bench.transport.GroupsFor(9), 3u);
  bench.transport.Add(Blocks(1, 9), Blocks(40, 9), MovePriority::kCompact);
  EXPECT_EQ(bench.transport.num_groups_left(), 3u);
  const StepView view = bench.Flush();
  ASSERT_EQ(view.groups.size(), 3u);
  ExpectGroup(view.groups[0], 1, 40, 4);
  ExpectGroup(view.groups[1], 5, 44, 4);
  ExpectGroup(view.groups[2], 9, 48, 1);
}

// Eight layers of 128 KiB a block.
TEST(Transport, LargeMovesLandLayerByLayer) {
  Bench bench(64 << 20, 0, {.num_layers = 8, .layered_bytes = 1 << 20});
  bench.transport.Add(Blocks(30, 1), Blocks(40, 1), MovePriority::kCompact);  // Not above 1 MiB.
  bench.transport.Add(Blocks(2, 3), Blocks(12, 3), MovePriority::kCompact);
  const StepView step = bench.Flush();
  ASSERT_EQ(step.groups.size(), 5u);
  ExpectGroup(step.groups[1], 30, 40, 1);
  EXPECT_EQ(step.groups[1].num_layers, 0u);
  const std::array<std::pair<int, int>, 4> ranges = {{{0, 1}, {1, 1}, {2, 2}, {4, 4}}};
  for (const std::size_t r : {0u, 1u, 2u, 3u}) {
    const TransferGroup& group = step.groups[r == 0 ? 0 : r + 1];
    ExpectGroup(group, 2, 12, 3);
    EXPECT_EQ(group.before_layer, ranges[r].first);
    EXPECT_EQ(group.num_layers, ranges[r].second);
  }
  for (std::size_t i = 0; i < 5u << 20; ++i)
    bench.pool[(2 << 20) + i] = static_cast<std::byte>(i >> 10);
  bench.transport.Launch(step);
  bench.transport.Land(0);
  EXPECT_EQ(bench.transport.flying(), step.header->step);
  bench.transport.Land();
  EXPECT_EQ(bench.transport.flying(), StepId{});
  EXPECT_TRUE(std::ranges::equal(bench.pool.subspan(2 << 20, 3 << 20),
                                 bench.pool.subspan(12 << 20, 3 << 20)));
  EXPECT_EQ(bench.transport.num_moved_blocks(), 4u);
  EXPECT_EQ(bench.transport.num_launched_groups(), 5u);
}

// A block is one group as a whole, and four by layers. Six edits in all.
TEST(Transport, OnlySpareEditsCutAMove) {
  const std::array<std::size_t, 4> num_groups = {4, 5, 6, 4};
  for (std::uint32_t num_moves = 1; num_moves <= 4; ++num_moves) {
    Bench bench(64 << 20, 0, {.num_layers = 8, .layered_bytes = 0});
    for (std::uint32_t m = 0; m < num_moves; ++m)
      bench.transport.Add(Blocks(1 + 2 * m, 1), Blocks(20 + 2 * m, 1), MovePriority::kStage);
    const StepView step = bench.Flush();
    EXPECT_EQ(step.groups.size(), num_groups[num_moves - 1]);
    EXPECT_EQ(step.LastDeadline(), num_moves < 4 ? 4u : 0u);
  }
}

TEST(TransportDeathTest, TheBudgetIsKept) {
  Bench bench(5 << 20);
  EXPECT_EQ(bench.transport.num_blocks_left(), 5u);
  bench.transport.Add(Blocks(1, 4), Blocks(40, 4), MovePriority::kCompact);
  EXPECT_EQ(bench.transport.num_blocks_left(), 1u);
  EXPECT_DEATH(bench.transport.Add(Blocks(10, 2), Blocks(50, 2), MovePriority::kCompact),
               "num_blocks_left");
}

TEST(Transport, LaunchCopiesAndRenewsTheBudget) {
  Bench bench(4 << 20);
  bench.pool[std::size_t{7} << 20] = std::byte{42};
  bench.transport.Add(Blocks(7, 1), Blocks(50, 1), MovePriority::kCompact);
  bench.transport.Launch(bench.Flush());
  EXPECT_EQ(bench.transport.flying(), StepId{1});
  bench.transport.Land();
  EXPECT_EQ(bench.transport.flying(), StepId{});
  EXPECT_EQ(bench.pool[std::size_t{50} << 20], std::byte{42});
  EXPECT_EQ(bench.transport.num_blocks_left(), 4u);
  EXPECT_EQ(bench.transport.num_groups_left(), 6u);
  EXPECT_EQ(bench.transport.num_moved_blocks(), 1u);
}

TEST(Transport, WhatAnAbandonedStepHadPlannedGoesIntoTheNextOne) {
  Bench bench;
  bench.transport.Add(Blocks(7, 2), Blocks(50, 2), MovePriority::kCompact);
  ASSERT_TRUE(bench.builder.Begin());
  bench.transport.Flush(bench.builder);
  bench.builder.Abandon();
  bench.transport.Add(Blocks(9, 1), Blocks(52, 1), MovePriority::kCompact);
  const StepView view = bench.Flush();
  ASSERT_EQ(view.groups.size(), 1u);
  ExpectGroup(view.groups[0], 7, 50, 3);
}

// Pool blocks 1 to 31, windows of 8 blocks behind them; the first three pool blocks in limbo.
struct WindowBench {
  explicit WindowBench(bool in_flight = false)
      : pager({.num_blocks = 32, .block_tokens = 16, .max_seqs = 2, .max_blocks_per_seq = 8}),
        transport({.block_bytes = 1024,
                   .num_pool_blocks = 32,
                   .lane_blocks = 8,
                   .max_groups = 4,
                   .max_move_bytes_per_step = 1 << 20},
                  device.Reserve(48 << 10, "pool"), {}, device, pager),
        builder(
            {.max_rows = 1, .max_tokens = 1, .max_runs = 4, .max_groups = 4, .block_tokens = 16},
            2) {
    CHECK(pager.Open(SeqId{0}, 0) && pager.Extend(SeqId{0}, 48));
    first = Index(pager.runs(SeqId{0})[0].start);
    CHECK(pager.runs(SeqId{0}).size() == 1 && builder.Begin());
    pager.Committed(builder.Commit(0, 0));
    builder.Latch();
    if (!in_flight) pager.Retired(builder.Retire());
    pager.Name(SeqId{0});
    pager.Release(SeqId{0});
    CHECK(pager.num_limbo() == 3);
  }
  StepView Flush() {
    CHECK(builder.Begin());
    transport.Flush(builder);
    return builder.Commit(0, 0);
  }

  HostDevice device;
  Pager pager;
  Transport transport;
  StepBuilder builder;
  std::uint32_t first = 0;
};

TEST(Transport, AGapInAWindowsHoleIsBridged) {
  WindowBench bench;
  bench.transport.Add(Blocks(bench.first, 1), Blocks(32, 1), MovePriority::kStage);
  bench.transport.Add(Blocks(bench.first + 2, 1), Blocks(34, 1), MovePriority::kStage);
  const StepView view = bench.Flush();
  ASSERT_EQ(view.groups.size(), 1u);
  ExpectGroup(view.groups[0], bench.first, 32, 3);
}

TEST(Transport, AGapThatAStepInFlightMayWriteIsNotBridged) {
  WindowBench bench(true);
  bench.transport.Add(Blocks(bench.first, 1), Blocks(32, 1), MovePriority::kStage);
  bench.transport.Add(Blocks(bench.first + 2, 1), Blocks(34, 1), MovePriority::kStage);
  EXPECT_EQ(bench.Flush().groups.size(), 2u);
}

TEST(Transport, AGapThatAnotherMoveFillsIsNotBridged) {
  WindowBench bench;
  bench.transport.Add(Blocks(bench.first, 1), Blocks(32, 1), MovePriority::kStage);
  bench.transport.Add(Blocks(bench.first + 2, 1), Blocks(34, 1), MovePriority::kStage);
  bench.transport.Add(Blocks(bench.first + 8, 1), Blocks(33, 1), MovePriority::kStage);
  EXPECT_EQ(bench.Flush().groups.size(), 3u);
}

TEST(Compactor, CrowdedSequenceIsMovedTogetherOneBlockAStep) {
  Bench bench(1 << 20, 7);
  ASSERT_TRUE(bench.pager.Open(SeqId{0}, 0) && bench.pager.Extend(SeqId{0}, 12 * 16));
  const std::uint32_t before = bench.pager.num_runs(SeqId{0});
  ASSERT_GT(before, 8u);
  Compactor compactor(4);
  std::uint32_t num_steps = 0;
  while (bench.pager.num_runs(SeqId{0}) > 4) {
    compactor.PlanStuck(bench.pager, bench.transport);
    compactor.PlanCrowded(bench.pager, bench.transport);
    const StepView view = bench.Flush();
    ASSERT_LE(view.groups.size(), 1u);
    bench.transport.Launch(view);
    bench.pager.Committed(view);
    bench.builder.Latch();
    bench.pager.Retired(bench.builder.Retire());
    bench.pager.CheckInvariants();
    ASSERT_LE(++num_steps, 2 * before);
  }
  EXPECT_EQ(compactor.num_stalls(), 0u);
}

TEST(Compactor, StallIsCountedWhenAllFreeBlocksArePromised) {
  Bench bench(64 << 20, 7);
  ASSERT_TRUE(bench.pager.Open(SeqId{0}, 0) && bench.pager.Extend(SeqId{0}, 12 * 16));
  ASSERT_TRUE(bench.pager.Open(SeqId{1}, (63 - 12) * 16));
  Compactor compactor(4);
  compactor.PlanStuck(bench.pager, bench.transport);
  compactor.PlanCrowded(bench.pager, bench.transport);
  EXPECT_EQ(compactor.num_stalls(), 1u);
  EXPECT_FALSE(bench.transport.has_planned());
}

}  // namespace
}  // namespace kvrm
