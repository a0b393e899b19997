// SPDX-License-Identifier: Apache-2.0
// Placement policies and what they are made of, each against the obvious.
#include "kv/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "base/counted_new_for_test.h"
#include "base/rng.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

constexpr std::array kPolicies = {PlacementPolicy::kInPlace, PlacementPolicy::kLifo,
                                  PlacementPolicy::kFifo,    PlacementPolicy::kBuddy,
                                  PlacementPolicy::kBestFit, PlacementPolicy::kSoft,
                                  PlacementPolicy::kRegions, PlacementPolicy::kScattered};
constexpr std::uint32_t kFirst = Placement::kFirstClaim;

constexpr Extent Blocks(std::uint32_t start, std::uint32_t num_blocks) {
  return {BlockId{start}, num_blocks};
}

// A placement and the index it decides by, told of every change as the pager tells it.
struct Pool {
  Pool(PlacementPolicy policy, std::uint32_t num_blocks, std::uint32_t max_seqs = 8)
      : free(num_blocks),
        placement({.policy = policy,
                   .num_blocks = num_blocks,
                   .max_seqs = max_seqs,
                   .max_blocks_per_seq = num_blocks,
                   .seed = 3}) {
    Free(Blocks(1, num_blocks - 1));
  }
  void Free(const Extent& blocks) {
    free.Free(blocks);
    placement.Freed(blocks);
  }
  void Take(const Extent& blocks) {
    free.Take(blocks);
    placement.Taken(blocks);
  }
  // Chooses and takes.
  Extent Get(const PlacementRequest& request) {
    const Extent blocks = placement.Choose(free, request);
    Take(blocks);
    return blocks;
  }

  FreeRuns free;
  Placement placement;
};

TEST(Placement, EveryPolicyAnswersWithFreeBlocksAndLosesNone) {
  constexpr std::uint32_t kBlocks = 300;
  for (const PlacementPolicy policy : kPolicies) {
    SCOPED_TRACE(PlacementPolicyName(policy));
    Pool pool(policy, kBlocks);
    Rng rng(11);
    std::vector<bool> is_free(kBlocks, true);
    is_free[0] = false;
    std::array<std::vector<std::uint32_t>, 8> held;
    const auto flip = [&](std::uint32_t block, bool to_free) {
      ASSERT_NE(is_free[block], to_free);
      is_free[block] = to_free;
    };
    for (int i = 0; i < 20000; ++i) {
      const auto s = static_cast<std::uint32_t>(rng.Below(8));
      std::vector<std::uint32_t>& mine = held[s];
      const std::uint64_t op = rng.Below(100);
      if (op < 90 && pool.free.num_free() > 0) {
        const auto want = static_cast<std::uint32_t>(
            rng.Between(1, std::min<std::uint64_t>(pool.free.num_free(), op < 80 ? 1 : 40)));
        const PlacementRequest request = {
            .seq = SeqId{s},
            .num_held = static_cast<std::uint32_t>(mine.size()),
            .next_block = mine.empty() ? 0 : mine.back() + 1,
            .want = want,
            .likely = want + static_cast<std::uint32_t>(rng.Below(3) * rng.Below(50))};
        const Extent blocks = pool.Get(request);
        ASSERT_TRUE(blocks.num_blocks >= 1 && blocks.num_blocks <= want);
        for (std::uint32_t b = 0; b < blocks.num_blocks; ++b) {
          flip(Index(blocks.start) + b, false);
          mine.push_back(Index(blocks.start) + b);
        }
      } else if (op < 94 && pool.free.num_free() > 0) {
        // What is moved together takes blocks where it likes.
        const auto from = static_cast<std::uint32_t>(rng.Below(kBlocks));
        const std::uint32_t start = Index(pool.free.NextFrom(from));
        const std::uint32_t length = pool.free.LengthFrom(start, 5);
        pool.Take(Blocks(start, length));
        for (std::uint32_t b = start; b < start + length; ++b) {
          flip(b, false);
          mine.push_back(b);
        }
      } else {
        for (const std::uint32_t block : mine) {
          flip(block, true);
          pool.Free(Blocks(block, 1));
        }
        mine.clear();
        pool.placement.Ended(SeqId{s});
      }
      ASSERT_EQ(pool.free.num_free(), std::count(is_free.begin(), is_free.end(), true));
      // Exact: what is free is claimed or open.
      ASSERT_EQ(pool.placement.num_soft() + pool.placement.open(pool.free).num_free(),
                pool.free.num_free());
    }
    for (std::uint32_t s = 0; s < 8; ++s) {
      for (const std::uint32_t block : held[s])
        pool.Free(Blocks(block, 1));
      pool.placement.Ended(SeqId{s});
    }
    EXPECT_EQ(pool.placement.num_soft(), 0u);
    EXPECT_EQ(pool.placement.open(pool.free).Longest(), Blocks(1, kBlocks - 1));
  }
}

