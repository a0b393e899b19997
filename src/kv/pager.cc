// SPDX-License-Identifier: Apache-2.0
#include "kv/pager.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/mutant.h"

namespace kvrm {
namespace {

// Whether blocks from `start` on make one run with `run`: neighbours in the pool, or two holes.
bool Continues(const Extent& run, BlockId start) {
  if (run.start == kSentinelBlock || start == kSentinelBlock) return run.start == start;
  return Index(run.start) + run.num_blocks == Index(start);
}

}  // namespace

Pager::Pager(const PagerOptions& options)
    : options_(options),
      free_runs_(options.num_blocks),
      slabs_(options.slabs, options.num_blocks),
      placement_({.policy = options.placement,
                  .num_blocks = options.num_blocks,
                  .max_seqs = options.max_seqs,
                  .max_blocks_per_seq = options.max_blocks_per_seq,
                  .seed = options.placement_seed,
                  .at_ends = options.slabs.policy.at_ends}),
      index_(options.prefix_cache ? options.num_blocks : 0, options.block_tokens),
      cache_worth_(options.prefix_cache && options.max_cached == kCachedAsHeld ? options.num_blocks
                                                                               : 0),
      blocks_(options.num_blocks),
      sequences_(std::size_t{options.max_seqs} + options.max_shelves),
      num_runs_(sequences_.size(), 0),
      writes_(kMaxStepsInFlight * sequences_.size()),
      last_epoch_(options.max_seqs, 0),
      runs_(sequences_.size() * options.max_blocks_per_seq),
      scratch_runs_(std::size_t{options.max_blocks_per_seq} + 2) {
  CHECK(options.num_blocks >= 2 && options.block_tokens > 0 && options.block_tokens < 65536);
  CHECK(options.max_seqs > 0 && options.max_blocks_per_seq > 0);
  CHECK(std::uint64_t{options.max_blocks_per_seq} * options.block_tokens <=
        std::uint64_t{std::numeric_limits<std::int32_t>::max()});
  if (index_.is_on()) vacant_runs_.emplace(options.num_blocks);
  blocks_[Index(kSentinelBlock)].state = BlockState::kHeld;
  const Extent first =
      slabs_.is_elastic() ? slabs_.BlocksOf(0) : Extent{BlockId{1}, options.num_blocks - 1};
  if (first.num_blocks > 0) Free(first);  // A slab of one block is the sentinel's alone.
}

bool Pager::Open(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  CHECK(!Of(seq).open);
  const std::uint32_t reserve_blocks = BlocksFor(reserve_tokens);
  if (reserve_blocks > num_spare()) return false;
  StartSequence(seq, reserve_blocks, 0);
  return true;
}

// Books a sequence that holds `held_blocks` from the beginning.
void Pager::StartSequence(SeqId seq, std::uint32_t reserve_blocks,
                          std::uint32_t held_blocks) noexcept {
  Sequence& sequence = Of(seq);
  // A row of the identity's last holder may be in the step under construction.
  CHECK(!is_named(seq) && !IsShelf(seq));
  sequence = Sequence{};
  ForgetWrites(seq);
  sequence.open = true;
  ++num_open_;
  sequence.reserved_blocks = reserve_blocks;
  sequence.num_blocks = held_blocks;
  sequence.length = sequence.target = held_blocks * options_.block_tokens;
  num_credit_ += sequence.credit();
  WakeForCredit();
}

bool Pager::Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  const std::uint32_t reserve_blocks = BlocksFor(reserve_tokens);
  if (reserve_blocks <= sequence.reserved_blocks) return true;
  const std::uint32_t held = std::max(sequence.num_blocks, sequence.reserved_blocks);
  const std::uint32_t more = reserve_blocks > held ? reserve_blocks - held : 0;
  if (more > num_spare()) return false;
  num_credit_ += more;
  sequence.reserved_blocks = reserve_blocks;
  WakeForCredit();
  return true;
}

