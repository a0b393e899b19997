// SPDX-License-Identifier: Apache-2.0
// Pager's books, recounted from scratch.
#include <algorithm>

#include "base/check.h"
#include "base/rng.h"
#include "kv/pager.h"

namespace kvrm {

void Pager::CheckInvariants() const {
  std::vector<std::uint32_t> refs(options_.num_blocks, 0);
  CheckSequences(refs);
  CheckLimbo();
  index_.CheckInvariants();
  slabs_.CheckInvariants();

  std::uint32_t num_free = 0;
  std::uint32_t num_held = 0;
  std::uint32_t num_cached = 0;
  std::uint32_t num_shared = 0;
  std::uint32_t hole = 0;
  std::uint32_t longest = 0;
  std::uint32_t num_planned = 0;
  std::uint64_t num_live_tokens = 0;
  for (std::uint32_t b = 1; b < options_.num_blocks; ++b) {
    const Block& block = blocks_[b];
    CHECK(block.refs == refs[b]);                                   // P2
    CHECK((block.refs > 0) == (block.state == BlockState::kHeld));  // P2
    const bool sleeps = slabs_.IsAsleep(b);
    CHECK(!sleeps || block.state == BlockState::kFree);  // E1
    const bool is_there = block.state == BlockState::kFree && !sleeps;
    CHECK(is_there == free_runs_.IsFree(BlockId{b}));               // P3
    CHECK(block.planned == 0 || block.state != BlockState::kFree);  // P9
    const bool is_listed = index_.IsListed(BlockId{b});
    CHECK(!is_listed || block.filled == options_.block_tokens);    // P11
    CHECK(block.state != BlockState::kCached || is_listed);        // P11
    CHECK(block.state != BlockState::kFree || block.filled == 0);  // P11
    num_free += block.state == BlockState::kFree ? 1u : 0u;
    num_held += block.state == BlockState::kHeld ? 1u : 0u;
    num_cached += block.state == BlockState::kCached ? 1u : 0u;
    num_shared += block.refs > 1 ? 1u : 0u;
    num_live_tokens += block.state == BlockState::kHeld ? block.filled : 0u;
    num_planned += block.planned > 0 ? 1u : 0u;
    const bool is_vacant = is_there || block.state == BlockState::kCached;
    CHECK(vacant_runs().IsFree(BlockId{b}) == is_vacant);  // P3
    hole = is_there ? hole + 1 : 0;
    longest = std::max(longest, hole);
  }
  CHECK(num_free == this->num_free() && num_held == num_held_);                     // P1
  CHECK(num_cached == index_.num_idle());                                           // P11
  CHECK(num_free + num_held + num_cached + num_limbo_ == options_.num_blocks - 1);  // P1
  CHECK(num_shared == num_shared_);                                                 // P2
  CHECK(num_planned == num_planned_);                                               // P9
  CHECK(num_live_tokens == num_live_tokens_);                                       // P12
  CHECK(free_runs_.Longest().num_blocks == longest);                                // P3
  CHECK(refs[Index(kSentinelBlock)] == 0);                                          // P6
}

void Pager::CheckSequences(std::vector<std::uint32_t>& refs) const {
  std::uint64_t num_credit = 0;
  std::uint32_t num_crowded = 0;
  std::uint32_t num_copy_waits = 0;
  for (std::uint32_t s = 0; s < sequences_.size(); ++s) {
    const Sequence& sequence = sequences_[s];
    CHECK(!IsShelf(SeqId{s}) || (sequence.credit() == 0 && sequence.target == sequence.length &&
                                 !sequence.waits_for_copy && !sequence.resuming));  // P15
    CHECK(sequence.open || (sequence.num_blocks == 0 && sequence.target == 0));
    CHECK(sequence.length <= sequence.target);                              // P7
    CHECK(sequence.target <= sequence.num_blocks * options_.block_tokens);  // P7
    std::uint32_t num_blocks = 0;
    Extent previous;
    for (const Extent& run : runs(SeqId{s})) {
      CHECK(run.num_blocks > 0);  // P6
      const bool hole = run.start == kSentinelBlock;
      if (num_blocks > 0 && hole) CHECK(previous.start != kSentinelBlock);  // P6
      if (num_blocks > 0 && !hole && previous.start != kSentinelBlock)
        CHECK(Index(run.start) != Index(previous.start) + previous.num_blocks);  // P6
      previous = run;
      num_blocks += run.num_blocks;
      if (hole) continue;
      for (std::uint32_t b = Index(run.start); b < Index(run.start) + run.num_blocks; ++b)
        ++refs[b];
    }
    CHECK(num_blocks == sequence.num_blocks);  // P6
    if (sequence.open) CheckContent(SeqId{s});
    if (sequence.length % options_.block_tokens != 0 &&
        sequence.own_block == sequence.length / options_.block_tokens) {
      const BlockId own = BlockAt(SeqId{s}, sequence.own_block);
      CHECK(blocks_[Index(own)].refs == 1 && !index_.IsListed(own));  // P16
      CHECK(blocks_[Index(own)].shared_until <= retired_);            // P16
    }
    num_credit += sequence.credit();
    num_crowded += num_runs_[s] > options_.crowded_runs && !IsShelf(SeqId{s}) ? 1u : 0u;
    num_copy_waits += sequence.waits_for_copy ? 1u : 0u;
    CHECK(sequence.copy_credit <= 1);
  }
  CHECK(num_credit == num_credit_);                     // P5
  CHECK(num_credit <= num_free() + index_.num_idle());  // P5
  CHECK(num_crowded == num_crowded_ && num_copy_waits == num_copy_waits_);
}

// What the sequence has written is in its blocks, and it owns alone what it will write.
void Pager::CheckContent(SeqId seq) const {
  const Sequence& sequence = Of(seq);
  ForEachPiece(seq, 0, sequence.num_blocks, [&](const Extent& blocks, std::uint32_t number) {
    for (std::uint32_t i = 0; i < blocks.num_blocks; ++i) {
      const Block& block = blocks_[Index(blocks.start) + i];
      const std::uint32_t first = (number + i) * options_.block_tokens;
      const std::uint32_t written = sequence.length > first ? sequence.length - first : 0;
      CHECK(block.filled >= std::min(written, options_.block_tokens));  // P12
      if (first >= sequence.length) {
        CHECK(block.refs == 1 && !index_.IsListed(BlockId{Index(blocks.start) + i}));  // P10
      }
    }
  });
}

void Pager::CheckLimbo() const {
  std::uint32_t num_limbo = 0;
  std::vector<bool> listed(options_.num_blocks, false);
  for (std::uint64_t list = 0; list < kNumLimboLists; ++list) {
    bool is_open = false;  // Whether an epoch in (retired, committed + 1] owns this list.
    for (std::uint64_t epoch = retired_ + 1; epoch <= committed_ + 1; ++epoch)
      is_open = is_open || epoch % kNumLimboLists == list;
    CHECK(is_open || limbo_[list].first == kNoBlock);  // P4
    for (std::uint32_t first = limbo_[list].first; first != kNoBlock;
         first = blocks_[first].limbo_next) {
      for (std::uint32_t b = first; b < first + blocks_[first].limbo_blocks; ++b) {
        CHECK(blocks_[b].state == BlockState::kLimbo && !listed[b]);  // P1
        listed[b] = true;
        ++num_limbo;
      }
    }
  }
  CHECK(num_limbo == num_limbo_);  // P1
}

std::uint64_t Pager::StateHash() const {
  std::uint64_t hash = index_.StateHash();
  const auto mix = [&hash](std::uint64_t value) { hash = Mix64(hash ^ value); };
  const auto since = [this](std::uint64_t epoch) {
    return epoch > retired_ ? epoch - retired_ : 0;
  };
  mix(committed_ - retired_);
  for (std::uint32_t slab = 0; slab < slabs_.num_slabs(); ++slab)
    mix(slabs_.IsAsleep(slab * slabs_.slab_blocks()) ? 1 : 0);
  if (slabs_.is_elastic())
    mix(std::min<std::uint64_t>(retired_ - last_wake_, slabs_.policy().drowsy_epochs));
  if (options_.max_cached == kCachedAsHeld) {
    mix(most_held_);
    mix(cache_worth_.StateHash());
  }
  mix(late_hits_ << 32 | late_misses_);
  for (const Block& block : blocks_) {
    mix(static_cast<std::uint64_t>(block.state) << 32 | block.refs);
    mix(std::uint64_t{block.filled} << 32 | block.planned);
    mix(since(block.shared_until));
  }
  for (std::uint64_t epoch = retired_ + 1; epoch <= committed_ + 1; ++epoch) {
    mix(~since(epoch));
    for (std::uint32_t first = limbo_[epoch % kNumLimboLists].first; first != kNoBlock;
         first = blocks_[first].limbo_next)
      mix(std::uint64_t{first} << 32 | blocks_[first].limbo_blocks);
  }
  for (std::uint32_t s = 0; s < sequences_.size(); ++s) {
    const Sequence& sequence = sequences_[s];
    mix(IsShelf(SeqId{s}) ? 0 : since(last_epoch_[s]));
    mix(sequence.resuming ? 1 : 0);
    mix(sequence.open ? 2 + (sequence.waits_for_copy ? 1 : 0) : 0);
    mix(std::uint64_t{sequence.length} << 32 | sequence.target);
    mix(std::uint64_t{sequence.reserved_blocks} << 32 | sequence.copy_credit);
    mix(std::uint64_t{sequence.published_blocks} << 32 | sequence.whole_length);
    for (std::uint64_t epoch = retired_ + 1; epoch <= committed_; ++epoch) {
      const Write& write = WriteOf(SeqId{s}, epoch);
      if (write.epoch == epoch) mix(since(epoch) << 32 | write.first_position);
    }
    for (const Extent& run : runs(SeqId{s}))
      mix(std::uint64_t{Index(run.start)} << 32 | run.num_blocks);
  }
  return hash;
}

}  // namespace kvrm
