// SPDX-License-Identifier: Apache-2.0
// Pager: which block holds which tokens of which sequence, and who may still read it.
//
// The pager owns every block of the pool. It decides and keeps books; it never copies a byte
// (that is kv/transport.h) and never chooses a place by itself (kv/placement.h).
//
// Definitions
//   committed   the last epoch sealed; retired: the last epoch done; both only grow
//   next        committed + 1, the epoch of the step under construction
//   in flight   the epochs retired + 1 .. committed: an executor may read and write for them
//   named       a sequence is named when its runs were handed out for the step under construction
//               (Name) or Remap changed them for it; Committed and Abandoned unname all
//   credit      of a sequence: blocks it was promised and does not hold yet
//
// A block is always in exactly one state:
//
//               Extend, Remap                Truncate, Release, Remap
//       kFree ----------------> kHeld ----------------------------------> kLimbo
//        ^ ^                      |                                         |
//        | +----------------------+                                         |
//        |  Truncate, Release, nothing in flight                            |
//        +---------------------------- Retired -----------------------------+
//
//     kFree  -> kHeld    Hold         content undefined until the holder writes or a copy lands
//     kHeld  -> kLimbo   Drop         last holder gone, an epoch not yet retired may touch it
//     kHeld  -> kFree    Drop         last holder gone, no epoch can touch it any more
//     kLimbo -> kFree    FreeBlocks   the epoch it waits for has retired
//
// (The prefix cache will add kCached: no holder, content kept, between kHeld and kFree.)
//
// Which epoch a dropped block waits for. A block can be touched by (1) rows of committed steps,
// (2) the step under construction if its descriptor may already name the block, (3) the copies of
// the step under construction that read it. Hence
//     moved away from (Remap)            next        by (3)
//     dropped, sequence named            next        by (2)
//     dropped, under a planned copy      next        by (3), also when that step was abandoned
//     dropped, otherwise                 committed   by (1); at once when committed == retired
// Tagging every drop with `next` would be safe and could starve: a victim's blocks would wait for
// a step that cannot be built for want of those very blocks. The reuse itself needs the wait even
// though steps run in order, because copies of step n + 1 start when it is committed, while n may
// still be running.
//
// Which blocks may be moved. The copy starts at commit, when steps in flight may still be writing:
// only blocks below every position that an epoch in flight writes are settled and may be a source.
//
// Invariants (checked where they matter, and all of them by CheckInvariants):
//   P1  Every block is in one state, and free + held + limbo == num_blocks - 1 (K1, K3, I2).
//   P2  refs > 0 if and only if the block is kHeld; refs == runs that name it (K2, I1).
//   P3  The index of free runs holds exactly the kFree blocks.
//   P4  A block in limbo waits for an epoch in (retired, committed + 1] and becomes free when that
//       one retires, not before (K4).
//   P5  The sum of all credits <= free: Extend within its credit cannot fail (I5).
//   P6  The runs of a sequence are disjoint, maximal, without the sentinel, and hold num_blocks
//       blocks (I6).
//   P7  length <= target <= num_blocks * block_tokens.
//   P8  Only settled blocks are moved, and never those of a named sequence.
//   P9  A block under a planned copy does not become free before that step has retired.
//
// Threading: engine thread only. Memory: everything is reserved by the constructor.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "kv/free_runs.h"
#include "kv/kv_cache.h"
#include "kv/placement.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

// Most epochs committed and not retired. Engines keep one or two in flight.
inline constexpr std::uint32_t kMaxStepsInFlight = 8;

enum class BlockState : std::uint8_t { kFree, kHeld, kLimbo };

struct PagerOptions {
  std::uint32_t num_blocks = 0;  // sentinel included
  std::uint32_t block_tokens = 0;
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint32_t crowded_runs = 0;  // a sequence with more runs than this is crowded
  std::uint64_t placement_seed = 0;
  KvFault planted_fault = KvFault::kNone;
};

