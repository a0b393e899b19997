// SPDX-License-Identifier: Apache-2.0
#include "kv/views.h"

#include <algorithm>

#include "base/check.h"
#include "base/mutant.h"
#include "base/rng.h"

namespace kvrm {
namespace {

// The smallest context length that has a static graph of its own; the others double.
constexpr std::uint32_t kFirstContextBucket = 128;

bool IsStaged(KvView view) {
  return view == KvView::kStagedWindows;
}

// V2: whether a step of this epoch may still be reading.
bool IsFenced(std::uint64_t epoch, const Pager& pager) {
  return epoch > Index(pager.retired()) && !IsMutant(Mutant::kWindowTooEarly);
}

}  // namespace

Views::Views(const KvCacheOptions& options, Device& device)
    : options_(options),
      device_(device),
      scratch_(options.max_blocks_per_seq),
      holder_epoch_(options.max_seqs, 0),
      staged_(options.max_seqs, 0),
      tail_epoch_(options.max_seqs, 0),
      num_read_(options.max_seqs, 0),
      shown_(options.view == KvView::kMapped
                 ? std::size_t{options.max_seqs} * options.max_blocks_per_seq
                 : 0),
      told_(shown_.size(), false) {
  mapping_.reserve(options.max_seqs);
}

bool Views::HasWindows(KvView view) {
  return view == KvView::kStagedWindows || view == KvView::kMapped;
}

bool Views::IsStatic(KvView view) {
  return view == KvView::kStatic || view == KvView::kStaticPadded ||
         view == KvView::kStaticBucketed;
}

bool Views::NeedsFewRuns(KvView view) {
  return view == KvView::kExtents || view == KvView::kStagedLayers;
}

void Views::Opened(SeqId seq, const Pager& pager) noexcept {
  if (!IsMutant(Mutant::kStagedSurvivesOpen)) staged_[Index(seq)] = 0;
  num_read_[Index(seq)] = 0;
  holder_epoch_[Index(seq)] = pager.last_epoch(seq);
}

void Views::Truncated(SeqId seq, std::uint32_t num_tokens) noexcept {
  staged_[Index(seq)] = std::min(staged_[Index(seq)], num_tokens);
}

void Views::Plan(Pager& pager, Transport& transport) noexcept {
  if (!IsStaged(options_.view)) return;
  for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
    const SeqId seq{s};
    // A named one has just got a block of its own: that copy must land first.
    if (!pager.is_open(seq) || staged_[s] >= pager.length(seq) || pager.is_named(seq)) continue;
    if (IsFenced(holder_epoch_[s], pager)) continue;  // V2
    const std::uint32_t end = pager.BlocksFor(pager.length(seq));
    if (pager.waits_for_copy(seq) || pager.num_settled_blocks(seq) < end) continue;
    std::uint32_t done = staged_[s] / options_.layout.block_tokens;
    pager.ForEachPiece(seq, done, end, [&](const Extent& piece, std::uint32_t number) {
      const std::uint32_t count =
          transport.num_groups_left() == 0
              ? 0
              : std::min({piece.num_blocks, transport.num_blocks_left(),
                          transport.num_groups_left() * transport.max_group_blocks()});
      if (count > 0 && done != ~0u) {
        const std::uint32_t wrong =
            IsMutant(Mutant::kStageWrongBlock) && number > 0 && number < end - 1 ? 1 : 0;
        transport.Add({BlockId{Index(piece.start)}, count},
                      {BlockId{options_.num_blocks + Lane(seq) + number - wrong}, count},
                      MovePriority::kStage);
        staged_[s] = (number + count) * options_.layout.block_tokens;
      }
      if (count < piece.num_blocks) done = ~0u;  // The budget ends here, for this step.
    });
    if (done == ~0u && !IsMutant(Mutant::kStagedBeyondBudget)) continue;
    staged_[s] = pager.length(seq);
    if (staged_[s] % options_.layout.block_tokens != 0) tail_epoch_[s] = Index(pager.next());
  }
}

