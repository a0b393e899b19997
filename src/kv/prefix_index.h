// SPDX-License-Identifier: Apache-2.0
// PrefixIndex: which blocks hold the content that a key names, and which of them nobody holds.
//
// A table of keys with open addressing over blocks, the tokens of every listed block, and a list of
// the listed blocks without a holder, least recently given up first. It counts no references and
// frees nothing: the pager does.
//
// Invariants (checked by CheckInvariants):
//   X1  Every listed block is found under its key and its tokens, and no two have the same key.
//   X2  The idle list holds listed blocks only, each once, in the order in which they were given
//   up.
//
// A holder of a block holds all blocks before it, and gives them up last block first, so the oldest
// idle block is always one that no other idle block continues: eviction eats prefixes from their
// ends.
//
// Threading: engine thread only. Memory: reserved by the constructor; none when off.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "step/ids.h"
#include "step/prefix_key.h"

namespace kvrm {

class PrefixIndex {
 public:
  // `num_blocks` 0: off, and nothing may be listed.
  PrefixIndex(std::uint32_t num_blocks, std::uint32_t block_tokens);

  bool is_on() const noexcept { return !listed_.empty(); }
  // The listed block of this key whose tokens are the same; a key that names other tokens finds
  // nothing (K14).
  std::optional<BlockId> Find(const PrefixKey& key,
                              std::span<const std::int32_t> tokens) const noexcept;
  // False, and nothing changes, when the key is taken. Requires: not listed.
  bool Insert(BlockId block, const PrefixKey& key, std::span<const std::int32_t> tokens) noexcept;
  // Requires: listed, not idle.
  void Erase(BlockId block) noexcept;
  // `target` holds the same content and takes the place of `source`. Requires: neither idle.
  void Move(BlockId source, BlockId target) noexcept;
  bool IsListed(BlockId block) const noexcept { return is_on() && listed_[Index(block)]; }
  // Requires: listed.
  const PrefixKey& KeyOf(BlockId block) const noexcept { return keys_[Index(block)]; }

  // The block is without a holder from now on. Requires: listed, not idle.
  void GiveUp(BlockId block) noexcept;
  void TakeUp(BlockId block) noexcept;  // Requires: idle.
  // Requires: num_idle() > 0.
  BlockId Oldest() const noexcept { return BlockId{idle_next_[0]}; }
  std::uint32_t num_idle() const noexcept { return num_idle_; }
  std::uint32_t num_listed() const noexcept { return num_listed_; }

  std::uint64_t reserved_bytes() const noexcept;
  void CheckInvariants() const;
  std::uint64_t StateHash() const;  // As in KvCache.

 private:
  std::size_t SlotOf(const PrefixKey& key) const noexcept;
  std::span<const std::int32_t> TokensOf(std::uint32_t block) const noexcept {
    return std::span(tokens_).subspan(std::size_t{block} * block_tokens_, block_tokens_);
  }

  const std::uint32_t block_tokens_;
  std::uint32_t num_listed_ = 0;
  std::uint32_t num_idle_ = 0;
  std::vector<std::uint32_t> slots_;  // power of two, at most half full; 0: empty
  std::vector<PrefixKey> keys_;       // [num_blocks]
  std::vector<std::int32_t> tokens_;  // [num_blocks][block_tokens]
  std::vector<bool> listed_;
  // A ring through the sentinel: idle_next_[0] is the oldest, idle_prev_[0] the youngest.
  std::vector<std::uint32_t> idle_next_;
  std::vector<std::uint32_t> idle_prev_;
};

}  // namespace kvrm
