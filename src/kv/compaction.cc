// SPDX-License-Identifier: Apache-2.0
#include "kv/compaction.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "kv/placement.h"

namespace kvrm {
namespace {

std::uint32_t EndOf(const Extent& run) {
  return Index(run.start) + run.num_blocks;
}

// Blocks that one action may move now.
std::uint32_t Cap(const Pager& pager, const Transport& transport) {
  return std::min(transport.num_blocks_left(), pager.num_spare());
}

// A hole stays where it is. What others hold as well is left to them as long as the row can be
// shown at all: its copy would take room and free none.
bool CanMove(const Pager& pager, const Extent& run, bool stuck) {
  return run.start != kSentinelBlock && (stuck || pager.is_sole_holder(run));
}

// Whether so many blocks right before run number `next` are in the holes.
bool RoomBefore(const FreeRuns& holes, std::span<const Extent> runs, std::size_t next,
                std::uint32_t num_blocks) {
  if (next >= runs.size() || runs[next].start == kSentinelBlock) return false;
  return holes.LengthBefore(Index(runs[next].start), num_blocks) == num_blocks;
}

}  // namespace

Compactor::Compactor(std::uint32_t max_runs)
    : max_runs_(max_runs), trigger_(TriggerFor(max_runs)) {}

void Compactor::PlanStuck(Pager& pager, Transport& transport) noexcept {
  is_unserved_ = false;
  if (pager.num_crowded() == 0) return;
  if (transport.num_groups_left() == 0 || transport.num_blocks_left() == 0) return;
  const std::uint32_t max_seqs = pager.max_seqs();
  std::uint32_t num_stuck = 0;
  std::uint32_t s = 0;
  for (; s < max_seqs && num_stuck < kStuckPerStep; ++s) {
    const SeqId seq{(stuck_cursor_ + s) % max_seqs};
    // A named one has its row built already (P8).
    if (pager.num_runs(seq) <= max_runs_ || pager.is_named(seq)) continue;
    ++num_stuck;
    if (transport.num_groups_left() == 0 || transport.num_blocks_left() == 0) continue;
    PlanSequence(seq, Best(seq, pager, transport), pager, transport);
  }
  stuck_cursor_ = (stuck_cursor_ + s) % max_seqs;
}

void Compactor::PlanCrowded(Pager& pager, Transport& transport) noexcept {
  if (pager.num_crowded() == 0) return;
  if (transport.num_groups_left() == 0 || transport.num_blocks_left() == 0) return;
  PlanOrdered(pager, transport);
  if (is_unserved_) Evacuate(pager, transport);
}

void Compactor::PlanOrdered(Pager& pager, Transport& transport) noexcept {
  struct Candidate {
    SeqId seq{};
    Action action;
    double score = 0;
  };
  std::array<Candidate, kCrowdedPerStep> candidates;
  const std::uint32_t max_seqs = pager.max_seqs();
  std::uint32_t count = 0;
  std::uint32_t s = 0;
  for (; s < max_seqs && count < kCrowdedPerStep; ++s) {
    const SeqId seq{(cursor_ + s) % max_seqs};
    const std::uint32_t num_runs = pager.num_runs(seq);
    // A named one may also have had its action above.
    if (num_runs <= trigger_ || num_runs > max_runs_ || pager.is_named(seq)) continue;
    const Action action = Best(seq, pager, transport);
    const double per_block =
        action.gain == 0 ? 0 : static_cast<double>(action.gain) / action.target.num_blocks;
    candidates[count++] = {seq, action, per_block * pager.num_likely_blocks(seq)};
  }
  cursor_ = (cursor_ + s) % max_seqs;
  std::sort(candidates.begin(), candidates.begin() + count,
            [](const Candidate& a, const Candidate& b) {
              return a.score > b.score || (a.score == b.score && a.seq < b.seq);
            });
  bool has_moved = false;
  for (std::uint32_t i = 0; i < count; ++i) {
    if (transport.num_groups_left() == 0 || transport.num_blocks_left() == 0) return;
    const Candidate& candidate = candidates[i];
    // As long as nothing has moved, what was seen above is what is there.
    const Action action = has_moved ? Best(candidate.seq, pager, transport) : candidate.action;
    has_moved = PlanSequence(candidate.seq, action, pager, transport) || has_moved;
  }
}

bool Compactor::PlanSequence(SeqId seq, Action action, Pager& pager,
                             Transport& transport) noexcept {
  const std::uint32_t num_runs = pager.num_runs(seq);
  // What gains nothing at once is only worth its bytes to one that is stuck or soon will be.
  if (action.gain == 0 && is_pressed(num_runs)) {
    is_unserved_ = true;
    action = BestStart(seq, pager.vacant_runs(), pager, transport);
  }
  if (action.target.num_blocks == 0) {
    if (num_runs > max_runs_) ++num_stalls_;
    return false;
  }
  Move(seq, action, num_runs > max_runs_ ? MovePriority::kStuck : MovePriority::kCompact, pager,
       transport);
  return true;
}

void Compactor::Move(SeqId seq, const Action& action, MovePriority priority, Pager& pager,
                     Transport& transport) noexcept {
  pager.Remap(
      seq, action.first_block, action.target,
      [&](const Extent& source, const Extent& target) { transport.Add(source, target, priority); });
}

// Of a few sequences' runs the one that costs least per block by which its going makes the longest
// hole longer.
void Compactor::Evacuate(Pager& pager, Transport& transport) noexcept {
  if (transport.num_groups_left() == 0) return;
  const FreeRuns& free = pager.free_runs();
  const std::uint32_t cap = std::min(Cap(pager, transport), transport.max_group_blocks());
  const std::uint32_t longest = free.Longest().num_blocks;
  const std::uint32_t max_seqs = pager.max_seqs();
  Action best;
  SeqId best_seq{};
  std::uint32_t num_looked_at = 0;
  std::uint32_t s = 0;
  for (; s < max_seqs && num_looked_at < kEvacuationLooks; ++s) {
    const SeqId seq{(evacuation_cursor_ + s) % max_seqs};
    if (!pager.is_open(seq) || pager.is_named(seq)) continue;
    std::uint32_t first_block = 0;
    for (const Extent& run : pager.runs(seq).first(pager.num_settled_runs(seq))) {
      const std::uint32_t begin = std::exchange(first_block, first_block + run.num_blocks);
      ++num_looked_at;
      if (run.num_blocks > cap || !CanMove(pager, run, false)) continue;
      const std::uint32_t left = free.LengthBefore(Index(run.start), longest);
      const std::uint32_t both = left + run.num_blocks + free.LengthFrom(EndOf(run), longest);
      if (both <= longest) continue;
      const std::uint64_t gain = both - longest;
      const bool better = gain * best.target.num_blocks > std::uint64_t{best.gain} * run.num_blocks;
      if (best.gain > 0 && !better) continue;
      const Extent target = free.FirstFit(run.num_blocks);
      // Not one of the two holes themselves.
      if (target.num_blocks == 0 || EndOf(run) == Index(target.start) ||
          Index(target.start) + left == Index(run.start)) {
        continue;
      }
      best = {begin, target, both - longest};
      best_seq = seq;
    }
  }
  evacuation_cursor_ = (evacuation_cursor_ + s) % max_seqs;
  if (best.gain > 0) Move(best_seq, best, MovePriority::kCompact, pager, transport);
}

// Among free blocks, and then, for one that is pressed or where the cache is of no use, among
// cached ones as well.
Compactor::Action Compactor::Best(SeqId seq, const Pager& pager,
                                  const Transport& transport) const noexcept {
  const Action action = BestWindow(seq, pager.free_runs(), pager, transport);
  const bool may_evict = is_pressed(pager.num_runs(seq)) || !pager.cache_pays();
  if (action.gain > 0 || !may_evict) return action;
  return BestWindow(seq, pager.vacant_runs(), pager, transport);
}

// Over all windows of settled runs that fit the budget and a place.
Compactor::Action Compactor::BestWindow(SeqId seq, const FreeRuns& holes, const Pager& pager,
                                        const Transport& transport) const noexcept {
  const std::span<const Extent> runs = pager.runs(seq).first(pager.num_settled_runs(seq));
  const std::span<const Extent> all = pager.runs(seq);
  const std::uint32_t num_runs = pager.num_runs(seq);
  const bool stuck = num_runs > max_runs_;
  const std::uint32_t need = std::min(num_runs - trigger_, kMostWidth);
  const std::uint32_t cap = Cap(pager, transport);
  const std::uint32_t longest = holes.Longest().num_blocks;

  Action best;
  const auto consider = [&](std::uint32_t gain, std::uint32_t first_block, const Extent& target) {
    const std::uint64_t cost = target.num_blocks;
    const std::uint64_t best_cost = best.target.num_blocks;
    const bool better = best.gain == 0 ? true
                        : stuck        ? gain > best.gain || (gain == best.gain && cost < best_cost)
                                       : gain * best_cost > best.gain * cost;
    if (better) best = {first_block, target, gain};
  };
  std::uint32_t first_block = 0;
  for (std::size_t i = 0; i < runs.size(); first_block += runs[i].num_blocks, ++i) {
    const bool follows = i > 0 && runs[i - 1].start != kSentinelBlock;
    const std::uint32_t behind = follows ? EndOf(runs[i - 1]) : 0;
    const std::uint32_t room = follows ? holes.LengthFrom(behind, cap) : 0;
    std::uint32_t cost = 0;
    std::uint32_t num_groups = 0;
    std::uint32_t width = 0;
    for (std::size_t j = i; j < runs.size() && width <= need; ++j) {
      if (!CanMove(pager, runs[j], stuck)) break;
      cost += runs[j].num_blocks;
      num_groups += transport.GroupsFor(runs[j].num_blocks);
      ++width;
      if (cost > cap || num_groups > transport.num_groups_left()) break;
      if (cost <= room) consider(width, first_block, {BlockId{behind}, cost});
      if (RoomBefore(holes, all, j + 1, cost))
        consider(width, first_block, {BlockId{Index(all[j + 1].start) - cost}, cost});
      if (cost <= longest && width > 1) consider(width - 1, first_block, {BlockId{0}, cost});
    }
  }
  // Only the winner's place in the hole is worked out.
  if (best.gain > 0 && best.target.start == kSentinelBlock)
    best.target = pager.placement().Together(holes, best.target.num_blocks);
  return best;
}

// The first part of a window that as a whole is beyond the budget.
Compactor::Action Compactor::BestStart(SeqId seq, const FreeRuns& holes, const Pager& pager,
                                       const Transport& transport) const noexcept {
  const std::span<const Extent> runs = pager.runs(seq).first(pager.num_settled_runs(seq));
  const std::uint32_t num_runs = pager.num_runs(seq);
  const std::uint64_t group_cap =
      std::uint64_t{transport.num_groups_left()} * transport.max_group_blocks();
  const auto cap =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(Cap(pager, transport), group_cap));
  if (cap == 0) return {};
  const std::uint32_t longest = holes.Longest().num_blocks;
  // Cutting a run in two makes one more of them for a while.
  const bool may_cut = num_runs + 1 <= max_runs_ || num_runs > max_runs_;

