// SPDX-License-Identifier: Apache-2.0
// Compactor: keeps histories within the runs a row may have, by moving crowded ones together.
//
// A sequence is crowded when it has more runs than the trigger, and stuck when it has more than
// max_runs, for then no row can show it. Stuck ones come first. For each, one action a step:
//
//   behind    move a window of consecutive runs to right behind the run before it   gains w runs
//   together  move a window of consecutive runs into one hole                       gains w - 1
//   start     nothing above fits this step's budget: move the first part of such a  gains 0, or
//             window; the rest has room behind it and follows in later steps        costs 1 once
//
// Not tried: moving one sequence out of another's way. With two runs a row and a budget of two
// blocks, a quarter of randomly scattered sequences stall even in a half empty pool; from four runs
// a row none did (kv_cache_test.cc). Under churn it matters more: at 75 % of the pool all is well
// with 32 runs a row and not with 8 (bench/step_cost_bench.cc, Churn).
//
// A stuck sequence takes the action that gains most, a crowded one the action that gains most per
// block, and only four crowded ones are looked at in a step, in turn. When a stuck one finds
// nothing that helps, because holes are too small or all free blocks are promised, that is counted
// as a stall: the engine must then free memory (preempt), after which a sequence written anew in an
// empty pool has one run.
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

  // Half of the limit: by the time a sequence is stuck, the holes that would have helped it are
  // gone. Small limits have no slack to give.
  static constexpr std::uint32_t TriggerFor(std::uint32_t max_runs) {
    return max_runs >= 8 ? max_runs / 2 : max_runs >= 4 ? max_runs - 1 : max_runs;
  }

  // Plans moves of crowded sequences within the transport's budget and remaps them.
  void Plan(Pager& pager, Transport& transport) noexcept;

  std::uint64_t num_stalls() const noexcept { return num_stalls_; }

 private:
  struct Action {
    std::uint32_t first_block = 0;  // of the sequence
    Extent target;                  // no blocks: no action
    std::uint32_t gain = 0;
  };
  void PlanSequence(SeqId seq, Pager& pager, Transport& transport) noexcept;
  Action BestWindow(SeqId seq, const Pager& pager, const Transport& transport) const noexcept;
  Action BestStart(SeqId seq, const Pager& pager, const Transport& transport) const noexcept;

  // Bounds what Plan costs the host: about a microsecond a sequence.
  static constexpr std::uint32_t kCrowdedPerStep = 4;

  const std::uint32_t max_runs_;
  const std::uint32_t trigger_;
  std::uint32_t cursor_ = 0;  // Who comes first changes from step to step, so nobody starves.
  std::uint64_t num_stalls_ = 0;
};

}  // namespace kvrm
