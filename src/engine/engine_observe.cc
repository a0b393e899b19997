// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/engine_state.h"

namespace kvrm {
namespace {

// Ends are counted over so long before they are a rate.
constexpr std::int64_t kRateNs = 2'000'000'000;

double Seconds(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

}  // namespace

void Engine::State::CountEnd(const Sequence& sequence, FinishReason reason) noexcept {
  std::atomic<std::uint64_t>& count = metrics.num_ended[static_cast<std::size_t>(reason)];
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  ++num_ended;
  if (reason != FinishReason::kStop && reason != FinishReason::kLength) return;
  metrics.e2e_seconds.Observe(Seconds(now_ns - sequence.submitted_ns));
  metrics.prompt_tokens.Observe(sequence.num_prompt_tokens);
  metrics.output_tokens.Observe(sequence.num_output_tokens());
}

void Engine::State::ObserveStep(const StepLoad& load, std::int64_t step_ns) noexcept {
  if (scheduled.empty()) return;
  scheduler.Observe(load, step_ns, now_ns);
  metrics.step_seconds.Observe(Seconds(step_ns));
  metrics.step_tokens.Observe(load.rows + load.prompt_tokens);
}

void Engine::State::ObserveMoves(const KvStats& kv) noexcept {
  const std::uint64_t blocks = kv.num_moved_blocks + kv.num_cow_blocks;
  const std::uint64_t bytes = blocks * layout.block_bytes() + kv.num_staged_bytes;
  if (counts[kSteps] != std::exchange(num_observed_steps, counts[kSteps])) {
    metrics.moved_bytes.Observe(static_cast<double>(bytes - num_moved_bytes));
    metrics.step_groups.Observe(static_cast<double>(kv.num_groups - num_groups));
  }
  num_moved_bytes = bytes;
  num_groups = kv.num_groups;
}

void Engine::State::ObserveRate() noexcept {
  if (now_ns - rate_begin_ns < kRateNs) return;
  const double late = static_cast<double>(num_ended) / Seconds(now_ns - rate_begin_ns);
  const double before = ends_per_second.load(std::memory_order_relaxed);
  ends_per_second.store((late + before) / 2, std::memory_order_relaxed);
  rate_begin_ns = now_ns;
  num_ended = 0;
}

void Engine::State::ObserveToken(Sequence& sequence) noexcept {
  if (sequence.first_token_ns == 0) {
    sequence.first_token_ns = now_ns;
    metrics.ttft_seconds.Observe(Seconds(now_ns - sequence.submitted_ns));
    metrics.queue_seconds.Observe(Seconds(sequence.admitted_ns - sequence.submitted_ns));
    if (sequence.max_predict_ms > 0) {
      const std::int64_t end_ns = now_ns + std::int64_t{sequence.max_predict_ms} * 1'000'000;
      if (sequence.deadline_ns == 0 || end_ns < sequence.deadline_ns) sequence.deadline_ns = end_ns;
      scheduler.NoteDeadline(sequence.deadline_ns);
    }
  } else {
    metrics.itl_seconds.Observe(Seconds(now_ns - sequence.last_token_ns));
  }
  sequence.last_token_ns = now_ns;
}

void Engine::State::PublishStats() noexcept {
  const KvStats kv = loop.cache().stats();
  kv_stats.Store(kv);
  ObserveMoves(kv);
  const std::uint64_t dequeued = scheduler.num_dequeued_tokens();
  num_queued_tokens.fetch_sub(dequeued - std::exchange(num_dequeued_tokens, dequeued));
  counts[kRunning] = scheduler.num_running();
  counts[kWaiting] = scheduler.num_waiting();
  counts[kPreemptions] = scheduler.num_preemptions();
  counts[kMovedBlocks] = kv.num_moved_blocks;
  counts[kRunOverflows] = kv.num_run_overflows;
  counts[kBlocks] = kv.num_blocks;
  counts[kFreeBlocks] = kv.num_free + kv.num_cached;
  for (std::size_t i = 0; i < kNumCounters; ++i) {
    published[i].store(counts[i], std::memory_order_relaxed);
  }
}

EngineStats Engine::stats() const {
  using enum State::Counter;
  const auto get = [this](State::Counter counter) {
    return state_->published[counter].load(std::memory_order_relaxed);
  };
  return {.num_running = static_cast<std::uint32_t>(get(kRunning)),
          .num_waiting = static_cast<std::uint32_t>(get(kWaiting)),
          .num_steps = get(kSteps),
          .num_prompt_tokens = get(kPromptTokens),
          .num_output_tokens = get(kOutputTokens),
          .num_preemptions = get(kPreemptions),
          .num_recomputed_tokens = get(kRecomputed),
          .num_cached_tokens = get(kCachedTokens),
          .num_moved_blocks = get(kMovedBlocks),
          .num_run_overflows = get(kRunOverflows),
          .num_blocks = static_cast<std::uint32_t>(get(kBlocks)),
          .num_free_blocks = static_cast<std::uint32_t>(get(kFreeBlocks)),
          .step_ns = get(kStepNs),
          .num_queued_tokens = state_->num_queued_tokens.load(std::memory_order_relaxed)};
}

KvStats Engine::kv_stats() const {
  return state_->kv_stats.Load();
}

std::vector<BlockMapRun> Engine::BlockMap() const {
  constexpr std::uint64_t kNobody = ~std::uint64_t{0};
  const KvCache& cache = state_->loop.cache();
  std::vector<std::uint64_t> owners(cache.options().num_blocks, kNobody);
  for (const std::unique_ptr<Sequence>& sequence : state_->scheduler.running()) {
    for (const Extent& run : cache.home(sequence->seq)) {
      if (run.start == kSentinelBlock) continue;
      for (std::uint32_t b = Index(run.start); b < Index(run.start) + run.num_blocks; ++b) {
        if (owners[b] == kNobody) owners[b] = static_cast<std::uint64_t>(sequence->id);
      }
    }
  }
  std::vector<BlockMapRun> runs;
  for (std::uint32_t b = 1; b < owners.size(); ++b) {
    if (owners[b] == kNobody && cache.is_cached(BlockId{b})) owners[b] = kCacheOwner;
    if (owners[b] == kNobody) continue;
    if (b > 1 && owners[b] == owners[b - 1])
      ++runs.back().num_blocks;
    else
      runs.push_back({b, 1, owners[b]});
  }
  return runs;
}

std::uint32_t Engine::RetryAfterSeconds() const {
  const double rate = state_->ends_per_second.load(std::memory_order_relaxed);
  const double waiting =
      static_cast<double>(state_->published[State::kWaiting].load(std::memory_order_relaxed));
  // Nothing has ended of late: no speed is known.
  if (!(rate > 0)) return 5;
  return static_cast<std::uint32_t>(std::clamp(std::ceil(waiting / rate), 1.0, 60.0));
}

}  // namespace kvrm