bool Views::FillRow(Pager& pager, StepBuilder& builder, StepRow& row) noexcept {
  switch (options_.view) {
    case KvView::kExtents:
      row.runs = pager.target_runs(row.seq);
      break;
    case KvView::kPaged:
      return FillPaged(pager, row);
    case KvView::kStatic:
    case KvView::kStaticPadded:
    case KvView::kStaticBucketed:
      return FillStatic(pager, builder, row);
    case KvView::kStagedWindows:
      return FillStaged(pager, row);
    case KvView::kStagedLayers:
      return FillLayers(pager, builder, row);
    case KvView::kMapped:
      return FillMapped(pager, builder, row);
  }
  if (row.runs.size() > options_.max_runs) return false;
  if (IsMutant(Mutant::kRunsSwapped) && row.runs.size() > 1) {
    std::ranges::copy(row.runs, scratch_.begin());
    std::swap(scratch_[0], scratch_[1]);
    row.runs = std::span(scratch_).first(row.runs.size());
  }
  return true;
}

bool Views::FillPaged(const Pager& pager, StepRow& row) noexcept {
  std::uint32_t count = 0;
  for (const Extent& run : pager.target_runs(row.seq)) {
    if (run.start == kSentinelBlock) {
      scratch_[count++] = run;
      continue;
    }
    for (std::uint32_t b = 0; b < run.num_blocks; ++b)
      scratch_[count++] = {BlockId{Index(run.start) + b}, 1};
  }
  // The last run may reach beyond the target: one entry per block that the row needs.
  std::uint32_t num_blocks = 0;
  std::uint32_t used = 0;
  while (num_blocks < pager.BlocksFor(pager.target(row.seq)))
    num_blocks += scratch_[used++].num_blocks;
  row.runs = std::span(scratch_).first(used);
  return true;
}

bool Views::FillStatic(const Pager& pager, StepBuilder& builder, StepRow& row) noexcept {
  row.runs = pager.target_runs(row.seq);
  if (options_.view == KvView::kStatic) return true;
  const std::uint32_t longest = options_.max_blocks_per_seq * options_.layout.block_tokens;
  std::uint32_t padded = longest;
  if (options_.view == KvView::kStaticBucketed) {
    padded = std::min(longest, kFirstContextBucket);
    while (padded < pager.target(row.seq))
      padded = padded <= longest / 2 ? padded * 2 : longest;
  }
  builder.Pad(padded);
  row.home = row.runs;
  // All of the lane: another row of the step may ask for more padding than this one.
  scratch_[0] = {BlockId{1 + Lane(row.seq)}, options_.max_blocks_per_seq};
  row.runs = std::span(scratch_).first(1);
  return true;
}

std::span<const Extent> Views::WindowRuns(SeqId seq, const Pager& pager, std::uint32_t first_block,
                                          std::uint32_t num_blocks) noexcept {
  std::uint32_t count = 0;
  std::uint32_t at = 0;
  for (const Extent& run : pager.runs(seq)) {
    if (at >= num_blocks) break;
    const std::uint32_t length = std::min(run.num_blocks, num_blocks - at);
    const bool is_hole = run.start == kSentinelBlock;
    const BlockId start = is_hole ? kSentinelBlock : BlockId{first_block + at};
    at += length;
    if (count > 0 && is_hole == (scratch_[count - 1].start == kSentinelBlock)) {
      scratch_[count - 1].num_blocks += length;
    } else {
      scratch_[count++] = {start, length};
    }
  }
  if (count > options_.max_runs) return {};
  return std::span(scratch_).first(count);
}

bool Views::FillStaged(const Pager& pager, StepRow& row) noexcept {
  const std::uint32_t s = Index(row.seq);
  if (IsFenced(holder_epoch_[s], pager)) return false;   // V2
  if (staged_[s] < pager.length(row.seq)) return false;  // V1
  if (tail_epoch_[s] == Index(pager.next()) && !IsMutant(Mutant::kTailTogether))
    return false;  // V4
  row.home = pager.target_runs(row.seq);
  row.runs = WindowRuns(row.seq, pager, options_.num_blocks + Lane(row.seq),
                        pager.BlocksFor(pager.target(row.seq)));
  row.mirror = !IsMutant(Mutant::kMirrorMissing);
  return !row.runs.empty();
}

