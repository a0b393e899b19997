// SPDX-License-Identifier: Apache-2.0
#include "kv/pager.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace kvrm {

Pager::Pager(const PagerOptions& options)
    : options_(options),
      free_runs_(options.num_blocks),
      placement_(options.placement_seed),
      blocks_(options.num_blocks),
      sequences_(options.max_seqs),
      num_runs_(options.max_seqs, 0),
      runs_(std::size_t{options.max_seqs} * options.max_blocks_per_seq),
      scratch_runs_(std::size_t{options.max_blocks_per_seq} + 2) {
  CHECK(options.num_blocks >= 2 && options.block_tokens > 0);
  CHECK(options.max_seqs > 0 && options.max_blocks_per_seq > 0);
  CHECK(std::uint64_t{options.max_blocks_per_seq} * options.block_tokens <=
        std::uint64_t{std::numeric_limits<std::int32_t>::max()});
  blocks_[Index(kSentinelBlock)].state = BlockState::kHeld;
  free_runs_.Free({BlockId{1}, options.num_blocks - 1});
}

bool Pager::Open(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(!sequence.open);
  // A row of the identity's last holder may be in the step under construction.
  CHECK(!is_named(seq));
  const std::uint32_t reserve_blocks = BlocksFor(reserve_tokens);
  if (reserve_blocks > num_spare()) return false;
  sequence = Sequence{};
  sequence.open = true;
  sequence.reserved_blocks = reserve_blocks;
  num_credit_ += reserve_blocks;
  return true;
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
  return true;
}

bool Pager::Extend(SeqId seq, std::uint32_t num_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  const std::uint32_t need = BlocksFor(num_tokens);
  if (need > sequence.num_blocks) {
    std::uint32_t want = need - sequence.num_blocks;
    std::uint32_t usable = num_spare() + sequence.credit();
    if (options_.planted_fault == KvFault::kIgnoreCredit) usable = free_runs_.num_free();
    if (want > usable) return false;
    while (want > 0) {
      const Extent last =
          sequence.num_blocks > 0 ? AllRuns(seq)[num_runs(seq) - 1] : Extent{kSentinelBlock, 0};
      const Extent blocks =
          placement_.Choose(free_runs_, {.next_block = Index(last.start) + last.num_blocks,
                                         .want = want,
                                         .likely = std::max(want, sequence.credit())});
      CHECK(blocks.num_blocks > 0 && blocks.num_blocks <= want);
      Hold(blocks);
      num_credit_ -= std::min(sequence.credit(), blocks.num_blocks);
      sequence.num_blocks += blocks.num_blocks;
      AppendRun(seq, blocks);
      want -= blocks.num_blocks;
    }
  }
  sequence.target = std::max(sequence.target, num_tokens);
  return true;
}

void Pager::Truncate(SeqId seq, std::uint32_t num_tokens) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open && !is_named(seq));
  CHECK(num_tokens <= sequence.target);  // P7
  if (num_tokens < sequence.length) {
    num_live_tokens_ -= sequence.length - num_tokens;
    sequence.length = num_tokens;
  }
  sequence.target = num_tokens;
  // Blocks within the promise stay with the sequence. In limbo they could not back its credit, and
  // P5 would be at the mercy of the epochs in flight.
  const std::uint32_t keep = std::max(BlocksFor(num_tokens), sequence.reserved_blocks);
  if (keep < sequence.num_blocks) DropTail(seq, keep);
}

void Pager::Release(SeqId seq) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(sequence.open);
  num_credit_ -= sequence.credit();
  sequence.reserved_blocks = 0;
  num_live_tokens_ -= sequence.length;
  sequence.length = 0;
  sequence.target = 0;
  DropTail(seq, 0);
  sequence.open = false;
}

void Pager::Name(SeqId seq) noexcept {
  Of(seq).named_in = build_;
}

