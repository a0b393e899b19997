// SPDX-License-Identifier: Apache-2.0
// Compactor: which runs it moves where, and which it leaves alone.
#include "kv/compaction.h"

#include <gtest/gtest.h>

#include <vector>

#include "device/host_device.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlocks = 64;

// Runs of one block at first, wherever a seed has put them; a budget of `max_moved` blocks a step.
struct Bench {
  explicit Bench(std::uint32_t max_moved, std::uint64_t seed = 3,
                 PlacementPolicy placement = PlacementPolicy::kScattered, bool prefix_cache = false)
      : pool(device.Reserve(kBlocks * 64, "pool")),
        pager({.num_blocks = kBlocks,
               .block_tokens = 16,
               .max_seqs = 4,
               .max_blocks_per_seq = kBlocks,
               .crowded_runs = Compactor::TriggerFor(2),
               .placement = placement,
               .placement_seed = seed,
               .prefix_cache = prefix_cache}),
        transport({.block_bytes = 64,
                   .num_pool_blocks = kBlocks,
                   .max_groups = 8,
                   .max_move_bytes_per_step = max_moved * 64},
                  pool, {}, device, pager),
        builder({.max_rows = 4,
                 .max_tokens = 1024,
                 .max_runs = kBlocks,
                 .max_groups = 8,
                 .block_tokens = 16},
                2) {}
  void Write(SeqId seq, std::uint32_t num_blocks) {
    CHECK(pager.Extend(seq, num_blocks * 16));
    const std::vector<std::int32_t> tokens((num_blocks * 16) - pager.length(seq), 1);
    CHECK(builder.Begin());
    builder.AddRow({.seq = seq,
                    .first_position = pager.length(seq),
                    .tokens = tokens,
                    .runs = pager.target_runs(seq)});
    pager.Name(seq);
    Finish();
  }
  // One step with nothing but moves. Returns the blocks moved.
  std::uint64_t Step(Compactor& compactor) {
    const std::uint64_t before = transport.num_moved_blocks();
    compactor.PlanStuck(pager, transport);
    compactor.PlanCrowded(pager, transport);
    CHECK(builder.Begin());
    transport.Flush(builder);
    Finish();
    return transport.num_moved_blocks() - before;
  }
  void Finish() {
    const StepView view = builder.Commit(0, 4);
    transport.Launch(view);
    pager.Committed(view);
    transport.Land();
    builder.Latch();
    pager.Retired(builder.Retire());
    pager.CheckInvariants();
  }

  HostDevice device;
  std::span<std::byte> pool;
  Pager pager;
  Transport transport;
  StepBuilder builder;
};

// Nobody holds what lies beside the row, and hardly a block is free: it is moved where the cache
// is.
TEST(Compactor, AStuckRowTakesAHoleOfCachedBlocks) {
  Bench bench(8, 3, PlacementPolicy::kScattered, /*prefix_cache=*/true);
  constexpr std::uint32_t kCachedBlocks = kBlocks - 1 - 6;
  ASSERT_TRUE(bench.pager.Open(SeqId{0}, kCachedBlocks * 16));
  bench.Write(SeqId{0}, kCachedBlocks);
  ASSERT_TRUE(bench.pager.Open(SeqId{1}, 5 * 16));
  bench.Write(SeqId{1}, 5);
  ASSERT_GT(bench.pager.num_runs(SeqId{1}), 2u);
  const std::vector<std::int32_t> tokens(kCachedBlocks * 16, 1);
  std::vector<PrefixKey> keys(kCachedBlocks);
  for (std::uint32_t i = 0; i < kCachedBlocks; ++i)
    keys[i].bytes[0] = static_cast<std::uint8_t>(i);
  bench.pager.Publish(SeqId{0}, tokens, keys);
  bench.pager.Release(SeqId{0});
  ASSERT_EQ(bench.pager.num_cached(), kCachedBlocks);
  ASSERT_EQ(bench.pager.num_free(), 1u);
  Compactor compactor(2);
  for (int step = 0; step < 4; ++step)
    bench.Step(compactor);
  EXPECT_EQ(compactor.num_stalls(), 0u);
  EXPECT_LE(bench.pager.num_runs(SeqId{1}), 2u);
  // What it left is free instead: no more was evicted than it took.
  EXPECT_EQ(bench.pager.num_cached() + bench.pager.num_free(), kCachedBlocks + 1);
  EXPECT_GE(bench.pager.num_cached(), kCachedBlocks - 5);
  EXPECT_LT(bench.pager.num_cached(), kCachedBlocks);
}

// Nothing that was asked for was cached: a sequence grows over what is cached behind it.
TEST(Pager, GrowsInPlaceWhereTheCacheDoesNotPay) {
  for (const bool pays : {false, true}) {
    Bench bench(0, 3, PlacementPolicy::kInPlace, /*prefix_cache=*/true);
    std::vector<std::int32_t> tokens(16 * 20, 1);
    std::vector<PrefixKey> keys(20);
    std::uint8_t number = 0;
    for (std::uint32_t seq = 0; seq < 3; ++seq) {
      for (PrefixKey& key : keys)
        key.bytes[0] = ++number;
      ASSERT_TRUE(bench.pager.Open(SeqId{seq}, 20 * 16));
      bench.Write(SeqId{seq}, 20);
      bench.pager.Publish(SeqId{seq}, tokens, keys);
    }
    // The one in the middle is cached, and then the one before it, which goes on.
    std::uint32_t first = 0;
    for (std::uint32_t seq = 1; seq < 3; ++seq) {
      if (bench.pager.runs(SeqId{seq})[0].start < bench.pager.runs(SeqId{first})[0].start)
        first = seq;
    }
    ASSERT_EQ(bench.pager.num_runs(SeqId{first}), 1u);
    for (std::uint32_t seq = 0; seq < 3; ++seq) {
      if (seq != first) bench.pager.Release(SeqId{seq});
    }
    ASSERT_EQ(bench.pager.num_cached(), 40u);
    // So much was asked for that the pool has turned over twice.
    std::vector<PrefixKey> asked(20);
    for (PrefixKey& key : asked)
      key.bytes[1] = 1;
    for (int i = 0; i < 7; ++i) {
      ASSERT_TRUE(bench.pager.OpenCached(SeqId{3}, tokens, pays ? keys : asked, 0));
      bench.pager.Release(SeqId{3});
    }
    EXPECT_EQ(bench.pager.cache_pays(), pays);
    ASSERT_TRUE(bench.pager.Extend(SeqId{first}, 30 * 16));
    bench.pager.CheckInvariants();
    EXPECT_EQ(bench.pager.num_runs(SeqId{first}) == 1, !pays);
  }
}