class Pager {
 public:
  explicit Pager(const PagerOptions& options);

  // As in KvCache.
  bool Open(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  bool Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  bool Extend(SeqId seq, std::uint32_t num_tokens) noexcept;
  void Truncate(SeqId seq, std::uint32_t num_tokens) noexcept;
  void Release(SeqId seq) noexcept;

  // The step under construction reads (and may write) the sequence's blocks.
  void Name(SeqId seq) noexcept;
  // Notes what the rows of the step write; `next` becomes `committed`.
  void Committed(const StepView& step) noexcept;
  // The step under construction was given up: nothing is named any more.
  void Abandoned() noexcept;
  void Retired(StepId step) noexcept;

  // Puts `target` (free blocks) in place of as many of the sequence's blocks from block number
  // `first_block` on, and calls copy(source, target part) for each piece of them that holds written
  // tokens. Requires: settled, not named, within num_spare(). The sequence is named afterwards.
  template <typename CopyFn>
  void Remap(SeqId seq, std::uint32_t first_block, const Extent& target, CopyFn copy) noexcept;
  // Marks the blocks as under a planned copy, or no longer so.
  void SetPlanned(const Extent& blocks, bool planned) noexcept;

  bool is_open(SeqId seq) const noexcept { return Of(seq).open; }
  bool is_named(SeqId seq) const noexcept { return Of(seq).named_in == build_; }
  std::span<const Extent> runs(SeqId seq) const noexcept {
    return {&runs_[std::size_t{Index(seq)} * options_.max_blocks_per_seq], num_runs_[Index(seq)]};
  }
  // Runs, from the first, that hold the tokens up to the sequence's target.
  std::span<const Extent> target_runs(SeqId seq) const noexcept;
  std::uint32_t num_runs(SeqId seq) const noexcept { return num_runs_[Index(seq)]; }
  // Runs, from the first, whose blocks are all settled.
  std::uint32_t num_settled_runs(SeqId seq) const noexcept;

  StepId next() const noexcept { return StepId{committed_ + 1}; }
  const FreeRuns& free_runs() const noexcept { return free_runs_; }
  // Free blocks that no credit speaks for.
  std::uint32_t num_spare() const noexcept;
  std::uint32_t num_crowded() const noexcept { return num_crowded_; }
  std::uint32_t num_held() const noexcept { return num_held_; }
  std::uint32_t num_limbo() const noexcept { return num_limbo_; }
  std::uint32_t max_seqs() const noexcept { return options_.max_seqs; }
  std::uint64_t num_live_tokens() const noexcept { return num_live_tokens_; }
  BlockState state(BlockId block) const noexcept { return blocks_[Index(block)].state; }
  // How often the block has been handed out: two uses of one block differ in it (K5).
  std::uint32_t generation(BlockId block) const noexcept {
    return blocks_[Index(block)].generation;
  }
  void CheckInvariants() const;

 private:
  static constexpr std::uint32_t kNoBlock = 0;  // The sentinel is never in limbo.
  static constexpr std::uint32_t kNumLimboLists = kMaxStepsInFlight + 1;

  struct Block {
    std::uint32_t refs = 0;
    std::uint32_t generation = 0;
    // First block of an extent in limbo: its length, and the first block of the list's next extent.
    std::uint32_t limbo_blocks = 0;
    std::uint32_t limbo_next = kNoBlock;
    BlockState state = BlockState::kFree;
    bool planned = false;
  };
  // What one epoch in flight writes of a sequence: positions from `first_position` on.
  struct Write {
    std::uint64_t epoch = 0;
    std::uint32_t first_position = 0;
  };
  struct Sequence {
    bool open = false;
    std::uint32_t length = 0;  // tokens written by committed steps
    std::uint32_t target = 0;  // tokens that have slots
    std::uint32_t reserved_blocks = 0;
    std::uint32_t num_blocks = 0;
    std::uint64_t named_in = 0;                        // value of build_ when last named
    std::array<Write, kMaxStepsInFlight> writes = {};  // by epoch % kMaxStepsInFlight
    std::uint32_t credit() const {
      return reserved_blocks > num_blocks ? reserved_blocks - num_blocks : 0;
    }
  };

  Sequence& Of(SeqId seq) noexcept;
  const Sequence& Of(SeqId seq) const noexcept;
  std::uint32_t BlocksFor(std::uint32_t num_tokens) const noexcept;
  std::uint32_t SettledBlocks(const Sequence& sequence) const noexcept;
  std::span<Extent> AllRuns(SeqId seq) noexcept;
  void SetNumRuns(SeqId seq, std::uint32_t num_runs) noexcept;
  void AppendRun(SeqId seq, const Extent& blocks) noexcept;
  void DropTail(SeqId seq, std::uint32_t keep_blocks) noexcept;
  void Hold(const Extent& blocks) noexcept;
  void Drop(const Extent& blocks, std::uint64_t epoch) noexcept;
  void FreeBlocks(const Extent& blocks) noexcept;
  bool AnyPlanned(const Extent& blocks) const noexcept;
  // Replaces blocks [first_block, first_block + target.num_blocks) in the list of runs.
  void Splice(SeqId seq, std::uint32_t first_block, const Extent& target) noexcept;
  void CheckSequences(std::vector<std::uint32_t>& refs) const;
  void CheckLimbo() const;

  const PagerOptions options_;
  FreeRuns free_runs_;
  Placement placement_;
  std::vector<Block> blocks_;
  std::vector<Sequence> sequences_;
  std::vector<std::uint32_t> num_runs_;  // [max_seqs], apart from Sequence to be scanned fast
  std::vector<Extent> runs_;             // [max_seqs * max_blocks_per_seq]
  std::vector<Extent> scratch_runs_;     // [max_blocks_per_seq + 2]
  std::array<std::uint32_t, kNumLimboLists> limbo_first_ = {};  // by epoch % kNumLimboLists
  std::uint64_t committed_ = 0;
  std::uint64_t retired_ = 0;
  std::uint64_t build_ = 1;  // one more at each commit and each abandoned step
  std::uint32_t num_held_ = 0;
  std::uint32_t num_limbo_ = 0;
  std::uint32_t num_credit_ = 0;
  std::uint32_t num_crowded_ = 0;
  std::uint32_t num_planned_ = 0;
  std::uint64_t num_live_tokens_ = 0;
};

template <typename CopyFn>
void Pager::Remap(SeqId seq, std::uint32_t first_block, const Extent& target,
                  CopyFn copy) noexcept {
  Sequence& sequence = Of(seq);
  const std::uint32_t end_block = first_block + target.num_blocks;
  CHECK(sequence.open && !is_named(seq));                                // P8
  CHECK(target.num_blocks > 0 && end_block <= SettledBlocks(sequence));  // P8
  CHECK(target.num_blocks <= num_spare());                               // P5
  Hold(target);
  const std::uint32_t written_end = std::min(end_block, BlocksFor(sequence.length));
  std::uint32_t begin = 0;
  for (const Extent& run : runs(seq)) {
    const std::uint32_t low = std::max(begin, first_block);
    const std::uint32_t high = std::min(begin + run.num_blocks, end_block);
    if (low < high) {
      const Extent source = {BlockId{Index(run.start) + (low - begin)}, high - low};
      const std::uint32_t written = low < written_end ? std::min(high, written_end) - low : 0;
      if (written > 0) {
        copy(Extent{source.start, written},
             Extent{BlockId{Index(target.start) + (low - first_block)}, written});
      }
      Drop(source, committed_ + 1);
    }
    begin += run.num_blocks;
  }
  Splice(seq, first_block, target);
  Name(seq);
}

}  // namespace kvrm