bool Pager::Extend(SeqId seq, std::uint32_t num_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  const std::uint32_t need = BlocksFor(num_tokens);
  const std::uint32_t want = need > sequence.num_blocks ? need - sequence.num_blocks : 0;
  const std::uint32_t promised = sequence.credit() - sequence.copy_credit;
  const std::uint32_t more = want > promised ? want - promised : 0;
  const std::uint32_t usable =
      IsMutant(Mutant::kIgnoreCredit) ? num_free() + num_cached() : num_spare();
  if (more > usable) return false;
  if (options_.placement == PlacementPolicy::kLanes && want > 0 &&
      !placement_.LaneIsFree(free_runs_, seq, sequence.num_blocks, want)) {
    return false;  // The identity's last holder has left blocks there that are in limbo.
  }
  if (num_tokens > sequence.length && !SecureCopy(seq, more)) return false;
  Grow(seq, want);
  sequence.target = std::max(sequence.target, num_tokens);
  return true;
}

// Takes `want` more blocks, behind what the sequence has.
void Pager::Grow(SeqId seq, std::uint32_t want) noexcept {
  Sequence& sequence = Of(seq);
  const std::uint32_t mine = sequence.credit() - sequence.copy_credit;
  if (want > 0 && slabs_.num_asleep() > 0) {
    // What others were promised stays there for them.
    const Extent last =
        num_runs(seq) > 0 ? AllRuns(seq)[num_runs(seq) - 1] : Extent{kSentinelBlock, 0};
    WakeFor(num_credit_ + want - std::min(want, mine), Index(last.start) + last.num_blocks);
    WakeForPrompt(want);
  }
  // Room for all that it was promised at once, which it takes within the next steps anyway: cached
  // blocks go from a history's end to its begin, so that evicted part by part they would make it a
  // hole, and so a run, for every part.
  const std::uint32_t soon = want > 0 ? std::max(want, mine) : 0;
  if (vacant_runs_ && !cache_pays() && num_runs(seq) > 0) {
    const Extent last = AllRuns(seq)[num_runs(seq) - 1];
    const std::uint32_t next = Index(last.start) + last.num_blocks;
    if (last.start != kSentinelBlock)
      EvictFrom({BlockId{next}, vacant_runs_->LengthFrom(next, soon)});
  }
  if (soon > free_runs_.num_free()) Evict(soon);
  while (want > 0) {
    const Extent last =
        num_runs(seq) > 0 ? AllRuns(seq)[num_runs(seq) - 1] : Extent{kSentinelBlock, 0};
    const std::uint32_t promised = sequence.credit() - sequence.copy_credit;
    const Extent blocks = placement_.Choose(
        free_runs_,
        {.seq = seq,
         .num_held = sequence.num_blocks,
         .next_block = last.start == kSentinelBlock ? 0 : Index(last.start) + last.num_blocks,
         .want = want,
         .likely = std::max(want, promised)});
    CHECK(blocks.num_blocks > 0 && blocks.num_blocks <= want);
    Hold(blocks);
    num_credit_ -= std::min(promised, blocks.num_blocks);
    sequence.num_blocks += blocks.num_blocks;
    AppendRun(seq, blocks);
    want -= blocks.num_blocks;
  }
}

void Pager::Truncate(SeqId seq, std::uint32_t num_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open && !is_named(seq) && !sequence.resuming);
  CHECK(num_tokens <= sequence.target);  // P7
  const std::uint32_t end = BlocksFor(num_tokens);
  // A hole has no room for the rest of a block.
  CHECK(num_tokens % options_.block_tokens == 0 || num_tokens > sequence.length ||
        BlockAt(seq, end - 1) != kSentinelBlock);
  if (num_tokens < sequence.length) {
    sequence.length = num_tokens;
    if (sequence.whole_length != ~std::uint32_t{0})
      sequence.whole_length = std::min(sequence.whole_length, num_tokens);  // P14
    sequence.published_blocks =
        std::min(sequence.published_blocks, num_tokens / options_.block_tokens);
    ForgetCopy(sequence);
  }
  if (num_tokens == sequence.length) StopWaiting(sequence);
  sequence.target = num_tokens;
  sequence.own_block = kNoOwnBlock;  // P16
  if (!CanRewrite(seq, end)) {
    num_credit_ -= sequence.credit();
    sequence.reserved_blocks = std::min(sequence.reserved_blocks, end);
    num_credit_ += sequence.credit();
  }
  const std::uint32_t keep = std::max(end, sequence.reserved_blocks);
  if (keep < sequence.num_blocks) DropTail(seq, keep);
  const std::uint32_t written = sequence.length;
  ForEachPiece(seq, written / options_.block_tokens, sequence.num_blocks,
               [&](const Extent& blocks, std::uint32_t number) {
                 for (std::uint32_t i = 0; i < blocks.num_blocks; ++i) {
                   const BlockId block{Index(blocks.start) + i};
                   if (blocks_[Index(block)].refs > 1) continue;
                   if (index_.IsListed(block) && !IsMutant(Mutant::kTruncateKeepsName))
                     index_.Erase(block);  // P10
                   const std::uint32_t first_token = (number + i) * options_.block_tokens;
                   SetFilled(block, written > first_token ? written - first_token : 0);
                 }
               });
}

