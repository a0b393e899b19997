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
//   hole        blocks of a history that were dropped (Trim): a run that starts at the sentinel. It
//               counts in num_blocks, so positions do not change
//   published   a full block in the prefix index: its content never changes while it is there
//   shared      a block with more than one holder
//
// A block is always in exactly one state:
//
//               Extend, Remap           Truncate, Trim, Release, Remap
//       kFree ----------------> kHeld ----------------------------------> kLimbo
//        ^ ^                    |  ^ |                                    |   |
//        | +--------------------+  | +----------------------+             |   |
//        |  the same, nothing      | OpenCached             |             |   |
//        |  in flight              |                        v             |   |
//        |                         +-------------------- kCached <--------+   |
//        |         Evict                                    |   Retired,      |
//        +--------------------------------------------------+   published     |
//        +--------------------------------------------------------------------+
//           Retired
//
//     kFree   -> kHeld    Hold        content undefined until the holder writes or a copy lands
//     kHeld   -> kHeld    Share, Drop one holder more or less, and still one
//     kHeld   -> kLimbo   Drop        last holder gone, an epoch not yet retired may touch it
//     kHeld   -> kFree    Drop        last holder gone, no epoch can touch it any more
//     kHeld   -> kCached  Drop        the same, and it is published
//     kLimbo  -> kFree    FreeBlocks  the epoch it waits for has retired
//     kLimbo  -> kCached  FreeBlocks  the same, and it is published
//     kCached -> kHeld    Share       a prefix hit; blocks in limbo are not found
//     kCached -> kFree    Evict       its room is needed; the oldest first. No epoch touches it
//     kCached -> kFree    Remap       it lies where a crowded history is moved together
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
// still be running. A block that only loses one of several holders notes that epoch (shared_until):
// the last one may write where the others still read, or leave the block in its turn.
//
// Which blocks may be moved. The copy starts at commit, when steps in flight may still be writing:
// only blocks below every position that an epoch in flight writes are settled and may be a source.
//
// Copy-on-write. Only the block of the first position a sequence writes next can be shared (blocks
// behind it were never written, and Truncate drops those that are shared or published), and only
// after a Fork inside a block, or a Truncate. Extend sees it, secures one block of credit and marks
// the sequence; Plan (CopyShared) gives it a block of its own, with the tokens written so far. A
// sequence whose sharers have all left by then waits only until they have retired (P13), then
// writes in place, and the block is published no more.
//
// Invariants (checked where they matter, and all of them by CheckInvariants):
//   P1  Every block is in one state, and free + held + cached + limbo == num_blocks - 1 (K1, I2).
//   P2  refs > 0 if and only if the block is kHeld; refs == runs that name it (K2, I1).
//   P3  The index of free runs holds exactly the kFree blocks whose slab is awake (K3, E1), that of
//       vacant ones these and the kCached.
//   P4  A block in limbo waits for an epoch in (retired, committed + 1] and leaves it when that one
//       retires, not before (K4).
//   P5  The sum of all credits <= free + cached: Extend within its credit cannot fail (I5).
//   P6  The runs of a sequence are disjoint, maximal, holes apart without the sentinel, and hold
//       num_blocks blocks (I6).
//   P7  length <= target <= num_blocks * block_tokens.
//   P8  Only settled blocks are moved, and never those of a named sequence.
//   P9  A block under a planned copy does not become free before that step has retired.
//   P10  A shared or published block is never written: no position >= length of any holder lies in
//       it, but for one that waits for its copy (K6, I3).
//   P11  Only full blocks are published; kCached blocks are, and nothing else is idle in the index.
//   P12  live == sum over held blocks of the tokens written in them, shared ones once.
//   P13  Who is left alone with a block writes it only when every epoch in which the others may
//       touch it has retired, and no planned copy reads it.
//   P14  A block is published only when all of its tokens were computed over a history without
//       holes: keys and values of deeper layers depend on what was attended, not on tokens alone.
//   P15  What lies on a shelf is written by no step to come, and has no credit.
//   P16  The block that a sequence has found its own, and writes on in, has one holder and no name,
//       and is not fenced but by a planned copy: Extend need not look at it again.
//
// Slabs. Blocks of a sleeping slab (kv/slabs.h) are free as any others in every count, and nothing
// else knows of them. Grow wakes what it needs before it evicts anything, and for a prompt that
// would lie in many pieces a place of its own; who opens a sequence or raises its credit wakes what
// that is worth. Retired puts slabs to sleep while more is free than credits and a part of what is
// held.
//
// Shelves. A history that is parked (kv/host_tier.h) keeps the blocks that were not copied yet, and
// its length, under an identity beyond those of sequences: shelf i is identity max_seqs + i. What
// was copied is a hole there.
//
// Threading: engine thread only. Memory: everything is reserved by the constructor.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/mutant.h"
#include "kv/cache_worth.h"
#include "kv/free_runs.h"
#include "kv/kv_cache.h"
#include "kv/placement.h"
#include "kv/prefix_index.h"
#include "kv/slabs.h"
#include "step/ids.h"
#include "step/step.h"

