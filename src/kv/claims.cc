// SPDX-License-Identifier: Apache-2.0
#include "kv/claims.h"

#include <algorithm>

#include "base/check.h"

namespace kvrm {

Claims::Claims(std::uint32_t num_blocks, std::uint32_t max_seqs, bool buddies)
    : open_(num_blocks),
      has_buddies_(buddies),
      buddies_(buddies ? num_blocks : 1),
      claims_(max_seqs),
      owner_(num_blocks) {}

void Claims::Open(const Extent& blocks) noexcept {
  open_.Free(blocks);
  if (has_buddies_) buddies_.Free(blocks);
}

void Claims::Close(const Extent& blocks) noexcept {
  open_.Take(blocks);
  if (has_buddies_) buddies_.Take(blocks);
}

void Claims::Claim(SeqId seq, const Extent& blocks) noexcept {
  Drop(seq);
  Close(blocks);
  std::fill_n(owner_.begin() + Index(blocks.start), blocks.num_blocks, seq);
  claims_[Index(seq)] = blocks;
  num_claimed_ += blocks.num_blocks;
}

void Claims::Drop(SeqId seq) noexcept {
  Extent& claim = claims_[Index(seq)];
  if (claim.num_blocks == 0) return;
  Open(claim);
  num_claimed_ -= claim.num_blocks;
  claim = {};
}

void Claims::Taken(const Extent& blocks) noexcept {
  std::uint32_t block = Index(blocks.start);
  std::uint32_t left = blocks.num_blocks;
  while (left > 0) {
    std::uint32_t count = open_.LengthFrom(block, left);
    if (count > 0) {
      Close({BlockId{block}, count});
    } else {
      Extent& claim = claims_[Index(owner_[block])];
      const std::uint32_t before = block - Index(claim.start);
      CHECK(block >= Index(claim.start) && before < claim.num_blocks);
      count = std::min(left, claim.num_blocks - before);
      const std::uint32_t behind = claim.num_blocks - before - count;
      if (before == 0) {
        claim = behind > 0 ? Extent{BlockId{block + count}, behind} : Extent{};
        num_claimed_ -= count;
      } else {
        claim.num_blocks = before;
        num_claimed_ -= count + behind;
        if (behind > 0) Open({BlockId{block + count}, behind});
      }
    }
    block += count;
    left -= count;
  }
}

std::uint64_t Claims::reserved_bytes() const noexcept {
  return open_.reserved_bytes() + buddies_.reserved_bytes() + claims_.size() * sizeof(Extent) +
         owner_.size() * sizeof(SeqId);
}

}  // namespace kvrm