// Whether the sequence may keep its blocks from number `first` on and write them anew. Blocks
// within the promise stay with the sequence: in limbo they could not back its credit, and P5 would
// be at the mercy of the epochs in flight. But what others share or may find cannot be written
// again (P10), and a hole holds nothing: then the promise beyond the tokens is given up.
bool Pager::CanRewrite(SeqId seq, std::uint32_t first) const noexcept {
  const std::uint32_t num_blocks = Of(seq).num_blocks;
  std::uint32_t num_seen = 0;
  bool can = true;
  ForEachPiece(seq, first, num_blocks, [&](const Extent& blocks, std::uint32_t) {
    num_seen += blocks.num_blocks;
    for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
      can = can && blocks_[b].refs == 1 && !IsFenced(blocks_[b]) &&  // P13
            (!index_.IsListed(BlockId{b}) || IsMutant(Mutant::kTruncateKeepsName));
    }
  });
  return can && (first >= num_blocks || num_seen == num_blocks - first);
}

void Pager::Trim(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open && !is_named(seq) && !sequence.resuming);
  CHECK(from <= to && to <= sequence.length);
  const std::uint32_t first = BlocksFor(from);
  const std::uint32_t past = IsMutant(Mutant::kTrimOneTooMany) ? 1 : 0;
  const std::uint32_t end =
      std::min(to / options_.block_tokens + past, sequence.length / options_.block_tokens);
  if (first >= end || TooManyHoles(seq, first, end)) return;
  const std::uint64_t epoch = DropEpoch(seq);
  bool any = false;
  ForEachPiece(seq, first, end, [&](const Extent& blocks, std::uint32_t) {
    Drop(blocks, epoch);
    any = true;
  });
  if (!any) return;
  sequence.whole_length = std::min(sequence.whole_length, sequence.length);  // P14
  Splice(seq, first, {kSentinelBlock, end - first});
}

// With blocks [first, end) gone as well.
bool Pager::TooManyHoles(SeqId seq, std::uint32_t first, std::uint32_t end) const noexcept {
  std::uint32_t num_holes = 1;
  std::uint32_t begin = 0;
  for (const Extent& run : runs(seq)) {
    const bool touches = begin <= end && begin + run.num_blocks >= first;
    if (run.start == kSentinelBlock && !touches) ++num_holes;
    begin += run.num_blocks;
  }
  return num_holes > options_.max_holes;
}

void Pager::Release(SeqId seq) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  ForgetCopy(sequence);
  num_credit_ -= sequence.credit();
  sequence.reserved_blocks = 0;
  sequence.length = 0;
  sequence.target = 0;
  DropTail(seq, 0);
  placement_.Ended(seq);
  sequence.open = sequence.resuming = false;
  --num_open_;
  EvictBeyond();
}

