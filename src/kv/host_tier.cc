// SPDX-License-Identifier: Apache-2.0
#include "kv/host_tier.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/mutant.h"
#include "base/rng.h"

namespace kvrm {
namespace {

// Where block `number` of a history lies in its runs, and how the run goes on around it.
struct Place {
  BlockId block = kSentinelBlock;  // of that number; the sentinel: a hole
  std::uint32_t before = 0;        // blocks of the same run before it
  std::uint32_t behind = 0;        // and behind it
};

Place Find(std::span<const Extent> runs, std::uint32_t number) {
  std::uint32_t at = 0;
  for (const Extent& run : runs) {
    if (number < at + run.num_blocks) {
      const std::uint32_t offset = number - at;
      const bool is_hole = run.start == kSentinelBlock;
      return {.block = is_hole ? run.start : BlockId{Index(run.start) + offset},
              .before = offset,
              .behind = run.num_blocks - offset - 1};
    }
    at += run.num_blocks;
  }
  CHECK(false);
  return {};
}

}  // namespace

HostTier::HostTier(const HostTierOptions& options, Pager& pager)
    : options_(options),
      pager_(pager),
      free_(options.num_blocks + 1),
      histories_(options.max_parked),
      runs_(std::size_t{options.max_parked} * options.max_blocks_per_seq),
      resuming_(options.max_seqs, kNobody) {
  if (options.num_blocks > 0) free_.Free({BlockId{1}, options.num_blocks});
  on_the_way_.reserve(options.max_parked);
  waiting_.reserve(options.num_blocks);
}

// Blocks that the sequence has written.
std::uint32_t HostTier::BlocksOf(SeqId seq) const noexcept {
  std::uint32_t num_blocks = 0;
  pager_.ForEachPiece(
      seq, 0, pager_.BlocksFor(pager_.length(seq)),
      [&](const Extent& blocks, std::uint32_t) { num_blocks += blocks.num_blocks; });
  return num_blocks;
}

std::uint32_t HostTier::FreePlace() const noexcept {
  std::uint32_t h = 0;
  while (h < options_.max_parked && histories_[h].state != State::kNone)
    ++h;
  return h;
}

bool HostTier::CanPark(SeqId seq) const noexcept {
  if (is_resuming(seq)) return true;
  const std::uint32_t num_blocks = BlocksOf(seq);
  return num_blocks > 0 && num_blocks <= free_.num_free() && FreePlace() < options_.max_parked;
}

std::optional<ParkedId> HostTier::Park(SeqId seq) noexcept {
  if (const std::uint32_t h = resuming_[Index(seq)]; h != kNobody) {
    // All of it is in the tier still.
    SetState(h, State::kParked);
    std::erase(on_the_way_, h);
    resuming_[Index(seq)] = kNobody;
    pager_.Release(seq);
    return ParkedId{h};
  }
  if (!CanPark(seq)) {
    num_refusals_ += pager_.length(seq) > 0 ? 1u : 0u;
    return std::nullopt;
  }
  const std::uint32_t h = FreePlace();
  const std::uint32_t end = pager_.BlocksFor(pager_.length(seq));
  pager_.Shelve(seq, Shelf(h));
  histories_[h] = {.end = end};
  SetState(h, State::kParking);
  TakeRoom(h);
  on_the_way_.push_back(h);
  ++num_parks_;
  return ParkedId{h};
}

void HostTier::PushRun(std::uint32_t h, const Extent& blocks) noexcept {
  Extent* const runs = &runs_[std::size_t{h} * options_.max_blocks_per_seq];
  std::uint32_t& count = histories_[h].num_runs;
  if (count > 0) {
    Extent& last = runs[count - 1];
    const bool continues = blocks.start == kSentinelBlock || last.start == kSentinelBlock
                               ? blocks.start == last.start
                               : Index(last.start) + last.num_blocks == Index(blocks.start);
    if (continues) {
      last.num_blocks += blocks.num_blocks;
      return;
    }
  }
  CHECK(count < options_.max_blocks_per_seq);
  runs[count++] = blocks;
}

// One run where there is one, else the longest there are.
void HostTier::TakeRoom(std::uint32_t h) noexcept {
  std::uint32_t left = 0;
  for (const Extent& run : pager_.runs(Shelf(h)))
    left += run.start == kSentinelBlock ? 0 : run.num_blocks;
  num_held_ += left;
  Extent room;
  for (const Extent& run : pager_.runs(Shelf(h))) {
    if (run.start == kSentinelBlock) {
      PushRun(h, run);
      continue;
    }
    for (std::uint32_t done = 0; done < run.num_blocks;) {
      if (room.num_blocks == 0) {
        room = free_.FirstFit(left);
        if (room.num_blocks == 0) room = free_.Longest();
      }
      const std::uint32_t count = std::min(room.num_blocks, run.num_blocks - done);
      const Extent taken = {room.start, count};
      free_.Take(taken);  // Y1
      PushRun(h, taken);
      room = {BlockId{Index(room.start) + count}, room.num_blocks - count};
      done += count;
      left -= count;
    }
  }
}

void HostTier::GiveUpRoom(std::uint32_t h) noexcept {
  const History& history = histories_[h];
  const bool is_done = history.last_epoch <= Index(pager_.retired());
  for (const Extent& run : HostRuns(h)) {
    if (run.start == kSentinelBlock) continue;
    num_held_ -= run.num_blocks;
    if (is_done || IsMutant(Mutant::kHostReuseEarly)) {
      free_.Free(run);
    } else {
      waiting_.push_back({run, history.last_epoch});  // Y3
      num_limbo_ += run.num_blocks;
    }
  }
}

void HostTier::Forget(std::uint32_t h) noexcept {
  History& history = histories_[h];
  if (history.state == State::kResuming) resuming_[Index(history.seq)] = kNobody;
  std::erase(on_the_way_, h);
  pager_.ClearShelf(Shelf(h));
  GiveUpRoom(h);
  SetState(h, State::kNone);
  history = {};
}

bool HostTier::is_parked(ParkedId parked) const noexcept {
  const History& history = histories_[Index(parked)];
  return history.state == State::kParked && history.last_epoch < Index(pager_.next());  // Y4
}

bool HostTier::Resume(ParkedId parked, SeqId seq, std::span<const std::int32_t> tokens,
                      std::span<const PrefixKey> keys, std::uint32_t reserve_tokens) noexcept {
  const std::uint32_t h = Index(parked);
  CHECK(h < options_.max_parked &&
        (histories_[h].state == State::kParked || histories_[h].state == State::kParking));
  if (!is_parked(parked)) return false;
  History& history = histories_[h];
  const auto found = pager_.OpenShelved(
      seq, Shelf(h), {.runs = HostRuns(h), .tokens = tokens, .keys = keys}, reserve_tokens);
  if (!found) return false;
  SetState(h, State::kResuming);
  history.seq = seq;
  history.begin = *found;
  resuming_[Index(seq)] = h;
  on_the_way_.push_back(h);
  ++num_resumes_;
  return true;
}

void HostTier::Discard(ParkedId parked) noexcept {
  const State state = histories_[Index(parked)].state;
  CHECK(state == State::kParking || state == State::kParked);
  if (IsMutant(Mutant::kDiscardKeepsRoom)) return;
  Forget(Index(parked));
}

void HostTier::Releasing(SeqId seq) noexcept {
  if (is_resuming(seq)) Forget(resuming_[Index(seq)]);
}

std::uint32_t HostTier::BudgetOf(const Transport& transport) const noexcept {
  return transport.num_groups_left() == 0
             ? 0
             : std::min(transport.num_blocks_left(), transport.max_group_blocks());
}

// Requires: block end - 1 is no hole, and lies in both.
HostTier::Piece HostTier::PieceBefore(std::uint32_t h, std::uint32_t end) const noexcept {
  const Place pool = Find(pager_.runs(Shelf(h)), end - 1);
  const Place host = Find(HostRuns(h), end - 1);
  const std::uint32_t before = std::min(pool.before, host.before);
  return {.pool = BlockId{Index(pool.block) - before},
          .host = BlockId{Index(host.block) - before},
          .first = end - 1 - before,
          .num_blocks = before + 1};
}

HostTier::Piece HostTier::PieceFrom(std::uint32_t h, std::uint32_t begin) const noexcept {
  const Place pool = Find(pager_.runs(histories_[h].seq), begin);
  const Place host = Find(HostRuns(h), begin);
  return {.pool = pool.block,
          .host = host.block,
          .first = begin,
          .num_blocks = std::min(pool.behind, host.behind) + 1};
}

void HostTier::PlanParks(Transport& transport) noexcept {
  for (std::size_t i = 0; i < on_the_way_.size();) {
    const std::uint32_t h = on_the_way_[i];
    if (histories_[h].state == State::kParking) PlanPark(h, transport);
    if (histories_[h].state == State::kParked) {
      on_the_way_.erase(on_the_way_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

// From the end: it becomes settled when the last step that writes it has retired.
void HostTier::PlanPark(std::uint32_t h, Transport& transport) noexcept {
  History& history = histories_[h];
  const SeqId shelf = Shelf(h);
  while (history.end > 0) {
    const Place host = Find(HostRuns(h), history.end - 1);
    if (host.block == kSentinelBlock) {
      history.end -= host.before + 1;
      continue;
    }
    const std::uint32_t most = BudgetOf(transport);
    if (most == 0) return;
    if (history.end > pager_.num_settled_blocks(shelf) && !IsMutant(Mutant::kParkUnsettled)) return;
    Piece piece = PieceBefore(h, history.end);
    const std::uint32_t cut = piece.num_blocks > most ? piece.num_blocks - most : 0;
    piece = {.pool = BlockId{Index(piece.pool) + cut},
             .host = BlockId{Index(piece.host) + cut},
             .first = piece.first + cut,
             .num_blocks = piece.num_blocks - cut};
    pager_.Unload(shelf, {piece.pool, piece.num_blocks}, piece.first, [&](const Extent& source) {
      if (IsMutant(Mutant::kParkForgetsTail) && history.last_epoch == 0) return;
      transport.AddPark(source, {piece.host, piece.num_blocks});
    });
    history.end = piece.first;
    history.last_epoch = Index(pager_.next());
  }
  SetState(h, State::kParked);
}

void HostTier::PlanResumes(Transport& transport) noexcept {
  for (std::size_t i = 0; i < on_the_way_.size();) {
    const std::uint32_t h = on_the_way_[i];
    const bool done = histories_[h].state == State::kResuming && PlanResume(h, transport);
    if (!done) ++i;
  }
}

// Whether all of it is back.
bool HostTier::PlanResume(std::uint32_t h, Transport& transport) noexcept {
  History& history = histories_[h];
  const SeqId seq = history.seq;
  const std::uint32_t end = pager_.BlocksFor(pager_.length(seq));
  while (history.begin < end) {
    const Piece piece = PieceFrom(h, history.begin);
    std::uint32_t count = piece.num_blocks;
    if (piece.host != kSentinelBlock) {
      count = std::min(count, BudgetOf(transport));
      if (count == 0) return false;
      transport.AddResume({piece.host, count}, {piece.pool, count});
      history.last_epoch = Index(pager_.next());
    }
    history.begin += count;
  }
  pager_.Loaded(seq);  // Y5
  Forget(h);
  return true;
}

void HostTier::Retired(StepId step) noexcept {
  std::size_t kept = 0;
  for (const Waiting& waiting : waiting_) {
    if (waiting.epoch > Index(step)) {
      waiting_[kept++] = waiting;
    } else {
      free_.Free(waiting.blocks);  // Y3
      num_limbo_ -= waiting.blocks.num_blocks;
    }
  }
  waiting_.resize(kept);
}

void HostTier::SetState(std::uint32_t h, State state) noexcept {
  --num_in_state_[static_cast<std::size_t>(histories_[h].state)];
  ++num_in_state_[static_cast<std::size_t>(state)];
  histories_[h].state = state;
}

std::uint32_t HostTier::num_leaving() const noexcept {
  std::uint32_t sum = 0;
  for (const std::uint32_t h : on_the_way_) {
    if (histories_[h].state != State::kParking) continue;
    for (const Extent& run : pager_.runs(Shelf(h)))
      sum += run.start == kSentinelBlock ? 0 : run.num_blocks;
  }
  return sum;
}

std::uint64_t HostTier::num_parked_tokens() const noexcept {
  std::uint64_t sum = 0;
  std::uint32_t num_left = options_.max_parked - Count(State::kNone);
  for (std::uint32_t h = 0; num_left > 0; ++h) {
    if (histories_[h].state == State::kNone) continue;
    sum += pager_.length(Shelf(h));
    --num_left;
  }
  return sum;
}

std::uint64_t HostTier::reserved_bytes() const noexcept {
  return free_.reserved_bytes() + histories_.size() * sizeof(History) +
         runs_.size() * sizeof(Extent) +
         (resuming_.size() + on_the_way_.capacity()) * sizeof(std::uint32_t) +
         waiting_.capacity() * sizeof(Waiting);
}

void HostTier::CheckInvariants() const {
  std::vector<bool> taken(options_.num_blocks + 1, false);
  std::uint32_t num_held = 0;
  std::uint32_t num_limbo = 0;
  const auto take = [&](const Extent& blocks, std::uint32_t& count) {
    for (std::uint32_t b = Index(blocks.start); b < Index(blocks.start) + blocks.num_blocks; ++b) {
      CHECK(b > 0 && b <= options_.num_blocks && !taken[b] && !free_.IsFree(BlockId{b}));  // Y1
      taken[b] = true;
      ++count;
    }
  };
  for (std::uint32_t h = 0; h < options_.max_parked; ++h) {
    const History& history = histories_[h];
    CHECK(pager_.is_open(Shelf(h)) == (history.state != State::kNone));  // Y2
    std::uint32_t number = 0;
    for (const Extent& run : HostRuns(h)) {
      if (run.start != kSentinelBlock) take(run, num_held);
      for (std::uint32_t b = number; b < number + run.num_blocks; ++b) {
        const bool on_shelf = Find(pager_.runs(Shelf(h)), b).block != kSentinelBlock;
        CHECK(on_shelf == (run.start != kSentinelBlock && b < history.end));  // Y2
      }
      number += run.num_blocks;
    }
    const bool moves = history.state == State::kParking || history.state == State::kResuming;
    CHECK(std::ranges::count(on_the_way_, h) == (moves ? 1 : 0));
    CHECK(std::cmp_equal(Count(history.state),
                         std::ranges::count(histories_, history.state, &History::state)));
    if (history.state == State::kNone) continue;
    CHECK(number == pager_.BlocksFor(pager_.length(Shelf(h))));  // Y2
    const bool comes_back = history.state == State::kResuming;
    CHECK(!comes_back || (resuming_[Index(history.seq)] == h && pager_.is_open(history.seq) &&
                          pager_.num_settled_blocks(history.seq) == 0));  // Y6
  }
  for (const Waiting& waiting : waiting_) {
    CHECK(waiting.epoch > Index(pager_.retired()) && waiting.epoch <= Index(pager_.next()));  // Y3
    take(waiting.blocks, num_limbo);
  }
  CHECK(num_held == num_held_ && num_limbo == num_limbo_);                // Y1
  CHECK(num_held + num_limbo + free_.num_free() == options_.num_blocks);  // Y1
  CHECK(static_cast<std::size_t>(std::ranges::count(resuming_, kNobody)) + num_resuming() ==
        resuming_.size());
}

std::uint64_t HostTier::StateHash() const {
  std::uint64_t hash = 0;
  const auto mix = [&hash](std::uint64_t value) { hash = Mix64(hash ^ value); };
  const std::uint64_t retired = Index(pager_.retired());
  const auto since = [retired](std::uint64_t epoch) {
    return epoch > retired ? epoch - retired : 0;
  };
  for (std::uint32_t h = 0; h < options_.max_parked; ++h) {
    const History& history = histories_[h];
    mix(static_cast<std::uint64_t>(history.state) << 32 | Index(history.seq));
    mix(std::uint64_t{history.end} << 32 | history.begin);
    mix(since(history.last_epoch));
    for (const Extent& run : HostRuns(h))
      mix(std::uint64_t{Index(run.start)} << 32 | run.num_blocks);
  }
  for (const Waiting& waiting : waiting_)
    mix(std::uint64_t{Index(waiting.blocks.start)} << 32 | since(waiting.epoch));
  for (const std::uint32_t h : on_the_way_)
    mix(h);
  return hash;
}

}  // namespace kvrm
