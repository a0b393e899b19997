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
//   Publish, Open, OpenCached, Fork, Reserve, Trim, Truncate, Release, Park, Resume, Discard
//   Extend                       of the rows of n: a row that does not fit is left out
//   Plan(builder, n)             moves, mapping switched
//   AddRow(builder, row)         of the rows of n; not after Plan: Trim, Truncate, Park of one that
//                                the step moves or has a row of
//   builder.Commit, Launch(view) always both, also without groups: lengths advance by the view
//   Land(0)                      before the executor starts n; Land, where it does not wait for the
//                                copies of later layers itself (Device::WaitLayer)
//   Land                         before Retire(n)
// Extend may come after Plan too, but runs it adds can then only be moved together one step later.
// Release is allowed at any point. A step that is given up: Abandon, beside StepBuilder::Abandon.
//
// A block that was freed, or moved away from, is not reused before every epoch that may touch it
// has retired (K4; kv/pager.h derives which). Only blocks that no step in flight writes are moved.
// Sequences share blocks: a block with more than one holder is never written; who is about to write
// one gets a copy of its own first (copy-on-write).
//
// A sequence can be parked: what it has written moves to the host tier, a second memory of blocks,
// and comes back later, in any identity, bit for bit. The copies travel with the steps like all
// others (kv/host_tier.h), so the pool's blocks become free, and a resumed row can run, some steps
// after the call.
//
// Threading: engine thread only. Memory: everything is reserved by the constructor; no call
// allocates.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "device/device.h"
#include "step/ids.h"
#include "step/layout.h"
#include "step/prefix_key.h"
#include "step/step.h"
#include "step/step_builder.h"

namespace kvrm {

// What a row shows its executor; all of them from the same descriptor and on the same kernels.
enum class KvView : std::uint8_t {
  kExtents,         // T3: at most R runs of the pool, in place
  kPaged,           // T0: the pool, one run per block
  kStagedLayers,    // T1: each layer gathered into one of two layer buffers before it is needed
  kStagedWindows,   // T2: a window per sequence, kept up to date by mirrored writes and deltas
  kStatic,          // every sequence owns room for the longest context; attends what it has
  kStaticPadded,    // the same, and attention is computed over the longest context
  kStaticBucketed,  // the same, over the smallest bucket of context lengths that fits the step
  kMapped,          // T4: a window per sequence of virtual memory that shows the pool's blocks
};
inline constexpr int kNumKvViews = 8;
// "extents", "paged", "staged-layers", "staged", "static", "static-padded", "static-bucket",
// "mapped". Never null.
const char* KvViewName(KvView view);
std::optional<KvView> FindKvView(std::string_view name);

// Where new blocks go; kv/placement.h says how each decides.
enum class PlacementPolicy : std::uint8_t {
  kInPlace,    // behind the sequence's last block, else in the middle of the longest hole
  kLifo,       // a free list, last freed first
  kFifo,       // a free queue, first freed first
  kBuddy,      // power-of-two extents
  kBestFit,    // the smallest hole that holds what the sequence is likely to need
  kSoft,       // extents reserved ahead and stolen back under pressure
  kRegions,    // a region of the pool per class of lengths
  kScattered,  // pseudo-random single blocks, for tests that want the worst placement
  kLanes,      // one fixed range per sequence: the static views, nothing else
};
inline constexpr int kNumPlacementPolicies = 9;
// "in-place", "lifo", "fifo", "buddy", "best-fit", "soft", "regions", "scattered", "lanes".
const char* PlacementPolicyName(PlacementPolicy policy);
std::optional<PlacementPolicy> FindPlacementPolicy(std::string_view name);

// Whether the pool's memory comes as blocks are needed and goes when they are not (kv/slabs.h),
// where the device can. docs/decisions/0025 has what each costs.
enum class KvElastic : std::uint8_t {
  kOff,    // it is there for good
  kOn,     // room beside what is held, so that histories lie in few runs
  kTight,  // hardly any: less memory, more and shorter runs, and more of them moved
};
inline constexpr int kNumKvElastic = 3;
// "off", "on", "tight". Never null.
const char* KvElasticName(KvElastic elastic);
std::optional<KvElastic> FindKvElastic(std::string_view name);

inline constexpr std::uint32_t kCachedAsHeld = ~std::uint32_t{0} - 1;

struct KvCacheOptions {
  KvLayout layout;
  std::uint32_t num_blocks = 0;  // of the pool, sentinel included
  std::uint32_t max_seqs = 0;
  std::uint32_t max_blocks_per_seq = 0;
  std::uint32_t max_runs = 0;    // R, at least 2
  std::uint32_t max_groups = 0;  // edits per step: transfer groups and mappings
  std::uint64_t max_move_bytes_per_step = 0;
  // Moves of more bytes than this land layer by layer, where the device has deadlines. 1 MiB takes
  // 0.1 ms to copy.
  std::uint64_t layered_move_bytes = std::uint64_t{1} << 20;
  KvView view = KvView::kExtents;
  // docs/decisions/0013 has the figures. Static views: kLanes, whatever is asked.
  PlacementPolicy placement = PlacementPolicy::kSoft;
  std::uint64_t placement_seed = 0;     // of kScattered
  KvElastic elastic = KvElastic::kOff;  // static and mapped views: whatever is asked
  // Most blocks that are kept without a holder. kCachedAsHeld: as many as were held at once so far,
  // and fewer where nobody asks for them again (kv/cache_worth.h).
  std::uint32_t max_cached_blocks = ~std::uint32_t{0};
  bool prefix_cache = false;  // Keep published blocks without a holder until their room is needed.
  std::uint32_t host_blocks = 0;  // of the host tier; static views: 0, whatever is asked
  std::uint32_t max_parked = 0;   // histories there, those on the way included; 0: max_seqs
};

// Exact, as of now. Blocks and bytes of the pool unless said otherwise.
struct KvStats {
  std::uint32_t num_blocks = 0;  // sentinel excluded
  std::uint32_t num_asleep = 0;  // free blocks without memory
  std::uint32_t num_free = 0;    // free + held + cached + limbo == num_blocks
  std::uint32_t num_held = 0;
  std::uint32_t num_cached = 0;
  std::uint32_t num_limbo = 0;
  std::uint32_t num_promised = 0;  // free or cached blocks that credit speaks for
  std::uint32_t num_soft = 0;      // free blocks that the policy keeps for a sequence while it can
  std::uint32_t num_shared = 0;    // held blocks with more than one holder
  std::uint32_t num_open = 0;      // sequences
  std::uint32_t longest_hole = 0;  // free blocks in a row

