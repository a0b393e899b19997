// SPDX-License-Identifier: Apache-2.0
// The host tier through KvCache: what parks, what refuses, what a step moves, what comes back.
#include "kv/host_tier.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <vector>

#include "base/counted_new_for_test.h"
#include "kv/cache_bench_for_test.h"

namespace kvrm {
namespace {

KvCacheOptions Options(std::uint32_t host_blocks, std::uint32_t move_blocks = 4) {
  return {.layout = kLayout,
          .num_blocks = 17,
          .max_seqs = 4,
          .max_blocks_per_seq = 16,
          .max_runs = 16,
          .max_groups = 8,
          .max_move_bytes_per_step = move_blocks * kLayout.block_bytes(),
          .prefix_cache = true,
          .host_blocks = host_blocks};
}

// Steps that run the moment they are committed: each row's token at position p has the stamp
// seed + p.
struct Bench : CacheBench {
  using CacheBench::CacheBench;

  std::uint64_t* Slot(std::uint32_t slot) {
    return reinterpret_cast<std::uint64_t*>(cache.memory().data()) + slot;
  }
  void Write(SeqId seq, std::uint32_t first, std::uint32_t end, std::uint64_t seed) {
    CHECK(cache.Extend(seq, end) && builder.Begin());
    cache.Plan(builder, builder.building());
    const std::vector<std::int32_t> tokens(end - first, 1);
    CHECK(cache.AddRow(builder, {.seq = seq, .first_position = first, .tokens = tokens}));
    const StepView view = Run();
    for (std::uint32_t t = 0; t < tokens.size(); ++t)
      *Slot(Index(view.slots[t])) = seed + first + t;
  }
  // A step of moves alone.
  StepView Move() {
    CHECK(builder.Begin());
    cache.Plan(builder, builder.building());
    return Run();
  }
  StepView Run() {
    const StepView view = Launch();
    cache.Retire(builder.Retire());
    cache.CheckInvariants();
    return view;
  }
  void ExpectHolds(SeqId seq, std::uint32_t length, std::uint64_t seed) {
    std::uint32_t p = 0;
    for (const Extent& run : cache.home(seq)) {
      for (std::uint32_t t = 0; t < run.num_blocks * kBlockTokens && p < length; ++t, ++p)
        ASSERT_EQ(*Slot(Index(run.start) * kBlockTokens + t), seed + p);
    }
    EXPECT_EQ(p, length);
  }
  void Overwrite() { std::memset(cache.memory().data(), 0xff, cache.memory().size()); }
};

TEST(HostTier, WhatIsParkedComesBackInAnotherIdentityWithinTheBudgetOfEachStep) {
  Bench bench(Options(10));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 0, 150, 1000);  // 10 blocks, the last one half full
  const auto parked = bench.cache.Park(kA);
  ASSERT_TRUE(parked);
  EXPECT_TRUE(bench.cache.Open(kA, 0));  // The identity is free at once.
  bench.cache.Release(kA);
  EXPECT_EQ(bench.cache.stats().num_leaving, 10u);
  for (const std::uint32_t left : {6u, 2u, 0u}) {
    EXPECT_FALSE(bench.cache.is_parked(*parked));
    EXPECT_FALSE(bench.cache.Resume(*parked, kC, {}, {}, 0));
    const StepView view = bench.Move();
    ASSERT_EQ(view.groups.size(), 1u);
    EXPECT_EQ(view.groups[0].source_tier, 0);
    EXPECT_EQ(view.groups[0].target_tier, 1);
    EXPECT_LE(view.groups[0].num_blocks, 4u);
    EXPECT_EQ(bench.cache.stats().num_leaving, left);
    EXPECT_EQ(bench.cache.stats().num_free, 16 - left);
  }
  EXPECT_TRUE(bench.cache.is_parked(*parked));
  EXPECT_EQ(bench.cache.stats().host_live_bytes, 150 * kLayout.token_bytes());
  bench.Overwrite();

  ASSERT_TRUE(bench.cache.Resume(*parked, kC, {}, {}, 0));
  for (std::uint32_t step = 0; step < 3; ++step) {
    EXPECT_TRUE(bench.cache.is_resuming(kC));
    const StepView view = bench.Move();
    ASSERT_EQ(view.groups.size(), 1u);
    EXPECT_EQ(view.groups[0].source_tier, 1);
    EXPECT_EQ(view.groups[0].target_tier, 0);
  }
  EXPECT_FALSE(bench.cache.is_resuming(kC));
  bench.ExpectHolds(kC, 150, 1000);
  bench.Write(kC, 150, 170, 1000);
  bench.ExpectHolds(kC, 170, 1000);
  EXPECT_EQ(bench.cache.stats().num_host_free, 10u);
  EXPECT_EQ(bench.cache.stats().num_parked_blocks, 10u);
  EXPECT_EQ(bench.cache.stats().num_resumed_blocks, 10u);
}

TEST(HostTier, ARowRunsInTheStepThatBringsItsLastBlocks) {
  Bench bench(Options(10, 16));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 0, 40, 1000);
  const auto parked = bench.cache.Park(kA);
  bench.Move();
  ASSERT_TRUE(bench.cache.Resume(*parked, kB, {}, {}, 0));
  bench.Write(kB, 40, 41, 1000);
  bench.ExpectHolds(kB, 41, 1000);
}

