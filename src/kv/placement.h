// SPDX-License-Identifier: Apache-2.0
// Placement: where the next blocks of a sequence go. The one seam for allocation policies.
//
// A policy is asked for blocks and answers with one run of free blocks, no longer than asked; it
// is asked again until the want is met. It takes nothing itself: everything it may decide by is in
// the request, in the index of free runs, and in what Taken, Freed and Ended tell it.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "kv/free_runs.h"
#include "kv/kv_cache.h"
#include "step/step.h"

namespace kvrm {

struct PlacementOptions {
  PlacementPolicy policy = PlacementPolicy::kInPlace;
  std::uint32_t num_blocks = 0;  // sentinel included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint64_t seed = 0;  // of kScattered
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
  explicit Placement(const PlacementOptions& options);

  // Requires: free.num_free() > 0. Returns 1 .. want free blocks.
  Extent Choose(const FreeRuns& free, const PlacementRequest& request) noexcept;

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
  static Extent Together(const FreeRuns& free, std::uint32_t num_blocks) noexcept;

  // Free blocks that are kept for a sequence while there is other room.
  std::uint32_t num_soft() const noexcept { return 0; }
  std::uint64_t reserved_bytes() const noexcept { return 0; }

 private:
  PlacementOptions options_;
  Rng rng_;
};

}  // namespace kvrm