bool Views::FillLayers(const Pager& pager, StepBuilder& builder, StepRow& row) noexcept {
  row.home = pager.target_runs(row.seq);
  const std::uint32_t num_blocks = pager.BlocksFor(pager.target(row.seq));
  row.runs = WindowRuns(row.seq, pager, 1 + Lane(row.seq), num_blocks);
  if (row.home.size() > options_.max_runs || row.runs.empty()) return false;
  builder.SetLayerWindows();
  pager.ForEachPiece(row.seq, 0, num_blocks, [&](const Extent& piece, std::uint32_t number) {
    builder.AddGroup({.source = piece.start,
                      .target = BlockId{1 + Lane(row.seq) + number},
                      .num_blocks = piece.num_blocks,
                      .kind = GroupKind::kLayerSlices,
                      .priority = static_cast<std::uint8_t>(MovePriority::kStage)});
    num_gathered_blocks_ += piece.num_blocks;
  });
  return true;
}

bool Views::FillMapped(Pager& pager, StepBuilder& builder, StepRow& row) noexcept {
  const std::uint32_t end = pager.BlocksFor(pager.target(row.seq));
  if (!ShowHome(pager, builder, row.seq, end)) return false;
  row.home = pager.target_runs(row.seq);
  row.runs = WindowRuns(row.seq, pager, options_.num_blocks + Lane(row.seq), end);
  num_read_[Index(row.seq)] = std::max(num_read_[Index(row.seq)], end);
  return !row.runs.empty();
}

// Makes the window show the home's blocks [first changed, end). False when edits run out or a step
// in flight still reads what would be exchanged; what was shown stays shown.
bool Views::ShowHome(Pager& pager, StepBuilder& builder, SeqId seq, std::uint32_t end) noexcept {
  const std::uint32_t begin = pager.first_changed(seq);
  if (begin >= end) return true;
  bool done = true;
  const std::uint64_t maps_before = num_maps_;
  pager.ForEachPiece(seq, begin, end, [&](const Extent& piece, std::uint32_t number) {
    if (!done) return;
    std::uint32_t at = number;
    done = ShowPiece(pager, builder, seq, piece, &at);
    pager.SetChanged(seq, at);
  });
  if (done) pager.SetChanged(seq, end);
  if (num_maps_ != maps_before &&
      std::find(mapping_.begin(), mapping_.end(), seq) == mapping_.end()) {
    mapping_.push_back(seq);
  }
  return done;
}

// Of the sequence's blocks `blocks`, the first of which has this number: how many, from the first,
// one edit can show. They are all to be mapped, or all mapped and only to be told of.
std::uint32_t Views::AlikeFrom(const Pager& pager, SeqId seq, const Extent& blocks,
                               std::uint32_t number) const noexcept {
  const std::uint32_t num_read = num_read_[Index(seq)];
  const auto kind = [&](std::uint32_t i) {
    const BlockId shown = shown_[Lane(seq) + number + i];
    const bool is_right = shown == BlockId{Index(blocks.start) + i};
    if (is_right) return told_[Lane(seq) + number + i] ? 0 : 1;
    if (shown == kSentinelBlock) return 2;
    const std::uint64_t epoch =
        number + i < num_read ? pager.last_epoch(seq) : holder_epoch_[Index(seq)];
    return IsFenced(epoch, pager) ? 3 : 2;  // V2
  };
  std::uint32_t count = 1;
  while (count < blocks.num_blocks && kind(count) == kind(0))
    ++count;
  return kind(0) == 3 ? 0 : count;
}

