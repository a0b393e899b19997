// SPDX-License-Identifier: Apache-2.0
// Scheduler: who runs in the next step, and with how many tokens.
//
// A pass: rows that decode first, one token each; then prompts in chunks, oldest first, under the
// step's token budget; then new sequences while rows, budget and blocks last. When the pool is full
// the youngest running sequence gives its blocks back and waits again at its place in the order of
// arrival. It is parked in the host tier and resumed later, or, when there is no room, recomputed.
// The oldest sequence is never preempted, and the pool holds at least one sequence of the longest
// context, so every pass makes progress.
//
// What is parked leaves the pool in the steps to come, a part in each. So one is parked ahead of
// need, when less than half of the headroom is left, and less than a block a row. A row that gets
// no block meanwhile sits steps out, and while a history is on its way out nobody else is preempted
// and nobody taken in. That has an end: each step moves a part of what leaves, or parts of what is
// more urgent and bounded itself (MovePriority); then the row gets its block, or the next one
// leaves; and when all others have left, the pool is the oldest one's. Who comes back leaves twice
// the headroom free: others must write one and a half headrooms before anybody is parked again.
//
// Threading: engine thread only. Memory: queues are reserved by the constructor.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/rng.h"
#include "engine/sequence.h"
#include "kv/kv_cache.h"
#include "step/step_log.h"

namespace kvrm {

struct SchedulerOptions {
  std::uint32_t max_rows = 0;
  std::uint32_t max_step_tokens = 0;  // at least max_rows
  std::uint32_t prompt_chunk = 0;     // tokens per row and step
  std::uint32_t max_waiting = 0;
  // Newcomers must leave so much of the pool unpromised: room in which those who run grow, and in
  // which compaction finds holes (docs/decisions/0013-allocation-policy.md). Not asked of a
  // newcomer that would be alone.
  std::uint32_t headroom_tokens = 0;
  std::uint64_t preempt_seed = 0;  // not 0: as EngineOptions
  // Of prompts whose every position is sampled, positions in a step; at least 1.
  std::uint32_t prompt_samples = 1;
  StepLog* log = nullptr;  // told of every sequence that begins
};

// A sequence and how many of its tokens this step computes.
struct PlannedRow {
  Sequence* sequence = nullptr;
  std::uint32_t num_tokens = 0;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, KvCache& cache);

  // Requires: fewer than max_waiting + max_rows sequences in all.
  void Add(std::unique_ptr<Sequence> sequence) noexcept;
  // Of the sequences that wait for `parent`'s prompt, the first; it runs now, and shares all that
  // `parent` has computed. The others wait like anybody else when there is no room for them. Null:
  // no more. Requires: `parent` is running and nothing of it is planned.
  Sequence* Fork(const Sequence& parent) noexcept;
  // Plans one step; every planned row has its slots. Valid until the next call of any method.
  // At most `max_new` new sequences are taken in.
  std::span<const PlannedRow> Pass(std::uint32_t max_new) noexcept;
  // The only way out, for finished and cancelled sequences alike: releases the blocks.
  std::unique_ptr<Sequence> Remove(RequestId id) noexcept;  // null: not here
  // Takes the youngest running sequence's blocks back. False when none runs.
  bool PreemptYoungest() noexcept;
  // Any sequence, or null when there is none.
  const Sequence* Any() const noexcept;

  std::uint32_t num_running() const noexcept { return static_cast<std::uint32_t>(running_.size()); }
  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(waiting_.size()); }
  std::uint64_t num_preemptions() const noexcept { return num_preemptions_; }

 private:
  using Queue = std::vector<std::unique_ptr<Sequence>>;  // ascending by id

  static void InsertById(Queue& queue, std::unique_ptr<Sequence> sequence) noexcept;
  void PlanRunning() noexcept;
  void Admit(std::uint32_t max_new) noexcept;
  bool HasRoomFor(const Sequence& sequence) const noexcept;
  bool Open(Sequence& sequence) noexcept;
  bool Resume(Sequence& sequence) noexcept;
  void GiveUpBlocks(Sequence& victim) noexcept;
  void ParkAhead() noexcept;
  void Run(std::size_t waiting_idx, SeqId seq) noexcept;
  static const Sequence* Find(const Queue& queue, RequestId id) noexcept;
  bool WaitsForParent(const Sequence& sequence) const noexcept;
  bool Secure(const PlannedRow& row) noexcept;
  void Plan(Sequence& sequence) noexcept;
  std::uint32_t WithinSamples(const Sequence& sequence, std::uint32_t num_tokens) const noexcept;

  const SchedulerOptions options_;
  KvCache& cache_;
  Queue waiting_;
  Queue running_;
  std::vector<SeqId> free_seqs_;
  std::vector<PlannedRow> rows_;
  std::uint32_t budget_ = 0;   // tokens left in the step being planned
  std::uint32_t samples_ = 0;  // prompt_samples left in it
  std::uint64_t num_preemptions_ = 0;
  Rng rng_;  // of preempt_seed
};

}  // namespace kvrm
