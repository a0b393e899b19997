// SPDX-License-Identifier: Apache-2.0
// Placement: where the next blocks of a sequence go. The one seam for allocation policies.
//
// A policy is asked for blocks and answers with one run of free blocks, no longer than asked; it
// is asked again until the want is met. It takes nothing itself and knows no sequence: everything
// it may decide by is in the request and in the index of free runs.
//
//   kLongRuns   in place behind the sequence's last block while that is free, else in the middle
//               of the longest hole: below it the neighbour may grow, above it the newcomer
//   kScattered  one block at a pseudo-random place, for tests that want the worst placement
//
// Threading: engine thread only. Memory: none.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "kv/free_runs.h"
#include "step/step.h"

namespace kvrm {

enum class PlacementPolicy : std::uint8_t { kLongRuns, kScattered };

struct PlacementRequest {
  std::uint32_t next_block = 0;  // right behind the sequence's last block; 0: it has none
  std::uint32_t want = 0;        // blocks needed now, at least 1
  std::uint32_t likely = 0;      // blocks it has credit for, at least `want`
};

class Placement {
 public:
  // `seed` 0: kLongRuns; else kScattered by that seed.
  explicit Placement(std::uint64_t seed);

  // Requires: free.num_free() > 0. Returns 1 .. want free blocks.
  Extent Choose(const FreeRuns& free, const PlacementRequest& request) noexcept;

  // A place for `num_blocks` blocks that should lie together, whatever the policy; no blocks when
  // no hole is that long.
  static Extent Together(const FreeRuns& free, std::uint32_t num_blocks) noexcept;

 private:
  PlacementPolicy policy_;
  Rng rng_;
};

}  // namespace kvrm