TEST(HostTier, RefusesWithoutRoomAndNothingChanges) {
  Bench bench(Options(9));
  ASSERT_TRUE(bench.cache.Open(kA, 0) && bench.cache.Open(kB, 0));
  EXPECT_FALSE(bench.cache.Park(kB));  // Nothing was written.
  bench.Write(kA, 0, 10 * kBlockTokens, 1000);
  EXPECT_FALSE(bench.cache.Park(kA));
  EXPECT_EQ(bench.cache.stats().num_park_refusals, 1u);
  bench.cache.Truncate(kA, 9 * kBlockTokens);
  const auto parked = bench.cache.Park(kA);
  ASSERT_TRUE(parked);
  bench.Write(kB, 0, 1, 2000);
  EXPECT_FALSE(bench.cache.Park(kB));
  bench.Move();
  bench.Move();
  ASSERT_TRUE(bench.cache.is_parked(*parked));
  EXPECT_FALSE(bench.cache.Resume(*parked, kC, {}, {}, 16 * kBlockTokens));  // B has one of 16.
  EXPECT_TRUE(bench.cache.is_parked(*parked));
  EXPECT_TRUE(bench.cache.Resume(*parked, kC, {}, {}, 15 * kBlockTokens));
}

TEST(HostTier, MayBeGivenUpAtAnyPoint) {
  Bench bench(Options(10));
  for (std::uint32_t num_steps = 0; num_steps < 7; ++num_steps) {
    SCOPED_TRACE(num_steps);
    ASSERT_TRUE(bench.cache.Open(kA, 0));
    bench.Write(kA, 0, 150, 1000);
    const auto parked = bench.cache.Park(kA);
    ASSERT_TRUE(parked);
    for (std::uint32_t step = 0; step < std::min(num_steps, 3u); ++step)
      bench.Move();
    if (num_steps < 3) {
      bench.cache.Discard(*parked);
    } else {
      ASSERT_TRUE(bench.cache.Resume(*parked, kA, {}, {}, 0));
      for (std::uint32_t step = 3; step < num_steps; ++step)
        bench.Move();
      bench.cache.Release(kA);
    }
    bench.Move();
    EXPECT_EQ(bench.cache.stats().num_free, 16u);
    EXPECT_EQ(bench.cache.stats().num_host_free, 10u);
  }
}

TEST(HostTier, ParkedAgainWhileItComesBackNothingIsCopiedTwice) {
  Bench bench(Options(10));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 0, 150, 1000);
  const auto parked = bench.cache.Park(kA);
  for (std::uint32_t step = 0; step < 3; ++step)
    bench.Move();
  ASSERT_TRUE(bench.cache.Resume(*parked, kB, {}, {}, 0));
  bench.Move();
  const auto again = bench.cache.Park(kB);
  EXPECT_EQ(again, parked);
  EXPECT_TRUE(bench.Move().groups.empty());
  EXPECT_EQ(bench.cache.stats().num_free, 16u);
  bench.Overwrite();
  ASSERT_TRUE(bench.cache.Resume(*again, kA, {}, {}, 0));
  for (std::uint32_t step = 0; step < 3; ++step)
    bench.Move();
  bench.ExpectHolds(kA, 150, 1000);
}

TEST(HostTier, WhatThePrefixCacheStillHasIsSharedAndNotCopied) {
  Bench bench(Options(10, 16));
  const std::vector<std::int32_t> tokens(40, 1);
  std::vector<PrefixKey> keys(2);
  keys[0] = NextPrefixKey({}, std::span(tokens).first(kBlockTokens));
  keys[1] = NextPrefixKey(keys[0], std::span(tokens).first(kBlockTokens));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 0, 40, 1000);
  bench.cache.Publish(kA, tokens, keys);
  const auto parked = bench.cache.Park(kA);
  EXPECT_EQ(bench.Move().groups[0].num_blocks, 3u);
  EXPECT_EQ(bench.cache.stats().num_cached, 2u);
  ASSERT_TRUE(bench.cache.Resume(*parked, kB, tokens, keys, 0));
  const StepView view = bench.Move();
  ASSERT_EQ(view.groups.size(), 1u);
  EXPECT_EQ(view.groups[0].num_blocks, 1u);
  bench.ExpectHolds(kB, 40, 1000);
}

TEST(HostTier, StaticViewsAndCachesWithoutATierParkNothing) {
  for (const bool is_static : {false, true}) {
    KvCacheOptions options = Options(is_static ? 10 : 0);
    if (is_static) options.num_blocks = 65;
    if (is_static) options.view = KvView::kStatic;
    Bench bench(options);
    ASSERT_TRUE(bench.cache.Open(kA, 0));
    bench.Write(kA, 0, 40, 1000);
    EXPECT_FALSE(bench.cache.Park(kA));
    EXPECT_EQ(bench.cache.stats().host_reserved_bytes, 0u);
  }
}

TEST(HostTier, NoCallAllocates) {
  Bench bench(Options(10));
  ASSERT_TRUE(bench.cache.Open(kA, 0));
  bench.Write(kA, 0, 150, 1000);
  ThreadNew() = {};
  const auto parked = bench.cache.Park(kA);
  for (std::uint32_t step = 0; step < 6; ++step) {
    CHECK(bench.builder.Begin());
    bench.cache.Plan(bench.builder, bench.builder.building());
    bench.cache.Launch(bench.builder.Commit(0, 4));
    bench.cache.Land();
    bench.builder.Latch();
    bench.cache.Retire(bench.builder.Retire());
    if (step == 2) CHECK(bench.cache.Resume(*parked, kB, {}, {}, 0));
  }
  bench.cache.Release(kB);
  EXPECT_EQ(ThreadNew().num_allocations, 0u);
}

}  // namespace
}  // namespace kvrm