void Pager::Shelve(SeqId seq, SeqId shelf) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(!IsShelf(seq) && IsShelf(shelf) && !Of(shelf).open);
  CHECK(sequence.open && !is_named(seq) && !sequence.resuming);
  ForgetCopy(sequence);
  num_credit_ -= sequence.credit();
  sequence.reserved_blocks = 0;
  sequence.target = sequence.length;
  DropTail(seq, BlocksFor(sequence.length));
  sequence.own_block = kNoOwnBlock;  // P16
  Of(shelf) = sequence;              // P15
  CopyWrites(seq, shelf);
  std::ranges::copy(runs(seq), AllRuns(shelf).begin());
  SetNumRuns(shelf, num_runs(seq));
  SetNumRuns(seq, 0);
  placement_.Ended(seq);
  sequence = Sequence{};
  ForgetWrites(seq);
  --num_open_;
}

void Pager::ClearShelf(SeqId shelf) noexcept {
  CHECK(IsShelf(shelf) && Of(shelf).open);
  DropTail(shelf, 0);
  Of(shelf) = Sequence{};
  ForgetWrites(shelf);
}

std::optional<std::uint32_t> Pager::OpenShelved(SeqId seq, SeqId shelf,
                                                const ShelvedHistory& history,
                                                std::uint32_t reserve_tokens) noexcept {
  const std::uint32_t length = Of(shelf).length;
  std::uint32_t num_hole_blocks = 0;
  for (const Extent& run : history.runs)
    num_hole_blocks += run.start == kSentinelBlock ? run.num_blocks : 0;
  // Nothing computed behind a hole is in the cache (P14), and the hole stays one.
  const std::size_t num_keys =
      num_hole_blocks > 0
          ? 0
          : std::min<std::size_t>(history.keys.size(), length / options_.block_tokens);
  std::uint32_t num_shared_runs = 0;
  std::uint32_t num_idle = 0;
  const std::uint32_t num_hits =
      FindCached(history.tokens, history.keys.first(num_keys), &num_shared_runs, &num_idle);
  const std::uint32_t reserve_blocks = BlocksFor(std::max(reserve_tokens, length));
  if (reserve_blocks - num_hits - num_hole_blocks + num_idle > num_spare()) return std::nullopt;
  StartFound(seq, reserve_blocks, num_hits, num_shared_runs);
  Sequence& sequence = Of(seq);
  std::uint32_t at = 0;
  for (const Extent& run : history.runs) {
    const std::uint32_t end = at + run.num_blocks;
    if (run.start == kSentinelBlock) {
      AppendRun(seq, run);
      num_credit_ -= run.num_blocks;
      sequence.num_blocks += run.num_blocks;
    } else if (end > num_hits) {
      Grow(seq, end - std::max(at, num_hits));
    }
    at = end;
  }
  sequence.length = sequence.target = length;
  sequence.whole_length = Of(shelf).whole_length;
  sequence.resuming = true;
  ForEachPiece(seq, num_hits, at, [&](const Extent& blocks, std::uint32_t number) {
    for (std::uint32_t i = 0; i < blocks.num_blocks; ++i)
      SetFilled(BlockId{Index(blocks.start) + i}, length - (number + i) * options_.block_tokens);
  });
  return num_hits;
}

void Pager::Loaded(SeqId seq) noexcept {
  CHECK(Of(seq).open && Of(seq).resuming);
  Of(seq).resuming = false;
  Name(seq);  // The step that fills its blocks moves none of them.
}

void Pager::Name(SeqId seq) noexcept {
  Of(seq).named_in = build_;
}

