// SPDX-License-Identifier: Apache-2.0
// Scheduler: who runs in the next step, and with how many tokens.
//
// A pass: rows that decode first, one token each; then prompts in chunks; then new sequences while
// rows, budget and blocks last. Beside decoding rows, prompts and newcomers are taken in as far as
// StepPace lets them: the step's predicted time is the budget, max_step_tokens only its ceiling.
//
// Order (of prompts and of newcomers alike):
//   1. who has waited for kAgedNs, in order of arrival; before those, who was preempted and has the
//      priority of one of them or a better one: nobody's stream stands still for those behind it;
//   2. by priority, lower first;
//   3. by their tenants' virtual times (FairShare), then in order of arrival.
// So within a tenant and a priority it is first come, first served, a tenant's flood delays itself,
// and whatever priorities others have, a request waits for kAgedNs and for those that arrived or
// began before it, no longer. The prompt that is first in this order gets at least half of what a
// step has for prompts; what is left goes to those with the fewest tokens to go, so that a short
// prompt does not wait for a long one.
//
// The samples of a request begin with its first one's first token, sharing its prompt, as far as
// they might come in as newcomers: beside those streams, and with that headroom. The others wait
// like anybody else, and find the prompt in the prefix cache.
//
// When the pool is full the running sequence of the highest priority value, of these the youngest,
// gives its blocks back and waits again at its place. It is parked in the host tier and resumed
// later, or, when there is no room, recomputed. The first in order of rank (lowest value, oldest)
// is never preempted, and the pool holds at least one sequence of the longest context, so every
// pass makes progress.
//
// What is parked leaves the pool in the steps to come, a part in each. So one is parked ahead of
// need, when less than half of the headroom is left, and less than a block a row. A row that gets
// no block meanwhile sits steps out, and while a history is on its way out nobody else is preempted
// and nobody taken in. That has an end: each step moves a part of what leaves, or parts of what is
// more urgent and bounded itself (MovePriority); then the row gets its block, or the next one
// leaves; and when all others have left, the pool is the first one's. Who comes back leaves twice
// the headroom free: others must write one and a half headrooms before anybody is parked again.
//
// Threading: engine thread only. Memory: queues are reserved by the constructor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "base/rng.h"
#include "engine/fair_share.h"
#include "engine/sequence.h"
#include "engine/step_cost.h"
#include "engine/step_pace.h"
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
  StepPaceOptions pace = {};
  StepLog* log = nullptr;  // told of every sequence that begins
};

