// SPDX-License-Identifier: Apache-2.0
#include "kv/buddy_tree.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvrm {

BuddyTree::BuddyTree(std::uint32_t num_blocks)
    : num_leaves_(std::bit_ceil(std::max(num_blocks, 2u))),
      nodes_(std::size_t{2} * num_leaves_, 0) {}

void BuddyTree::Set(const Extent& blocks, std::uint8_t value) noexcept {
  std::uint32_t low = num_leaves_ + Index(blocks.start);
  std::uint32_t high = low + blocks.num_blocks - 1;
  CHECK(blocks.num_blocks > 0 && high < 2 * num_leaves_);
  for (std::uint32_t leaf = low; leaf <= high; ++leaf) {
    CHECK(nodes_[leaf] != value);  // Free once, taken once.
    nodes_[leaf] = value;
  }
  for (std::uint8_t whole = 1; low > 1; ++whole) {  // `whole`: the value of a free child
    low /= 2;
    high /= 2;
    for (std::uint32_t node = low; node <= high; ++node) {
      const std::uint8_t left = nodes_[2 * node];
      const std::uint8_t right = nodes_[2 * node + 1];
      nodes_[node] = left == whole && right == whole ? static_cast<std::uint8_t>(whole + 1)
                                                     : std::max(left, right);
    }
  }
}

Extent BuddyTree::Find(std::uint32_t order) const noexcept {
  CHECK(longest() >= 1u << order);
  std::uint32_t node = 1;
  std::uint32_t span = num_leaves_;
  while (span > 1u << order) {
    const std::uint32_t left = BlocksOf(nodes_[2 * node]);
    const std::uint32_t right = BlocksOf(nodes_[2 * node + 1]);
    const bool left_fits = left >= 1u << order;
    const bool right_fits = right >= 1u << order;
    // The shorter of the two that fit leaves the longer one whole.
    node = 2 * node + (left_fits && (!right_fits || left <= right) ? 0 : 1);
    span /= 2;
  }
  return {BlockId{(node - num_leaves_ / span) * span}, span};
}

}  // namespace kvrm