namespace kvrm {

// Most epochs committed and not retired. Engines keep one or two in flight.
inline constexpr std::uint32_t kMaxStepsInFlight = 8;

enum class BlockState : std::uint8_t { kFree, kHeld, kCached, kLimbo };

struct PagerOptions {
  std::uint32_t num_blocks = 0;  // sentinel included
  std::uint32_t block_tokens = 0;
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint32_t crowded_runs = 0;  // a sequence with more runs than this is crowded
  PlacementPolicy placement = PlacementPolicy::kInPlace;
  std::uint64_t placement_seed = 0;
  bool prefix_cache = false;
  std::uint32_t max_holes = ~std::uint32_t{0};  // of a sequence; Trim makes no more
  // OpenCached takes over no more runs than this: shared blocks are not moved together.
  std::uint32_t max_shared_runs = ~std::uint32_t{0};
  std::uint32_t max_shelves = 0;
  SlabOptions slabs = {};                        // without a device every block has memory
  std::uint32_t max_cached = ~std::uint32_t{0};  // as KvCacheOptions::max_cached_blocks
};

// What a history looked like before it was parked, and how it may be found in the prefix cache.
struct ShelvedHistory {
  std::span<const Extent> runs;  // in token order; what starts at the sentinel is a hole
  std::span<const std::int32_t> tokens;
  std::span<const PrefixKey> keys;
};

class Pager {
 public:
  explicit Pager(const PagerOptions& options);

