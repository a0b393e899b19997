// SPDX-License-Identifier: Apache-2.0
// Pager's blocks with several holders: prefix hits, forks, copy-on-write, the cached ones.
#include <algorithm>

#include "base/check.h"
#include "base/mutant.h"
#include "kv/pager.h"

namespace kvrm {

// How many blocks of the tokens there are; they are scratch_runs_[0 .. *num_runs). *num_idle of
// them are blocks that someone else could have had.
std::uint32_t Pager::FindCached(std::span<const std::int32_t> tokens,
                                std::span<const PrefixKey> keys, std::uint32_t* num_runs,
                                std::uint32_t* num_idle) noexcept {
  const auto most =
      static_cast<std::uint32_t>(std::min({keys.size(), tokens.size() / options_.block_tokens,
                                           std::size_t{options_.max_blocks_per_seq}}));
  std::uint32_t num_hits = 0;
  std::uint32_t& count = *num_runs;
  for (; num_hits < most; ++num_hits) {
    const std::optional<BlockId> block = index_.Find(
        keys[num_hits],
        tokens.subspan(std::size_t{num_hits} * options_.block_tokens, options_.block_tokens));
    if (!block) break;
    const BlockState state = blocks_[Index(*block)].state;
    if (state == BlockState::kLimbo && !IsMutant(Mutant::kFindInLimbo)) break;
    const bool adjacent =
        count > 0 && Index(scratch_runs_[count - 1].start) + scratch_runs_[count - 1].num_blocks ==
                         Index(*block);
    if (!adjacent && count == options_.max_shared_runs) break;
    if (adjacent) {
      ++scratch_runs_[count - 1].num_blocks;
    } else {
      scratch_runs_[count++] = {*block, 1};
    }
    *num_idle += state == BlockState::kCached ? 1u : 0u;
  }
  return num_hits;
}

// Begins with what FindCached has found.
void Pager::StartFound(SeqId seq, std::uint32_t reserve_blocks, std::uint32_t num_hits,
                       std::uint32_t num_runs) noexcept {
  StartSequence(seq, reserve_blocks, num_hits);
  for (std::uint32_t i = 0; i < num_runs; ++i) {
    for (std::uint32_t b = 0; b < scratch_runs_[i].num_blocks; ++b)
      Share(BlockId{Index(scratch_runs_[i].start) + b});
    AppendRun(seq, scratch_runs_[i]);
  }
  Of(seq).published_blocks = num_hits;
}

std::optional<std::uint32_t> Pager::OpenCached(SeqId seq, std::span<const std::int32_t> tokens,
                                               std::span<const PrefixKey> keys,
                                               std::uint32_t reserve_tokens) noexcept {
  CHECK(!Of(seq).open);
  std::uint32_t num_runs = 0;
  std::uint32_t num_idle = 0;
  const std::uint32_t num_hits = FindCached(tokens, keys, &num_runs, &num_idle);
  const auto most =
      static_cast<std::uint32_t>(std::min({keys.size(), tokens.size() / options_.block_tokens,
                                           std::size_t{options_.max_blocks_per_seq}}));
  const std::uint32_t reserve_blocks = BlocksFor(reserve_tokens);
  const std::uint32_t more = reserve_blocks > num_hits ? reserve_blocks - num_hits : 0;
  if (more + num_idle > num_spare()) return std::nullopt;
  CountFound(num_hits, most - num_hits);
  CountWorth(num_idle, keys.subspan(num_hits, most - num_hits));
  StartFound(seq, reserve_blocks, num_hits, num_runs);
  return num_hits * options_.block_tokens;
}

void Pager::CountFound(std::uint32_t num_hits, std::uint32_t num_misses) noexcept {
  num_hits_ += num_hits;
  num_misses_ += num_misses;
  late_hits_ += num_hits;
  late_misses_ += num_misses;
  if (late_misses_ < 8 * std::uint64_t{options_.num_blocks}) return;
  late_hits_ /= 2;
  late_misses_ /= 2;
}

// Of what is missed the first piece that was there once: behind a gap nothing could be used.
void Pager::CountWorth(std::uint32_t num_idle, std::span<const PrefixKey> missed) noexcept {
  cache_worth_.Found(num_idle);
  for (const PrefixKey& key : missed) {
    if (!cache_worth_.Missed(key)) return;
  }
}

bool Pager::Fork(SeqId child, SeqId parent, std::uint32_t num_tokens,
                 std::uint32_t reserve_tokens) noexcept {
  Sequence& from = Of(parent);
  CHECK(child != parent && !Of(child).open && from.open && !is_named(parent) && !from.resuming);
  CHECK(num_tokens <= from.length);
  const std::uint32_t num_blocks = BlocksFor(num_tokens);
  const bool is_inside = num_tokens % options_.block_tokens != 0;
  CHECK(!is_inside || from.target == from.length);  // Extend has not looked at the block yet.
  const std::uint32_t reserve_blocks = BlocksFor(reserve_tokens);
  const std::uint32_t more = reserve_blocks > num_blocks ? reserve_blocks - num_blocks : 0;
  const bool is_lost = is_inside && BlockAt(parent, num_blocks - 1) == kSentinelBlock;
  if (is_lost || more + (is_inside ? 1 : 0) > num_spare()) return false;

  from.own_block = kNoOwnBlock;  // P16
  StartSequence(child, reserve_blocks, num_blocks);
  Sequence& sequence = Of(child);
  sequence.length = sequence.target = num_tokens;
  sequence.published_blocks = std::min(from.published_blocks, num_tokens / options_.block_tokens);
  if (from.whole_length != ~std::uint32_t{0})
    sequence.whole_length = std::min(from.whole_length, num_tokens);  // P14
  CopyWrites(parent, child);
  if (is_inside) {
    // The blocks that sharers of the last one may yet need: one fewer than there are sharers.
    sequence.copy_credit = 1;
    ++num_credit_;
  }
  std::uint32_t left = num_blocks;
  for (const Extent& run : runs(parent)) {
    if (left == 0) break;
    const std::uint32_t count = std::min(left, run.num_blocks);
    left -= count;
    AppendRun(child, {run.start, count});
    if (run.start == kSentinelBlock) continue;
    for (std::uint32_t b = 0; b < count; ++b) {
      if (IsMutant(Mutant::kForkForgetsRef) && left == 0 && b + 1 == count) continue;
      Share(BlockId{Index(run.start) + b});
    }
  }
  return true;
}

// Before a sequence writes on: if the block it writes next is shared, one block for its copy, out
// of what is spare beyond `more_blocks`, or of what a sharer has for the same purpose: there is one
// fewer to copy after this copy.
bool Pager::SecureCopy(SeqId seq, std::uint32_t more_blocks) noexcept {
  Sequence& sequence = Of(seq);
  if (sequence.waits_for_copy || sequence.length % options_.block_tokens == 0) return true;
  const std::uint32_t number = sequence.length / options_.block_tokens;
  if (sequence.own_block == number && num_planned_ == 0) return true;  // P16
  const BlockId block = BlockAt(seq, number);
  if (IsMutant(Mutant::kMissedCopy)) return true;
  if (blocks_[Index(block)].refs == 1) {
    if (!IsFenced(blocks_[Index(block)])) {
      ForgetCopy(sequence);
      OwnInPlace(seq, block);
      sequence.own_block = number;
      return true;
    }
    // Nobody may come to share it in the meantime: there may be no room for a copy.
    if (index_.IsListed(block)) index_.Erase(block);
    sequence.waits_for_copy = true;
    ++num_copy_waits_;
    return true;
  }
  if (sequence.copy_credit == 0) {
    if (more_blocks < num_spare()) {
      sequence.copy_credit = 1;
      ++num_credit_;
    } else if (!StealCopyCredit(seq, block)) {
      return false;
    }
  }
  sequence.waits_for_copy = true;
  ++num_copy_waits_;
  return true;
}

bool Pager::StealCopyCredit(SeqId seq, BlockId block) noexcept {
  for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
    Sequence& other = sequences_[s];
    if (SeqId{s} == seq || !other.open || other.copy_credit == 0 || other.waits_for_copy) continue;
    if (BlockAt(SeqId{s}, other.length / options_.block_tokens) != block) continue;
    other.copy_credit = 0;
    Of(seq).copy_credit = 1;
    return true;
  }
  return false;
}