  Action best;
  std::uint32_t best_rest =
      ~std::uint32_t{0};  // blocks to move until the gain, this step's included
  std::uint32_t first_block = 0;
  for (std::size_t i = 0; i < runs.size(); first_block += runs[i].num_blocks, ++i) {
    const std::uint32_t length = runs[i].num_blocks;
    const std::uint32_t now = std::min(cap, length);
    if (!CanMove(pager, runs[i], num_runs > max_runs_)) continue;
    if (i > 0 && runs[i - 1].start != kSentinelBlock && length < best_rest) {
      const std::uint32_t behind = EndOf(runs[i - 1]);
      const std::uint32_t room = holes.LengthFrom(behind, length);
      // Room for all of it, or a gap right before it that wanders through it as it moves.
      if (room == length || (room > 0 && behind + room == Index(runs[i].start))) {
        best = {first_block, {BlockId{behind}, std::min(now, room)}, 0};
        best_rest = length;
      }
    }
    if (i + 1 < runs.size() && (may_cut || now == length) && runs[i + 1].start != kSentinelBlock) {
      const std::uint32_t both = length + runs[i + 1].num_blocks;
      if (both <= longest && both < best_rest) {
        best = {first_block, {pager.placement().Together(holes, both).start, now}, 0};
        best_rest = both;
      }
    }
  }
  return best;
}

}  // namespace kvrm
