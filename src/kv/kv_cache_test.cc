// SPDX-License-Identifier: Apache-2.0
#include "kv/kv_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "base/counted_new_for_test.h"
#include "kv/cache_bench_for_test.h"

namespace kvrm {
namespace {

KvCacheOptions Options(std::uint32_t num_blocks, std::uint32_t max_runs = 4) {
  return {.layout = kLayout,
          .num_blocks = num_blocks,
          .max_seqs = 4,
          .max_blocks_per_seq = num_blocks,
          .max_runs = max_runs,
          .max_groups = 8,
          .max_move_bytes_per_step = 8 * kLayout.block_bytes()};
}

// A cache, its device and a ring, and steps that run the moment they are committed.
struct Bench : CacheBench {
  using CacheBench::CacheBench;

  // Commits a step in which each of `seqs` writes the rest of its target. Not yet retired.
  StepView Commit(const std::vector<std::pair<SeqId, std::uint32_t>>& rows) {
    CHECK(builder.Begin());
    cache.Plan(builder, builder.building());
    for (const auto& [seq, num_tokens] : rows) {
      const std::uint32_t first = lengths[Index(seq)];
      const std::vector<std::int32_t> tokens(num_tokens - first, 1);
      CHECK(cache.AddRow(builder, {.seq = seq, .first_position = first, .tokens = tokens}));
      lengths[Index(seq)] = num_tokens;
    }
    return Launch();
  }
  void Retire() { cache.Retire(builder.Retire()); }
  // Extends, runs and retires a step of one row.
  StepView Write(SeqId seq, std::uint32_t num_tokens) {
    CHECK(cache.Extend(seq, num_tokens));
    const StepView view = Commit({{seq, num_tokens}});
    Retire();
    return view;
  }
  void Release(SeqId seq) {
    cache.Release(seq);
    lengths[Index(seq)] = 0;
  }

  std::array<std::uint32_t, 4> lengths = {};
};

TEST(KvCache, ReservesThePoolOnce) {
  Bench bench(Options(9));
  ASSERT_EQ(bench.device.reservations().size(), 1u);
  EXPECT_EQ(bench.device.reservations()[0].bytes, 9 * kLayout.block_bytes());
  const KvStats stats = bench.cache.stats();
  EXPECT_EQ(stats.num_blocks, 8u);
  EXPECT_EQ(stats.num_free, 8u);
  EXPECT_EQ(stats.reserved_bytes, 9 * kLayout.block_bytes());
  EXPECT_EQ(stats.mapped_bytes, 0u);
  EXPECT_EQ(stats.live_bytes, 0u);
}

TEST(KvCache, GrowsInPlaceAsOneRun) {
  Bench bench(Options(9));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  for (std::uint32_t n = 1; n <= 4 * kBlockTokens; ++n) {
    bench.Write(kA, n);
    ASSERT_EQ(bench.cache.home(kA).size(), 1u);
    bench.cache.CheckInvariants();
  }
  EXPECT_EQ(bench.cache.home(kA)[0].num_blocks, 4u);
  EXPECT_EQ(bench.cache.stats().live_bytes, 64 * kLayout.token_bytes());
  EXPECT_EQ(bench.cache.stats().mapped_bytes, 4 * kLayout.block_bytes());
}

// A full pool, half of it cached: what a stuck row needs is there, and only eviction shows it.
TEST(KvCache, CachedBlocksMakeRoomForAStuckRow) {
  KvCacheOptions options = Options(17, 2);
  options.placement = PlacementPolicy::kScattered;
  options.placement_seed = 3;
  options.prefix_cache = true;
  Bench bench(options);
  const std::vector<std::int32_t> tokens(2 * kBlockTokens, 1);
  const PrefixKey root = PrefixRoot("model", kLayout, "");
  for (std::uint8_t n = 0; n < 4; ++n) {
    ASSERT_TRUE(bench.cache.Open(kB, 0));
    for (std::uint32_t end = kBlockTokens; end <= 2 * kBlockTokens; end += kBlockTokens)
      bench.Write(kB, end);
    std::array<PrefixKey, 2> keys = {root, root};
    keys[0].bytes[0] = n;
    keys[1].bytes[1] = static_cast<std::uint8_t>(n + 1);
    bench.cache.Publish(kB, tokens, keys);
    bench.Release(kB);
  }
  ASSERT_EQ(bench.cache.stats().num_cached, 8u);
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Extend(kA, 8 * kBlockTokens));
  ASSERT_GT(bench.cache.home(kA).size(), 2u);
  for (int step = 0; step < 40 && bench.cache.home(kA).size() > 2; ++step) {
    bench.Commit({});
    bench.Retire();
    bench.cache.CheckInvariants();
  }
  EXPECT_LE(bench.cache.home(kA).size(), 2u);
}

TEST(KvCache, CreditIsHonouredAgainstOthers) {
  Bench bench(Options(9));
  ASSERT_TRUE(bench.cache.Open(kA, 6 * kBlockTokens));
  EXPECT_EQ(bench.cache.num_available_tokens(), 2 * kBlockTokens);
  EXPECT_FALSE(bench.cache.Open(kB, 3 * kBlockTokens));
  ASSERT_TRUE(bench.cache.Open(kB, kBlockTokens));
  EXPECT_FALSE(bench.cache.Extend(kB, 3 * kBlockTokens));
  EXPECT_TRUE(bench.cache.Extend(kB, 2 * kBlockTokens));
  EXPECT_FALSE(bench.cache.Reserve(kB, 3 * kBlockTokens));
  EXPECT_TRUE(bench.cache.Extend(kA, 6 * kBlockTokens));
  EXPECT_FALSE(bench.cache.Extend(kA, 7 * kBlockTokens));
  bench.cache.CheckInvariants();
}

TEST(KvCache, ReleasedBlocksWaitForTheEpochsThatMayReadThem) {
  Bench bench(Options(5));
  ASSERT_TRUE(bench.cache.Open(kA, 4 * kBlockTokens));
  ASSERT_TRUE(bench.cache.Extend(kA, 4 * kBlockTokens));
  bench.Commit({{kA, 4 * kBlockTokens}});
  bench.Release(kA);
  EXPECT_EQ(bench.cache.stats().num_limbo, 4u);
  EXPECT_FALSE(bench.cache.Open(kB, 1));
  bench.cache.CheckInvariants();
  bench.Retire();
  EXPECT_EQ(bench.cache.stats().num_free, 4u);
  EXPECT_TRUE(bench.cache.Open(kB, 4 * kBlockTokens));
}

TEST(KvCache, ReleasedBlocksAreFreeAtOnceWhenNothingIsInFlight) {
  Bench bench(Options(5));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 64);
  bench.Release(kA);
  EXPECT_EQ(bench.cache.stats().num_free, 4u);
}

