// SPDX-License-Identifier: Apache-2.0
#include "kv/placement.h"

#include <algorithm>

#include "base/check.h"

namespace kvrm {
namespace {

// Where in a hole a run of `likely` blocks starts: in the middle, or as far left of it as the run
// needs to fit.
std::uint32_t StartIn(const Extent& hole, std::uint32_t likely) {
  const std::uint32_t room = hole.num_blocks - std::min(hole.num_blocks, likely);
  return Index(hole.start) + std::min(hole.num_blocks / 2, room);
}

}  // namespace

Placement::Placement(const PlacementOptions& options)
    : options_(options), rng_(options.seed, "placement") {}

void Placement::Taken(const Extent&) noexcept {}
void Placement::Freed(const Extent&) noexcept {}
void Placement::Ended(SeqId) noexcept {}

bool Placement::LaneIsFree(const FreeRuns& free, SeqId seq, std::uint32_t num_held,
                           std::uint32_t want) const noexcept {
  const std::uint32_t first = 1 + Index(seq) * options_.max_blocks_per_seq + num_held;
  return free.LengthFrom(first, want) == want;
}

Extent Placement::Choose(const FreeRuns& free, const PlacementRequest& request) noexcept {
  CHECK(request.want > 0 && request.likely >= request.want);
  if (options_.policy == PlacementPolicy::kScattered) {
    return {free.NextFrom(static_cast<std::uint32_t>(rng_.Next())), 1};
  }
  if (options_.policy == PlacementPolicy::kLanes) {
    const std::uint32_t first =
        1 + Index(request.seq) * options_.max_blocks_per_seq + request.num_held;
    const std::uint32_t length = free.LengthFrom(first, request.want);
    CHECK(length > 0);  // A lane is its sequence's alone.
    return {BlockId{first}, length};
  }
  if (request.next_block != 0) {
    const std::uint32_t in_place = free.LengthFrom(request.next_block, request.want);
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
  }
  const Extent hole = free.Longest();
  CHECK(hole.num_blocks > 0);
  const std::uint32_t start = StartIn(hole, request.likely);
  return {BlockId{start}, free.LengthFrom(start, request.want)};
}

Extent Placement::Together(const FreeRuns& free, std::uint32_t num_blocks) noexcept {
  const Extent hole = free.Longest();
  if (hole.num_blocks < num_blocks) return {};
  return {BlockId{StartIn(hole, num_blocks)}, num_blocks};
}

}  // namespace kvrm
