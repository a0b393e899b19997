// SPDX-License-Identifier: Apache-2.0
#include "kv/placement.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvrm {
// In the middle, or as far left of it as the run needs to fit.
std::uint32_t Placement::StartIn(const Extent& hole, std::uint32_t likely) const noexcept {
  const std::uint32_t room = hole.num_blocks - std::min(hole.num_blocks, likely);
  return Index(hole.start) + (options_.at_ends ? room : std::min(hole.num_blocks / 2, room));
}

Extent Placement::RunIn(const Extent& hole, std::uint32_t want,
                        std::uint32_t likely) const noexcept {
  CHECK(hole.num_blocks > 0);
  const std::uint32_t start = StartIn(hole, likely);
  return {BlockId{start}, std::min(want, Index(hole.start) + hole.num_blocks - start)};
}

Placement::Placement(const PlacementOptions& options)
    : options_(options), rng_(options.seed, "placement") {
  switch (options.policy) {
    case PlacementPolicy::kLifo:
    case PlacementPolicy::kFifo:
      list_.emplace(options.num_blocks);
      break;
    case PlacementPolicy::kBestFit:
      known_.emplace(options.num_blocks);
      holes_.emplace(*known_, options.num_blocks);
      break;
    case PlacementPolicy::kBuddy:
    case PlacementPolicy::kSoft:
      claims_.emplace(options.num_blocks, options.max_seqs,
                      options.policy == PlacementPolicy::kBuddy);
      claim_blocks_.assign(options.max_seqs, 0);
      break;
    case PlacementPolicy::kRegions:
      regions_.assign(kNumRegions, FreeRuns(options.num_blocks));
      break;
    case PlacementPolicy::kInPlace:
    case PlacementPolicy::kScattered:
    case PlacementPolicy::kLanes:
      break;
  }
}

void Placement::Taken(const Extent& blocks) noexcept {
  if (list_) list_->Remove(blocks);
  if (claims_) claims_->Taken(blocks);
  if (holes_) {
    known_->Take(blocks);
    holes_->Taken(blocks);
  }
  for (std::uint32_t r = 0; r < regions_.size(); ++r) {
    const std::uint32_t begin = std::max(Index(blocks.start), RegionBegin(r));
    const std::uint32_t end = std::min(Index(blocks.start) + blocks.num_blocks, RegionBegin(r + 1));
    if (begin < end) regions_[r].Take({BlockId{begin}, end - begin});
  }
}

void Placement::Freed(const Extent& blocks) noexcept {
  if (list_ && options_.policy == PlacementPolicy::kLifo) list_->PushFront(blocks);
  if (list_ && options_.policy == PlacementPolicy::kFifo) list_->PushBack(blocks);
  if (claims_) claims_->Freed(blocks);
  if (holes_) {
    known_->Free(blocks);
    holes_->Freed(blocks);
  }
  for (std::uint32_t r = 0; r < regions_.size(); ++r) {
    const std::uint32_t begin = std::max(Index(blocks.start), RegionBegin(r));
    const std::uint32_t end = std::min(Index(blocks.start) + blocks.num_blocks, RegionBegin(r + 1));
    if (begin < end) regions_[r].Free({BlockId{begin}, end - begin});
  }
}

void Placement::Ended(SeqId seq) noexcept {
  if (!claims_) return;
  claims_->Drop(seq);
  claim_blocks_[Index(seq)] = 0;
}

bool Placement::LaneIsFree(const FreeRuns& free, SeqId seq, std::uint32_t num_held,
                           std::uint32_t want) const noexcept {
  const std::uint32_t first = 1 + Index(seq) * options_.max_blocks_per_seq + num_held;
  return free.LengthFrom(first, want) == want;
}

Extent Placement::Choose(const FreeRuns& free, const PlacementRequest& request) noexcept {
  CHECK(request.want > 0 && request.likely >= request.want);
  if (together_ && options_.policy != PlacementPolicy::kLanes) {
    const std::uint32_t in_place =
        request.next_block != 0 ? free.LengthFrom(request.next_block, request.want) : 0;
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
    const Extent hole = free.Longest();
    return {hole.start, std::min(request.want, hole.num_blocks)};
  }
  switch (options_.policy) {
    case PlacementPolicy::kLifo:
    case PlacementPolicy::kFifo:
      return {list_->front(), 1};
    case PlacementPolicy::kBestFit:
      return ChooseBestFit(free, request);
    case PlacementPolicy::kBuddy:
    case PlacementPolicy::kSoft:
      return ChooseClaimed(free, request);
    case PlacementPolicy::kRegions:
      return ChooseInRegion(free, request);
    case PlacementPolicy::kScattered:
      return {free.NextFrom(static_cast<std::uint32_t>(rng_.Next())), 1};
    case PlacementPolicy::kLanes: {
      const std::uint32_t first =
          1 + Index(request.seq) * options_.max_blocks_per_seq + request.num_held;
      const std::uint32_t length = free.LengthFrom(first, request.want);
      CHECK(length > 0);  // A lane is its sequence's alone.
      return {BlockId{first}, length};
    }
    case PlacementPolicy::kInPlace:
      break;
  }
  return ChooseInPlace(free, request);
}

