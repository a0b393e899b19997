// SPDX-License-Identifier: Apache-2.0
#include "kv/kv_cache.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/enum_names.h"
#include "base/mutant.h"
#include "base/result.h"
#include "base/rng.h"
#include "kv/compaction.h"
#include "kv/host_tier.h"
#include "kv/pager.h"
#include "kv/transport.h"
#include "kv/views.h"

namespace kvrm {
namespace {

constexpr std::array<const char*, kNumKvViews> kViewNames = {
    "extents", "paged",         "staged-layers", "staged",
    "static",  "static-padded", "static-bucket", "mapped"};
constexpr std::array<const char*, kNumKvElastic> kElasticNames = {"off", "on", "tight"};
constexpr std::array<const char*, kNumPlacementPolicies> kPolicyNames = {
    "in-place", "lifo", "fifo", "buddy", "best-fit", "soft", "regions", "scattered", "lanes"};

void CheckOptions(const KvCacheOptions& options) {
  CHECK(options.max_runs >= 2 && options.layout.block_tokens > 0);
  CHECK(options.layout.block_tokens % kTileTokens == 0 && options.layout.block_bytes() > 0);
  const std::uint64_t num_lane_blocks =
      std::uint64_t{options.max_seqs} * options.max_blocks_per_seq;
  const std::uint64_t num_ids = options.num_blocks + num_lane_blocks + 1;
  if (num_ids * options.layout.block_tokens > 0xffffffffu) {
    throw StartError("a pool of " + std::to_string(options.num_blocks) + " blocks and " +
                     std::to_string(num_lane_blocks) + " blocks of windows has more slots than " +
                     "32 bits can number");
  }
  if (Views::IsStatic(options.view) && options.num_blocks < num_lane_blocks + 1) {
    throw StartError("the view '" + std::string(KvViewName(options.view)) + "' needs " +
                     std::to_string(num_lane_blocks + 1) + " blocks, the longest context for " +
                     std::to_string(options.max_seqs) + " sequences, and has " +
                     std::to_string(options.num_blocks));
  }
}

// What the views decide and the caller need not know.
KvCacheOptions Resolved(KvCacheOptions options) {
  CheckOptions(options);
  // A window with a hole in it is three runs.
  if (Views::HasWindows(options.view) || options.view == KvView::kStagedLayers)
    options.max_runs = std::max(options.max_runs, 3u);
  if (options.view == KvView::kPaged)
    options.max_runs = std::max(options.max_runs, options.max_blocks_per_seq);
  if (Views::IsStatic(options.view)) {
    options.placement = PlacementPolicy::kLanes;
    options.prefix_cache = false;
    options.host_blocks = 0;
    options.elastic = KvElastic::kOff;
  }
  if (options.view == KvView::kMapped) options.elastic = KvElastic::kOff;
  if (options.host_blocks == 0) options.max_parked = 0;
  if (options.host_blocks > 0 && options.max_parked == 0) options.max_parked = options.max_seqs;
  return options;
}

PoolMemory ReservePool(const KvCacheOptions& options, Device& device) {
  const std::uint64_t block_bytes = options.layout.block_bytes();
  const std::uint64_t num_window_blocks =
      Views::HasWindows(options.view) ? std::uint64_t{options.max_seqs} * options.max_blocks_per_seq
                                      : 0;
  const auto pool_bytes = CheckedMul(options.num_blocks, block_bytes);
  const auto window_bytes = CheckedMul(num_window_blocks, block_bytes);
  if (!pool_bytes || !window_bytes || !CheckedAdd(*pool_bytes, *window_bytes)) {
    throw StartError("a pool of " + std::to_string(options.num_blocks) + " blocks and " +
                     std::to_string(num_window_blocks) + " blocks of windows, of " +
                     std::to_string(block_bytes) + " bytes each, does not fit 64 bits");
  }
  return device.ReservePool(*pool_bytes, *window_bytes, options.view == KvView::kMapped,
                            block_bytes);
}

std::span<std::byte> ReserveLayerBuffers(const KvCacheOptions& options, Device& device) {
  if (options.view != KvView::kStagedLayers) return {};
  const std::uint64_t num_blocks = std::uint64_t{options.max_seqs} * options.max_blocks_per_seq + 1;
  const auto bytes = CheckedMul(2 * num_blocks, options.layout.layer_bytes());
  if (!bytes) {
    throw StartError("layer buffers of " + std::to_string(num_blocks) +
                     " blocks do not fit 64 bits");
  }
  return device.Reserve(*bytes, "kv layer buffers");
}

std::span<std::byte> ReserveHost(const KvCacheOptions& options, Device& device) {
  if (options.host_blocks == 0) return {};
  const auto bytes = CheckedMul(std::uint64_t{options.host_blocks}, options.layout.block_bytes());
  if (!bytes || options.host_blocks == ~std::uint32_t{0}) {
    throw StartError("a host tier of " + std::to_string(options.host_blocks) +
                     " blocks has more bytes or blocks than can be numbered");
  }
  return device.ReserveHost(*bytes, "kv host tier");
}

PagerOptions PagerOptionsOf(const KvCacheOptions& options, std::span<std::byte> pool,
                            Device& device) {
  const bool needs_few_runs = Views::NeedsFewRuns(options.view);
  return {
      .num_blocks = options.num_blocks,
      .block_tokens = options.layout.block_tokens,
      .max_seqs = options.max_seqs,
      .max_blocks_per_seq = options.max_blocks_per_seq,
      .crowded_runs = needs_few_runs ? Compactor::TriggerFor(options.max_runs) : ~std::uint32_t{0},
      .placement = options.placement,
      .placement_seed = options.placement_seed,
      .prefix_cache = options.prefix_cache,
      // A hole between two pieces is a run as well, and nothing can move it away.
      .max_holes = (options.max_runs - 1) / 2,
      // Room for what follows the prefix; shared runs are moved only when a row is stuck.
      .max_shared_runs =
          needs_few_runs ? options.max_runs - options.max_runs / 4 - 1 : ~std::uint32_t{0},
      .max_shelves = options.max_parked,
      .slabs = {.device = options.elastic != KvElastic::kOff ? &device : nullptr,
                .pool = pool,
                .block_bytes = options.layout.block_bytes(),
                .policy = options.elastic == KvElastic::kTight ? kTightSlabs : SlabPolicy{}},
      .max_cached = options.max_cached_blocks};
}

TransportOptions TransportOptionsOf(const KvCacheOptions& options, const Device& device) {
  // Mappings need the edits, and copies are few there.
  const bool layered = device.has_deadlines() && options.view != KvView::kMapped;
  return {.block_bytes = options.layout.block_bytes(),
          .num_pool_blocks = options.num_blocks,
          .lane_blocks = options.max_blocks_per_seq,
          .max_groups = options.max_groups,
          .max_move_bytes_per_step = options.max_move_bytes_per_step,
          .num_layers = options.layout.num_layers,
          .layered_bytes = layered ? options.layered_move_bytes : ~std::uint64_t{0}};
}

}  // namespace

struct KvCache::State {
  State(const KvCacheOptions& options_in, Device& device)
      : options(Resolved(options_in)),
        memory(ReservePool(options, device)),
        layer_buffers(ReserveLayerBuffers(options, device)),
        host(ReserveHost(options, device)),
        pager(PagerOptionsOf(options, memory.pool, device)),
        transport(TransportOptionsOf(options, device), AllMemory(), host, device, pager),
        host_tier({.num_blocks = options.host_blocks,
                   .max_parked = options.max_parked,
                   .max_seqs = options.max_seqs,
                   .max_blocks_per_seq = options.max_blocks_per_seq},
                  pager),
        views(options, device),
        compactor(options.max_runs) {}

