// SPDX-License-Identifier: Apache-2.0
#include "kv/free_runs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "kv/placement.h"

namespace kvrm {
namespace {

constexpr Extent Blocks(std::uint32_t start, std::uint32_t num_blocks) {
  return {BlockId{start}, num_blocks};
}

// The obvious index: a vector of flags that is scanned.
struct SlowRuns {
  explicit SlowRuns(std::uint32_t num_blocks) : free(num_blocks, false) {}
  std::uint32_t LengthFrom(std::size_t start, std::uint32_t at_most) const {
    std::uint32_t length = 0;
    while (start + length < free.size() && length < at_most && free[start + length])
      ++length;
    return length;
  }
  Extent Longest() const {
    Extent best;
    for (std::uint32_t b = 0; b < free.size(); ++b) {
      const std::uint32_t length = LengthFrom(b, ~0u);
      if (length > best.num_blocks) best = Blocks(b, length);
    }
    return best;
  }
  std::uint32_t LengthBefore(std::size_t end, std::uint32_t at_most) const {
    std::uint32_t length = 0;
    while (length < end && length < at_most && free[end - 1 - length])
      ++length;
    return length;
  }
  Extent FirstFit(std::uint32_t num_blocks) const {
    for (std::uint32_t b = 0; b < free.size(); ++b) {
      if (LengthFrom(b, num_blocks) == num_blocks) return Blocks(b, num_blocks);
    }
    return {};
  }
  std::vector<bool> free;
};

TEST(FreeRuns, AgreesWithAScanAfterEveryChange) {
  for (const std::uint32_t num_blocks : {1u, 2u, 63u, 64u, 65u, 128u, 200u, 1000u}) {
    Rng rng(num_blocks);
    FreeRuns runs(num_blocks);
    SlowRuns slow(num_blocks);
    for (int i = 0; i < 2000; ++i) {
      const auto start = static_cast<std::uint32_t>(rng.Below(num_blocks));
      const auto most = static_cast<std::uint32_t>(rng.Between(1, num_blocks - start));
      const bool to_free = !slow.free[start];
      std::uint32_t length = 0;
      while (length < most && slow.free[start + length] != to_free)
        ++length;
      std::fill_n(slow.free.begin() + start, length, to_free);
      to_free ? runs.Free(Blocks(start, length)) : runs.Take(Blocks(start, length));

      ASSERT_EQ(runs.num_free(), std::count(slow.free.begin(), slow.free.end(), true));
      ASSERT_EQ(runs.Longest(), slow.Longest());
      const auto from = static_cast<std::uint32_t>(rng.Below(num_blocks + 1));
      const auto at_most = static_cast<std::uint32_t>(rng.Below(num_blocks + 1));
      ASSERT_EQ(runs.LengthFrom(from, at_most), slow.LengthFrom(from, at_most));
      ASSERT_EQ(runs.LengthBefore(from, at_most), slow.LengthBefore(from, at_most));
      const auto fit = static_cast<std::uint32_t>(
          1 + (i % 2 == 0 ? rng.Below(num_blocks) : rng.Below(std::min(num_blocks, 40u))));
      ASSERT_EQ(runs.FirstFit(fit), slow.FirstFit(fit));
      if (runs.num_free() == 0) continue;
      std::uint32_t next = from % num_blocks;
      while (!slow.free[next])
        next = (next + 1) % num_blocks;
      ASSERT_EQ(runs.NextFrom(from), BlockId{next});
    }
  }
}

TEST(FreeRunsDeathTest, ABlockIsFreedOnceAndTakenOnce) {
  FreeRuns runs(100);
  runs.Free(Blocks(10, 60));
  EXPECT_DEATH(runs.Free(Blocks(69, 2)), "mask");  // K3
  EXPECT_DEATH(runs.Take(Blocks(9, 2)), "mask");   // K3
  EXPECT_DEATH(runs.Free(Blocks(99, 2)), "num_blocks");
}

TEST(Placement, GrowsInPlaceElseStartsInTheMiddleOfTheLongestHole) {
  FreeRuns runs(200);
  runs.Free(Blocks(10, 20));
  runs.Free(Blocks(50, 100));
  Placement placement(PlacementOptions{});
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 12, .want = 4, .likely = 4}),
            Blocks(12, 4));
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 28, .want = 4, .likely = 4}),
            Blocks(28, 2));
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 30, .want = 4, .likely = 4}),
            Blocks(100, 4));
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 0, .want = 1, .likely = 1}),
            Blocks(100, 1));
}

