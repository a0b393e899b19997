// SPDX-License-Identifier: Apache-2.0
#include "engine/step_loop.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "base/result.h"

namespace kvrm {
namespace {

// One step is built while one runs; a third entry lets the previous one retire late.
constexpr std::uint32_t kRingEntries = 3;

std::uint32_t BlocksOf(std::uint64_t tokens, std::uint32_t block_tokens) {
  return static_cast<std::uint32_t>((tokens + block_tokens - 1) / block_tokens);
}

void CheckOptions(const StepLoopOptions& options) {
  CheckBlockTokens(options.limits.block_tokens);
  if (options.limits.max_tokens < options.limits.max_rows) {
    throw StartError("step tokens (" + std::to_string(options.limits.max_tokens) +
                     ") must be at least the number of rows (" +
                     std::to_string(options.limits.max_rows) + ")");
  }
  if (options.kv_tokens < options.max_context && !IsStaticView(options.view)) {
    throw StartError("the KV pool holds " + std::to_string(options.kv_tokens) +
                     " tokens; one sequence of the longest context needs " +
                     std::to_string(options.max_context));
  }
}

// Static views have room for every sequence's longest context or none: more would stand idle. What
// was asked for and is less, the cache refuses with the number it needs.
std::uint32_t NumBlocks(const StepLoopOptions& options) {
  const std::uint32_t block_tokens = options.limits.block_tokens;
  const std::uint64_t asked = std::uint64_t{BlocksOf(options.kv_tokens, block_tokens)} + 1;
  if (!IsStaticView(options.view)) return static_cast<std::uint32_t>(asked);
  const std::uint64_t need = KvCache::MinBlocks(options.view, options.max_seqs,
                                                BlocksOf(options.max_context, block_tokens));
  return static_cast<std::uint32_t>(options.kv_tokens == 0 ? need : std::min(asked, need));
}

KvCacheOptions CacheOptions(const EngineParts& parts, const StepLoopOptions& options) {
  CheckOptions(options);
  KvLayout layout = parts.layout;
  layout.block_tokens = options.limits.block_tokens;
  const std::uint32_t longest = BlocksOf(options.max_context, layout.block_tokens);
  return {
      .layout = layout,
      .num_blocks = NumBlocks(options),
      .max_seqs = options.max_seqs,
      .max_blocks_per_seq = longest,
      // No row needs more runs than it can have blocks.
      .max_runs = std::max(2u, std::min(options.limits.max_runs, longest)),
      .max_groups = options.limits.max_groups,
      .max_move_bytes_per_step = options.max_move_bytes_per_step,
      .layered_move_bytes = options.layered_move_bytes,
      .view = options.view,
      .placement = options.placement_seed != 0 ? PlacementPolicy::kScattered : options.placement,
      .placement_seed = options.placement_seed,
      .elastic = options.elastic,
      .max_cached_blocks = options.max_cached_blocks,
      .prefix_cache = options.prefix_cache,
      .host_blocks = options.host_blocks,
      .max_parked = options.max_parked};
}

StepLimits RaisedLimits(StepLimits limits, const KvCacheOptions& cache_options) {
  limits.max_runs = cache_options.max_runs;
  KvCache::RaiseLimits(cache_options, &limits);
  return limits;
}

StepLogHeader LogHeader(const KvCache& cache, const StepLimits& limits) {
  const KvCacheOptions& options = cache.options();
  const std::uint64_t num_blocks = cache.memory().size() / options.layout.block_bytes();
  return {.limits = limits,
          .layout = options.layout,
          .num_pool_blocks = options.num_blocks,
          .num_window_blocks = static_cast<std::uint32_t>(num_blocks - options.num_blocks),
          .num_layer_blocks = static_cast<std::uint32_t>(cache.layer_buffers().size() /
                                                         (2 * options.layout.layer_bytes())),
          .num_lanes = options.max_seqs,
          .lane_blocks = options.max_blocks_per_seq,
          .ring_entries = kRingEntries,
          .num_host_blocks = options.host_blocks,
          .max_parked = options.max_parked,
          .has_lives = true,
          .view = KvViewName(options.view),
          .placement = PlacementPolicyName(options.placement)};
}

std::unique_ptr<StepLog> OpenLog(const StepLoopOptions& loop_options, const KvCache& cache,
                                 const StepLimits& limits) {
  const std::string& path = loop_options.descriptor_log;
  if (path.empty() || loop_options.only_reserve) return nullptr;
  StepLogOptions options;
  options.on_error = [](const std::string& message) {
    Log(LogLevel::kError, "descriptor_log_ended", {{"reason", message}});
  };
  return OrThrow(StepLog::Create(path, LogHeader(cache, limits), options));
}

}  // namespace

void CheckBlockTokens(std::uint32_t block_tokens) {
  if (block_tokens == 0 || block_tokens % kTileTokens != 0 || block_tokens > 1024) {
    throw StartError("block size must be a multiple of 16 from 16 to 1024 tokens, not " +
                     std::to_string(block_tokens));
  }
}

bool IsStaticView(KvView view) {
  return view == KvView::kStatic || view == KvView::kStaticPadded ||
         view == KvView::kStaticBucketed;
}

StepLoop::StepLoop(const EngineParts& parts, const StepLoopOptions& options)
    : cache_options_(CacheOptions(parts, options)),
      limits_(RaisedLimits(options.limits, cache_options_)),
      builder_(limits_, kRingEntries),
      cache_(std::make_unique<KvCache>(cache_options_, *parts.device)),
      executor_(parts.make_executor({.limits = limits_,
                                     .layout = cache_options_.layout,
                                     .memory = cache_->memory(),
                                     .layer_buffers = cache_->layer_buffers()})),
      log_bytes_(options.descriptor_log.empty()
                     ? 0
                     : StepLog::RequiredBytes(LogHeader(*cache_, limits_), {})),
      log_(OpenLog(options, *cache_, limits_)) {}

void StepLoop::Begin() noexcept {
  CHECK(builder_.Begin());
  cache_->Plan(builder_, next_);
}

bool StepLoop::Commit() noexcept {
  if (builder_.num_rows() == 0 && builder_.num_groups() == 0) {
    builder_.Abandon();
    cache_->Abandon();
    return false;
  }
  const std::span<const Bucket> buckets = executor_->buckets();
  std::uint32_t bucket = 0;
  while (buckets[bucket].max_rows < builder_.num_rows() ||
         buckets[bucket].max_tokens < builder_.num_tokens()) {
    CHECK(++bucket < buckets.size());
  }
  const StepView step = builder_.Commit(bucket, buckets[bucket].max_rows);
  CHECK(step.header->step == next_);
  next_ = StepId{Index(next_) + 1};
  if (log_) log_->Step(step);
  cache_->Launch(step);
  // The step starts with what layer 0 needs; the rest lands while it runs.
  cache_->Land(executor_->waits_for_layers() ? 0 : kAllDeadlines);
  const bool landed = cache_->landed();
  if (log_) log_->Landed(step.header->step, landed ? kAllDeadlines : 0);
  executor_->Run(builder_.Latch());
  if (log_) log_->Latched(step.header->step);
  executor_->Wait();
  cache_->Land();
  if (log_ && !landed) log_->Landed(step.header->step, kAllDeadlines);
  if (log_) log_->Retired(step);
  cache_->Retire(builder_.Retire());
  return true;
}

}  // namespace kvrm