  std::uint64_t reserved_bytes = 0;    // pool and everything below, as taken from the device
  std::uint64_t pool_bytes = 0;        // sentinel included
  std::uint64_t committed_bytes = 0;   // of reserved_bytes: what has memory
  std::uint64_t cached_bytes = 0;      // of cached blocks
  std::uint64_t window_bytes = 0;      // staging: windows or layer buffers (0: mapped)
  std::uint64_t mapped_bytes = 0;      // held and cached blocks, and windows of open sequences
  std::uint64_t live_bytes = 0;        // written tokens of open sequences, shared ones once
  std::uint64_t fragmented_bytes = 0;  // of held blocks: slots that no token has been written to
  std::uint64_t window_address_bytes = 0;  // addresses without memory of their own (mapped)
  std::uint64_t table_bytes = 0;           // host memory of the books themselves

  // The host tier: free + held + limbo == num_host_blocks.
  std::uint32_t num_host_blocks = 0;
  std::uint32_t num_host_free = 0;
  std::uint32_t num_host_held = 0;
  std::uint32_t num_host_limbo = 0;
  std::uint32_t num_parking = 0;   // histories that are being copied out
  std::uint32_t num_parked = 0;    // that lie there
  std::uint32_t num_resuming = 0;  // that are being copied back
  std::uint32_t num_leaving = 0;   // blocks of the pool that those being parked still hold
  std::uint64_t host_reserved_bytes = 0;
  std::uint64_t host_mapped_bytes = 0;  // held blocks
  std::uint64_t host_live_bytes = 0;    // of the tokens of all histories there