void Pager::Committed(const StepView& step) noexcept {
  const std::uint64_t epoch = Index(step.header->step);
  CHECK(epoch == committed_ + 1 && epoch - retired_ <= kMaxStepsInFlight);
  for (std::uint32_t row = 0; row < step.header->num_rows; ++row) {
    Sequence& sequence = Of(step.row_seq[row]);
    // Released after its row was added: its blocks wait for this epoch and nobody reads the row.
    if (!sequence.open) continue;
    CHECK(sequence.named_in == build_);
    const auto first = static_cast<std::uint32_t>(step.positions[step.row_start[row]]);
    const auto last = static_cast<std::uint32_t>(step.positions[step.row_start[row + 1] - 1]);
    CHECK(first <= sequence.length && last < sequence.target);  // P7
    num_live_tokens_ += last + 1;
    num_live_tokens_ -= sequence.length;
    sequence.length = last + 1;
    sequence.writes[epoch % kMaxStepsInFlight] = {epoch, first};
  }
  committed_ = epoch;
  ++build_;
}

void Pager::Abandoned() noexcept {
  ++build_;
  // What waited for the abandoned step because its sequence was named waits for `committed` now;
  // what planned copies read or fill stays.
  std::uint32_t first = limbo_first_[(committed_ + 1) % kNumLimboLists];
  limbo_first_[(committed_ + 1) % kNumLimboLists] = kNoBlock;
  while (first != kNoBlock) {
    Block& block = blocks_[first];
    const Extent blocks = {BlockId{first}, block.limbo_blocks};
    const std::uint32_t next = block.limbo_next;
    if (!AnyPlanned(blocks) && committed_ == retired_) {
      num_limbo_ -= blocks.num_blocks;
      FreeBlocks(blocks);
    } else {
      const std::uint64_t epoch = AnyPlanned(blocks) ? committed_ + 1 : committed_;
      block.limbo_next = limbo_first_[epoch % kNumLimboLists];
      limbo_first_[epoch % kNumLimboLists] = first;
    }
    first = next;
  }
}

void Pager::Retired(StepId step) noexcept {
  CHECK(Index(step) == retired_ + 1 && Index(step) <= committed_);  // P4
  retired_ = Index(step);
  std::uint32_t first = limbo_first_[retired_ % kNumLimboLists];
  limbo_first_[retired_ % kNumLimboLists] = kNoBlock;
  while (first != kNoBlock) {
    const Extent blocks = {BlockId{first}, blocks_[first].limbo_blocks};
    const std::uint32_t next = blocks_[first].limbo_next;
    num_limbo_ -= blocks.num_blocks;
    FreeBlocks(blocks);
    first = next;
  }
}

void Pager::SetPlanned(const Extent& blocks, bool planned) noexcept {
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    CHECK(blocks_[b].planned != planned);
    blocks_[b].planned = planned;
  }
  if (planned) {
    num_planned_ += blocks.num_blocks;
  } else {
    num_planned_ -= blocks.num_blocks;
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
  std::uint32_t left = SettledBlocks(Of(seq));
  std::uint32_t count = 0;
  for (const Extent& run : runs(seq)) {
    if (run.num_blocks > left) break;
    left -= run.num_blocks;
    ++count;
  }
  return count;
}

std::uint32_t Pager::num_spare() const noexcept {
  // The planted fault is the one way to owe more than there is.
  return free_runs_.num_free() - std::min(num_credit_, free_runs_.num_free());
}

Pager::Sequence& Pager::Of(SeqId seq) noexcept {
  CHECK(Index(seq) < options_.max_seqs);
  return sequences_[Index(seq)];
}

const Pager::Sequence& Pager::Of(SeqId seq) const noexcept {
  CHECK(Index(seq) < options_.max_seqs);
  return sequences_[Index(seq)];
}

std::uint32_t Pager::BlocksFor(std::uint32_t num_tokens) const noexcept {
  const std::uint32_t num_blocks =
      num_tokens / options_.block_tokens + (num_tokens % options_.block_tokens != 0 ? 1 : 0);
  CHECK(num_blocks <= options_.max_blocks_per_seq);
  return num_blocks;
}

