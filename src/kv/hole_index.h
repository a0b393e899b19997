// SPDX-License-Identifier: Apache-2.0
// HoleIndex: the holes of an index of free runs, by length.
//
// One list for each length below 64, and one for each power of two from there on. So the shortest
// hole of at least n blocks is found exactly while it is short; among longer ones the best of a
// few of its list is taken, which is at most twice as long as another that fits.
//
// Threading: engine thread only. Memory: reserved by the constructor, 8 bytes a block.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kv/free_runs.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

class HoleIndex {
 public:
  // `free`, which outlives the index, has no free blocks yet.
  HoleIndex(const FreeRuns& free, std::uint32_t num_blocks);

  // Right after each change of `free`.
  void Freed(const Extent& blocks) noexcept;
  void Taken(const Extent& blocks) noexcept;

  // A hole of at least `num_blocks` blocks, as short as can be seen; the longest when none is.
  // Requires: num_blocks > 0.
  Extent BestFit(std::uint32_t num_blocks) const noexcept;

  std::uint64_t reserved_bytes() const noexcept { return links_.size() * sizeof(Link); }

 private:
  struct Link {  // of a hole's first block, in its list
    std::uint32_t previous = 0;
    std::uint32_t next = 0;
  };
  static constexpr std::uint32_t kNumExact = 64;
  static constexpr std::uint32_t kNumLists = kNumExact + 32;
  static constexpr std::uint32_t kLookedAt = 8;  // Bounds what one question costs.
  static std::uint32_t ListOf(std::uint32_t num_blocks) noexcept;
  Extent HoleAt(std::uint32_t start) const noexcept;
  void Insert(std::uint32_t start, std::uint32_t num_blocks) noexcept;
  void Remove(std::uint32_t start, std::uint32_t num_blocks) noexcept;

  const FreeRuns& free_;
  const std::uint32_t num_blocks_;
  std::vector<Link> links_;
  std::array<std::uint32_t, kNumLists> first_ = {};  // 0, which is never free: empty
  std::array<std::uint64_t, 2> filled_ = {};         // bit l % 64 of word l / 64: list l is not
};

}  // namespace kvrm