TEST(Placement, NoPolicyAllocatesAndItsBytesAreCounted) {
  for (const PlacementPolicy policy : kPolicies) {
    SCOPED_TRACE(PlacementPolicyName(policy));
    Pool pool(policy, 4096);
    const std::uint64_t bytes = pool.placement.reserved_bytes();
    EXPECT_LE(bytes, 4096 * 16u + 8 * 16u);
    EXPECT_EQ(bytes > 0,
              policy != PlacementPolicy::kInPlace && policy != PlacementPolicy::kScattered);
    const std::uint64_t before = ThreadNew().num_allocations;
    for (std::uint32_t i = 0; i < 4000; ++i)
      pool.Get({.seq = SeqId{i % 8}, .num_held = i / 8, .want = 1, .likely = 1 + i % 9});
    for (std::uint32_t b = 1; b < 4096; ++b) {
      if (!pool.free.IsFree(BlockId{b})) pool.Free(Blocks(b, 1));
    }
    EXPECT_EQ(ThreadNew().num_allocations, before);
  }
}

TEST(Placement, FreeListGivesBackWhatWasFreedLast) {
  Pool pool(PlacementPolicy::kLifo, 20);
  for (std::uint32_t b = 1; b <= 6; ++b)
    EXPECT_EQ(pool.Get({.want = 3, .likely = 3}), Blocks(b, 1));
  pool.Free(Blocks(2, 1));
  pool.Free(Blocks(4, 2));
  EXPECT_EQ(pool.Get({.next_block = 7, .want = 1, .likely = 1}), Blocks(4, 1));
  EXPECT_EQ(pool.Get({.next_block = 7, .want = 1, .likely = 1}), Blocks(5, 1));
  EXPECT_EQ(pool.Get({.next_block = 7, .want = 1, .likely = 1}), Blocks(2, 1));
  EXPECT_EQ(pool.Get({.next_block = 7, .want = 1, .likely = 1}), Blocks(7, 1));
}

TEST(Placement, FreeQueueGivesBackWhatWasFreedFirst) {
  Pool pool(PlacementPolicy::kFifo, 8);
  for (std::uint32_t b = 1; b <= 5; ++b)
    EXPECT_EQ(pool.Get({.want = 3, .likely = 3}), Blocks(b, 1));
  pool.Free(Blocks(4, 1));
  pool.Free(Blocks(1, 2));
  pool.Take(Blocks(7, 1));  // From the middle, as compaction does.
  for (const std::uint32_t block : {6u, 4u, 1u, 2u})
    EXPECT_EQ(pool.Get({.want = 1, .likely = 1}), Blocks(block, 1));
}

TEST(Placement, BestFitTakesTheShortestHoleThatHoldsTheCredit) {
  Pool pool(PlacementPolicy::kBestFit, 400);
  pool.Take(Blocks(1, 399));
  pool.Free(Blocks(10, 20));
  pool.Free(Blocks(50, 6));
  pool.Free(Blocks(100, 90));
  EXPECT_EQ(pool.placement.Choose(pool.free, {.want = 2, .likely = 5}), Blocks(50, 2));
  EXPECT_EQ(pool.placement.Choose(pool.free, {.want = 2, .likely = 7}), Blocks(10, 2));
  EXPECT_EQ(pool.placement.Choose(pool.free, {.want = 2, .likely = 21}), Blocks(100, 2));
  EXPECT_EQ(pool.placement.Choose(pool.free, {.want = 99, .likely = 300}), Blocks(100, 90));
  EXPECT_EQ(pool.placement.Choose(pool.free, {.next_block = 27, .want = 9, .likely = 9}),
            Blocks(27, 3));
}