TEST(KvCache, BlocksOfAPreemptedSequenceAreUsableInTheSameStepWhenItIsNotInIt) {
  Bench bench(Options(5));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Open(kB, 0));
  bench.Write(kA, 48);
  bench.Write(kB, 16);
  ASSERT_TRUE(bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  EXPECT_FALSE(bench.cache.Extend(kB, 17));
  bench.cache.Release(kA);
  EXPECT_TRUE(bench.cache.Extend(kB, 17));
  bench.cache.CheckInvariants();
}

TEST(KvCache, BlocksOfASequenceReleasedFromTheStepUnderConstructionWaitForThatStep) {
  Bench bench(Options(5));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Extend(kA, 16));
  ASSERT_TRUE(bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  const std::array<std::int32_t, 1> tokens = {1};
  ASSERT_TRUE(bench.cache.AddRow(bench.builder, {.seq = kA, .tokens = tokens}));
  bench.cache.Release(kA);
  EXPECT_EQ(bench.cache.stats().num_limbo, 1u);
  bench.cache.Launch(bench.builder.Commit(0, 1));
  bench.cache.CheckInvariants();
  EXPECT_EQ(bench.cache.stats().live_bytes, 0u);
  bench.builder.Latch();
  bench.Retire();
  EXPECT_EQ(bench.cache.stats().num_free, 4u);
}

TEST(KvCache, AbandonedStepReturnsWhatOnlyItCouldRead) {
  Bench bench(Options(5));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Extend(kA, 16));
  ASSERT_TRUE(bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  const std::array<std::int32_t, 1> tokens = {1};
  ASSERT_TRUE(bench.cache.AddRow(bench.builder, {.seq = kA, .tokens = tokens}));
  bench.cache.Release(kA);
  EXPECT_EQ(bench.cache.stats().num_limbo, 1u);
  bench.builder.Abandon();
  bench.cache.Abandon();
  EXPECT_EQ(bench.cache.stats().num_free, 4u);
  EXPECT_TRUE(bench.cache.Open(kA, 64));
}