void Pager::ForgetCopy(Sequence& sequence) noexcept {
  num_credit_ -= sequence.copy_credit;
  sequence.copy_credit = 0;
  StopWaiting(sequence);
}

void Pager::StopWaiting(Sequence& sequence) noexcept {
  if (sequence.waits_for_copy) --num_copy_waits_;
  sequence.waits_for_copy = false;
}

// The block that the sequence alone holds and is about to write.
void Pager::OwnInPlace(SeqId seq, BlockId block) noexcept {
  if (index_.IsListed(block)) index_.Erase(block);  // P10
  SetFilled(block, Of(seq).length % options_.block_tokens);
}

bool Pager::CanCopyShared(SeqId seq) const noexcept {
  const Sequence& sequence = Of(seq);
  if (!sequence.waits_for_copy || is_named(seq)) return false;
  const std::uint32_t number = sequence.length / options_.block_tokens;
  const Block& block = blocks_[Index(BlockAt(seq, number))];
  return block.refs == 1 ? !IsFenced(block)  // P13
                         : number < SettledBlocks(seq);
}

void Pager::Publish(SeqId seq, std::span<const std::int32_t> tokens,
                    std::span<const PrefixKey> keys) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  if (!index_.is_on()) return;
  const std::uint32_t settled =
      IsMutant(Mutant::kPublishUnsettled) ? sequence.num_blocks : SettledBlocks(seq);
  const std::uint32_t whole = IsMutant(Mutant::kPublishHoled)
                                  ? sequence.length
                                  : std::min(sequence.length, sequence.whole_length);  // P14
  const std::uint32_t full = IsMutant(Mutant::kPublishPartial) ? BlocksFor(sequence.length)
                                                               : whole / options_.block_tokens;
  const auto end = static_cast<std::uint32_t>(
      std::min<std::size_t>({keys.size(), tokens.size() / options_.block_tokens, full, settled}));
  if (sequence.published_blocks >= end) return;
  ForEachPiece(
      seq, sequence.published_blocks, end, [&](const Extent& blocks, std::uint32_t number) {
        for (std::uint32_t i = 0; i < blocks.num_blocks; ++i) {
          const BlockId block{Index(blocks.start) + i};
          const std::size_t n = number + i;
          if (!index_.IsListed(block)) {
            index_.Insert(block, keys[n],
                          tokens.subspan(n * options_.block_tokens, options_.block_tokens));
          }
        }
      });
  sequence.published_blocks = end;
}