TEST(Compactor, HolesStayWhereTheyAre) {
  Bench bench(8);
  ASSERT_TRUE(bench.pager.Open(SeqId{0}, 0));
  bench.Write(SeqId{0}, 12);
  bench.pager.Trim(SeqId{0}, 4 * 16, 8 * 16);
  Compactor compactor(3);
  for (int i = 0; i < 20; ++i)
    bench.Step(compactor);
  const std::span<const Extent> runs = bench.pager.runs(SeqId{0});
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[0].num_blocks, 4u);
  EXPECT_EQ(runs[1], (Extent{kSentinelBlock, 4}));
  EXPECT_EQ(runs[2].num_blocks, 4u);
}

TEST(Compactor, SharedBlocksStayWithTheOthersUnlessTheRowIsStuck) {
  Bench bench(8);
  ASSERT_TRUE(bench.pager.Open(SeqId{0}, 0));
  bench.Write(SeqId{0}, 8);
  ASSERT_TRUE(bench.pager.Fork(SeqId{1}, SeqId{0}, 8 * 16, 0));
  const std::vector<Extent> before(bench.pager.runs(SeqId{1}).begin(),
                                   bench.pager.runs(SeqId{1}).end());
  ASSERT_GT(before.size(), 4u);
  Compactor roomy(kBlocks);
  for (int i = 0; i < 10; ++i)
    EXPECT_EQ(bench.Step(roomy), 0u);
  Compactor tight(3);
  for (int i = 0; i < 20; ++i)
    bench.Step(tight);
  EXPECT_LE(bench.pager.num_runs(SeqId{0}), 3u);
  EXPECT_LE(bench.pager.num_runs(SeqId{1}), 3u);
}

// Two runs, and the only hole ends right before the second one.
TEST(Compactor, MovesARunToRightBeforeItsSuccessor) {
  std::uint32_t num_before = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    Bench bench(8, seed);
    ASSERT_TRUE(bench.pager.Open(SeqId{0}, 0));
    bench.Write(SeqId{0}, 3);
    const std::span<const Extent> runs = bench.pager.runs(SeqId{0});
    if (runs.size() != 3) continue;
    const Extent last = runs[2];
    Compactor compactor(2);
    bench.Step(compactor);
    ASSERT_LE(bench.pager.num_runs(SeqId{0}), 2u);
    const Extent now = bench.pager.runs(SeqId{0}).back();
    num_before += Index(now.start) < Index(last.start) &&
                          Index(now.start) + now.num_blocks == Index(last.start) + 1
                      ? 1u
                      : 0u;
  }
  EXPECT_GT(num_before, 20u);
}

// Three runs of three blocks, of which two are shown, and two holes of three blocks with one block
// of another sequence between them.
TEST(Compactor, EvacuatesWhatIsBetweenTwoHoles) {
  Bench bench(8, 0, PlacementPolicy::kInPlace);
  const SeqId stuck{0};
  const SeqId between{1};
  const SeqId rest{2};
  for (const SeqId seq : {stuck, between, rest})
    ASSERT_TRUE(bench.pager.Open(seq, 0));
  bench.Write(rest, kBlocks - 1);
  const auto free = [&](std::uint32_t block, std::uint32_t num_blocks) {
    std::uint32_t number = 0;
    for (const Extent& run : bench.pager.runs(rest)) {
      if (block - Index(run.start) < run.num_blocks && run.start != kSentinelBlock) {
        number += block - Index(run.start);
        bench.pager.Trim(rest, number * 16, (number + num_blocks) * 16);
        return;
      }
      number += run.num_blocks;
    }
  };
  std::uint32_t num_blocks = 0;
  for (const std::uint32_t block : {1u, 10u, 20u}) {
    free(block, 3);
    ASSERT_TRUE(bench.pager.Extend(stuck, (num_blocks += 3) * 16));
  }
  free(40, 1);
  ASSERT_TRUE(bench.pager.Extend(between, 16));
  free(30, 1);
  free(37, 3);
  free(41, 3);
  ASSERT_EQ(bench.pager.free_runs().Longest().num_blocks, 3u);
  Compactor compactor(2);
  for (int i = 0; i < 3; ++i) {
    bench.pager.Name(rest);
    bench.Step(compactor);
  }
  EXPECT_EQ(compactor.num_stalls(), 1u);
  EXPECT_EQ(bench.pager.runs(between)[0], (Extent{BlockId{30}, 1}));
  EXPECT_EQ(bench.pager.num_runs(stuck), 2u);
}

}  // namespace
}  // namespace kvrm
