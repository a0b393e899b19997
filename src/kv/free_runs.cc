// SPDX-License-Identifier: Apache-2.0
#include "kv/free_runs.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kWordBits = 64;

// Bits [first, first + count) of a word. Requires: count > 0, first + count <= 64.
std::uint64_t Mask(std::uint32_t first, std::uint32_t count) {
  return (~std::uint64_t{0} >> (kWordBits - count)) << first;
}

// Calls fn(word index, mask) for each word that `blocks` reaches into.
template <typename Fn>
void ForEachWord(const Extent& blocks, Fn fn) {
  std::uint32_t block = Index(blocks.start);
  std::uint32_t left = blocks.num_blocks;
  while (left > 0) {
    const std::uint32_t first = block % kWordBits;
    const std::uint32_t count = std::min(left, kWordBits - first);
    fn(block / kWordBits, Mask(first, count));
    block += count;
    left -= count;
  }
}

}  // namespace

FreeRuns::FreeRuns(std::uint32_t num_blocks)
    : num_blocks_(num_blocks),
      num_leaves_(std::bit_ceil((num_blocks + kWordBits - 1) / kWordBits)),
      words_(num_leaves_, 0),
      nodes_(std::size_t{2} * num_leaves_) {
  CHECK(num_blocks > 0 && num_blocks <= (1u << 30));
}

void FreeRuns::Free(const Extent& blocks) noexcept {
  CHECK(blocks.num_blocks > 0 && blocks.num_blocks <= num_blocks_ - Index(blocks.start));
  ForEachWord(blocks, [this](std::uint32_t word, std::uint64_t mask) {
    CHECK((words_[word] & mask) == 0);  // K3: a block is free once.
    words_[word] |= mask;
  });
  num_free_ += blocks.num_blocks;
  Refresh(Index(blocks.start) / kWordBits,
          (Index(blocks.start) + blocks.num_blocks - 1) / kWordBits);
}

void FreeRuns::Take(const Extent& blocks) noexcept {
  CHECK(blocks.num_blocks > 0 && blocks.num_blocks <= num_blocks_ - Index(blocks.start));
  ForEachWord(blocks, [this](std::uint32_t word, std::uint64_t mask) {
    CHECK((words_[word] & mask) == mask);  // K3
    words_[word] &= ~mask;
  });
  num_free_ -= blocks.num_blocks;
  Refresh(Index(blocks.start) / kWordBits,
          (Index(blocks.start) + blocks.num_blocks - 1) / kWordBits);
}

bool FreeRuns::IsFree(BlockId block) const noexcept {
  return (words_[Index(block) / kWordBits] >> (Index(block) % kWordBits) & 1) != 0;
}

std::uint32_t FreeRuns::LengthFrom(std::uint32_t start, std::uint32_t at_most) const noexcept {
  if (start >= num_blocks_) return 0;
  std::uint32_t length = 0;
  std::uint32_t word = start / kWordBits;
  std::uint32_t bit = start % kWordBits;
  while (length < at_most && word < num_leaves_) {
    const auto run = static_cast<std::uint32_t>(std::countr_one(words_[word] >> bit));
    length += run;
    if (run < kWordBits - bit) break;
    ++word;
    bit = 0;
  }
  return std::min(length, at_most);
}

Extent FreeRuns::Longest() const noexcept {
  const std::uint32_t longest = nodes_[1].longest;
  return longest == 0 ? Extent{} : FirstFit(longest);
}

std::uint32_t FreeRuns::LengthBefore(std::uint32_t end, std::uint32_t at_most) const noexcept {
  CHECK(end <= num_blocks_);
  std::uint32_t length = 0;
  while (length < std::min(end, at_most)) {
    const std::uint32_t last = end - 1 - length;
    const std::uint32_t bits = last % kWordBits + 1;  // of the word, up to `last`
    const auto run =
        static_cast<std::uint32_t>(std::countl_one(words_[last / kWordBits] << (kWordBits - bits)));
    length += std::min(run, bits);
    if (run < bits) break;
  }
  return std::min(length, at_most);
}

Extent FreeRuns::FirstFit(std::uint32_t num_blocks) const noexcept {
  CHECK(num_blocks > 0);
  if (nodes_[1].longest < num_blocks) return {};
  std::uint32_t node = 1;
  std::uint32_t begin = 0;
  std::uint32_t span = num_leaves_ * kWordBits;
  while (node < num_leaves_) {
    const Node& left = nodes_[2 * node];
    const Node& right = nodes_[2 * node + 1];
    span /= 2;
    if (left.longest >= num_blocks) {
      node = 2 * node;
    } else if (left.suffix + right.prefix >= num_blocks) {
      return {BlockId{begin + span - left.suffix}, num_blocks};
    } else {
      node = 2 * node + 1;
      begin += span;
    }
  }
  // Inside one word: a bit stays where enough free blocks follow it.
  std::uint64_t starts = words_[node - num_leaves_];
  for (std::uint32_t i = 1; i < num_blocks; ++i)
    starts &= words_[node - num_leaves_] >> i;
  return {BlockId{begin + static_cast<std::uint32_t>(std::countr_zero(starts))}, num_blocks};
}

BlockId FreeRuns::NextFrom(std::uint32_t from) const noexcept {
  CHECK(num_free_ > 0);
  const std::uint32_t first_word = (from % num_blocks_) / kWordBits;
  std::uint64_t word = words_[first_word] & (~std::uint64_t{0} << (from % num_blocks_ % kWordBits));
  std::uint32_t w = first_word;
  // The first word comes twice: its upper part first, all of it last.
  while (word == 0) {
    w = (w + 1) % num_leaves_;
    word = words_[w];
  }
  return BlockId{w * kWordBits + static_cast<std::uint32_t>(std::countr_zero(word))};
}

std::uint64_t FreeRuns::reserved_bytes() const noexcept {
  return words_.size() * sizeof(std::uint64_t) + nodes_.size() * sizeof(Node);
}

FreeRuns::Node FreeRuns::LeafOf(std::uint64_t word) noexcept {
  if (word == ~std::uint64_t{0}) return {kWordBits, kWordBits, kWordBits};
  Node node;
  node.prefix = static_cast<std::uint32_t>(std::countr_one(word));
  node.suffix = static_cast<std::uint32_t>(std::countl_one(word));
  // Each turn takes one block from the right of every run; the longest lasts longest.
  for (; word != 0; word &= word >> 1)
    ++node.longest;
  return node;
}

// Recomputes the leaves [first_word, last_word] and everything above them.
void FreeRuns::Refresh(std::uint32_t first_word, std::uint32_t last_word) noexcept {
  for (std::uint32_t w = first_word; w <= last_word; ++w)
    nodes_[num_leaves_ + w] = LeafOf(words_[w]);
  std::uint32_t low = (num_leaves_ + first_word) / 2;
  std::uint32_t high = (num_leaves_ + last_word) / 2;
  for (std::uint32_t span = kWordBits; low > 0; low /= 2, high /= 2, span *= 2) {
    for (std::uint32_t n = low; n <= high; ++n) {
      const Node& left = nodes_[2 * n];
      const Node& right = nodes_[2 * n + 1];
      nodes_[n] = {.prefix = left.prefix == span ? span + right.prefix : left.prefix,
                   .suffix = right.suffix == span ? span + left.suffix : right.suffix,
                   .longest = std::max({left.longest, right.longest, left.suffix + right.prefix})};
    }
  }
}

}  // namespace kvrm