TEST(Placement, StartsEarlierInTheHoleWhenTheCreditNeedsTheRoom) {
  FreeRuns runs(200);
  runs.Free(Blocks(50, 100));
  Placement placement(PlacementOptions{});
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 0, .want = 2, .likely = 70}),
            Blocks(80, 2));
  EXPECT_EQ(placement.Choose(
                runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 0, .want = 2, .likely = 500}),
            Blocks(50, 2));
  EXPECT_EQ(
      placement.Choose(
          runs, {.seq = SeqId{0}, .num_held = 0, .next_block = 0, .want = 200, .likely = 200}),
      Blocks(50, 100));
}

TEST(Placement, ScatteredIsOneBlockAtATimeAndTheSameForOneSeed) {
  FreeRuns runs(200);
  runs.Free(Blocks(1, 199));
  Placement a({.policy = PlacementPolicy::kScattered, .seed = 5});
  Placement b({.policy = PlacementPolicy::kScattered, .seed = 5});
  Placement other({.policy = PlacementPolicy::kScattered, .seed = 6});
  int num_adjacent = 0;
  int num_same_as_other = 0;
  std::uint32_t last = 0;
  for (int i = 0; i < 100; ++i) {
    const Extent block = a.Choose(runs, {.next_block = last + 1, .want = 3, .likely = 3});
    ASSERT_EQ(block.num_blocks, 1u);
    ASSERT_EQ(b.Choose(runs, {.next_block = last + 1, .want = 3, .likely = 3}), block);
    num_same_as_other += other.Choose(runs, {.want = 1, .likely = 1}) == block ? 1 : 0;
    num_adjacent += Index(block.start) == last + 1 ? 1 : 0;
    last = Index(block.start);
    runs.Take(block);
  }
  EXPECT_LT(num_adjacent, 10);
  EXPECT_LT(num_same_as_other, 10);
}

TEST(Placement, TogetherNeedsOneHole) {
  FreeRuns runs(100);
  runs.Free(Blocks(10, 5));
  runs.Free(Blocks(20, 5));
  const Placement placement({});
  EXPECT_EQ(placement.Together(runs, 6).num_blocks, 0u);
  EXPECT_EQ(placement.Together(runs, 5), Blocks(10, 5));
}

TEST(Placement, AtEndsWhatIsFreeStaysInOnePiece) {
  FreeRuns runs(100);
  runs.Free(Blocks(10, 50));
  Placement middle({});
  Placement ends({.at_ends = true});
  const PlacementRequest request = {.want = 4, .likely = 10};
  EXPECT_EQ(middle.Choose(runs, request), Blocks(35, 4));
  EXPECT_EQ(ends.Choose(runs, request), Blocks(50, 4));
  EXPECT_EQ(middle.Together(runs, 20), Blocks(35, 20));
  EXPECT_EQ(ends.Together(runs, 20), Blocks(40, 20));
  // A hole shorter than the run is filled from its start, either way.
  const PlacementRequest longer = {.want = 60, .likely = 80};
  EXPECT_EQ(middle.Choose(runs, longer), Blocks(10, 50));
  EXPECT_EQ(ends.Choose(runs, longer), Blocks(10, 50));
}

}  // namespace
}  // namespace kvrm
