// SPDX-License-Identifier: Apache-2.0
// BuddyTree: where the free power-of-two extents of a pool are, each at a multiple of its length.
//
// A heap of one byte a node over single blocks: a node knows the longest such extent beneath it.
// Two free halves are one free whole, so what is freed coalesces by itself, whatever it was taken
// as. A change costs its length and O(log n), a question O(log n).
//
// Threading: engine thread only. Memory: reserved by the constructor, 2 to 4 bytes a block.
#pragma once

#include <cstdint>
#include <vector>

#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

class BuddyTree {
 public:
  // Blocks [0, num_blocks), none of them free.
  explicit BuddyTree(std::uint32_t num_blocks);

  void Free(const Extent& blocks) noexcept { Set(blocks, 1); }
  void Take(const Extent& blocks) noexcept { Set(blocks, 0); }

  // Blocks of the longest free extent; 0 when nothing is free.
  std::uint32_t longest() const noexcept { return BlocksOf(nodes_[1]); }
  // A free extent of 2^order blocks, cut from one that is as short as the way down shows.
  // Requires: longest() >= 2^order.
  Extent Find(std::uint32_t order) const noexcept;

  std::uint64_t reserved_bytes() const noexcept { return nodes_.size(); }

 private:
  static std::uint32_t BlocksOf(std::uint8_t value) noexcept {
    return value == 0 ? 0 : 1u << (value - 1);
  }
  void Set(const Extent& blocks, std::uint8_t value) noexcept;

  std::uint32_t num_leaves_;         // a power of two
  std::vector<std::uint8_t> nodes_;  // heap order, root at 1: 1 + order of the longest; 0: none
};

}  // namespace kvrm