  std::span<std::byte> AllMemory() const {
    return {memory.pool.data(), memory.pool.size() + memory.windows.size()};
  }

  // Blocks of their own for rows that are about to write a shared one.
  void PlanCopies() noexcept {
    for (std::uint32_t s = 0; s < options.max_seqs && pager.num_copy_waits() > 0; ++s) {
      if (!pager.CanCopyShared(SeqId{s})) continue;
      if (transport.num_groups_left() == 0 || transport.num_blocks_left() == 0) return;
      pager.CopyShared(SeqId{s}, [this](const Extent& source, const Extent& target) {
        transport.Add(source, target, MovePriority::kCopyOnWrite);
      });
    }
  }

  const KvCacheOptions options;
  const PoolMemory memory;
  // Without a budget nothing would ever leave the pool.
  bool HasHostTier() const noexcept {
    return options.host_blocks > 0 && transport.max_blocks() > 0;
  }
  void AddHostStats(KvStats* stats) const noexcept {
    stats->num_host_blocks = options.host_blocks;
    stats->num_host_free = host_tier.num_free();
    stats->num_host_held = host_tier.num_held();
    stats->num_host_limbo = host_tier.num_limbo();
    stats->num_parking = host_tier.num_parking();
    stats->num_parked = host_tier.num_parked();
    stats->num_resuming = host_tier.num_resuming();
    stats->num_leaving = host_tier.num_leaving();
    stats->host_reserved_bytes = host.size();
    stats->host_mapped_bytes = std::uint64_t{host_tier.num_held()} * options.layout.block_bytes();
    stats->host_live_bytes = host_tier.num_parked_tokens() * options.layout.token_bytes();
    stats->num_parks = host_tier.num_parks();
    stats->num_park_refusals = host_tier.num_refusals();
    stats->num_resumes = host_tier.num_resumes();
    stats->num_parked_blocks = transport.num_parked_blocks();
    stats->num_resumed_blocks = transport.num_resumed_blocks();
  }