TEST(Placement, SoftClaimsAheadTwiceAsFarEachTime) {
  Pool pool(PlacementPolicy::kSoft, 1001, 2);
  Extent last = pool.Get({.seq = SeqId{0}, .want = 1, .likely = 1});
  EXPECT_EQ(last, Blocks(501, 1));
  EXPECT_EQ(pool.placement.num_soft(), kFirst);
  // Others stay clear of it.
  EXPECT_EQ(pool.Get({.seq = SeqId{1}, .want = 1, .likely = 1}), Blocks(251, 1));
  EXPECT_EQ(pool.placement.num_soft(), 2 * kFirst);
  for (std::uint32_t i = 1; i <= kFirst; ++i) {
    last =
        pool.Get({.seq = SeqId{0}, .num_held = i, .next_block = 501 + i, .want = 1, .likely = 1});
    ASSERT_EQ(last, Blocks(501 + i, 1));
    ASSERT_EQ(pool.placement.num_soft(), 2 * kFirst - i);
  }
  const std::uint32_t next = 501 + kFirst + 1;
  EXPECT_EQ(
      pool.Get(
          {.seq = SeqId{0}, .num_held = kFirst + 1, .next_block = next, .want = 1, .likely = 1}),
      Blocks(next, 1));
  EXPECT_EQ(pool.placement.num_soft(), kFirst + 2 * kFirst);
  pool.placement.Ended(SeqId{0});
  EXPECT_EQ(pool.placement.num_soft(), kFirst);
}

TEST(Placement, SoftPutsAPromptWhereItFirstFits) {
  Pool pool(PlacementPolicy::kSoft, 400, 2);
  pool.Take(Blocks(1, 399));
  pool.Free(Blocks(10, 20));
  pool.Free(Blocks(50, 30));
  pool.Free(Blocks(100, 200));
  EXPECT_EQ(pool.Get({.seq = SeqId{0}, .want = 12, .likely = 12}), Blocks(50, 12));
  EXPECT_EQ(pool.placement.num_soft(), kFirst);
}

TEST(Placement, ClaimsAreTakenByOthersWhenNothingElseIsFree) {
  for (const PlacementPolicy policy : {PlacementPolicy::kSoft, PlacementPolicy::kBuddy}) {
    SCOPED_TRACE(PlacementPolicyName(policy));
    Pool pool(policy, 13, 2);
    const Extent first = pool.Get({.seq = SeqId{0}, .want = 1, .likely = 12});
    std::uint32_t num_open = 0;
    while (pool.placement.open(pool.free).num_free() > 0) {
      pool.Take({pool.placement.open(pool.free).Longest().start, 1});
      ++num_open;
    }
    const std::uint32_t soft = pool.placement.num_soft();
    ASSERT_EQ(soft, 12 - 1 - num_open);
    ASSERT_GE(soft, 2u);
    // The second half goes, all of it out of the claim.
    const Extent stolen = pool.Get({.seq = SeqId{1}, .want = 1, .likely = 1});
    EXPECT_EQ(Index(stolen.start), Index(first.start) + 1 + soft / 2);
    EXPECT_EQ(pool.placement.num_soft(), soft / 2);
    EXPECT_EQ(pool.free.num_free(), soft - 1);
  }
}