std::uint32_t Pager::SettledBlocks(const Sequence& sequence) const noexcept {
  std::uint32_t settled = sequence.num_blocks;
  if (options_.planted_fault == KvFault::kMoveUnsettled) return settled;
  for (const Write& write : sequence.writes) {
    if (write.epoch > retired_)
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
  if (current > options_.crowded_runs) --num_crowded_;
  if (num_runs > options_.crowded_runs) ++num_crowded_;
  current = num_runs;
}

void Pager::AppendRun(SeqId seq, const Extent& blocks) noexcept {
  const std::span<Extent> all = AllRuns(seq);
  const std::uint32_t count = num_runs(seq);
  if (count > 0 && Index(all[count - 1].start) + all[count - 1].num_blocks == Index(blocks.start)) {
    all[count - 1].num_blocks += blocks.num_blocks;  // P6
    return;
  }
  CHECK(count < options_.max_blocks_per_seq);
  all[count] = blocks;
  SetNumRuns(seq, count + 1);
}

void Pager::DropTail(SeqId seq, std::uint32_t keep_blocks) noexcept {
  Sequence& sequence = Of(seq);
  const std::span<Extent> all = AllRuns(seq);
  std::uint64_t epoch = is_named(seq) ? committed_ + 1 : committed_;
  if (options_.planted_fault == KvFault::kNoLimbo) epoch = retired_;
  std::uint32_t count = num_runs(seq);
  while (sequence.num_blocks > keep_blocks) {
    Extent& last = all[count - 1];
    const std::uint32_t drop = std::min(last.num_blocks, sequence.num_blocks - keep_blocks);
    last.num_blocks -= drop;
    sequence.num_blocks -= drop;
    Drop({BlockId{Index(last.start) + last.num_blocks}, drop}, epoch);
    if (last.num_blocks == 0) --count;
  }
  SetNumRuns(seq, count);
}

void Pager::Hold(const Extent& blocks) noexcept {
  free_runs_.Take(blocks);  // P3
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    Block& block = blocks_[b];
    CHECK(block.state == BlockState::kFree && block.refs == 0);  // P1, P2
    block.state = BlockState::kHeld;
    block.refs = 1;
    ++block.generation;
  }
  num_held_ += blocks.num_blocks;
}

void Pager::Drop(const Extent& blocks, std::uint64_t epoch) noexcept {
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    Block& block = blocks_[b];
    CHECK(block.state == BlockState::kHeld && block.refs == 1);  // P2
    block.refs = 0;
    block.state = BlockState::kLimbo;
  }
  num_held_ -= blocks.num_blocks;
  if (AnyPlanned(blocks)) epoch = committed_ + 1;  // P9
  if (epoch == retired_) {
    FreeBlocks(blocks);
    return;
  }
  CHECK(epoch > retired_);  // P4
  Block& first = blocks_[Index(blocks.start)];
  first.limbo_blocks = blocks.num_blocks;
  first.limbo_next = limbo_first_[epoch % kNumLimboLists];
  limbo_first_[epoch % kNumLimboLists] = Index(blocks.start);
  num_limbo_ += blocks.num_blocks;
}

void Pager::FreeBlocks(const Extent& blocks) noexcept {
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    CHECK(blocks_[b].state == BlockState::kLimbo);  // P1
    CHECK(!blocks_[b].planned);                     // P9
    blocks_[b].state = BlockState::kFree;
  }
  free_runs_.Free(blocks);  // P3
}

bool Pager::AnyPlanned(const Extent& blocks) const noexcept {
  if (num_planned_ == 0) return false;
  for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
    if (blocks_[b].planned) return true;
  }
  return false;
}

void Pager::Splice(SeqId seq, std::uint32_t first_block, const Extent& target) noexcept {
  std::uint32_t count = 0;
  const auto push = [&](std::uint32_t start, std::uint32_t num_blocks) {
    if (num_blocks == 0) return;
    if (count > 0) {
      Extent& last = scratch_runs_[count - 1];
      if (Index(last.start) + last.num_blocks == start) {
        last.num_blocks += num_blocks;  // P6
        return;
      }
    }
    scratch_runs_[count++] = {BlockId{start}, num_blocks};
  };
  const std::uint32_t end_block = first_block + target.num_blocks;
  std::uint32_t begin = 0;
  for (const Extent& run : runs(seq)) {
    const std::uint32_t end = begin + run.num_blocks;
    const std::uint32_t start = Index(run.start);
    if (begin < first_block) push(start, std::min(end, first_block) - begin);
    if (begin <= first_block && first_block < end) push(Index(target.start), target.num_blocks);
    if (end > end_block) {
      const std::uint32_t low = std::max(begin, end_block);
      push(start + (low - begin), end - low);
    }
    begin = end;
  }
  CHECK(count <= options_.max_blocks_per_seq);
  std::copy_n(scratch_runs_.begin(), count, AllRuns(seq).begin());
  SetNumRuns(seq, count);
}

