// SPDX-License-Identifier: Apache-2.0
// FreeRuns: which blocks of a pool are free, and where the long runs of them are.
//
// A bitmap, and above its words a tree whose nodes know the free run at their left end, at their
// right end, and the longest one inside. So the questions of an allocator that wants long runs
// (is this block free, how far, where is the longest hole, where is the first of at least n) and
// its two changes cost O(log n) in memory that never grows.
//
// A maximal run of free blocks is called a hole.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <cstdint>
#include <vector>

#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

class FreeRuns {
 public:
  // Blocks [0, num_blocks), none of them free.
  explicit FreeRuns(std::uint32_t num_blocks);

  // Requires: no block of `blocks` is free.
  void Free(const Extent& blocks) noexcept;
  // Requires: every block of `blocks` is free.
  void Take(const Extent& blocks) noexcept;

  std::uint32_t num_free() const noexcept { return num_free_; }
  bool IsFree(BlockId block) const noexcept;
  // Free blocks from `start` on, at most `at_most`. Any start, also one past the end.
  std::uint32_t LengthFrom(std::uint32_t start, std::uint32_t at_most) const noexcept;
  // Free blocks in a row right before `end`, at most `at_most`. Requires: end <= num_blocks.
  std::uint32_t LengthBefore(std::uint32_t end, std::uint32_t at_most) const noexcept;
  // The leftmost of the longest holes; no blocks when none is free.
  Extent Longest() const noexcept;
  // The leftmost hole of at least `num_blocks` blocks, cut to them; no blocks when there is none.
  // Requires: num_blocks > 0.
  Extent FirstFit(std::uint32_t num_blocks) const noexcept;
  // The first free block at or after `from`, going round the end. Requires: num_free() > 0.
  BlockId NextFrom(std::uint32_t from) const noexcept;

  std::uint64_t reserved_bytes() const noexcept;

 private:
  struct Node {
    std::uint32_t prefix = 0;   // free blocks at the left end
    std::uint32_t suffix = 0;   // free blocks at the right end
    std::uint32_t longest = 0;  // of any run inside
  };
  void Refresh(std::uint32_t first_word, std::uint32_t last_word) noexcept;
  static Node LeafOf(std::uint64_t word) noexcept;

  std::uint32_t num_blocks_;
  std::uint32_t num_free_ = 0;
  std::uint32_t num_leaves_;          // a power of two
  std::vector<std::uint64_t> words_;  // bit b of word w: block 64 w + b is free
  std::vector<Node> nodes_;           // heap order, root at 1, leaf w at num_leaves_ + w
};

}  // namespace kvrm