  // In the order of MovePriority.
  void PlanMoves() noexcept {
    PlanCopies();
    views.Plan(pager, transport);
    const bool needs_few_runs = Views::NeedsFewRuns(options.view);
    const std::uint64_t num_stalls = compactor.num_stalls();
    if (needs_few_runs) compactor.PlanStuck(pager, transport);
    host_tier.PlanParks(transport);
    host_tier.PlanResumes(transport);
    if (needs_few_runs) compactor.PlanCrowded(pager, transport);
    // No hole helps a stuck row: cached blocks may lie where one would be. Its next try sees it.
    // Where some sleep, there is one.
    if (compactor.num_stalls() == num_stalls) return;
    // What is woken need not hold more than can move there in a step.
    const std::uint32_t room = std::min(options.max_blocks_per_seq, transport.max_blocks());
    if (!pager.WakeMore(std::max(1u, room))) pager.GiveUpCached(options.max_runs);
  }

  const std::span<std::byte> layer_buffers;
  const std::span<std::byte> host;
  Pager pager;
  Transport transport;
  HostTier host_tier;
  Views views;
  Compactor compactor;
  bool planned = false;  // Plan was called for the step under construction.
  std::uint64_t num_run_overflows = 0;
  std::uint64_t num_waits = 0;
  std::uint32_t max_runs_seen = 0;
};

const char* KvViewName(KvView view) {
  return kViewNames[static_cast<std::size_t>(view)];
}

std::optional<KvView> FindKvView(std::string_view name) {
  return FindByName<KvView>(kViewNames, name);
}

const char* PlacementPolicyName(PlacementPolicy policy) {
  return kPolicyNames[static_cast<std::size_t>(policy)];
}

std::optional<PlacementPolicy> FindPlacementPolicy(std::string_view name) {
  return FindByName<PlacementPolicy>(kPolicyNames, name);
}

const char* KvElasticName(KvElastic elastic) {
  return kElasticNames[static_cast<std::size_t>(elastic)];
}

std::optional<KvElastic> FindKvElastic(std::string_view name) {
  return FindByName<KvElastic>(kElasticNames, name);
}

KvCache::KvCache(const KvCacheOptions& options, Device& device)
    : state_(std::make_unique<State>(options, device)) {}

KvCache::~KvCache() {
  state_->transport.Land();
}

void KvCache::RaiseLimits(const KvCacheOptions& asked, StepLimits* limits) {
  const KvCacheOptions options = Resolved(asked);
  limits->max_runs = std::max(limits->max_runs, options.max_runs);
  limits->max_groups = std::max(limits->max_groups, options.max_groups);
  if (options.view == KvView::kStagedLayers)
    limits->max_groups += options.max_seqs * options.max_runs;
  limits->mirrored = limits->mirrored || options.view == KvView::kStagedWindows;
}

std::uint64_t KvCache::MinBlocks(KvView view, std::uint32_t max_seqs,
                                 std::uint32_t max_blocks_per_seq) {
  return 1 + std::uint64_t{max_blocks_per_seq} * (Views::IsStatic(view) ? max_seqs : 1);
}

bool KvCache::Open(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  if (!state_->pager.Open(seq, reserve_tokens)) return false;
  state_->views.Opened(seq, state_->pager);
  return true;
}

std::optional<std::uint32_t> KvCache::OpenCached(SeqId seq, std::span<const std::int32_t> tokens,
                                                 std::span<const PrefixKey> keys,
                                                 std::uint32_t reserve_tokens) noexcept {
  if (!state_->options.prefix_cache) keys = {};
  const auto found = state_->pager.OpenCached(seq, tokens, keys, reserve_tokens);
  if (found) state_->views.Opened(seq, state_->pager);
  return found;
}

bool KvCache::Fork(SeqId child, SeqId parent, std::uint32_t num_tokens,
                   std::uint32_t reserve_tokens) noexcept {
  if (Views::IsStatic(state_->options.view)) return false;
  if (!state_->pager.Fork(child, parent, num_tokens, reserve_tokens)) return false;
  state_->views.Opened(child, state_->pager);
  return true;
}

bool KvCache::Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  return state_->pager.Reserve(seq, reserve_tokens);
}

