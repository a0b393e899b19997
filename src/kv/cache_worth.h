// SPDX-License-Identifier: Apache-2.0
// CacheWorth: how many blocks nobody holds the prefix cache may keep, by what they were good for.
//
// At first as many as were held at once so far. Each block that goes for being beyond that bound
// takes half a block off it; each that is asked for again gives kEarned back, be it still there or
// remembered. So prompts that share nothing soon leave little behind, and where more than one
// block in 32 comes back the cache is as large as ever: one in 32 is what a block's memory, for as
// long as another block's use, is taken to be worth in blocks that are not computed again. An
// eighth of what was held, 8 blocks at least, is kept whatever happens: the begin of a conversation
// that goes on is found, and gives back the rest.
//
// What is remembered of a block that went is a word of its key, in a table where the next one of
// its place forgets it. It decides how much is kept, never what is found, so it may be wrong.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "step/prefix_key.h"

namespace kvrm {

class CacheWorth {
 public:
  // `num_blocks` 0: off, and Bound() is what was held.
  explicit CacheWorth(std::uint32_t num_blocks)
      : gone_(num_blocks == 0 ? 0 : std::bit_ceil(std::size_t{num_blocks}), 0) {}

  // The block of this key goes; `beyond`: for the bound, not for room that somebody needs.
  void Gone(const PrefixKey& key, bool beyond, std::uint32_t most_held) noexcept {
    if (gone_.empty()) return;
    const std::uint64_t word = WordOf(key);
    gone_[word & (gone_.size() - 1)] = word;
    if (!beyond) return;
    const std::uint64_t most = 2 * std::uint64_t{most_held - Least(most_held)};
    halves_off_ = std::min(halves_off_ + 1, std::max(halves_off_, most));
  }
  // Cached blocks that somebody holds again.
  void Found(std::uint32_t num_blocks) noexcept { Earn(num_blocks); }
  // Asked for and not there. True: it was, once.
  bool Missed(const PrefixKey& key) noexcept {
    if (gone_.empty()) return false;
    const std::uint64_t word = WordOf(key);
    std::uint64_t& gone = gone_[word & (gone_.size() - 1)];
    if (gone != word) return false;
    gone = 0;
    Earn(1);
    return true;
  }
  std::uint32_t Bound(std::uint32_t most_held) const noexcept {
    const std::uint32_t most_off = most_held - Least(most_held);
    const std::uint64_t off = std::min<std::uint64_t>((halves_off_ + 1) / 2, most_off);
    return most_held - static_cast<std::uint32_t>(off);
  }

  std::uint64_t reserved_bytes() const noexcept { return gone_.size() * sizeof(gone_[0]); }
  std::uint64_t StateHash() const noexcept {  // As in KvCache.
    std::uint64_t hash = halves_off_;
    for (const std::uint64_t word : gone_)
      hash = Mix64(hash ^ word);
    return hash;
  }

 private:
  static constexpr std::uint64_t kEarned = 16;  // blocks
  static constexpr std::uint32_t kLeast = 8;

  static std::uint32_t Least(std::uint32_t most_held) noexcept {
    return std::min(most_held, std::max(kLeast, most_held / 8));
  }

  static std::uint64_t WordOf(const PrefixKey& key) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, key.bytes.data(), sizeof word);
    return word;
  }
  void Earn(std::uint64_t num_blocks) noexcept {
    halves_off_ -= std::min(halves_off_, 2 * kEarned * num_blocks);
  }

  std::vector<std::uint64_t> gone_;  // power of two; 0: nothing
  std::uint64_t halves_off_ = 0;     // of a block
};

}  // namespace kvrm