TEST(KvCache, TruncateKeepsWhatIsPromisedAndDropsTheRest) {
  Bench bench(Options(9));
  ASSERT_TRUE(bench.cache.Open(kA, 2 * kBlockTokens));
  bench.Write(kA, 5 * kBlockTokens);
  bench.cache.Truncate(kA, 3);
  bench.cache.CheckInvariants();
  EXPECT_EQ(bench.cache.stats().num_held, 2u);
  EXPECT_EQ(bench.cache.stats().live_bytes, 3 * kLayout.token_bytes());
  EXPECT_EQ(bench.cache.stats().num_promised, 0u);
  EXPECT_EQ(bench.cache.home(kA)[0].num_blocks, 2u);
}

// Interleaves single blocks of A and B, then leaves holes where B was.
void Fragment(Bench& bench, std::uint32_t num_blocks_each) {
  for (std::uint32_t n = 1; n <= num_blocks_each; ++n) {
    bench.Write(kA, n * kBlockTokens);
    bench.Write(kB, n * kBlockTokens);
  }
}

TEST(KvCache, CrowdedSequenceIsMovedTogetherAndThenNothingMoves) {
  KvCacheOptions options = Options(64, 4);
  options.placement = PlacementPolicy::kScattered;
  options.placement_seed = 3;
  Bench bench(options);
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Extend(kA, 12 * kBlockTokens));
  EXPECT_GT(bench.cache.home(kA).size(), 4u);  // Twelve scattered blocks: too many runs.
  int num_steps = 0;
  while (bench.cache.home(kA).size() > 4) {
    bench.Commit({});
    bench.Retire();
    bench.cache.CheckInvariants();
    ASSERT_LT(++num_steps, 10);
  }
  bench.Commit({{kA, 12 * kBlockTokens}});
  bench.Retire();
  const std::uint64_t num_groups = bench.cache.stats().num_groups;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(bench.Commit({}).header->num_groups, 0u);
    bench.Retire();
  }
  EXPECT_EQ(bench.cache.stats().num_groups, num_groups);
}

TEST(KvCache, SteadyDecodeMovesNothing) {
  Bench bench(Options(64, 4));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  ASSERT_TRUE(bench.cache.Open(kB, 0));
  Fragment(bench, 16);
  EXPECT_EQ(bench.cache.stats().num_groups, 0u);
  EXPECT_EQ(bench.cache.home(kA).size(), 1u);
  EXPECT_EQ(bench.cache.home(kB).size(), 1u);
}

TEST(KvCache, NoCallAllocates) {
  KvCacheOptions options = Options(64, 4);
  options.placement = PlacementPolicy::kScattered;
  options.placement_seed = 9;
  Bench bench(options);
  const std::array<std::int32_t, 24> tokens = {};
  const std::array<SeqId, 3> seqs = {kA, kB, kC};
  // All rows of a step, or none while one of them waits to be moved together.
  const auto add_rows = [&](std::uint32_t first) {
    for (const SeqId seq : seqs) {
      if (bench.cache.home(seq).size() > 4) return false;
    }
    for (const SeqId seq : seqs) {
      CHECK(bench.cache.AddRow(bench.builder,
                               {.seq = seq, .first_position = first, .tokens = tokens}));
    }
    return true;
  };
  const std::uint64_t before = ThreadNew().num_allocations;
  for (std::uint32_t round = 0; round < 30; ++round) {
    for (const SeqId seq : seqs)
      ASSERT_TRUE(bench.cache.Open(seq, 64) && bench.cache.Reserve(seq, 80));
    for (std::uint32_t first = 0; first < 240; first += 24) {
      for (const SeqId seq : seqs)
        ASSERT_TRUE(bench.cache.Extend(seq, first + 24));
      bool done = false;
      for (int tries = 0; !done && tries < 40; ++tries) {
        ASSERT_TRUE(bench.builder.Begin());
        bench.cache.Plan(bench.builder, bench.builder.building());
        done = add_rows(first);
        bench.cache.Launch(bench.builder.Commit(0, 4));
        bench.cache.Land();
        bench.builder.Latch();
        bench.Retire();
      }
      ASSERT_TRUE(done);
    }
    for (const SeqId seq : seqs) {
      bench.cache.Truncate(seq, 17);
      bench.cache.Release(seq);
    }
    static_cast<void>(bench.cache.stats());
  }
  EXPECT_EQ(ThreadNew().num_allocations, before);
  EXPECT_GT(bench.cache.stats().num_groups, 100u);
}

