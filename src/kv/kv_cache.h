// SPDX-License-Identifier: Apache-2.0
// KvCache: the only kv header the engine includes. Where every sequence's blocks are, and the plan
// of what must move.
//
// Per sequence, over token positions:
//   [0, length)           written by committed steps
//   [length, target)      slots promised by Extend, written by the step being built
//   [target, reserved)    credit: Extend up to here cannot fail
//
// The order of calls around step n (each line is optional but for Plan, Commit, Launch, Retire):
//   Retire(k)                    for every epoch that has retired since, in order
//   Open, Reserve, Truncate, Release
//   Extend                       of the rows of n: a row that does not fit is left out
//   Plan(builder, n)             moves, mapping switched
//   Runs, builder.AddRow         of the rows of n; not after a row's Runs: Truncate of it
//   builder.Commit, Launch(view) always both, also without groups: lengths advance by the view
//   Land                         before the executor starts n
// Extend may come after Plan too, but runs it adds can then only be moved together one step later.
// Release is allowed at any point. A step that is given up: Abandon, beside StepBuilder::Abandon.
//
// A block that was freed, or moved away from, is not reused before every epoch that may touch it
// has retired (K4; kv/pager.h derives which). Only blocks that no step in flight writes are moved.
// Blocks are handed out so that runs stay long: in place behind the sequence's last block if free,
// else in the middle of the largest hole; a row that comes near max_runs is moved together by Plan.
//
// Threading: engine thread only. Memory: everything is reserved by the constructor; no call
// allocates.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "device/device.h"
#include "step/ids.h"
#include "step/layout.h"
#include "step/step.h"
#include "step/step_builder.h"

namespace kvrm {

// Negative controls: each breaks one fence, and the tests' oracle must notice. Nothing but tests
// sets one.
enum class KvFault : std::uint8_t {
  kNone,
  kNoLimbo,        // blocks of an ended or shortened sequence are free at once
  kMoveUnsettled,  // moves blocks that a step in flight still writes
  kIgnoreCredit,   // Extend takes blocks that others were promised
  kLoseCopy,       // the last copy of a step is not made
  kNoLand,         // Land does not wait
};

struct KvCacheOptions {
  KvLayout layout;
  std::uint32_t num_blocks = 0;  // of the pool, sentinel included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint32_t max_runs = 0;    // R
  std::uint32_t max_groups = 0;  // transfer groups per step
  std::uint64_t max_move_bytes_per_step = 0;
  // Not 0: blocks are handed out one by one at pseudo-random places drawn from this seed, so that a
  // test can show that placement does not matter. Needs a generous max_runs.
  std::uint64_t placement_seed = 0;
  KvFault planted_fault = KvFault::kNone;
};

struct KvStats {
  std::uint32_t num_blocks = 0;  // sentinel excluded
  std::uint32_t num_free = 0;    // free == neither held nor in limbo
  std::uint32_t num_held = 0;
  std::uint32_t num_limbo = 0;
  std::uint32_t num_promised = 0;      // free blocks that credit speaks for
  std::uint64_t reserved_bytes = 0;    // pool memory
  std::uint64_t mapped_bytes = 0;      // held blocks
  std::uint64_t live_bytes = 0;        // written tokens
  std::uint64_t num_moved_blocks = 0;  // since start
  std::uint64_t num_groups = 0;
  std::uint64_t num_run_overflows = 0;  // times a row needed more than max_runs runs
  std::uint64_t num_stalls = 0;  // times a row over max_runs had budget and no hole that helps
  std::uint32_t max_runs_seen = 0;
};

class KvCache {
 public:
  // Reserves the pool from `device`, which outlives the cache. Throws StartError when it cannot.
  // Requires: max_runs >= 2; max_groups and max_runs are at most those of the step builder.
  KvCache(const KvCacheOptions& options, Device& device);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Starts an empty sequence with credit for `reserve_tokens`. False, and nothing changes, when the
  // free blocks less all outstanding credit do not suffice.
  // Requires: seq < max_seqs, not open; it was not released from the step under construction.
  bool Open(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // Raises the credit; false as above.
  bool Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // Makes slots for tokens up to `num_tokens` in all. False when the pool is full beyond the
  // sequence's credit; nothing changes then.
  // Requires, as Open and Reserve: num_tokens <= max_blocks_per_seq * block_tokens.
  bool Extend(SeqId seq, std::uint32_t num_tokens) noexcept;
  // The sequence's runs in token order up to its target, at most max_runs; empty when it needs more
  // (counted) and must wait for Plan to have moved it. Valid until the next call for this sequence.
  // From here to Launch or Abandon the sequence is part of the step: Plan will not move it.
  std::span<const Extent> Runs(SeqId seq) noexcept;
  // Drops tokens from the end. Blocks within the credit stay with the sequence as its reserve.
  // Requires: num_tokens <= target, and no Runs for the step under construction.
  void Truncate(SeqId seq, std::uint32_t num_tokens) noexcept;
  // Ends the sequence. The single release entry point (R2); its blocks go to limbo.
  void Release(SeqId seq) noexcept;

  // Plans this step's moves into `builder`, within the budget, and switches the mapping of what it
  // moved: call it before Runs of the rows of the step. `committing` is the epoch being built.
  // Without a crowded sequence it plans nothing and costs nothing.
  void Plan(StepBuilder& builder, StepId committing) noexcept;
  // The step under construction was given up. Groups already planned are not lost: the next Plan
  // puts them in again, so commit a step, without rows if need be, rather than wait for their
  // blocks.
  void Abandon() noexcept;
  // Right after Commit, for every step: notes what its rows write and submits its groups to the
  // device. Land waits for them.
  void Launch(const StepView& step) noexcept;
  void Land() noexcept;
  // Epoch `step` has retired: its limbo blocks are free again. In order, each epoch once.
  void Retire(StepId step) noexcept;

  std::uint32_t num_available_tokens() const noexcept;  // free less credit, in tokens
  KvStats stats() const noexcept;
  std::span<std::byte> pool() const noexcept;
  // Recounts everything from scratch and aborts on a violation (kv/pager.h, P1 to P9). Slow.
  void CheckInvariants() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