void Pager::Committed(const StepView& step) noexcept {
  const std::uint64_t epoch = Index(step.header->step);
  CHECK(epoch == committed_ + 1 && epoch - retired_ <= kMaxStepsInFlight);
  // Nothing has looked at these blocks in this step (P16): they are asked for all at once.
  for (std::uint32_t row = 0; row < step.header->num_rows; ++row)
    __builtin_prefetch(&blocks_[Index(step.slots[step.row_start[row]]) / options_.block_tokens], 1);
  for (std::uint32_t row = 0; row < step.header->num_rows; ++row) {
    Sequence& sequence = Of(step.row_seq[row]);
    last_epoch_[Index(step.row_seq[row])] = epoch;
    // Released after its row was added: its blocks wait for this epoch and nobody reads the row.
    if (!sequence.open) continue;
    CHECK(sequence.named_in == build_);
    const auto first = static_cast<std::uint32_t>(step.positions[step.row_start[row]]);
    const auto last = static_cast<std::uint32_t>(step.positions[step.row_start[row + 1] - 1]);
    CHECK(first <= sequence.length && last < sequence.target);  // P7
    for (std::uint32_t t = step.row_start[row]; t < step.row_start[row + 1]; ++t) {
      const std::uint32_t slot = Index(step.slots[t]);
      const BlockId block{slot / options_.block_tokens};
      const std::uint32_t filled = slot % options_.block_tokens + 1;
      CHECK(blocks_[Index(block)].refs == 1 || IsMutant(Mutant::kMissedCopy));  // P10
      if (filled > blocks_[Index(block)].filled) SetFilled(block, filled);
    }
    sequence.length = last + 1;
    WriteOf(step.row_seq[row], epoch) = {epoch, first};
  }
  committed_ = epoch;
  has_fence_ = false;
  ++build_;
}

void Pager::Abandoned() noexcept {
  ++build_;
  // What waited for the abandoned step because its sequence was named waits for `committed` now;
  // what planned copies read or fill stays.
  LimboList& list = limbo_[(committed_ + 1) % kNumLimboLists];
  std::uint32_t first = list.first;
  list = {};
  while (first != kNoBlock) {
    const Extent blocks = {BlockId{first}, blocks_[first].limbo_blocks};
    const std::uint32_t next = blocks_[first].limbo_next;
    num_limbo_ -= blocks.num_blocks;
    Bury(blocks, committed_);
    first = next;
  }
  if (!has_fence_) return;
  has_fence_ = false;
  for (Block& block : blocks_) {
    // A planned copy travels with the next step, which has the number of the abandoned one.
    if (block.planned == 0) block.shared_until = std::min(block.shared_until, committed_);
    has_fence_ = has_fence_ || block.shared_until > committed_;
  }
}

void Pager::Retired(StepId step) noexcept {
  CHECK(Index(step) == retired_ + 1 && Index(step) <= committed_);  // P4
  retired_ = Index(step);
  LimboList& list = limbo_[(retired_ + (IsMutant(Mutant::kEarlyRetire) ? 1 : 0)) % kNumLimboLists];
  std::uint32_t first = list.first;
  list = {};
  while (first != kNoBlock) {
    const Extent blocks = {BlockId{first}, blocks_[first].limbo_blocks};
    const std::uint32_t next = blocks_[first].limbo_next;
    num_limbo_ -= blocks.num_blocks;
    FreeBlocks(blocks);
    first = next;
  }
  EvictBeyond();
  SleepSome();
}

void Pager::SetPlanned(const Extent& blocks, bool planned) noexcept {
  if (Index(blocks.start) >= options_.num_blocks) return;  // A window.
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    std::uint8_t& count = blocks_[b].planned;
    CHECK(planned ? count < 255 : count > 0);
    num_planned_ += planned && count == 0 ? 1u : 0u;
    num_planned_ -= !planned && count == 1 ? 1u : 0u;
    count = static_cast<std::uint8_t>(planned ? count + 1 : count - 1);
  }
}

std::span<const Extent> Pager::target_runs(SeqId seq) const noexcept {
  const std::span<const Extent> all = runs(seq);
  std::uint32_t left = BlocksFor(Of(seq).target);
  std::size_t count = 0;
  while (left > 0) {
    left -= std::min(left, all[count].num_blocks);
    ++count;
  }
  return all.first(count);
}

std::uint32_t Pager::num_settled_runs(SeqId seq) const noexcept {
  std::uint32_t left = SettledBlocks(seq);
  std::uint32_t count = 0;
  for (const Extent& run : runs(seq)) {
    if (run.num_blocks > left) break;
    left -= run.num_blocks;
    ++count;
  }
  return count;
}

bool Pager::is_sole_holder(const Extent& blocks) const noexcept {
  // Compaction asks this of every run of crowded rows, step after step, and mostly nobody shares.
  if (num_shared_ == 0) return true;
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    if (blocks_[b].refs != 1) return false;
  }
  return true;
}