void Pager::CheckInvariants() const {
  std::vector<std::uint32_t> refs(options_.num_blocks, 0);
  CheckSequences(refs);
  CheckLimbo();

  std::uint32_t num_free = 0;
  std::uint32_t num_held = 0;
  std::uint32_t hole = 0;
  std::uint32_t longest = 0;
  std::uint32_t num_planned = 0;
  for (std::uint32_t b = 1; b < options_.num_blocks; ++b) {
    const Block& block = blocks_[b];
    CHECK(block.refs == refs[b]);                                                // P2
    CHECK((block.refs > 0) == (block.state == BlockState::kHeld));               // P2
    CHECK((block.state == BlockState::kFree) == free_runs_.IsFree(BlockId{b}));  // P3
    CHECK(!block.planned || block.state != BlockState::kFree);                   // P9
    num_free += block.state == BlockState::kFree ? 1u : 0u;
    num_held += block.state == BlockState::kHeld ? 1u : 0u;
    num_planned += block.planned ? 1u : 0u;
    hole = block.state == BlockState::kFree ? hole + 1 : 0;
    longest = std::max(longest, hole);
  }
  CHECK(num_free == free_runs_.num_free() && num_held == num_held_);   // P1
  CHECK(num_free + num_held + num_limbo_ == options_.num_blocks - 1);  // P1
  CHECK(num_planned == num_planned_);                                  // P9
  CHECK(free_runs_.Longest().num_blocks == longest);                   // P3
  CHECK(refs[Index(kSentinelBlock)] == 0);                             // P6
}

void Pager::CheckSequences(std::vector<std::uint32_t>& refs) const {
  std::uint64_t num_credit = 0;
  std::uint64_t num_live_tokens = 0;
  std::uint32_t num_crowded = 0;
  for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
    const Sequence& sequence = sequences_[s];
    CHECK(sequence.open || (sequence.num_blocks == 0 && sequence.target == 0));
    CHECK(sequence.length <= sequence.target);                              // P7
    CHECK(sequence.target <= sequence.num_blocks * options_.block_tokens);  // P7
    std::uint32_t num_blocks = 0;
    std::uint32_t previous_end = 0;
    for (const Extent& run : runs(SeqId{s})) {
      CHECK(run.num_blocks > 0 && Index(run.start) != previous_end);  // P6
      previous_end = Index(run.start) + run.num_blocks;
      for (std::uint32_t b = Index(run.start); b < previous_end; ++b)
        ++refs[b];
      num_blocks += run.num_blocks;
    }
    CHECK(num_blocks == sequence.num_blocks);  // P6
    num_credit += sequence.credit();
    num_live_tokens += sequence.length;
    num_crowded += num_runs_[s] > options_.crowded_runs ? 1u : 0u;
  }
  CHECK(num_credit == num_credit_ && num_credit <= free_runs_.num_free());  // P5
  CHECK(num_live_tokens == num_live_tokens_);
  CHECK(num_crowded == num_crowded_);
}

void Pager::CheckLimbo() const {
  std::uint32_t num_limbo = 0;
  std::vector<bool> listed(options_.num_blocks, false);
  for (std::uint64_t list = 0; list < kNumLimboLists; ++list) {
    bool is_open = false;  // Whether an epoch in (retired, committed + 1] owns this list.
    for (std::uint64_t epoch = retired_ + 1; epoch <= committed_ + 1; ++epoch)
      is_open = is_open || epoch % kNumLimboLists == list;
    CHECK(is_open || limbo_first_[list] == kNoBlock);  // P4
    for (std::uint32_t first = limbo_first_[list]; first != kNoBlock;
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

}  // namespace kvrm