// A sequence that has waited so long is served as if its priority were the lowest number.
inline constexpr std::int64_t kAgedNs = 30'000'000'000;
inline constexpr std::int32_t kAgedPriority = std::numeric_limits<std::int32_t>::min();

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
  // Of the sequences that wait for `parent`'s prompt, the first that may run; it runs now, and
  // shares all that `parent` has computed. Those before it wait like anybody else from now on.
  // Null: no more. Requires: `parent` is running and nothing of it is planned.
  Sequence* Fork(const Sequence& parent) noexcept;
  // Plans one step; every planned row has its slots. Valid until the next call of any method.
  // At most `max_new` new sequences are taken in, by it and by Fork until the next.
  std::span<const PlannedRow> Pass(std::uint32_t max_new, std::int64_t now_ns) noexcept;
  // What these rows compute. Before their results are taken.
  static StepLoad LoadOf(std::span<const PlannedRow> rows) noexcept;
  // A step of this load has taken so long; it teaches StepPace.
  void Observe(const StepLoad& load, std::int64_t step_ns, std::int64_t now_ns) noexcept;
  // `num_tokens` were computed for the sequence: its tenant has had them.
  void Charge(const Sequence& sequence, std::uint32_t num_tokens) noexcept {
    shares_.Charge(sequence.tenant_place, num_tokens);
  }
  // A sequence whose time is over, and why; null: none. It stays until it is removed.
  const Sequence* Expired(std::int64_t now_ns, FinishReason* reason) noexcept;
  // The sequence's deadline was moved to an earlier time.
  void NoteDeadline(std::int64_t deadline_ns) noexcept {
    next_deadline_ns_ = std::min(next_deadline_ns_, deadline_ns);
  }
  // The only way out, for finished and cancelled sequences alike: releases the blocks.
  std::unique_ptr<Sequence> Remove(RequestId id) noexcept;  // null: not here
  // Takes the blocks of the last in order of rank back. False when none runs.
  bool PreemptYoungest() noexcept;
  bool Has(RequestId id) const noexcept {
    return Find(running_, id) != nullptr || Find(waiting_, id) != nullptr;
  }
  // Those that run, in order of rank.
  std::span<const std::unique_ptr<Sequence>> running() const noexcept { return running_; }
  // Any sequence, or null when there is none.
  const Sequence* Any() const noexcept;

  std::uint32_t num_running() const noexcept { return static_cast<std::uint32_t>(running_.size()); }
  std::uint32_t num_waiting() const noexcept { return static_cast<std::uint32_t>(waiting_.size()); }
  std::uint64_t num_preemptions() const noexcept { return num_preemptions_; }
  // Of Sequence::num_queued_tokens, what has left the queue since the start.
  std::uint64_t num_dequeued_tokens() const noexcept { return num_dequeued_tokens_; }
  const StepPace& pace() const noexcept { return pace_; }

 private:
  using Queue = std::vector<std::unique_ptr<Sequence>>;

  using Order = bool (*)(const Sequence& a, const Sequence& b);

  static bool ArrivedBefore(const Sequence& a, const Sequence& b) noexcept { return a.id < b.id; }
  static bool RanksBefore(const Sequence& a, const Sequence& b) noexcept;
  bool ComesBefore(const Sequence& a, const Sequence& b) const noexcept;
  std::int32_t PriorityOf(const Sequence& sequence) const noexcept;
  bool HasAged(const Sequence& sequence) const noexcept;
  // The last priority of those that have waited for kAgedNs.
  std::int32_t AgedPriority() const noexcept;
  static void Insert(Queue& queue, std::unique_ptr<Sequence> sequence, Order order) noexcept;
  static void AddTo(StepLoad& load, const PlannedRow& row) noexcept;
  void PlanRunning() noexcept;
  void PlanPrompts() noexcept;
  void TopUp() noexcept;
  bool IsRunning(const Sequence* sequence) const noexcept;
  std::size_t NextWaiting(const Sequence* last) const noexcept;
  bool MayJoin(const Sequence& sequence) noexcept;
  void Dequeue(Sequence& sequence) noexcept;
  bool MayFork(const Sequence& child) noexcept;
  bool CanTakeIn() const noexcept {
    return max_new_ > 0 && running_.size() < options_.max_rows && budget_ > 0;
  }
  void Admit() noexcept;
  void AdmitInOrder() noexcept;
  bool HasRoom(std::uint64_t num_tokens) const noexcept;
  bool HasRoomFor(const Sequence& sequence) const noexcept;
  bool Open(Sequence& sequence) noexcept;
  bool Resume(Sequence& sequence) noexcept;
  void GiveUpBlocks(Sequence& victim) noexcept;
  void ParkAhead() noexcept;
  void Run(std::size_t waiting_idx, SeqId seq) noexcept;
  static const Sequence* Find(const Queue& queue, RequestId id) noexcept;
  bool WaitsForParent(const Sequence& sequence) const noexcept;
  bool Secure(const PlannedRow& row) noexcept;
  // `shared`: others want a part of what the step has for prompts.
  void Plan(Sequence& sequence, bool shared) noexcept;
  std::uint32_t WithinSamples(const Sequence& sequence, std::uint32_t num_tokens) const noexcept;

  const SchedulerOptions options_;
  KvCache& cache_;
  Queue waiting_;  // ascending by id
  Queue running_;  // in order of rank: by priority, then by id
  std::vector<SeqId> free_seqs_;
  std::vector<PlannedRow> rows_;
  std::vector<Sequence*> prompts_;  // of the pass, in order
  FairShare shares_;
  StepPace pace_;
  StepLoad load_;                               // of rows_
  std::int64_t now_ns_ = 0;                     // of the pass
  std::int32_t aged_priority_ = kAgedPriority;  // AgedPriority() while newcomers are taken in
  std::uint32_t budget_ = 0;                    // tokens left in the step being planned
  std::uint32_t samples_ = 0;                   // prompt_samples left in it
  std::uint32_t max_new_ = 0;  // newcomers that may still come in until the next pass
  std::int64_t next_deadline_ns_ = std::numeric_limits<std::int64_t>::max();
  std::uint64_t num_dequeued_tokens_ = 0;
  std::uint64_t num_preemptions_ = 0;
  Rng rng_;  // of preempt_seed
};

}  // namespace kvrm
