// SPDX-License-Identifier: Apache-2.0
// Claims: free blocks kept for the sequence that is likely to need them next.
//
// A claim is one run of free blocks ahead of a sequence. It promises nothing: others take from it
// when nothing else is free. Claimed blocks are free for the pager and in its index; here, `open`
// has the free blocks that nobody claims.
//
// Threading: engine thread only. Memory: reserved by the constructor, 4 bytes a block and `open`.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/buddy_tree.h"
#include "kv/free_runs.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

class Claims {
 public:
  // With `buddies`, open blocks are also known by power-of-two extents.
  Claims(std::uint32_t num_blocks, std::uint32_t max_seqs, bool buddies);

  // Free blocks that nobody claims.
  const FreeRuns& open() const noexcept { return open_; }
  const BuddyTree& buddies() const noexcept { return buddies_; }
  // No blocks: none.
  const Extent& of(SeqId seq) const noexcept { return claims_[Index(seq)]; }
  std::uint32_t num_claimed() const noexcept { return num_claimed_; }

  // The sequence claims these open blocks instead of what it had.
  void Claim(SeqId seq, const Extent& blocks) noexcept;
  void Drop(SeqId seq) noexcept;

  // Blocks that became free, and free blocks that were taken, by whomever. A claim whose first
  // blocks are taken begins behind them; one that is taken from further on ends there.
  void Freed(const Extent& blocks) noexcept { Open(blocks); }
  void Taken(const Extent& blocks) noexcept;

  std::uint64_t reserved_bytes() const noexcept;

 private:
  void Open(const Extent& blocks) noexcept;
  void Close(const Extent& blocks) noexcept;

  FreeRuns open_;
  const bool has_buddies_;
  BuddyTree buddies_;
  std::vector<Extent> claims_;  // [max_seqs]
  std::vector<SeqId> owner_;    // [num_blocks], of the claimed ones
  std::uint32_t num_claimed_ = 0;
};

}  // namespace kvrm
