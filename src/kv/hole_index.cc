// SPDX-License-Identifier: Apache-2.0
#include "kv/hole_index.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvrm {

HoleIndex::HoleIndex(const FreeRuns& free, std::uint32_t num_blocks)
    : free_(free), num_blocks_(num_blocks), links_(num_blocks) {
  CHECK(free.num_free() == 0);
}

std::uint32_t HoleIndex::ListOf(std::uint32_t num_blocks) noexcept {
  if (num_blocks < kNumExact) return num_blocks;
  return kNumExact + static_cast<std::uint32_t>(std::bit_width(num_blocks / kNumExact)) - 1;
}

Extent HoleIndex::HoleAt(std::uint32_t start) const noexcept {
  return {BlockId{start}, free_.LengthFrom(start, num_blocks_)};
}

void HoleIndex::Insert(std::uint32_t start, std::uint32_t num_blocks) noexcept {
  const std::uint32_t list = ListOf(num_blocks);
  links_[start] = {0, first_[list]};
  if (first_[list] != 0) links_[first_[list]].previous = start;
  first_[list] = start;
  filled_[list / 64] |= std::uint64_t{1} << (list % 64);
}

void HoleIndex::Remove(std::uint32_t start, std::uint32_t num_blocks) noexcept {
  const std::uint32_t list = ListOf(num_blocks);
  const Link link = links_[start];
  CHECK(link.previous != 0 || first_[list] == start);
  (link.previous == 0 ? first_[list] : links_[link.previous].next) = link.next;
  if (link.next != 0) links_[link.next].previous = link.previous;
  if (first_[list] == 0) filled_[list / 64] &= ~(std::uint64_t{1} << (list % 64));
}

void HoleIndex::Freed(const Extent& blocks) noexcept {
  const std::uint32_t start = Index(blocks.start);
  const std::uint32_t end = start + blocks.num_blocks;
  const std::uint32_t before = free_.LengthBefore(start, num_blocks_);
  const std::uint32_t behind = free_.LengthFrom(end, num_blocks_);
  if (before > 0) Remove(start - before, before);
  if (behind > 0) Remove(end, behind);
  Insert(start - before, before + blocks.num_blocks + behind);
}

void HoleIndex::Taken(const Extent& blocks) noexcept {
  const std::uint32_t start = Index(blocks.start);
  const std::uint32_t end = start + blocks.num_blocks;
  const std::uint32_t before = free_.LengthBefore(start, num_blocks_);
  const std::uint32_t behind = free_.LengthFrom(end, num_blocks_);
  Remove(start - before, before + blocks.num_blocks + behind);
  if (before > 0) Insert(start - before, before);
  if (behind > 0) Insert(end, behind);
}

Extent HoleIndex::BestFit(std::uint32_t num_blocks) const noexcept {
  const auto best_of = [&](std::uint32_t list) {
    Extent best;
    std::uint32_t at = first_[list];
    for (std::uint32_t i = 0; i < kLookedAt && at != 0; ++i, at = links_[at].next) {
      const Extent hole = HoleAt(at);
      const bool better = best.num_blocks == 0 || hole.num_blocks < best.num_blocks;
      if (hole.num_blocks >= num_blocks && better) best = hole;
    }
    return best;
  };
  const std::uint32_t list = ListOf(num_blocks);
  const Extent same = best_of(list);
  if (same.num_blocks > 0) return same;
  // Any hole of a higher list fits.
  for (std::uint32_t word = (list + 1) / 64; word < filled_.size(); ++word) {
    const std::uint32_t from = word == (list + 1) / 64 ? (list + 1) % 64 : 0;
    const std::uint64_t lists = filled_[word] & (~std::uint64_t{0} << from);
    if (lists != 0) return best_of(word * 64 + static_cast<std::uint32_t>(std::countr_zero(lists)));
  }
  return free_.Longest();
}

}  // namespace kvrm
