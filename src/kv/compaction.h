// SPDX-License-Identifier: Apache-2.0
// Compactor: keeps histories within the runs a row may have, by moving crowded ones together.
//
// A sequence is crowded when it has more runs than the trigger, pressed when it may soon have more
// than a row shows, and stuck when it has, for then no row can show it. Stuck ones come first. For
// each, one action a step:
//
//   behind    move a window of consecutive runs to right behind the run before it   gains w runs
//   before    move it to right before the run behind it                             gains w
//   together  move it into one hole                                                 gains w - 1
//   start     nothing above fits this step's budget: move the first part of such a  gains 0, or
//             window; the rest has room behind it and follows in later steps        costs 1 once
//   evacuate  nothing gained and pressed: move one short run of anybody's out of    gains 0
//             the way, so that the holes beside it become one; the leftmost hole
//             that holds the run takes it
//
// A stuck sequence takes the action that gains most, a crowded one the action that gains most per
// block. Of crowded ones four are looked at in a step, in turn; the first to move is the one whose
// action removes most runs, times the blocks it is likely to have still to write, per block moved.
// One run is evacuated in a step. It pays where a row shows few runs: with 8 at 90 % of the pool
// four in ten fewer rows wait, and three times as much moves; with 32 it is hardly ever needed (ADR
// 0013). With two runs a row and a budget of two blocks, some randomly scattered sequences stall
// even in a half empty pool.
//
// Holes are free blocks. A pressed one that finds none takes holes of free and cached blocks, and
// these are evicted, whatever their age: in a pool that caches all that nobody holds there is
// hardly a hole else. Who is only crowded does so where the cache does not pay: elsewhere what it
// gained would cost prefixes (ADR 0013).
//
// When a stuck one finds nothing that helps, because holes are too small or all free blocks are
// promised, that is counted as a stall: the engine must then free memory (preempt), after which a
// sequence written anew in an empty pool has one run.
//
// Threading: engine thread only. Memory: none beyond its fields.
#pragma once

#include <cstdint>

#include "kv/pager.h"
#include "kv/transport.h"

namespace kvrm {

class Compactor {
 public:
  explicit Compactor(std::uint32_t max_runs);

  // Few, however many a row may show: that keeps runs long, and by the time a sequence is stuck the
  // holes that would have helped it are gone. Small limits have no slack to give.
  static constexpr std::uint32_t TriggerFor(std::uint32_t max_runs) {
    return max_runs >= 8 ? 4 : max_runs >= 4 ? max_runs - 1 : max_runs;
  }

  // Plan moves of stuck and of crowded sequences within the transport's budget and remap them; the
  // stuck first.
  void PlanStuck(Pager& pager, Transport& transport) noexcept;
  void PlanCrowded(Pager& pager, Transport& transport) noexcept;

  std::uint64_t num_stalls() const noexcept { return num_stalls_; }

 private:
  struct Action {
    std::uint32_t first_block = 0;  // of the sequence
    Extent target;                  // no blocks: no action
    std::uint32_t gain = 0;
  };
  // Does what Best has found for the sequence, or what helps it later. Whether it moves
  // anything.
  bool PlanSequence(SeqId seq, Action action, Pager& pager, Transport& transport) noexcept;
  void PlanOrdered(Pager& pager, Transport& transport) noexcept;
  void Evacuate(Pager& pager, Transport& transport) noexcept;
  bool is_pressed(std::uint32_t num_runs) const noexcept { return num_runs + 2 > max_runs_; }
  static void Move(SeqId seq, const Action& action, MovePriority priority, Pager& pager,
                   Transport& transport) noexcept;
  Action Best(SeqId seq, const Pager& pager, const Transport& transport) const noexcept;
  Action BestWindow(SeqId seq, const FreeRuns& holes, const Pager& pager,
                    const Transport& transport) const noexcept;
  Action BestStart(SeqId seq, const FreeRuns& holes, const Pager& pager,
                   const Transport& transport) const noexcept;

  // Bounds of what Plan costs the host: about a microsecond a sequence.
  static constexpr std::uint32_t kStuckPerStep = 4;
  static constexpr std::uint32_t kCrowdedPerStep = 4;
  static constexpr std::uint32_t kMostWidth = 8;         // of a window, in runs
  static constexpr std::uint32_t kEvacuationLooks = 64;  // runs

  const std::uint32_t max_runs_;
  const std::uint32_t trigger_;
  std::uint32_t stuck_cursor_ = 0;
  std::uint32_t cursor_ = 0;  // Who comes first changes from step to step, so nobody starves.
  std::uint32_t evacuation_cursor_ = 0;
  bool is_unserved_ = false;  // In this step a pressed sequence has gained nothing.
  std::uint64_t num_stalls_ = 0;
};

}  // namespace kvrm