// *number: the piece's first block in the sequence; on return, the first that is not shown yet.
bool Views::ShowPiece(const Pager& pager, StepBuilder& builder, SeqId seq, const Extent& piece,
                      std::uint32_t* number) noexcept {
  const std::uint32_t first = *number;
  const std::uint64_t block_bytes = options_.layout.block_bytes();
  std::uint32_t i = 0;
  while (i < piece.num_blocks) {
    const std::size_t at = std::size_t{Lane(seq)} + first + i;
    const BlockId block{Index(piece.start) + i};
    const bool is_right = shown_[at] == block;
    const bool is_stale = shown_[at] != kSentinelBlock && IsMutant(Mutant::kMapStale);
    if ((is_right && told_[at]) || is_stale) {
      ++i;
      continue;
    }
    *number = first + i;
    const std::uint32_t count = AlikeFrom(pager, seq, {block, piece.num_blocks - i}, first + i);
    if (count == 0 || builder.num_groups() >= options_.max_groups) return false;
    if (!is_right &&
        !device_.Map(at * block_bytes, Index(block) * block_bytes, count * block_bytes)) {
      std::fill_n(&shown_[at], count, kSentinelBlock);
      return false;
    }
    for (std::uint32_t k = 0; k < count; ++k) {
      shown_[at + k] = BlockId{Index(block) + k};
      told_[at + k] = true;
    }
    builder.AddGroup({.source = block,
                      .target = BlockId{options_.num_blocks + static_cast<std::uint32_t>(at)},
                      .num_blocks = count,
                      .kind = GroupKind::kMap,
                      .priority = static_cast<std::uint8_t>(MovePriority::kStage)});
    ++num_maps_;
    i += count;
  }
  *number = first + piece.num_blocks;
  return true;
}

void Views::Committed(const StepView& step) noexcept {
  mapping_.clear();
  if (!IsStaged(options_.view)) return;
  for (std::uint32_t row = 0; row < step.header->num_rows; ++row) {
    const auto last = static_cast<std::uint32_t>(step.positions[step.row_start[row + 1] - 1]);
    staged_[Index(step.row_seq[row])] = last + 1;
  }
}

// What the given-up step told of mappings is told again.
void Views::Abandoned(Pager& pager) noexcept {
  for (const SeqId seq : mapping_) {
    std::fill_n(told_.begin() + Lane(seq), options_.max_blocks_per_seq, false);
    pager.SetChanged(seq, 0);
  }
  mapping_.clear();
}

std::uint64_t Views::StateHash(const Pager& pager) const {
  if (!HasWindows(options_.view)) return 0;
  std::uint64_t hash = 0;
  const auto mix = [&hash](std::uint64_t value) { hash = Mix64(hash ^ value); };
  const auto since = [&pager](std::uint64_t epoch) {
    return epoch > Index(pager.retired()) ? epoch - Index(pager.retired()) : 0;
  };
  for (std::uint32_t s = 0; s < options_.max_seqs; ++s) {
    // Open begins these anew.
    const bool is_open = pager.is_open(SeqId{s});
    mix(is_open ? std::uint64_t{staged_[s]} << 32 | num_read_[s] : 0);
    mix(is_open ? since(holder_epoch_[s]) : 0);
    mix(since(tail_epoch_[s]));
    if (options_.view != KvView::kMapped) continue;
    mix(pager.first_changed(SeqId{s}));
    for (std::uint32_t b = Lane(SeqId{s}); b < Lane(SeqId{s + 1}); ++b)
      mix(std::uint64_t{Index(shown_[b])} << 1 | (told_[b] ? 1 : 0));
  }
  return hash;
}

std::uint64_t Views::reserved_bytes() const noexcept {
  return scratch_.size() * sizeof(Extent) +
         (holder_epoch_.size() + tail_epoch_.size()) * sizeof(std::uint64_t) +
         (staged_.size() + num_read_.size() + shown_.size() + mapping_.capacity()) *
             sizeof(std::uint32_t) +
         told_.size() / 8;
}

}  // namespace kvrm