  // Since start.
  std::uint64_t num_moved_blocks = 0;
  std::uint64_t num_groups = 0;         // copies of whole blocks
  std::uint64_t num_maps = 0;           // mappings
  std::uint64_t num_staged_bytes = 0;   // copied into windows or layer buffers
  std::uint64_t num_cow_blocks = 0;     // copied because they were shared
  std::uint64_t num_prefix_hits = 0;    // blocks found by OpenCached
  std::uint64_t num_prefix_misses = 0;  // full blocks asked for and not found
  std::uint64_t num_evictions = 0;      // cached blocks whose room was needed
  std::uint64_t num_run_overflows = 0;  // times a row needed more than max_runs runs
  std::uint64_t num_waits = 0;  // times a row waited for a copy of its own or for its window
  std::uint64_t num_parks = 0;
  std::uint64_t num_park_refusals = 0;  // Park had no room
  std::uint64_t num_resumes = 0;
  std::uint64_t num_parked_blocks = 0;   // copied out; with those below not in num_staged_bytes
  std::uint64_t num_resumed_blocks = 0;  // copied back
  std::uint64_t num_stalls = 0;  // times a row over max_runs had budget and no hole that helps
  std::uint32_t max_runs_seen = 0;
  std::uint64_t num_wakes = 0;  // slabs that got memory, and that gave it back
  std::uint64_t num_sleeps = 0;
};

class KvCache {
 public:
  // Reserves the pool from `device`, which outlives the cache. Throws StartError when it cannot.
  // Requires: max_runs >= 2; max_groups and max_runs are at most those of the step builder.
  KvCache(const KvCacheOptions& options, Device& device);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // What a step builder beneath this cache must offer: runs a row, groups a step (the view's own
  // ones included) and whether tokens are written twice.
  static void RaiseLimits(const KvCacheOptions& options, StepLimits* limits);
  // Blocks, sentinel included, with which the view can serve one sequence of the longest context;
  // a static view has room for all of them or none.
  static std::uint64_t MinBlocks(KvView view, std::uint32_t max_seqs,
                                 std::uint32_t max_blocks_per_seq);