TEST(KvCache, MovedContentIsFoundWhereTheRunsSay) {
  KvCacheOptions options = Options(64, 4);
  options.placement = PlacementPolicy::kScattered;
  options.placement_seed = 4;
  Bench bench(options);
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  std::uint64_t* const slots = reinterpret_cast<std::uint64_t*>(bench.cache.memory().data());
  for (std::uint32_t n = 1; n <= 20 * kBlockTokens; ++n) {
    ASSERT_TRUE(bench.cache.Extend(kA, n));
    const StepView view = bench.Commit({{kA, n}});
    slots[Index(view.slots[0])] = n - 1;
    std::uint64_t position = 0;
    for (const Extent& run : view.RowRuns(0)) {
      for (std::uint32_t i = 0; i < run.num_blocks * kBlockTokens && position < n; ++i, ++position)
        ASSERT_EQ(slots[Index(run.start) * kBlockTokens + i], position);
    }
    ASSERT_EQ(position, n);
    bench.Retire();
  }
  EXPECT_GT(bench.cache.stats().num_moved_blocks, 5u);
  EXPECT_LE(bench.cache.stats().max_runs_seen, 4u);
  EXPECT_EQ(bench.cache.stats().num_run_overflows, 0u);
}

// Cached blocks go from their last to their first. A prompt that arrives in parts and evicts for
// each part alone would have a run for every one of them.
TEST(KvCache, APromptInPartsTakesThePlaceOfWhatIsCachedAsOneRun) {
  KvCacheOptions options = Options(61, 32);
  options.prefix_cache = true;
  Bench bench(options);
  std::vector<PrefixKey> keys(60);
  for (std::uint8_t i = 0; i < 60; ++i)
    keys[i].bytes[0] = i;
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 60 * kBlockTokens);
  bench.cache.Publish(kA, std::vector<std::int32_t>(60 * kBlockTokens, 1), keys);
  bench.Release(kA);
  ASSERT_EQ(bench.cache.stats().num_cached, 60u);
  ASSERT_TRUE(bench.cache.Open(kB, 40 * kBlockTokens));
  for (std::uint32_t num_blocks = 4; num_blocks <= 40; num_blocks += 4) {
    bench.Write(kB, num_blocks * kBlockTokens);
    bench.cache.CheckInvariants();
  }
  EXPECT_EQ(bench.cache.home(kB).size(), 1u);
  EXPECT_EQ(bench.cache.stats().num_moved_blocks, 0u);
  EXPECT_EQ(bench.cache.stats().num_cached, 20u);
}

TEST(KvCache, WhatWasComputedBehindAHoleIsNotPublished) {
  KvCacheOptions options = Options(16);
  options.prefix_cache = true;
  Bench bench(options);
  const std::vector<std::int32_t> tokens(3 * kBlockTokens, 1);
  std::vector<PrefixKey> keys(3);
  for (std::uint8_t i = 0; i < 3; ++i)
    keys[i].bytes[0] = i;
  ASSERT_TRUE(bench.cache.Open(kA, 0) && bench.cache.Open(kB, 0));
  bench.Write(kB, kBlockTokens);
  bench.cache.Publish(kB, tokens, keys);
  bench.Write(kA, 2 * kBlockTokens);
  bench.cache.Trim(kA, 0, kBlockTokens);
  bench.Write(kA, 3 * kBlockTokens);
  bench.cache.Publish(kA, tokens, keys);
  // The first is B's, the second A's from before the hole; the third has seen the hole.
  EXPECT_EQ(bench.cache.OpenCached(kC, tokens, keys, 0), 2 * kBlockTokens);
  // Written anew, the second has seen it as well.
  bench.Release(kC);
  bench.cache.Truncate(kA, kBlockTokens);
  bench.lengths[Index(kA)] = kBlockTokens;
  bench.cache.DropCached();
  bench.Write(kA, 3 * kBlockTokens);
  bench.cache.Publish(kA, tokens, keys);
  EXPECT_EQ(bench.cache.OpenCached(kC, tokens, keys, 0), kBlockTokens);
  bench.cache.CheckInvariants();
}