bool Pager::is_still(const Extent& blocks) const noexcept {
  if (committed_ != retired_) return false;  // A step in flight may write what it once held.
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    if (blocks_[b].state != BlockState::kLimbo || blocks_[b].planned > 0) return false;
  }
  return true;
}

std::uint64_t Pager::reserved_bytes() const noexcept {
  const std::uint64_t vacant_bytes = vacant_runs_ ? vacant_runs_->reserved_bytes() : 0;
  return free_runs_.reserved_bytes() + vacant_bytes + slabs_.reserved_bytes() +
         placement_.reserved_bytes() + index_.reserved_bytes() + cache_worth_.reserved_bytes() +
         blocks_.size() * sizeof(Block) + sequences_.size() * sizeof(Sequence) +
         num_runs_.size() * sizeof(num_runs_[0]) + writes_.size() * sizeof(Write) +
         last_epoch_.size() * sizeof(last_epoch_[0]) +
         (runs_.size() + scratch_runs_.size()) * sizeof(Extent);
}

std::uint32_t Pager::num_spare() const noexcept {
  // A planted bug is the one way to owe more than there is.
  const std::uint32_t there = num_free() + num_cached();
  return there - std::min(num_credit_, there);
}

Pager::Sequence& Pager::Of(SeqId seq) noexcept {
  CHECK(Index(seq) < options_.max_seqs + options_.max_shelves);
  return sequences_[Index(seq)];
}

const Pager::Sequence& Pager::Of(SeqId seq) const noexcept {
  CHECK(Index(seq) < options_.max_seqs + options_.max_shelves);
  return sequences_[Index(seq)];
}

std::uint32_t Pager::BlocksFor(std::uint32_t num_tokens) const noexcept {
  const std::uint32_t num_blocks =
      num_tokens / options_.block_tokens + (num_tokens % options_.block_tokens != 0 ? 1 : 0);
  CHECK(num_blocks <= options_.max_blocks_per_seq);
  return num_blocks;
}

Pager::Write& Pager::WriteOf(SeqId seq, std::uint64_t epoch) noexcept {
  return writes_[epoch % kMaxStepsInFlight * sequences_.size() + Index(seq)];
}

const Pager::Write& Pager::WriteOf(SeqId seq, std::uint64_t epoch) const noexcept {
  return writes_[epoch % kMaxStepsInFlight * sequences_.size() + Index(seq)];
}

void Pager::ForgetWrites(SeqId seq) noexcept {
  for (std::uint64_t epoch = retired_ + 1; epoch <= committed_; ++epoch)
    WriteOf(seq, epoch) = Write{};
}

// What steps in flight write of the one is of the other as well.
void Pager::CopyWrites(SeqId from, SeqId to) noexcept {
  for (std::uint64_t epoch = retired_ + 1; epoch <= committed_; ++epoch)
    WriteOf(to, epoch) = WriteOf(from, epoch);
}

std::uint32_t Pager::SettledBlocks(SeqId seq) const noexcept {
  const Sequence& sequence = Of(seq);
  std::uint32_t settled = sequence.num_blocks;
  if (IsMutant(Mutant::kMoveUnsettled)) return settled;
  if (sequence.resuming) return 0;
  for (std::uint64_t epoch = retired_ + 1; epoch <= committed_; ++epoch) {
    const Write& write = WriteOf(seq, epoch);
    if (write.epoch == epoch)
      settled = std::min(settled, write.first_position / options_.block_tokens);
  }
  return settled;
}

std::span<Extent> Pager::AllRuns(SeqId seq) noexcept {
  return {&runs_[std::size_t{Index(seq)} * options_.max_blocks_per_seq],
          options_.max_blocks_per_seq};
}

void Pager::SetNumRuns(SeqId seq, std::uint32_t num_runs) noexcept {
  std::uint32_t& current = num_runs_[Index(seq)];
  if (current > options_.crowded_runs && !IsShelf(seq)) --num_crowded_;
  if (num_runs > options_.crowded_runs && !IsShelf(seq)) ++num_crowded_;
  current = num_runs;
}