  // Starts an empty sequence with credit for `reserve_tokens`. False, and nothing changes, when
  // what is free or cached, less all outstanding credit, does not suffice.
  // Requires: seq < max_seqs, not open; it was not released from the step under construction.
  bool Open(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // The same, and takes over the longest published prefix of `tokens`: keys[i] names tokens
  // [i * block_tokens, (i + 1) * block_tokens), and only as many blocks as there are keys are
  // looked for. Returns how many tokens it has found, a multiple of block_tokens; nullopt as Open.
  std::optional<std::uint32_t> OpenCached(SeqId seq, std::span<const std::int32_t> tokens,
                                          std::span<const PrefixKey> keys,
                                          std::uint32_t reserve_tokens) noexcept;
  // Starts `child` with the first `num_tokens` of `parent`, sharing their blocks, and credit as
  // Open. False, and nothing changes, as Open, and always in the static views, which share nothing.
  // Requires: num_tokens <= parent's length; inside a block, the parent has not been extended
  // beyond its length; child as `seq` of Open.
  bool Fork(SeqId child, SeqId parent, std::uint32_t num_tokens,
            std::uint32_t reserve_tokens) noexcept;
  // Raises the credit; false as above.
  bool Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept;
  // Makes slots for tokens up to `num_tokens` in all. False when the pool is full beyond the
  // sequence's credit, and in the static views while a step in flight uses its place for what the
  // identity held before; nothing changes then.
  // Requires, as Open and Reserve: num_tokens <= max_blocks_per_seq * block_tokens.
  bool Extend(SeqId seq, std::uint32_t num_tokens) noexcept;
  // Drops tokens from the end. Blocks within the credit stay with the sequence as its reserve.
  // Requires: num_tokens <= target, not inside a hole, and no AddRow for the step under
  // construction.
  void Truncate(SeqId seq, std::uint32_t num_tokens) noexcept;
  // Drops the whole blocks inside positions [from, to): they are a hole in the history from now on
  // and are not attended. Positions do not change. Without effect in the static views.
  // Requires: to <= length, and no AddRow for the step under construction.
  void Trim(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept;
  // Ends the sequence. The single release entry point (R2); its blocks go to limbo, and from there
  // back or into the prefix cache.
  void Release(SeqId seq) noexcept;
  // Takes host blocks for all that the sequence has written, and ends it: the identity is as free
  // as after Release. Its blocks of the pool are copied by the steps to come and become free behind
  // them. Nullopt, and nothing changes, when there is no room, nothing was written, or the view is
  // static. One that is resuming is parked again and nothing is copied. Requires: as Truncate, but
  // a resuming one may be named by anything.
  std::optional<ParkedId> Park(SeqId seq) noexcept;
  bool CanPark(SeqId seq) const noexcept;  // whether Park would
  // Opens `seq` with what was parked, its length and target, and credit as Open. It waits (AddRow)
  // until is_resuming is false, some steps later, and until then: no Trim, Truncate, Fork of it.
  // `tokens` and `keys` as in OpenCached, of what was parked, or none: blocks that the prefix cache
  // has are shared and not copied. False, and nothing changes, as Open, and while is_parked is
  // false. Afterwards the id is gone: Release ends the sequence, Park parks it again.
  bool Resume(ParkedId parked, SeqId seq, std::span<const std::int32_t> tokens,
              std::span<const PrefixKey> keys, std::uint32_t reserve_tokens) noexcept;
  // Gives up what is parked or being parked, at any point.
  void Discard(ParkedId parked) noexcept;
  // Whether a history still has blocks of the pool to be copied out.
  bool is_parking() const noexcept;
  // Whether all copies that park it were committed.
  bool is_parked(ParkedId parked) const noexcept;
  bool is_resuming(SeqId seq) const noexcept;
  // Names the sequence's full blocks, so that others can take them over; keys and tokens as in
  // OpenCached, of all tokens so far. Only tokens of steps that have retired, and whose results
  // were good (K13). Cheap when nothing is new. Requires: the tokens were written by its rows.
  void Publish(SeqId seq, std::span<const std::int32_t> tokens,
               std::span<const PrefixKey> keys) noexcept;

  // Plans this step's moves into `builder`, within the budget, and switches the mapping of what it
  // moved: call it before AddRow of the step. `committing` is the epoch being built.
  // Without anything to move it plans nothing and costs nothing.
  void Plan(StepBuilder& builder, StepId committing) noexcept;
  // Adds the row with the runs it reads and the home of what it writes (both are filled in here);
  // its tokens end at the target or before. False, and nothing is added, when it must wait for what
  // Plan will move in later steps: too many runs (counted), or a window not yet filled.
  // From here to Launch or Abandon the sequence is part of the step: Plan will not move it.
  bool AddRow(StepBuilder& builder, StepRow row) noexcept;
  // The step under construction was given up. Groups already planned are not lost: the next Plan
  // puts them in again, so commit a step, without rows if need be, rather than wait for their
  // blocks.
  void Abandon() noexcept;
  // Right after Commit, for every step: notes what its rows write and submits its groups to the
  // device. Land waits for them, or for those with a before_layer of at most `deadline`.
  void Launch(const StepView& step) noexcept;
  void Land(std::uint32_t deadline = kAllDeadlines) noexcept;
  // Whether every copy of the steps launched so far has been waited for.
  bool landed() const noexcept;
  // Epoch `step` has retired: its limbo blocks are free again. In order, each epoch once.
  void Retire(StepId step) noexcept;
  // Nothing runs and nothing is in flight: memory beyond what the books want at least goes back.
  void Rest() noexcept;
  // Forgets every cached block. Blocks with holders stay.
  void DropCached() noexcept;

  // While on, new blocks go where one sequence alone in the pool has one run, whatever the policy:
  // the last resort for a row that no compaction brings under max_runs.
  void PlaceTogether(bool on) noexcept;

  // Tokens that Open would grant now: free and cached, less credit.
  std::uint32_t num_available_tokens() const noexcept;
  KvStats stats() const noexcept;
  const KvCacheOptions& options() const noexcept;
  // What the executor reads and writes: the pool, and behind it the windows (none: only the pool).
  std::span<std::byte> memory() const noexcept;
  // Two buffers, one behind the other, of the view kStagedLayers; empty in all others.
  std::span<std::byte> layer_buffers() const noexcept;
  // The sequence's home in token order, holes included. For logs, tests and pictures.
  std::span<const Extent> home(SeqId seq) const noexcept;
  // Whether the block is kept by the prefix cache alone. For the same.
  bool is_cached(BlockId block) const noexcept;
  // Recounts everything from scratch and aborts on a violation (kv/pager.h). Slow.
  void CheckInvariants() const;
  // Of the books, those of windows included: two caches of one hash go on alike, but for whose turn
  // of compaction it is. Epochs count from the last retired one. For exhaustive tests; slow.
  std::uint64_t StateHash() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
