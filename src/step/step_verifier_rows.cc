// SPDX-License-Identifier: Apache-2.0
// StepVerifier: what rows read and write, and the histories of their sequences.
#include <algorithm>
#include <string>
#include <utility>

#include "step/step_verifier_state.h"

namespace kvrm {
namespace {

std::string Number(std::uint64_t value) {
  return std::to_string(value);
}

}  // namespace

bool StepVerifier::State::Opened(const StepLogOpened& opened) {
  now_ = committed_ + 1;
  const auto bad = [this](const char* what) {
    return Fail(StepRule::kSequence, kNoNumber, kNoNumber, what);
  };
  if (Index(opened.seq) >= header_.num_lanes) return bad("an identity beyond the lanes begins");
  if (opened.num_tokens > lane_tokens_) return bad("begins with more than the longest context");
  Life& life = lives_[Index(opened.seq)];
  std::uint64_t* const history = History(opened.seq);
  std::uint8_t* const holes = MayBeHole(opened.seq);
  life = {.id = ++num_lives_, .salt = opened.salt, .length = opened.num_tokens};
  ++totals_.num_sequences;
  if (opened.parent != kNoParent) {
    if (Index(opened.parent) >= header_.num_lanes || opened.parent == opened.seq)
      return bad("a fork of no sequence");
    const Life& parent = lives_[Index(opened.parent)];
    if (!parent.is_lost && parent.length < opened.num_tokens)
      return bad("a fork of more than its parent has");
    if (parent.is_lost) {
      std::fill_n(history, opened.num_tokens, kUnknownStamp);
    } else {
      std::copy_n(History(opened.parent), opened.num_tokens, history);
    }
    std::copy_n(MayBeHole(opened.parent), header_.lane_blocks, holes);
    return true;
  }
  if (opened.tokens.size() != opened.num_tokens) return bad("begins with tokens that are not told");
  std::uint64_t chain = StepContent::BeginChain(opened.salt);
  for (std::uint32_t p = 0; p < opened.num_tokens; ++p) {
    history[p] = StepContent::Stamp(chain, opened.tokens[p], p);
    chain = StepContent::Chain(chain, history[p]);
  }
  std::fill_n(holes, header_.lane_blocks, std::uint8_t{0});
  return true;
}

bool StepVerifier::State::Trimmed(const StepLogRecord& record) {
  now_ = committed_ + 1;
  if (Index(record.seq) >= header_.num_lanes || record.to > lane_tokens_ ||
      record.from > record.to) {
    return Fail(StepRule::kSequence, kNoNumber, kNoNumber, "trimmed beyond the longest context");
  }
  // Whole blocks only.
  const std::uint32_t begin = (record.from + block_tokens_ - 1) / block_tokens_;
  for (std::uint32_t b = begin; b < record.to / block_tokens_; ++b)
    MayBeHole(record.seq)[b] = 1;
  return true;
}

void StepVerifier::State::MoveLife(SeqId from, SeqId to) {
  lives_[Index(to)] = std::exchange(lives_[Index(from)], {});
  std::copy_n(History(from), lives_[Index(to)].length, History(to));
  std::copy_n(MayBeHole(from), header_.lane_blocks, MayBeHole(to));
}

// A history that nobody resumes is forgotten when its number is used again.
bool StepVerifier::State::Parked(const StepLogRecord& record) {
  now_ = committed_ + 1;
  const auto bad = [this](const char* what) {
    return Fail(StepRule::kSequence, kNoNumber, kNoNumber, what);
  };
  if (Index(record.seq) >= header_.num_lanes || record.value >= header_.max_parked)
    return bad("parked beyond the lanes or the histories");
  const Life& life = lives_[Index(record.seq)];
  if (life.id == 0) return bad("parked and never began");
  MoveLife(record.seq, SeqId{header_.num_lanes + static_cast<std::uint32_t>(record.value)});
  return true;
}

bool StepVerifier::State::Resumed(const StepLogRecord& record) {
  now_ = committed_ + 1;
  const auto bad = [this](const char* what) {
    return Fail(StepRule::kSequence, kNoNumber, kNoNumber, what);
  };
  if (Index(record.seq) >= header_.num_lanes || record.value >= header_.max_parked)
    return bad("resumed beyond the lanes or the histories");
  const SeqId parked{header_.num_lanes + static_cast<std::uint32_t>(record.value)};
  if (lives_[Index(parked)].id == 0) return bad("resumed and not parked");
  MoveLife(parked, record.seq);
  lives_[Index(record.seq)].id = ++num_lives_;
  return true;
}

// Finds out which use of the identity the row belongs to.
bool StepVerifier::State::BeginRow(const StepView& view, std::uint32_t row) {
  const SeqId seq = view.row_seq[row];
  const auto first = static_cast<std::uint32_t>(view.positions[view.row_start[row]]);
  Life& life = lives_[Index(seq)];
  if (life.id == 0 || (first == 0 && life.length > 0 && !header_.has_lives)) {
    if (header_.has_lives || first != 0) {
      return Fail(StepRule::kSequence, row, kNoNumber,
                  "sequence " + Number(Index(seq)) + " has a row and never began");
    }
    life = {.id = ++num_lives_};
    ++totals_.num_sequences;
    std::fill_n(MayBeHole(seq), header_.lane_blocks, std::uint8_t{1});
  }
  if (first > life.length && !life.is_lost) {
    return Fail(StepRule::kSequence, row, kNoNumber,
                "position " + Number(first) + " of sequence " + Number(Index(seq)) +
                    ", which has " + Number(life.length) + " tokens");
  }
  if (first > life.length) {
    std::fill_n(History(seq) + life.length, first - life.length, kUnknownStamp);
  }
  life.length = first;
  return true;
}

// One owner for each block the row writes, in this step and in those in flight.
bool StepVerifier::State::CheckWrites(const StepView& view, std::uint32_t row,
                                      std::span<const SlotId> slots) {
  if (slots.empty()) return true;
  const bool is_home = slots.data() == view.slots.data();
  for (std::uint32_t t = view.row_start[row]; t < view.row_start[row + 1]; ++t) {
    const std::uint32_t block = Index(slots[t]) / block_tokens_;
    const std::uint32_t offset = Index(slots[t]) % block_tokens_;
    if (block == Index(kSentinelBlock))
      return Fail(StepRule::kSentinel, row, block, "a token is written to the sentinel");  // D4
    if (block >= content_.num_blocks() || content_.IsWindow(block) == is_home) {
      return Fail(StepRule::kSlots, row, block,
                  is_home ? "a slot outside the pool" : "a mirror outside the windows");  // D3
    }
    const auto position = static_cast<std::uint32_t>(view.positions[t]);
    const bool same_block = t > view.row_start[row] && position % block_tokens_ != 0;
    if (offset != position % block_tokens_ ||
        (same_block && Index(slots[t]) != Index(slots[t - 1]) + 1)) {
      return Fail(StepRule::kSlots, row, block,
                  "position " + Number(position) + " at offset " + Number(offset));  // D3
    }
    if (!same_block && !CheckWrite(view, row, block, offset)) return false;
  }
  return true;
}

// `offset`: the first that is written. A window belongs to its lane, whose rows write it in the
// order of steps.
bool StepVerifier::State::CheckWrite(const StepView& view, std::uint32_t row, std::uint32_t block,
                                     std::uint32_t offset) {
  Block& used = blocks_[block];
  if (used.write_epoch == now_) {
    return Fail(StepRule::kTwoOwners, row, block,
                "written by row " + Number(used.write_row) + " as well");  // D3
  }
  used.write_epoch = now_;
  used.write_row = row;
  if (offset != 0 || content_.IsWindow(block)) return true;
  const std::uint64_t life = lives_[Index(view.row_seq[row])].id;
  const std::uint64_t others = used.life == life ? used.other_epoch : used.row_epoch;
  const bool row_uses = InFlight(others);
  const bool copy_uses = InFlight(used.copy_epoch) && used.copy_life != life &&
                         (used.life != life || row_uses) && used.life != 0;
  if (!row_uses && !copy_uses) return true;
  return Fail(StepRule::kReuse, row, block,
              "begun anew while step " + Number(row_uses ? others : used.copy_epoch) +
                  ", which uses it for others, is in flight");
}

void StepVerifier::State::Touch(std::uint32_t block, std::uint64_t life) {
  Block& used = blocks_[block];
  if (used.life != life && used.life != 0) used.other_epoch = used.row_epoch;
  used.life = life;
  used.row_epoch = now_;
}

// Follows the row's runs from position 0, reads its history through them and writes its tokens.
bool StepVerifier::State::WalkRow(const StepView& view, std::uint32_t row) {
  const std::uint32_t begin = view.row_start[row];
  const std::uint32_t end = view.row_start[row + 1];
  const SeqId seq = view.row_seq[row];
  walk_ = {.row = row,
           .seq = seq,
           .first = static_cast<std::uint32_t>(view.positions[begin]),
           .context = static_cast<std::uint32_t>(view.positions[end - 1]) + 1,
           .token = begin,
           .chain = StepContent::BeginChain(lives_[Index(seq)].salt),
           .layered = (view.header->flags & kStepLayerWindows) != 0};
  for (const Extent& run : view.RowRuns(row)) {
    if (run.num_blocks == 0) return Fail(StepRule::kRuns, row, kNoNumber, "a run of no blocks");
    const bool is_hole = run.start == kSentinelBlock;
    if (!(is_hole ? WalkHole(run.num_blocks) : WalkRun(view, run))) return false;
    walk_.num_blocks += run.num_blocks;
  }
  const std::uint64_t must_cover = std::max(walk_.context, view.header->padded_tokens);
  if (walk_.num_blocks * block_tokens_ < must_cover) {
    return Fail(StepRule::kRuns, row, kNoNumber,
                "runs of " + Number(walk_.num_blocks) + " blocks do not cover " +
                    Number(must_cover) + " positions");  // D5
  }
  lives_[Index(seq)].length = walk_.context;
  return true;
}

bool StepVerifier::State::WalkHole(std::uint32_t num_blocks) {
  std::uint64_t* const history = History(walk_.seq);
  for (std::uint32_t i = 0; i < num_blocks && walk_.position < walk_.context; ++i) {
    if (MayBeHole(walk_.seq)[walk_.position / block_tokens_] == 0) {
      return Fail(StepRule::kHole, walk_.row, kNoNumber,
                  "position " + Number(walk_.position) + " is missing and was not trimmed");
    }
    for (std::uint32_t o = 0; o < block_tokens_ && walk_.position < walk_.context; ++o) {
      if (walk_.position >= walk_.first) {
        return Fail(StepRule::kSentinel, walk_.row, kNoNumber,
                    "position " + Number(walk_.position) + " is written into a hole");  // D4
      }
      history[walk_.position++] = kHoleStamp;
      walk_.chain = StepContent::Chain(walk_.chain, kHoleStamp);
    }
  }
  return true;
}

// Bounds, and windows of the sequence's own lane.
bool StepVerifier::State::CheckLane(const StepView& view, const Extent& run) {
  const std::uint64_t start = Index(run.start);
  const std::uint64_t end = start + run.num_blocks;
  const std::uint64_t all = walk_.layered ? content_.num_layer_blocks() : content_.num_blocks();
  if (end > all) {
    return Fail(walk_.layered ? StepRule::kWindow : StepRule::kRuns, walk_.row, Index(run.start),
                "a run that ends beyond block " + Number(all - 1));  // D5
  }
  const std::uint64_t first_window = walk_.layered ? 1 : content_.num_pool_blocks();
  if (end <= first_window) {
    if (view.mirrors.empty()) return true;
    return Fail(StepRule::kWindow, walk_.row, Index(run.start), "a mirrored row reads the pool");
  }
  const std::uint64_t lane = first_window + std::uint64_t{Index(walk_.seq)} * header_.lane_blocks;
  if (start >= lane && end <= lane + header_.lane_blocks) return true;
  return Fail(StepRule::kWindow, walk_.row, Index(run.start),
              "not in the window of sequence " + Number(Index(walk_.seq)));
}

bool StepVerifier::State::WalkRun(const StepView& view, const Extent& run) {
  if (!CheckLane(view, run)) return false;
  const std::uint64_t life = lives_[Index(walk_.seq)].id;
  for (std::uint32_t i = 0; i < run.num_blocks && walk_.position < walk_.context; ++i) {
    const std::uint32_t shown = Index(run.start) + i;
    const std::optional<std::uint32_t> block =
        walk_.layered ? content_.ResolveLayer(shown, view.header->step) : content_.Resolve(shown);
    if (!block && walk_.layered)
      return Fail(StepRule::kWindow, walk_.row, shown, "read and not gathered by this step");
    if (!walk_.layered && content_.IsWindow(shown)) Touch(shown, life);
    if (block && (walk_.layered || *block != shown || !content_.IsWindow(shown))) {
      Touch(*block, life);
    }
    if (block && !CheckStillOwn(view, *block)) return false;
    for (std::uint32_t o = 0; o < block_tokens_ && walk_.position < walk_.context; ++o) {
      if (walk_.position < walk_.first) {
        if (!ReadSlot(block ? *block : kNoNumber, o)) return false;
      } else if (!WriteToken(view, shown, o, block)) {
        return false;
      }
      ++walk_.position;
    }
  }
  return true;
}

// No other row of this step writes into the part of the block that this row reads.
bool StepVerifier::State::CheckStillOwn(const StepView& view, std::uint32_t block) {
  const Block& used = blocks_[block];
  if (used.write_epoch != now_ || used.write_row == walk_.row) return true;
  const std::span<const SlotId> slots = content_.IsWindow(block) ? view.mirrors : view.slots;
  const std::uint32_t end = walk_.position + block_tokens_;  // below 2^32, as all positions
  for (std::uint32_t t = view.row_start[used.write_row]; t < view.row_start[used.write_row + 1];
       ++t) {
    if (Index(slots[t]) / block_tokens_ != block) continue;
    const std::uint32_t position = walk_.position + Index(slots[t]) % block_tokens_;
    if (position < std::min(end, walk_.context)) {
      return Fail(StepRule::kTwoOwners, walk_.row, block,
                  "position " + Number(position) + " is read where row " + Number(used.write_row) +
                      " writes");  // D3
    }
  }
  return true;
}

// kNoNumber: a window of which nothing is known.
bool StepVerifier::State::ReadSlot(std::uint32_t block, std::uint32_t offset) {
  ++totals_.num_reads;
  const std::uint32_t p = walk_.position;
  const std::uint64_t expected = History(walk_.seq)[p];
  const SlotContent held =
      block == kNoNumber ? SlotContent{.stamp = kUnknownStamp} : content_.At(block, offset);
  const auto bad = [&](StepRule rule, const std::string& what) {
    return Fail(rule, walk_.row, block, "position " + Number(p) + what);
  };
  if (held.stamp == kNeverWritten) return bad(StepRule::kUnwritten, " was never written there");
  if (held.stamp == kTornStamp)
    return bad(StepRule::kTorn, " was copied while a step in flight was writing it");
  if (held.stamp == kUnknownStamp || expected == kUnknownStamp) {
    ++totals_.num_unknown_reads;
    walk_.chain = kUnknownStamp;
    return true;
  }
  if (held.stamp != expected) {
    if (held.position != p)
      return bad(StepRule::kContent, " is read where position " + Number(held.position) + " lies");
    if (expected == kHoleStamp) return bad(StepRule::kContent, " was a hole before");
    return bad(StepRule::kContent,
               " is read from another history, token " + std::to_string(held.token) + " there");
  }
  walk_.chain = StepContent::Chain(walk_.chain, expected);
  return true;
}

// `shown`: the block of the row's run; `block`: what it stands for, if that is known.
bool StepVerifier::State::WriteToken(const StepView& view, std::uint32_t shown,
                                     std::uint32_t offset, std::optional<std::uint32_t> block) {
  const std::uint32_t t = walk_.token++;
  const std::uint32_t p = walk_.position;
  const std::uint32_t home = Index(view.slots[t]) / block_tokens_;
  std::uint64_t* const history = History(walk_.seq);
  if (view.mirrors.empty()) {
    if (block && *block != home) {
      return Fail(StepRule::kSlots, walk_.row, home,
                  "position " + Number(p) + " is written there and read from block " +
                      Number(*block));  // D3
    }
  } else {
    if (Index(view.mirrors[t]) / block_tokens_ != shown) {
      return Fail(StepRule::kSlots, walk_.row, shown,
                  "the mirror of position " + Number(p) + " is elsewhere");  // D3
    }
    Touch(home, lives_[Index(walk_.seq)].id);
    // The home is not read in this view, but it must go on from what it holds.
    const SlotContent* const before = offset > 0 ? &content_.At(home, offset - 1) : nullptr;
    if (before != nullptr && history[p - 1] >= kFirstStamp && before->stamp != kUnknownStamp &&
        before->stamp != history[p - 1]) {
      return Fail(StepRule::kContent, walk_.row, home,
                  "position " + Number(p) + " is written behind another history");
    }
  }
  const std::uint64_t stamp = StepContent::Stamp(walk_.chain, view.token_ids[t], p);
  const SlotContent content = {
      .stamp = stamp, .writer = now_, .token = view.token_ids[t], .position = p};
  content_.At(home, offset) = content;
  if (!view.mirrors.empty()) content_.At(shown, offset) = content;
  history[p] = stamp;
  walk_.chain = StepContent::Chain(walk_.chain, stamp);
  return true;
}

}  // namespace kvrm