void Pager::AppendRun(SeqId seq, const Extent& blocks) noexcept {
  const std::span<Extent> all = AllRuns(seq);
  const std::uint32_t count = num_runs(seq);
  if (count > 0 && Continues(all[count - 1], blocks.start)) {
    all[count - 1].num_blocks += blocks.num_blocks;  // P6
    return;
  }
  CHECK(count < options_.max_blocks_per_seq);
  all[count] = blocks;
  SetNumRuns(seq, count + 1);
}

BlockId Pager::BlockAt(SeqId seq, std::uint32_t index) const noexcept {
  BlockId block = kSentinelBlock;
  ForEachPiece(seq, index, index + 1,
               [&block](const Extent& piece, std::uint32_t) { block = piece.start; });
  return block;
}

// What the sequence gives up now may be touched by this epoch and those before it.
std::uint64_t Pager::DropEpoch(SeqId seq) const noexcept {
  if (IsMutant(Mutant::kNoLimbo)) return retired_;
  return is_named(seq) ? committed_ + 1 : committed_;
}

void Pager::DropTail(SeqId seq, std::uint32_t keep_blocks) noexcept {
  Sequence& sequence = Of(seq);
  const std::span<Extent> all = AllRuns(seq);
  const std::uint64_t epoch = DropEpoch(seq);
  std::uint32_t count = num_runs(seq);
  while (sequence.num_blocks > keep_blocks) {
    Extent& last = all[count - 1];
    const std::uint32_t drop = std::min(last.num_blocks, sequence.num_blocks - keep_blocks);
    last.num_blocks -= drop;
    sequence.num_blocks -= drop;
    if (last.start != kSentinelBlock)
      Drop({BlockId{Index(last.start) + last.num_blocks}, drop}, epoch);
    if (last.num_blocks == 0) --count;
  }
  SetNumRuns(seq, count);
  sequence.first_changed = std::min(sequence.first_changed, keep_blocks);
}

void Pager::Hold(const Extent& blocks) noexcept {
  free_runs_.Take(blocks);  // P3
  if (vacant_runs_) vacant_runs_->Take(blocks);
  placement_.Taken(blocks);
  slabs_.Taken(blocks);
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    Block& block = blocks_[b];
    CHECK(block.state == BlockState::kFree && block.refs == 0);  // P1, P2
    block.state = BlockState::kHeld;
    block.refs = 1;
    block.filled = 0;
    block.shared_until = 0;
    ++block.generation;
  }
  num_held_ += blocks.num_blocks;
  most_held_ = std::max(most_held_, num_held_);
}

// One holder fewer, last block first, so that the prefix cache forgets prefixes from their ends.
void Pager::Drop(const Extent& blocks, std::uint64_t epoch) noexcept {
  std::uint32_t end = Index(blocks.start) + blocks.num_blocks;
  std::uint32_t num_over = 0;  // blocks [b, b + num_over) have lost their last holder
  const std::uint64_t last_epoch = epoch;
  for (std::uint32_t b = end; b-- > Index(blocks.start);) {
    Block& block = blocks_[b];
    CHECK(block.state == BlockState::kHeld && block.refs > 0);  // P2
    if (--block.refs == 1) --num_shared_;
    if (block.refs > 0 && !IsMutant(Mutant::kReleaseHeld)) {
      block.shared_until = std::max(block.shared_until, last_epoch);
      has_fence_ = has_fence_ || last_epoch > committed_;
      if (num_over > 0) Bury({BlockId{b + 1}, num_over}, epoch);
      num_over = 0;
      epoch = last_epoch;
      continue;
    }
    epoch = std::max(epoch, block.shared_until);
    num_live_tokens_ -= block.filled;
    --num_held_;
    ++num_over;
  }
  if (num_over > 0) Bury({blocks.start, num_over}, epoch);
}