TEST(Placement, ClaimEndsWhereMovesTakeFromIt) {
  Pool pool(PlacementPolicy::kSoft, 201, 2);
  EXPECT_EQ(pool.Get({.seq = SeqId{0}, .want = 1, .likely = 1}), Blocks(101, 1));
  pool.Take(Blocks(106, 2));
  EXPECT_EQ(pool.placement.num_soft(), 4u);
  pool.Take(Blocks(102, 1));
  EXPECT_EQ(pool.placement.num_soft(), 3u);
  // No longer next in line: it claims anew, and the old claim is open again.
  const Extent next =
      pool.Get({.seq = SeqId{0}, .num_held = 1, .next_block = 102, .want = 1, .likely = 1});
  EXPECT_NE(next, Blocks(103, 1));
  EXPECT_EQ(pool.placement.num_soft(), 2 * kFirst);
  EXPECT_TRUE(pool.placement.open(pool.free).IsFree(BlockId{103}));
}

TEST(Placement, BuddyExtentsAreAlignedAndCoalesce) {
  Pool pool(PlacementPolicy::kBuddy, 257, 2);
  const Extent a = pool.Get({.seq = SeqId{0}, .want = 1, .likely = 1});
  EXPECT_EQ(Index(a.start) % std::bit_ceil(kFirst + 1), 0u);
  EXPECT_EQ(pool.placement.num_soft(), std::bit_ceil(kFirst + 1) - 1);
  const Extent b = pool.Get({.seq = SeqId{1}, .want = 30, .likely = 30});
  EXPECT_EQ(Index(b.start) % 64, 0u);
  EXPECT_EQ(b.num_blocks, 30u);
  for (std::uint32_t i = 0; i < b.num_blocks; i += 3)
    pool.Free(Blocks(Index(b.start) + i, 3));
  pool.Free(a);
  pool.placement.Ended(SeqId{0});
  pool.placement.Ended(SeqId{1});
  // All is one again: an extent of half the pool is to be had.
  const Extent half = pool.Get({.seq = SeqId{0}, .want = 128, .likely = 128});
  EXPECT_EQ(half, Blocks(128, 128));
}

TEST(Placement, RegionsKeepLengthsApartUntilOneIsFull) {
  Pool pool(PlacementPolicy::kRegions, 401);
  const auto quarter = [](const Extent& blocks) { return Index(blocks.start) / 100; };
  EXPECT_EQ(quarter(pool.Get({.want = 4, .likely = 16})), 0u);
  EXPECT_EQ(quarter(pool.Get({.want = 4, .likely = 17})), 1u);
  EXPECT_EQ(quarter(pool.Get({.num_held = 60, .want = 1, .likely = 5})), 2u);
  EXPECT_EQ(quarter(pool.Get({.want = 4, .likely = 300})), 3u);
  pool.placement.Ended(SeqId{0});
  while (pool.free.LengthFrom(Index(pool.free.NextFrom(0)), 1) == 1 &&
         Index(pool.free.NextFrom(0)) < 100) {
    pool.Take({pool.free.NextFrom(0), 1});
  }
  EXPECT_NE(quarter(pool.Get({.want = 4, .likely = 4})), 0u);
}

TEST(BuddyTree, AgreesWithAScanAfterEveryChange) {
  for (const std::uint32_t num_blocks : {2u, 3u, 64u, 100u}) {
    Rng rng(num_blocks);
    BuddyTree tree(num_blocks);
    std::vector<bool> is_free(num_blocks, false);
    const auto whole = [&](std::uint32_t start, std::uint32_t length) {
      return start + length <= num_blocks &&
             std::all_of(is_free.begin() + start, is_free.begin() + start + length,
                         [](bool f) { return f; });
    };
    for (int i = 0; i < 2000; ++i) {
      const auto start = static_cast<std::uint32_t>(rng.Below(num_blocks));
      const bool to_free = !is_free[start];
      std::uint32_t length = 1;
      while (length < 20 && start + length < num_blocks && is_free[start + length] != to_free)
        ++length;
      std::fill_n(is_free.begin() + start, length, to_free);
      to_free ? tree.Free(Blocks(start, length)) : tree.Take(Blocks(start, length));
      std::uint32_t longest = 0;
      for (std::uint32_t span = 1; span <= num_blocks; span *= 2) {
        for (std::uint32_t at = 0; at < num_blocks; at += span)
          longest = whole(at, span) ? span : longest;
      }
      ASSERT_EQ(tree.longest(), longest);
      for (std::uint32_t order = 0; longest > 0 && 1u << order <= longest; ++order) {
        const Extent found = tree.Find(order);
        ASSERT_EQ(found.num_blocks, 1u << order);
        ASSERT_EQ(Index(found.start) % found.num_blocks, 0u);
        ASSERT_TRUE(whole(Index(found.start), found.num_blocks));
      }
    }
  }
}

