// SPDX-License-Identifier: Apache-2.0
// BlockList: free blocks in a list, as a free list or a free queue has them.
//
// Every operation on one block is O(1), also the removal of one from the middle: what moves
// histories together takes blocks where it needs them and not where the list ends.
//
// Threading: engine thread only. Memory: reserved by the constructor, 8 bytes a block.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

class BlockList {
 public:
  // For blocks [0, num_blocks), none of them listed. Block 0, the sentinel, is the list's anchor.
  explicit BlockList(std::uint32_t num_blocks) : links_(num_blocks) {}

  // The blocks of `blocks`, in ascending order, before all others. Requires: none is listed.
  void PushFront(const Extent& blocks) noexcept {
    for (std::uint32_t b = Index(blocks.start) + blocks.num_blocks; b-- > Index(blocks.start);)
      Insert(b, 0, links_[0].next);
  }
  // The same behind all others.
  void PushBack(const Extent& blocks) noexcept {
    for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b)
      Insert(b, links_[0].previous, 0);
  }
  // Requires: every block of `blocks` is listed.
  void Remove(const Extent& blocks) noexcept {
    for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
      const Link link = links_[b];
      links_[link.previous].next = link.next;
      links_[link.next].previous = link.previous;
    }
  }
  // The first one. Requires: not empty.
  BlockId front() const noexcept {
    CHECK(links_[0].next != 0);
    return BlockId{links_[0].next};
  }
  std::uint64_t reserved_bytes() const noexcept { return links_.size() * sizeof(Link); }

 private:
  struct Link {
    std::uint32_t previous = 0;
    std::uint32_t next = 0;
  };
  void Insert(std::uint32_t block, std::uint32_t previous, std::uint32_t next) noexcept {
    links_[block] = {previous, next};
    links_[previous].next = block;
    links_[next].previous = block;
  }
  std::vector<Link> links_;
};

}  // namespace kvrm