bool KvCache::Extend(SeqId seq, std::uint32_t num_tokens) noexcept {
  return state_->pager.Extend(seq, num_tokens);
}

void KvCache::Truncate(SeqId seq, std::uint32_t num_tokens) noexcept {
  state_->pager.Truncate(seq, num_tokens);
  state_->views.Truncated(seq, num_tokens);
}

void KvCache::Trim(SeqId seq, std::uint32_t from, std::uint32_t to) noexcept {
  if (!Views::IsStatic(state_->options.view)) state_->pager.Trim(seq, from, to);
}

void KvCache::Release(SeqId seq) noexcept {
  state_->host_tier.Releasing(seq);
  state_->pager.Release(seq);
}

std::optional<ParkedId> KvCache::Park(SeqId seq) noexcept {
  if (!state_->HasHostTier()) return std::nullopt;
  return state_->host_tier.Park(seq);
}

bool KvCache::CanPark(SeqId seq) const noexcept {
  return state_->HasHostTier() && state_->host_tier.CanPark(seq);
}

bool KvCache::is_parking() const noexcept {
  return state_->host_tier.is_parking();
}

bool KvCache::Resume(ParkedId parked, SeqId seq, std::span<const std::int32_t> tokens,
                     std::span<const PrefixKey> keys, std::uint32_t reserve_tokens) noexcept {
  if (!state_->options.prefix_cache) keys = {};
  if (!state_->host_tier.Resume(parked, seq, tokens, keys, reserve_tokens)) return false;
  state_->views.Opened(seq, state_->pager);
  return true;
}

void KvCache::Discard(ParkedId parked) noexcept {
  state_->host_tier.Discard(parked);
}

bool KvCache::is_parked(ParkedId parked) const noexcept {
  return state_->host_tier.is_parked(parked);
}

bool KvCache::is_resuming(SeqId seq) const noexcept {
  return state_->host_tier.is_resuming(seq);
}

void KvCache::Publish(SeqId seq, std::span<const std::int32_t> tokens,
                      std::span<const PrefixKey> keys) noexcept {
  state_->pager.Publish(seq, tokens, keys);
}

void KvCache::DropCached() noexcept {
  state_->pager.DropCached();
}

void KvCache::Rest() noexcept {
  state_->pager.Rest();
}

void KvCache::PlaceTogether(bool on) noexcept {
  state_->pager.SetTogether(on);
}

void KvCache::Plan(StepBuilder& builder, StepId committing) noexcept {
  State& state = *state_;
  CHECK(committing == state.pager.next());  // Launch was called for every step before.
  if (state.planned) Abandon();
  state.planned = true;
  // Moves of an abandoned step go in as they are: their targets hold nothing yet and must not be
  // the source of another move.
  if (!state.transport.has_planned()) state.PlanMoves();
  state.transport.Flush(builder);
}

bool KvCache::AddRow(StepBuilder& builder, StepRow row) noexcept {
  State& state = *state_;
  CHECK(state.pager.is_open(row.seq));
  const auto num_runs = static_cast<std::uint32_t>(state.pager.target_runs(row.seq).size());
  state.max_runs_seen = std::max(state.max_runs_seen, num_runs);
  const bool is_resuming =
      state.host_tier.is_resuming(row.seq) && !IsMutant(Mutant::kResumeTooEarly);  // Y5
  if (is_resuming || state.pager.waits_for_copy(row.seq) ||
      !state.views.FillRow(state.pager, builder, row)) {
    const bool overflows =
        Views::NeedsFewRuns(state.options.view) && num_runs > state.options.max_runs;
    ++(overflows ? state.num_run_overflows : state.num_waits);
    return false;
  }
  state.pager.Name(row.seq);
  builder.AddRow(row);
  return true;
}

void KvCache::Abandon() noexcept {
  state_->planned = false;
  state_->pager.Abandoned();
  state_->views.Abandoned(state_->pager);
}

void KvCache::Launch(const StepView& step) noexcept {
  state_->planned = false;
  state_->transport.Launch(step);
  state_->pager.Committed(step);
  state_->views.Committed(step);
}

void KvCache::Land(std::uint32_t deadline) noexcept {
  if (IsMutant(Mutant::kNoLand)) return;
  state_->transport.Land(deadline);
}

bool KvCache::landed() const noexcept {
  return state_->transport.flying() == StepId{};
}

void KvCache::Retire(StepId step) noexcept {
  const StepId flying = state_->transport.flying();
  CHECK(flying == StepId{} || flying > step || IsMutant(Mutant::kNoLand));  // P9
  state_->pager.Retired(step);
  state_->host_tier.Retired(step);
}