Extent Placement::ChooseInPlace(const FreeRuns& free,
                                const PlacementRequest& request) const noexcept {
  if (request.next_block != 0) {
    const std::uint32_t in_place = free.LengthFrom(request.next_block, request.want);
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
  }
  return RunIn(free.Longest(), request.want, request.likely);
}

Extent Placement::ChooseBestFit(const FreeRuns& free,
                                const PlacementRequest& request) const noexcept {
  if (request.next_block != 0) {
    const std::uint32_t in_place = free.LengthFrom(request.next_block, request.want);
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
  }
  const Extent hole = holes_->BestFit(request.likely);
  CHECK(hole.num_blocks > 0);
  return {hole.start, std::min(request.want, hole.num_blocks)};
}

std::uint32_t Placement::RegionBegin(std::uint32_t region) const noexcept {
  return static_cast<std::uint32_t>(std::uint64_t{options_.num_blocks} * region / kNumRegions);
}

Extent Placement::ChooseInRegion(const FreeRuns& free,
                                 const PlacementRequest& request) const noexcept {
  if (request.next_block != 0) {
    const std::uint32_t in_place = free.LengthFrom(request.next_block, request.want);
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
  }
  const std::uint32_t length = request.num_held + request.likely;
  std::uint32_t region = 0;
  while (region + 1 < kNumRegions && length > kRegionBounds[region])
    ++region;
  const Extent hole = regions_[region].Longest();
  return RunIn(hole.num_blocks > 0 ? hole : free.Longest(), request.want, request.likely);
}

// Blocks of the sequence's claim when they are the next in line, and else of a new one.
Extent Placement::ChooseClaimed(const FreeRuns& free, const PlacementRequest& request) noexcept {
  const Extent& mine = claims_->of(request.seq);
  if (mine.num_blocks == 0 || Index(mine.start) != request.next_block) {
    claims_->Drop(request.seq);
    if (claims_->open().num_free() == 0) return RunIn(free.Longest(), request.want, request.likely);
    claims_->Claim(request.seq, NextClaim(request));
  }
  return {mine.start, std::min(request.want, mine.num_blocks)};
}

// Requires: some blocks are open.
Extent Placement::NextClaim(const PlacementRequest& request) noexcept {
  std::uint32_t& last = claim_blocks_[Index(request.seq)];
  last = last == 0 ? kFirstClaim : std::min(2 * last, kMostClaim);
  const std::uint32_t size =
      std::max(request.want + last, std::min(request.likely, request.want + kMostClaim));
  if (options_.policy == PlacementPolicy::kBuddy) {
    const std::uint32_t length = std::min(std::bit_ceil(size), claims_->buddies().longest());
    return claims_->buddies().Find(static_cast<std::uint32_t>(std::countr_zero(length)));
  }
  if (request.next_block != 0) {
    const std::uint32_t in_place = claims_->open().LengthFrom(request.next_block, size);
    if (in_place > 0) return {BlockId{request.next_block}, in_place};
  }
  // A prompt takes the first hole that holds it, and leaves long ones for longer ones.
  if (request.want > 1) {
    const Extent first = claims_->open().FirstFit(std::max(size, request.likely));
    if (first.num_blocks > 0) return {first.start, size};
  }
  return RunIn(claims_->open().Longest(), size, std::max(size, request.likely));
}

Extent Placement::Together(const FreeRuns& free, std::uint32_t num_blocks) const noexcept {
  const Extent hole = free.Longest();
  if (hole.num_blocks < num_blocks) return {};
  return {BlockId{StartIn(hole, num_blocks)}, num_blocks};
}

std::uint64_t Placement::reserved_bytes() const noexcept {
  std::uint64_t bytes = claim_blocks_.size() * sizeof(claim_blocks_[0]);
  if (list_) bytes += list_->reserved_bytes();
  if (holes_) bytes += known_->reserved_bytes() + holes_->reserved_bytes();
  if (claims_) bytes += claims_->reserved_bytes();
  for (const FreeRuns& region : regions_)
    bytes += region.reserved_bytes();
  return bytes;
}

}  // namespace kvrm