TEST(HoleIndex, FindsTheShortestHoleThatFitsWhileHolesAreShort) {
  for (const std::uint32_t num_blocks : {60u, 400u, 1000u}) {
    Rng rng(num_blocks);
    FreeRuns free(num_blocks);
    HoleIndex holes(free, num_blocks);
    for (int i = 0; i < 5000; ++i) {
      const auto start = static_cast<std::uint32_t>(rng.Between(1, num_blocks - 1));
      const bool to_free = !free.IsFree(BlockId{start});
      std::uint32_t length = 1;
      while (length < 30 && start + length < num_blocks &&
             free.IsFree(BlockId{start + length}) != to_free) {
        ++length;
      }
      if (to_free) {
        free.Free(Blocks(start, length));
        holes.Freed(Blocks(start, length));
      } else {
        free.Take(Blocks(start, length));
        holes.Taken(Blocks(start, length));
      }
      if (free.num_free() == 0) continue;
      const auto want = static_cast<std::uint32_t>(rng.Between(1, 80));
      std::uint32_t shortest = 0;  // of the holes that fit
      for (std::uint32_t b = 1; b < num_blocks; ++b) {
        const std::uint32_t hole = free.IsFree(BlockId{b - 1}) ? 0 : free.LengthFrom(b, num_blocks);
        if (hole >= want && (shortest == 0 || hole < shortest)) shortest = hole;
      }
      const Extent found = holes.BestFit(want);
      ASSERT_EQ(found.num_blocks, free.LengthFrom(Index(found.start), num_blocks));
      ASSERT_FALSE(free.IsFree(BlockId{Index(found.start) - 1}));
      if (shortest == 0) {
        ASSERT_EQ(found.num_blocks, free.Longest().num_blocks);
      } else if (shortest < 64) {
        ASSERT_EQ(found.num_blocks, shortest);
      } else {
        ASSERT_GE(found.num_blocks, want);
      }
    }
  }
}

TEST(Pager, BooksHoldUnderEveryPolicy) {
  for (const PlacementPolicy policy : kPolicies) {
    SCOPED_TRACE(PlacementPolicyName(policy));
    Pager pager({.num_blocks = 200,
                 .block_tokens = 16,
                 .max_seqs = 6,
                 .max_blocks_per_seq = 100,
                 .crowded_runs = 4,
                 .placement = policy,
                 .placement_seed = 9});
    Rng rng(5);
    std::array<std::uint32_t, 6> tokens = {};
    for (int i = 0; i < 3000; ++i) {
      const auto s = static_cast<std::uint32_t>(rng.Below(6));
      const SeqId seq{s};
      if (!pager.is_open(seq)) {
        tokens[s] = 0;
        if (!pager.Open(seq, static_cast<std::uint32_t>(rng.Below(800)))) continue;
      }
      const std::uint64_t op = rng.Below(20);
      const std::uint32_t more = tokens[s] + static_cast<std::uint32_t>(rng.Between(1, 60));
      if (op == 0) {
        pager.Release(seq);
      } else if (op == 1) {
        tokens[s] /= 2;
        pager.Truncate(seq, tokens[s]);
      } else if (more <= 1600 && pager.Extend(seq, more)) {
        tokens[s] = more;
      }
      pager.CheckInvariants();
      ASSERT_LE(pager.num_soft(), pager.free_runs().num_free());
    }
    for (std::uint32_t s = 0; s < 6; ++s) {
      if (pager.is_open(SeqId{s})) pager.Release(SeqId{s});
    }
    EXPECT_EQ(pager.free_runs().num_free(), 199u);
    EXPECT_EQ(pager.num_soft(), 0u);
  }
}

}  // namespace
}  // namespace kvrm