TEST(KvCache, ABlockUnderAPlannedCopyIsNotKeptToBeWrittenAnew) {
  Bench bench(Options(16));
  ASSERT_TRUE(bench.cache.Open(kA, 2 * kBlockTokens));
  bench.Write(kA, kBlockTokens + 8);
  ASSERT_TRUE(bench.cache.Fork(kB, kA, kBlockTokens + 5, 0));
  bench.lengths[Index(kB)] = kBlockTokens + 5;
  // The copy of A's second block is planned for B, and the step is given up.
  ASSERT_TRUE(bench.cache.Extend(kB, kBlockTokens + 6) && bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  ASSERT_EQ(bench.builder.num_groups(), 1u);
  bench.builder.Abandon();
  bench.cache.Abandon();
  // A writes its second block anew in the step that makes the copy: in another block then (D7).
  bench.cache.Truncate(kA, kBlockTokens);
  bench.lengths[Index(kA)] = kBlockTokens;
  const StepView view = bench.Write(kA, kBlockTokens + 1);
  ASSERT_EQ(view.groups.size(), 1u);
  EXPECT_NE(Index(view.slots[0]) / kBlockTokens, Index(view.groups[0].source));
  bench.cache.CheckInvariants();
}

TEST(KvCache, ABlockThatACopyOfAnAbandonedPlanReadsWaitsForTheStepThatMakesIt) {
  Bench bench(Options(16));
  ASSERT_TRUE(bench.cache.Open(kA, 2 * kBlockTokens));
  bench.Write(kA, kBlockTokens + 8);
  ASSERT_TRUE(bench.cache.Fork(kB, kA, kBlockTokens + 5, 0));
  bench.lengths[Index(kB)] = kBlockTokens + 5;
  ASSERT_TRUE(bench.cache.Extend(kB, kBlockTokens + 6) && bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  bench.builder.Abandon();
  bench.cache.Abandon();
  const StepView copies = bench.Commit({});
  ASSERT_EQ(copies.groups.size(), 1u);
  const std::uint32_t source = Index(copies.groups[0].source);
  // The step is in flight: A, alone with the block by now, may not begin it anew (P13).
  bench.cache.Truncate(kA, kBlockTokens);
  bench.lengths[Index(kA)] = kBlockTokens;
  ASSERT_TRUE(bench.cache.Extend(kA, kBlockTokens + 1));
  const StepView view = bench.Commit({{kA, kBlockTokens + 1}});
  EXPECT_NE(Index(view.slots[0]) / kBlockTokens, source);
  bench.cache.CheckInvariants();
}

TEST(KvCache, SequenceAloneInHalfThePoolIsMovedTogetherWithinItsBudget) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    KvCacheOptions options = Options(65, 4);
    options.placement = PlacementPolicy::kScattered;
    options.placement_seed = seed;
    options.max_move_bytes_per_step = 4 * kLayout.block_bytes();
    Bench bench(options);
    ASSERT_TRUE(bench.cache.Open(kA, 0));
    ASSERT_TRUE(bench.cache.Extend(kA, 32 * kBlockTokens));
    std::uint32_t num_steps = 0;
    while (bench.cache.home(kA).size() > 4) {
      bench.Commit({});
      bench.Retire();
      ASSERT_LT(++num_steps, 200u) << seed;
    }
  }
}

TEST(KvCacheDeathTest, LaunchMustNotBeLeftOut) {
  Bench bench(Options(9));
  ASSERT_TRUE(bench.builder.Begin());
  bench.cache.Plan(bench.builder, bench.builder.building());
  bench.builder.Commit(0, 1);
  ASSERT_TRUE(bench.builder.Begin());
  EXPECT_DEATH(bench.cache.Plan(bench.builder, bench.builder.building()), "next");
}

TEST(KvCacheDeathTest, SequencesAreOpenedAndReleasedInTurn) {
  Bench bench(Options(9));
  EXPECT_DEATH(bench.cache.Extend(kC, 1), "open");
  EXPECT_DEATH(bench.cache.Release(kC), "open");
  EXPECT_DEATH(bench.cache.Open(SeqId{4}, 0), "max_seqs");
  ASSERT_TRUE(bench.cache.Open(kC, 0));
  EXPECT_DEATH(bench.cache.Open(kC, 0), "open");
  EXPECT_DEATH(bench.cache.Extend(kC, 10 * kBlockTokens), "max_blocks_per_seq");
  EXPECT_DEATH(bench.cache.Truncate(kC, 1), "target");
  EXPECT_DEATH(bench.cache.Retire(StepId{1}), "committed_");
}

}  // namespace
}  // namespace kvrm
