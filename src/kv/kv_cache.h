// SPDX-License-Identifier: Apache-2.0
// KvCache: the only kv header the engine includes. Where every sequence's blocks are, and the plan
// of what must move.
//
// Per sequence, over token positions:
//   [0, length)           written by earlier steps
//   [length, target)      slots promised by Extend, written by the step being built
//   [target, reserved)    credit: Extend up to here cannot fail
//
// Blocks freed or moved away from in epoch n stay in limbo until n retires (K4). Blocks are handed
// out so that runs stay long: in place behind the sequence's last block if free, else in the middle
// of the largest hole; when a row needs more than max_runs runs, Plan moves it together.
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

struct KvCacheOptions {
  KvLayout layout;
  std::uint32_t num_blocks = 0;  // of the pool, sentinel included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint32_t max_runs = 0;    // R
  std::uint32_t max_groups = 0;  // transfer groups per step
  std::uint64_t max_move_bytes_per_step = 0;
};

struct KvStats {
  std::uint32_t num_blocks = 0;  // sentinel excluded
  std::uint32_t num_free = 0;    // free == neither held nor in limbo
  std::uint32_t num_held = 0;
  std::uint32_t num_limbo = 0;
  std::uint64_t reserved_bytes = 0;    // pool memory
  std::uint64_t mapped_bytes = 0;      // held blocks
  std::uint64_t live_bytes = 0;        // written tokens
  std::uint64_t num_moved_blocks = 0;  // since start
  std::uint64_t num_groups = 0;
  std::uint64_t num_run_overflows = 0;  // times a row needed more than max_runs runs
  std::uint32_t max_runs_seen = 0;
};

class KvCache {
 public:
  // Reserves the pool from `device`, which outlives the cache.
  KvCache(const KvCacheOptions& options, Device& device);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Starts an empty sequence with credit for `reserve_tokens`. False, and nothing changes, when the
  // free blocks less all outstanding credit do not suffice.
  // Requires: seq < max_seqs, not open.
  bool Open(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // Raises the credit; false as above.
  bool Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // Makes slots for tokens up to `num_tokens` in all. False when the pool is full beyond the
  // sequence's credit; nothing changes then.
  bool Extend(SeqId seq, std::uint32_t num_tokens) noexcept;
  // The sequence's runs in token order, at most max_runs; empty when it needs more (counted) and
  // must wait for Plan to have moved it.
  std::span<const Extent> Runs(SeqId seq) noexcept;
  // Drops tokens from the end.
  void Truncate(SeqId seq, std::uint32_t num_tokens) noexcept;
  // Ends the sequence. The single release entry point (R2); its blocks go to limbo.
  void Release(SeqId seq) noexcept;

  // Plans this step's moves into `builder`, within the budget, and switches the mapping of what it
  // moved: call it before Runs of the rows of the step. `committing` is the epoch being built.
  void Plan(StepBuilder& builder, StepId committing) noexcept;
  // Submits the committed step's groups to the device. Land waits for them.
  void Launch(const StepView& step) noexcept;
  void Land() noexcept;
  // Epoch `step` has retired: its limbo blocks are free again.
  void Retire(StepId step) noexcept;

  std::uint32_t num_available_tokens() const noexcept;  // free less credit, in tokens
  KvStats stats() const noexcept;
  std::span<std::byte> pool() const noexcept;
  // Recounts everything from scratch and aborts on a violation (K1-K4, I1-I6). Slow.
  void CheckInvariants() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