std::uint32_t KvCache::num_available_tokens() const noexcept {
  return state_->pager.num_spare() * state_->options.layout.block_tokens;
}

KvStats KvCache::stats() const noexcept {
  const Pager& pager = state_->pager;
  const Transport& transport = state_->transport;
  const KvCacheOptions& options = state_->options;
  const std::uint64_t block_bytes = options.layout.block_bytes();
  const bool is_mapped = options.view == KvView::kMapped;
  const std::uint64_t windows = state_->memory.windows.size();
  const std::uint64_t staging = (is_mapped ? 0 : windows) + state_->layer_buffers.size();
  const std::uint64_t slots = std::uint64_t{pager.num_held()} * options.layout.block_tokens;
  const std::uint64_t there = std::uint64_t{pager.num_held()} + pager.num_cached();
  KvStats stats = {
      .num_blocks = options.num_blocks - 1,
      .num_asleep = pager.slabs().num_asleep(),
      .num_free = pager.num_free(),
      .num_held = pager.num_held(),
      .num_cached = pager.num_cached(),
      .num_limbo = pager.num_limbo(),
      .num_promised = pager.num_credit(),
      .num_soft = pager.num_soft(),
      .num_shared = pager.num_shared(),
      .num_open = pager.num_open(),
      .longest_hole = pager.free_runs().Longest().num_blocks,
      .reserved_bytes = state_->memory.pool.size() + staging,
      .pool_bytes = state_->memory.pool.size(),
      .committed_bytes = pager.slabs().committed_bytes() + staging,
      .cached_bytes = pager.num_cached() * block_bytes,
      .window_bytes = staging,
      .mapped_bytes =
          there * block_bytes + (is_mapped || windows == 0
                                     ? state_->layer_buffers.size()
                                     : pager.num_open() * options.max_blocks_per_seq * block_bytes),
      .live_bytes = pager.num_live_tokens() * options.layout.token_bytes(),
      .fragmented_bytes = (slots - pager.num_live_tokens()) * options.layout.token_bytes(),
      .window_address_bytes = is_mapped ? windows : 0,
      .table_bytes = pager.reserved_bytes() + transport.reserved_bytes() +
                     state_->views.reserved_bytes() + state_->host_tier.reserved_bytes(),
      .num_moved_blocks = transport.num_moved_blocks(),
      .num_groups = transport.num_launched_groups(),
      .num_maps = state_->views.num_maps(),
      .num_staged_bytes =
          (transport.num_staged_blocks() + state_->views.num_gathered_blocks()) * block_bytes,
      .num_cow_blocks = pager.num_copied_shared(),
      .num_prefix_hits = pager.num_hits(),
      .num_prefix_misses = pager.num_misses(),
      .num_evictions = pager.num_evictions(),
      .num_run_overflows = state_->num_run_overflows,
      .num_waits = state_->num_waits,
      .num_stalls = state_->compactor.num_stalls(),
      .max_runs_seen = state_->max_runs_seen,
      .num_wakes = pager.slabs().num_wakes(),
      .num_sleeps = pager.slabs().num_sleeps()};
  state_->AddHostStats(&stats);
  return stats;
}

const KvCacheOptions& KvCache::options() const noexcept {
  return state_->options;
}

std::span<std::byte> KvCache::memory() const noexcept {
  return state_->AllMemory();
}

std::span<std::byte> KvCache::layer_buffers() const noexcept {
  return state_->layer_buffers;
}

std::span<const Extent> KvCache::home(SeqId seq) const noexcept {
  return state_->pager.runs(seq);
}

bool KvCache::is_cached(BlockId block) const noexcept {
  return state_->pager.state(block) == BlockState::kCached;
}

std::uint64_t KvCache::StateHash() const {
  return Mix64(state_->pager.StateHash()) ^ Mix64(~state_->host_tier.StateHash()) ^
         state_->views.StateHash(state_->pager);
}

void KvCache::CheckInvariants() const {
  state_->pager.CheckInvariants();
  state_->host_tier.CheckInvariants();
  const KvStats now = stats();
  CHECK(now.num_free + now.num_held + now.num_cached + now.num_limbo == now.num_blocks);
  CHECK(now.live_bytes + now.fragmented_bytes ==
        now.num_held * state_->options.layout.block_bytes());
  CHECK(now.mapped_bytes <= now.committed_bytes && now.committed_bytes <= now.reserved_bytes);
  CHECK(now.host_mapped_bytes <= now.host_reserved_bytes);
}

}  // namespace kvrm