void Pager::DropCached() noexcept {
  GiveUpCached(num_cached());
}

void Pager::GiveUpCached(std::uint32_t num_blocks) noexcept {
  if (num_cached() > 0) Evict(free_runs_.num_free() + std::min(num_blocks, num_cached()));
}

void Pager::Share(BlockId id) noexcept {
  Block& block = blocks_[Index(id)];
  if (block.state == BlockState::kCached) {
    if (!IsMutant(Mutant::kEvictHeld)) index_.TakeUp(id);
    vacant_runs_->Take({id, 1});  // P3
    block.state = BlockState::kHeld;
    ++num_held_;
    num_live_tokens_ += block.filled;
  }
  CHECK(block.state == BlockState::kHeld || IsMutant(Mutant::kFindInLimbo));
  if (++block.refs == 2) ++num_shared_;
}

// Forgets cached blocks until so many are free, and `ahead` more: neighbours given up together make
// one hole.
void Pager::Evict(std::uint32_t num_free, std::uint32_t ahead) noexcept {
  std::uint32_t num_evicted = 0;
  while (num_cached() > 0 && (free_runs_.num_free() < num_free || num_evicted < ahead)) {
    EvictOne(index_.Oldest());
    ++num_evicted;
  }
}

void Pager::EvictOne(BlockId id, bool beyond) noexcept {
  Block& block = blocks_[Index(id)];
  cache_worth_.Gone(index_.KeyOf(id), beyond, most_held_);
  index_.TakeUp(id);
  index_.Erase(id);
  CHECK(block.state == BlockState::kCached || IsMutant(Mutant::kEvictHeld));
  // It was vacant and stays so: Free adds it, as one that was not.
  if (block.state == BlockState::kCached) vacant_runs_->Take({id, 1});
  block.state = BlockState::kFree;
  block.filled = 0;
  Free({id, 1});
  ++num_evictions_;
}

// Whichever of the blocks are cached. What continues them in the cache stays there, found by nobody
// until they are computed anew, and goes in its turn.
void Pager::EvictFrom(const Extent& blocks) noexcept {
  if (!vacant_runs_ || num_cached() == 0) return;
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    if (blocks_[b].state == BlockState::kCached) EvictOne(BlockId{b});
  }
}

}  // namespace kvrm
