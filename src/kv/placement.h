// SPDX-License-Identifier: Apache-2.0
// Placement: where the next blocks of a sequence go. The one seam for allocation policies.
//
// A policy is asked for blocks and answers with one run of free blocks, no longer than asked; it
// is asked again until the want is met. It takes nothing itself: everything it may decide by is in
// the request, in the index of free runs, and in what Taken, Freed and Ended tell it.
//
//   in place   behind the last block while that is free, else in the middle of the longest hole, or
//              at its end (PlacementOptions::at_ends; so too wherever a middle is named below)
//   lifo, fifo one block from the front of a list; what is freed joins its front, or its end
//   best fit   behind the last block, else at the start of the shortest hole that holds what the
//              sequence has credit for
//   soft       claims an extent ahead of the sequence, each twice as long as the one before: right
//              behind it, else for several blocks in the first hole, and for one in the middle of
//              the longest hole, of blocks that nobody claims
//   buddy      the same with extents of a power of two at a multiple of their length
//   regions    in place, in the quarter of the pool for sequences of its length; when that is full,
//              wherever the longest hole is
//
// When every free block is claimed, a request takes the second half of the longest hole: the ends
// of other sequences' claims. So claims cost a full pool nothing but where its blocks lie.
//
// Threading: engine thread only. Memory: reserved by the constructor; at most 16 bytes a block.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/rng.h"
#include "kv/block_list.h"
#include "kv/claims.h"
#include "kv/free_runs.h"
#include "kv/hole_index.h"
#include "kv/kv_cache.h"
#include "step/step.h"

namespace kvrm {

struct PlacementOptions {
  PlacementPolicy policy = PlacementPolicy::kInPlace;
  std::uint32_t num_blocks = 0;  // sentinel included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint64_t seed = 0;  // of kScattered
  // A new run goes to the end of a hole, so that what is free stays in one piece, instead of to its
  // middle, where both it and its neighbour can grow: for a pool that keeps hardly any of it free.
  bool at_ends = false;
};

struct PlacementRequest {
  SeqId seq{};
  std::uint32_t num_held = 0;    // blocks the sequence has
  std::uint32_t next_block = 0;  // right behind the sequence's last block; 0: it has none
  std::uint32_t want = 0;        // blocks needed now, at least 1
  std::uint32_t likely = 0;      // blocks it has credit for, at least `want`
};

class Placement {
 public:
  // Blocks a sequence's first claim reaches beyond what is wanted, and the most that one does.
  static constexpr std::uint32_t kFirstClaim = 16;
  static constexpr std::uint32_t kMostClaim = 64;
  // kRegions: a sequence of at most so many blocks belongs to the first, second, third region.
  static constexpr std::uint32_t kNumRegions = 4;
  static constexpr std::uint32_t kRegionBounds[kNumRegions - 1] = {16, 64, 256};

  explicit Placement(const PlacementOptions& options);
  // Parts of it know each other's addresses.
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;

  // Requires: free.num_free() > 0. Returns 1 .. want free blocks.
  Extent Choose(const FreeRuns& free, const PlacementRequest& request) noexcept;

  // From now on new blocks go behind the sequence's last one, else to the left end of the longest
  // hole, whatever the policy (not kLanes): a sequence alone in an empty pool is one run.
  void SetTogether(bool together) noexcept { together_ = together; }
  bool is_together() const noexcept { return together_; }

  // kLanes: whether the sequence's next `want` blocks are free.
  bool LaneIsFree(const FreeRuns& free, SeqId seq, std::uint32_t num_held,
                  std::uint32_t want) const noexcept;

  // Every block that leaves or enters the index of free runs, for whatever reason.
  void Taken(const Extent& blocks) noexcept;
  void Freed(const Extent& blocks) noexcept;
  // The sequence is over, or its identity begins anew.
  void Ended(SeqId seq) noexcept;

  // A place for `num_blocks` blocks that should lie together, whatever the policy; no blocks when
  // no hole is that long.
  Extent Together(const FreeRuns& free, std::uint32_t num_blocks) const noexcept;

  // The free blocks that are kept for nobody.
  const FreeRuns& open(const FreeRuns& free) const noexcept {
    return claims_ ? claims_->open() : free;
  }
  // Free blocks that are kept for a sequence while there is other room.
  std::uint32_t num_soft() const noexcept { return claims_ ? claims_->num_claimed() : 0; }
  std::uint64_t reserved_bytes() const noexcept;

 private:
  Extent ChooseInPlace(const FreeRuns& free, const PlacementRequest& request) const noexcept;
  Extent ChooseBestFit(const FreeRuns& free, const PlacementRequest& request) const noexcept;
  Extent ChooseInRegion(const FreeRuns& free, const PlacementRequest& request) const noexcept;
  Extent ChooseClaimed(const FreeRuns& free, const PlacementRequest& request) noexcept;
  Extent NextClaim(const PlacementRequest& request) noexcept;
  std::uint32_t RegionBegin(std::uint32_t region) const noexcept;
  // Where in a hole a run of `likely` blocks starts.
  std::uint32_t StartIn(const Extent& hole, std::uint32_t likely) const noexcept;
  // Up to `want` blocks of the hole, where a run of `likely` blocks would start.
  Extent RunIn(const Extent& hole, std::uint32_t want, std::uint32_t likely) const noexcept;

  const PlacementOptions options_;
  bool together_ = false;
  Rng rng_;
  // Each only with the policy it is for.
  std::optional<BlockList> list_;
  std::optional<FreeRuns> known_;  // what `holes_` is the index of
  std::optional<HoleIndex> holes_;
  std::optional<Claims> claims_;
  std::vector<std::uint32_t> claim_blocks_;  // [max_seqs], length of the last claim
  std::vector<FreeRuns> regions_;            // [kNumRegions]
};

}  // namespace kvrm