  // As in KvCache.
  bool Open(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  std::optional<std::uint32_t> OpenCached(SeqId seq, std::span<const std::int32_t> tokens,
                                          std::span<const PrefixKey> keys,
                                          std::uint32_t reserve_tokens) noexcept;
  bool Fork(SeqId child, SeqId parent, std::uint32_t num_tokens,
            std::uint32_t reserve_tokens) noexcept;
  bool Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  bool Extend(SeqId seq, std::uint32_t num_tokens) noexcept;
  void Truncate(SeqId seq, std::uint32_t num_tokens) noexcept;
  void Trim(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept;
  void Release(SeqId seq) noexcept;
  void Publish(SeqId seq, std::span<const std::int32_t> tokens,
               std::span<const PrefixKey> keys) noexcept;
  void DropCached() noexcept;
  // Makes so many cached blocks free, the oldest first, or all there are.
  void GiveUpCached(std::uint32_t num_blocks) noexcept;

  // What the sequence has written moves to the shelf, which is empty; the sequence ends as with
  // Release. Requires: not named, not resuming.
  void Shelve(SeqId seq, SeqId shelf) noexcept;
  // Blocks of the shelf, of which the first has this number, are copied by the next step and leave.
  // Requires: settled.
  template <typename CopyFn>
  void Unload(SeqId shelf, const Extent& blocks, std::uint32_t number, CopyFn copy) noexcept;
  // Gives up what is left on the shelf.
  void ClearShelf(SeqId shelf) noexcept;
  // Opens `seq` with the length the shelf has, with blocks for all of it and credit as Open;
  // returns how many blocks from the beginning are shared, the others hold nothing yet. It is
  // resuming until Loaded: none of its blocks is settled.
  std::optional<std::uint32_t> OpenShelved(SeqId seq, SeqId shelf, const ShelvedHistory& history,
                                           std::uint32_t reserve_tokens) noexcept;
  void Loaded(SeqId seq) noexcept;

  void SetTogether(bool together) noexcept;
  // Wakes slabs for so many blocks more, the first ones that sleep. False when none does.
  bool WakeMore(std::uint32_t num_blocks) noexcept;
  // Nothing runs: all that Retired would put to sleep by and by goes at once.
  void Rest() noexcept;

  // The step under construction reads (and may write) the sequence's blocks.
  void Name(SeqId seq) noexcept;
  // Notes what the rows of the step write; `next` becomes `committed`.
  void Committed(const StepView& step) noexcept;
  // The step under construction was given up: nothing is named any more.
  void Abandoned() noexcept;
  void Retired(StepId step) noexcept;

  // Puts `target` (vacant blocks) in place of as many of the sequence's blocks from block number
  // `first_block` on, and calls copy(source, target part) for each piece of them that holds written
  // tokens. Requires: settled, not named, within num_spare(). The sequence is named afterwards.
  template <typename CopyFn>
  void Remap(SeqId seq, std::uint32_t first_block, const Extent& target, CopyFn copy) noexcept;
  // Sequences that wait for a block of their own, and one of them settled: Extend marks, CopyShared
  // serves. copy(source, target) as in Remap; it is not called when nobody shares any more.
  std::uint32_t num_copy_waits() const noexcept { return num_copy_waits_; }
  bool waits_for_copy(SeqId seq) const noexcept { return Of(seq).waits_for_copy; }
  bool CanCopyShared(SeqId seq) const noexcept;
  template <typename CopyFn>
  void CopyShared(SeqId seq, CopyFn copy) noexcept;
  // Marks the blocks as under a planned copy, or no longer so; blocks beyond the pool are ignored.
  void SetPlanned(const Extent& blocks, bool planned) noexcept;

  bool is_open(SeqId seq) const noexcept { return Of(seq).open; }
  bool is_named(SeqId seq) const noexcept { return Of(seq).named_in == build_; }
  std::span<const Extent> runs(SeqId seq) const noexcept {
    return {&runs_[std::size_t{Index(seq)} * options_.max_blocks_per_seq], num_runs_[Index(seq)]};
  }
  // Runs, from the first, that hold the tokens up to the sequence's target.
  std::span<const Extent> target_runs(SeqId seq) const noexcept;
  // Calls fn(blocks, number of the first) for each piece of the sequence's blocks [begin, end),
  // holes left out.
  template <typename Fn>
  void ForEachPiece(SeqId seq, std::uint32_t begin, std::uint32_t end, Fn fn) const noexcept;
  std::uint32_t BlocksFor(std::uint32_t num_tokens) const noexcept;
  std::uint32_t num_runs(SeqId seq) const noexcept { return num_runs_[Index(seq)]; }
  // Runs, from the first, whose blocks are all settled.
  std::uint32_t num_settled_runs(SeqId seq) const noexcept;
  // Blocks the sequence is likely to write before it ends: its credit; without one, as many as it
  // has, for what has grown long is likely to go on.
  std::uint32_t num_likely_blocks(SeqId seq) const noexcept {
    const Sequence& sequence = Of(seq);
    return sequence.credit() > 0 ? sequence.credit() : sequence.num_blocks;
  }
  std::uint32_t num_settled_blocks(SeqId seq) const noexcept { return SettledBlocks(seq); }
  // Whether each has one holder: what a move frees.
  bool is_sole_holder(const Extent& blocks) const noexcept;
  // Whether nobody can write the blocks before the next retire: no step is in flight, and they wait
  // in limbo, not for a planned copy.
  bool is_still(const Extent& blocks) const noexcept;
  std::uint32_t length(SeqId seq) const noexcept { return Of(seq).length; }
  std::uint32_t target(SeqId seq) const noexcept { return Of(seq).target; }
  // The last epoch whose step named the identity's blocks, across Release and Open; and the first
  // block whose place has changed since TakeChanged.
  std::uint64_t last_epoch(SeqId seq) const noexcept { return last_epoch_[Index(seq)]; }
  std::uint32_t first_changed(SeqId seq) const noexcept { return Of(seq).first_changed; }
  void SetChanged(SeqId seq, std::uint32_t first_block) noexcept {
    Of(seq).first_changed = first_block;
  }
  StepId retired() const noexcept { return StepId{retired_}; }

  StepId next() const noexcept { return StepId{committed_ + 1}; }
  const FreeRuns& free_runs() const noexcept { return free_runs_; }
  // The blocks that Remap may take: free ones, and cached ones, which it evicts.
  const FreeRuns& vacant_runs() const noexcept { return vacant_runs_ ? *vacant_runs_ : free_runs_; }
  // Sleeping ones included.
  std::uint32_t num_free() const noexcept { return free_runs_.num_free() + slabs_.num_asleep(); }
  const Slabs& slabs() const noexcept { return slabs_; }
  // Free and cached blocks that no credit speaks for.
  std::uint32_t num_spare() const noexcept;
  std::uint32_t num_crowded() const noexcept { return num_crowded_; }
  std::uint32_t num_open() const noexcept { return num_open_; }
  std::uint32_t num_held() const noexcept { return num_held_; }
  std::uint32_t num_limbo() const noexcept { return num_limbo_; }
  std::uint32_t num_cached() const noexcept { return index_.num_idle(); }
  std::uint32_t num_shared() const noexcept { return num_shared_; }
  std::uint32_t num_credit() const noexcept { return num_credit_; }
  std::uint32_t num_soft() const noexcept { return placement_.num_soft(); }
  const Placement& placement() const noexcept { return placement_; }
  std::uint64_t num_hits() const noexcept { return num_hits_; }
  std::uint64_t num_misses() const noexcept { return num_misses_; }
  // Whether of late enough of what was asked for was cached. While it was not, cached blocks are
  // evicted for where they lie; a pool that has not turned over twice has shown nothing yet.
  bool cache_pays() const noexcept {
    return late_misses_ < 2 * std::uint64_t{options_.num_blocks} ||
           late_hits_ * kPaysShare >= late_misses_;
  }
  std::uint64_t num_evictions() const noexcept { return num_evictions_; }
  std::uint64_t num_copied_shared() const noexcept { return num_copied_shared_; }
  std::uint64_t reserved_bytes() const noexcept;
  std::uint32_t max_seqs() const noexcept { return options_.max_seqs; }
  std::uint64_t num_live_tokens() const noexcept { return num_live_tokens_; }
  BlockState state(BlockId block) const noexcept { return blocks_[Index(block)].state; }
  // How often the block has been handed out: two uses of one block differ in it (K5).
  std::uint32_t generation(BlockId block) const noexcept {
    return blocks_[Index(block)].generation;
  }
  void CheckInvariants() const;
  std::uint64_t StateHash() const;  // As in KvCache.

 private:
  static constexpr std::uint32_t kNoBlock = 0;  // The sentinel is never in limbo.
  static constexpr std::uint32_t kNoOwnBlock = ~std::uint32_t{0};
  static constexpr std::uint32_t kNumLimboLists = kMaxStepsInFlight + 1;

  struct Block {
    std::uint32_t refs = 0;
    std::uint32_t generation = 0;
    // First block of an extent in limbo: its length, and the first block of the list's next extent.
    std::uint32_t limbo_blocks = 0;
    std::uint32_t limbo_next = kNoBlock;
    std::uint64_t shared_until = 0;  // P13: epoch of the last holder that left others behind
    std::uint16_t filled = 0;        // tokens written in it, while held or published
    BlockState state = BlockState::kFree;
    std::uint8_t planned = 0;  // planned copies that name it
  };
  // What an epoch writes of a sequence: positions from `first_position` on. It counts while the
  // epoch is in flight.
  struct Write {
    std::uint64_t epoch = 0;
    std::uint32_t first_position = 0;
  };
  // One cache line: each step looks at each of its rows', and an executor has used the caches
  // since.
  struct alignas(64) Sequence {
    bool open = false;
    bool waits_for_copy = false;
    bool resuming = false;
    std::uint32_t copy_credit = 0;  // 0 or 1: for the copy of a shared block
    std::uint32_t length = 0;       // tokens written by committed steps
    std::uint32_t target = 0;       // tokens that have slots
    std::uint32_t reserved_blocks = 0;
    std::uint32_t num_blocks = 0;        // holes included
    std::uint32_t published_blocks = 0;  // Publish has looked at the blocks below this one
    std::uint32_t first_changed = 0;
    std::uint32_t own_block = kNoOwnBlock;           // P16; a number in the sequence
    std::uint32_t whole_length = ~std::uint32_t{0};  // P14; no limit before the first Trim
    std::uint64_t named_in = 0;                      // value of build_ when last named
    std::uint32_t credit() const {
      return copy_credit + (reserved_blocks > num_blocks ? reserved_blocks - num_blocks : 0);
    }
  };
  static_assert(sizeof(Sequence) == alignof(Sequence));
  struct LimboList {
    std::uint32_t first = kNoBlock;
    std::uint32_t last = kNoBlock;
  };

  Sequence& Of(SeqId seq) noexcept;
  const Sequence& Of(SeqId seq) const noexcept;
  std::uint32_t SettledBlocks(SeqId seq) const noexcept;
  Write& WriteOf(SeqId seq, std::uint64_t epoch) noexcept;
  const Write& WriteOf(SeqId seq, std::uint64_t epoch) const noexcept;
  void ForgetWrites(SeqId seq) noexcept;
  void CopyWrites(SeqId from, SeqId to) noexcept;
  std::span<Extent> AllRuns(SeqId seq) noexcept;
  void SetNumRuns(SeqId seq, std::uint32_t num_runs) noexcept;
  bool TooManyHoles(SeqId seq, std::uint32_t first, std::uint32_t end) const noexcept;
  void AppendRun(SeqId seq, const Extent& blocks) noexcept;
  // The sequence's block number `index`; the sentinel for one in a hole.
  BlockId BlockAt(SeqId seq, std::uint32_t index) const noexcept;
  bool IsShelf(SeqId seq) const noexcept { return Index(seq) >= options_.max_seqs; }
  std::uint32_t FindCached(std::span<const std::int32_t> tokens, std::span<const PrefixKey> keys,
                           std::uint32_t* num_runs, std::uint32_t* num_idle) noexcept;
  void StartFound(SeqId seq, std::uint32_t reserve_blocks, std::uint32_t num_hits,
                  std::uint32_t num_runs) noexcept;
  void StartSequence(SeqId seq, std::uint32_t reserve_blocks, std::uint32_t held_blocks) noexcept;
  bool SecureCopy(SeqId seq, std::uint32_t more_blocks) noexcept;
  bool StealCopyCredit(SeqId seq, BlockId block) noexcept;
  void ForgetCopy(Sequence& sequence) noexcept;
  void StopWaiting(Sequence& sequence) noexcept;
  void OwnInPlace(SeqId seq, BlockId block) noexcept;
  // P13, and a planned copy still to be read.
  bool IsFenced(const Block& block) const noexcept {
    const bool waits = block.shared_until > retired_ && !IsMutant(Mutant::kOwnTooEarly);
    return waits || block.planned > 0;
  }
  static constexpr std::uint32_t kMaxPopulated = 4;  // slabs that one call has memory made for
  void Wake(std::uint32_t slab, bool populate) noexcept;
  void WakeFor(std::uint32_t num_free, std::uint32_t next_block) noexcept;
  void WakeForCredit() noexcept;
  void WakeForPrompt(std::uint32_t want) noexcept;
  bool SleepOne() noexcept;
  void SleepSome() noexcept;
  void EvictBeyond() noexcept;
  void Free(const Extent& blocks) noexcept;
  void Grow(SeqId seq, std::uint32_t want) noexcept;
  void DropTail(SeqId seq, std::uint32_t keep_blocks) noexcept;
  bool CanRewrite(SeqId seq, std::uint32_t first) const noexcept;
  std::uint64_t DropEpoch(SeqId seq) const noexcept;
  void Hold(const Extent& blocks) noexcept;
  void Share(BlockId block) noexcept;
  void Drop(const Extent& blocks, std::uint64_t epoch) noexcept;
  void Bury(const Extent& blocks, std::uint64_t epoch) noexcept;
  void FreeBlocks(const Extent& blocks) noexcept;
  void Evict(std::uint32_t num_free, std::uint32_t ahead) noexcept;
  static constexpr std::uint64_t kPaysShare = 16;
  void CountFound(std::uint32_t num_hits, std::uint32_t num_misses) noexcept;
  void CountWorth(std::uint32_t num_idle, std::span<const PrefixKey> missed) noexcept;
  void EvictOne(BlockId block, bool beyond = false) noexcept;
  void EvictFrom(const Extent& blocks) noexcept;
  void Evict(std::uint32_t num_free) noexcept {
    Evict(num_free, options_.num_blocks / (cache_pays() ? 64 : 16));
  }
  void SetFilled(BlockId block, std::uint32_t filled) noexcept;
  bool AnyPlanned(const Extent& blocks) const noexcept;
  // Replaces blocks [first_block, first_block + target.num_blocks) in the list of runs.
  void Splice(SeqId seq, std::uint32_t first_block, const Extent& target) noexcept;
  void CheckSequences(std::vector<std::uint32_t>& refs) const;
  void CheckContent(SeqId seq) const;
  void CheckLimbo() const;

  const PagerOptions options_;
  FreeRuns free_runs_;
  std::optional<FreeRuns> vacant_runs_;  // with a prefix cache
  Slabs slabs_;
  Placement placement_;
  PrefixIndex index_;
  CacheWorth cache_worth_;  // where max_cached is kCachedAsHeld
  std::vector<Block> blocks_;
  std::vector<Sequence> sequences_;        // [max_seqs + max_shelves]
  std::vector<std::uint32_t> num_runs_;    // as sequences_, apart to be scanned fast
  std::vector<Write> writes_;              // [kMaxStepsInFlight][as sequences_], by epoch
  std::vector<std::uint64_t> last_epoch_;  // [max_seqs], as last_epoch()
  std::vector<Extent> runs_;               // [(max_seqs + max_shelves) * max_blocks_per_seq]
  std::vector<Extent> scratch_runs_;       // [max_blocks_per_seq + 2]
  std::array<LimboList, kNumLimboLists> limbo_ = {};  // by epoch % kNumLimboLists
  std::uint64_t committed_ = 0;
  std::uint64_t retired_ = 0;
  bool has_fence_ = false;   // a shared_until names the step under construction
  std::uint64_t build_ = 1;  // one more at each commit and each abandoned step
  std::uint32_t num_open_ = 0;
  std::uint32_t num_held_ = 0;
  std::uint32_t most_held_ = 0;
  std::uint64_t last_wake_ = 0;  // the epoch that had retired
  std::uint32_t num_limbo_ = 0;
  std::uint32_t num_shared_ = 0;
  std::uint32_t num_credit_ = 0;
  std::uint32_t num_crowded_ = 0;
  std::uint32_t num_planned_ = 0;
  std::uint32_t num_copy_waits_ = 0;
  std::uint64_t num_live_tokens_ = 0;
  std::uint64_t num_hits_ = 0;
  std::uint64_t num_misses_ = 0;
  std::uint64_t late_hits_ = 0;  // as num_hits_, halved with the below whenever that has grown
  std::uint64_t late_misses_ = 0;
  std::uint64_t num_evictions_ = 0;
  std::uint64_t num_copied_shared_ = 0;
};

template <typename Fn>
void Pager::ForEachPiece(SeqId seq, std::uint32_t begin, std::uint32_t end, Fn fn) const noexcept {
  std::uint32_t at = 0;
  for (const Extent& run : runs(seq)) {
    const std::uint32_t low = std::max(at, begin);
    const std::uint32_t high = std::min(at + run.num_blocks, end);
    if (low < high && run.start != kSentinelBlock)
      fn(Extent{BlockId{Index(run.start) + (low - at)}, high - low}, low);
    at += run.num_blocks;
    if (at >= end) return;
  }
}

template <typename CopyFn>
void Pager::Remap(SeqId seq, std::uint32_t first_block, const Extent& target,
                  CopyFn copy) noexcept {
  Sequence& sequence = Of(seq);
  const std::uint32_t end_block = first_block + target.num_blocks;
  CHECK(sequence.open && !is_named(seq));                           // P8
  CHECK(target.num_blocks > 0 && end_block <= SettledBlocks(seq));  // P8
  CHECK(target.num_blocks <= num_spare());                          // P5
  EvictFrom(target);
  Hold(target);
  std::uint32_t num_replaced = 0;
  ForEachPiece(seq, first_block, end_block, [&](const Extent& source, std::uint32_t number) {
    const Extent to = {BlockId{Index(target.start) + (number - first_block)}, source.num_blocks};
    const std::uint32_t written_end = std::min(end_block, BlocksFor(sequence.length));
    const std::uint32_t written =
        number < written_end ? std::min(number + source.num_blocks, written_end) - number : 0;
    if (written > 0) copy(Extent{source.start, written}, Extent{to.start, written});
    for (std::uint32_t i = 0; i < written; ++i) {
      const BlockId from{Index(source.start) + i};
      const std::uint32_t first_token = (number + i) * options_.block_tokens;
      SetFilled(BlockId{Index(to.start) + i},
                std::min(options_.block_tokens, sequence.length - first_token));
      // The content is in both; the name goes with the one that stays in use.
      // One that was shortened has no longer all that the name stands for (P11).
      const bool is_full = sequence.length - first_token >= options_.block_tokens;
      if (is_full && index_.IsListed(from) && blocks_[Index(from)].refs == 1)
        index_.Move(from, BlockId{Index(to.start) + i});
    }
    Drop(source, committed_ + 1);
    num_replaced += source.num_blocks;
  });
  CHECK(num_replaced == target.num_blocks);  // A hole is not moved.
  Splice(seq, first_block, target);
  sequence.own_block = kNoOwnBlock;  // P16; nothing may be written to it before the copy.
  Name(seq);
}

template <typename CopyFn>
void Pager::Unload(SeqId shelf, const Extent& blocks, std::uint32_t number, CopyFn copy) noexcept {
  CHECK(IsShelf(shelf) && BlockAt(shelf, number) == blocks.start);
  CHECK(number + blocks.num_blocks <= SettledBlocks(shelf) ||
        IsMutant(Mutant::kParkUnsettled));  // P8
  if (IsMutant(Mutant::kParkFreesEarly)) Drop(blocks, retired_);
  copy(blocks);
  if (!IsMutant(Mutant::kParkFreesEarly)) Drop(blocks, committed_ + 1);
  Splice(shelf, number, {kSentinelBlock, blocks.num_blocks});
}

template <typename CopyFn>
void Pager::CopyShared(SeqId seq, CopyFn copy) noexcept {
  Sequence& sequence = Of(seq);
  CHECK(CanCopyShared(seq));
  const std::uint32_t number = sequence.length / options_.block_tokens;
  const BlockId source = BlockAt(seq, number);
  ForgetCopy(sequence);
  if (blocks_[Index(source)].refs == 1) return OwnInPlace(seq, source);
  if (free_runs_.num_free() == 0) WakeFor(1, 0);
  if (free_runs_.num_free() == 0) Evict(1);
  const BlockId before = number > 0 ? BlockAt(seq, number - 1) : kSentinelBlock;
  const Extent target =
      placement_.Choose(free_runs_, {.seq = seq,
                                     .num_held = number,
                                     .next_block = before == kSentinelBlock ? 0 : Index(before) + 1,
                                     .want = 1,
                                     .likely = 1 + sequence.credit()});
  ++num_copied_shared_;
  Remap(seq, number, target, [&copy](const Extent& from, const Extent& to) {
    if (!IsMutant(Mutant::kCopyWithoutTokens)) copy(from, to);
  });
}

}  // namespace kvrm
