// SPDX-License-Identifier: Apache-2.0
#include "kv/kv_cache.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/checked_math.h"
#include "base/result.h"
#include "kv/compaction.h"
#include "kv/pager.h"
#include "kv/transport.h"

namespace kvrm {
namespace {

std::span<std::byte> ReservePool(const KvCacheOptions& options, Device& device) {
  CHECK(options.max_runs >= 2 && options.layout.block_tokens > 0);
  CHECK(options.layout.block_tokens % kTileTokens == 0 && options.layout.block_bytes() > 0);
  const auto bytes = CheckedMul(options.num_blocks, options.layout.block_bytes());
  if (!bytes) {
    throw StartError("a pool of " + std::to_string(options.num_blocks) + " blocks of " +
                     std::to_string(options.layout.block_bytes()) + " bytes does not fit 64 bits");
  }
  return device.Reserve(*bytes, "kv pool");
}

PagerOptions PagerOptionsOf(const KvCacheOptions& options) {
  return {.num_blocks = options.num_blocks,
          .block_tokens = options.layout.block_tokens,
          .max_seqs = options.max_seqs,
          .max_blocks_per_seq = options.max_blocks_per_seq,
          .crowded_runs = Compactor::TriggerFor(options.max_runs),
          .placement_seed = options.placement_seed,
          .planted_fault = options.planted_fault};
}

TransportOptions TransportOptionsOf(const KvCacheOptions& options) {
  return {.block_bytes = options.layout.block_bytes(),
          .max_groups = options.max_groups,
          .max_move_bytes_per_step = options.max_move_bytes_per_step,
          .planted_fault = options.planted_fault};
}

}  // namespace

struct KvCache::State {
  State(const KvCacheOptions& options_in, Device& device)
      : options(options_in),
        pool(ReservePool(options_in, device)),
        pager(PagerOptionsOf(options_in)),
        transport(TransportOptionsOf(options_in), pool, device, pager),
        compactor(options_in.max_runs) {}

  const KvCacheOptions options;
  const std::span<std::byte> pool;
  Pager pager;
  Transport transport;
  Compactor compactor;
  bool planned = false;  // Plan was called for the step under construction.
  std::uint64_t num_run_overflows = 0;
  std::uint32_t max_runs_seen = 0;
};

KvCache::KvCache(const KvCacheOptions& options, Device& device)
    : state_(std::make_unique<State>(options, device)) {}

KvCache::~KvCache() {
  state_->transport.Land();
}

bool KvCache::Open(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  return state_->pager.Open(seq, reserve_tokens);
}

bool KvCache::Reserve(SeqId seq, std::uint32_t reserve_tokens) noexcept {
  return state_->pager.Reserve(seq, reserve_tokens);
}

bool KvCache::Extend(SeqId seq, std::uint32_t num_tokens) noexcept {
  return state_->pager.Extend(seq, num_tokens);
}

std::span<const Extent> KvCache::Runs(SeqId seq) noexcept {
  CHECK(state_->pager.is_open(seq));
  const std::span<const Extent> runs = state_->pager.target_runs(seq);
  state_->max_runs_seen = std::max(state_->max_runs_seen, static_cast<std::uint32_t>(runs.size()));
  if (runs.size() > state_->options.max_runs) {
    ++state_->num_run_overflows;
    return {};
  }
  state_->pager.Name(seq);
  return runs;
}

void KvCache::Truncate(SeqId seq, std::uint32_t num_tokens) noexcept {
  state_->pager.Truncate(seq, num_tokens);
}

void KvCache::Release(SeqId seq) noexcept {
  state_->pager.Release(seq);
}

void KvCache::Plan(StepBuilder& builder, StepId committing) noexcept {
  CHECK(committing == state_->pager.next());  // Launch was called for every step before.
  if (state_->planned) Abandon();
  state_->planned = true;
  // Moves of an abandoned step go in as they are: their targets hold nothing yet and must not be
  // the source of another move.
  if (!state_->transport.has_planned()) state_->compactor.Plan(state_->pager, state_->transport);
  state_->transport.Flush(builder);
}

void KvCache::Abandon() noexcept {
  state_->planned = false;
  state_->pager.Abandoned();
}

void KvCache::Launch(const StepView& step) noexcept {
  state_->planned = false;
  state_->transport.Launch(step);
  state_->pager.Committed(step);
}

void KvCache::Land() noexcept {
  if (state_->options.planted_fault == KvFault::kNoLand) return;
  state_->transport.Land();
}

void KvCache::Retire(StepId step) noexcept {
  const StepId flying = state_->transport.flying();
  CHECK(flying == StepId{} || flying > step ||
        state_->options.planted_fault == KvFault::kNoLand);  // Landed before it ran.
  state_->pager.Retired(step);
}

std::uint32_t KvCache::num_available_tokens() const noexcept {
  return state_->pager.num_spare() * state_->options.layout.block_tokens;
}

KvStats KvCache::stats() const noexcept {
  const Pager& pager = state_->pager;
  const KvLayout& layout = state_->options.layout;
  return {.num_blocks = state_->options.num_blocks - 1,
          .num_free = pager.free_runs().num_free(),
          .num_held = pager.num_held(),
          .num_limbo = pager.num_limbo(),
          .num_promised = pager.free_runs().num_free() - pager.num_spare(),
          .reserved_bytes = state_->pool.size(),
          .mapped_bytes = pager.num_held() * layout.block_bytes(),
          .live_bytes = pager.num_live_tokens() * layout.token_bytes(),
          .num_moved_blocks = state_->transport.num_moved_blocks(),
          .num_groups = state_->transport.num_launched_groups(),
          .num_run_overflows = state_->num_run_overflows,
          .num_stalls = state_->compactor.num_stalls(),
          .max_runs_seen = state_->max_runs_seen};
}

std::span<std::byte> KvCache::pool() const noexcept {
  return state_->pool;
}

void KvCache::CheckInvariants() const {
  state_->pager.CheckInvariants();
  const KvStats now = stats();
  CHECK(now.live_bytes <= now.mapped_bytes && now.mapped_bytes <= now.reserved_bytes);
}

}  // namespace kvrm