// Blocks without a holder: out of reach at once, or when `epoch` retires.
void Pager::Bury(const Extent& blocks, std::uint64_t epoch) noexcept {
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b)
    blocks_[b].state = BlockState::kLimbo;
  if (AnyPlanned(blocks) && !IsMutant(Mutant::kFreePlanned)) epoch = committed_ + 1;  // P9
  if (epoch <= retired_) {
    FreeBlocks(blocks);
    if (IsMutant(Mutant::kDoubleRelease) && blocks.num_blocks == 3) FreeBlocks(blocks);
    return;
  }
  num_limbo_ += blocks.num_blocks;
  if (IsMutant(Mutant::kLoseBlock) && blocks.num_blocks == 2) return;
  Block& first = blocks_[Index(blocks.start)];
  first.limbo_blocks = blocks.num_blocks;
  first.limbo_next = kNoBlock;
  LimboList& list = limbo_[epoch % kNumLimboLists];
  (list.last == kNoBlock ? list.first : blocks_[list.last].limbo_next) = Index(blocks.start);
  list.last = Index(blocks.start);
}

void Pager::FreeBlocks(const Extent& blocks) noexcept {
  std::uint32_t num_free = 0;
  for (std::uint32_t b = Index(blocks.start) + blocks.num_blocks; b-- > Index(blocks.start);) {
    Block& block = blocks_[b];
    CHECK(block.state == BlockState::kLimbo);                     // P1
    CHECK(block.planned == 0 || IsMutant(Mutant::kFreePlanned));  // P9
    const bool is_listed = index_.IsListed(BlockId{b}) && !IsMutant(Mutant::kFreeKeepsName);
    block.state = is_listed ? BlockState::kCached : BlockState::kFree;
    if (!is_listed) {
      block.filled = 0;
      ++num_free;
      continue;
    }
    index_.GiveUp(BlockId{b});
    vacant_runs_->Free({BlockId{b}, 1});  // P3
    if (num_free > 0) Free({BlockId{b + 1}, num_free});
    num_free = 0;
  }
  if (num_free > 0) Free({blocks.start, num_free});
}

// Of blocks that are kFree and awake: everybody may choose them from now on.
void Pager::Free(const Extent& blocks) noexcept {
  free_runs_.Free(blocks);  // P3
  if (vacant_runs_) vacant_runs_->Free(blocks);
  placement_.Freed(blocks);
  slabs_.Freed(blocks);
}

// Requires: kHeld.
void Pager::SetFilled(BlockId id, std::uint32_t filled) noexcept {
  Block& block = blocks_[Index(id)];
  filled = std::min(filled, options_.block_tokens);
  num_live_tokens_ += filled;
  num_live_tokens_ -= block.filled;
  block.filled = static_cast<std::uint16_t>(filled);
}

bool Pager::AnyPlanned(const Extent& blocks) const noexcept {
  if (num_planned_ == 0) return false;
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    if (blocks_[b].planned > 0) return true;
  }
  return false;
}

void Pager::Splice(SeqId seq, std::uint32_t first_block, const Extent& target) noexcept {
  std::uint32_t count = 0;
  const auto push = [&](BlockId start, std::uint32_t num_blocks) {
    if (num_blocks == 0) return;
    if (count > 0 && Continues(scratch_runs_[count - 1], start)) {
      scratch_runs_[count - 1].num_blocks += num_blocks;  // P6
    } else {
      scratch_runs_[count++] = {start, num_blocks};
    }
  };
  const auto at = [](const Extent& run, std::uint32_t offset) {
    return run.start == kSentinelBlock ? run.start : BlockId{Index(run.start) + offset};
  };
  const std::uint32_t end_block = first_block + target.num_blocks;
  std::uint32_t begin = 0;
  for (const Extent& run : runs(seq)) {
    const std::uint32_t end = begin + run.num_blocks;
    if (begin < first_block) push(run.start, std::min(end, first_block) - begin);
    if (begin <= first_block && first_block < end) push(target.start, target.num_blocks);
    if (end > end_block) {
      const std::uint32_t low = std::max(begin, end_block);
      push(at(run, low - begin), end - low);
    }
    begin = end;
  }
  Of(seq).first_changed = std::min(Of(seq).first_changed, first_block);
  CHECK(count <= options_.max_blocks_per_seq);
  std::copy_n(scratch_runs_.begin(), count, AllRuns(seq).begin());
  SetNumRuns(seq, count);
}

}  // namespace kvrm
