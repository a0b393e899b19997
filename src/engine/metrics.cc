// SPDX-License-Identifier: Apache-2.0
#include "engine/metrics.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace kvrm {
namespace {

// Those that dashboards for other servers of this kind are drawn for.
constexpr double kTtftBounds[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
constexpr double kItlBounds[] = {.0001, .00025, .0005, .001, .0025, .005, .01, .015, .02, .025, .03,
                                 .04,   .05,    .075,  .1,   .15,   .2,   .3,  .5,   1,   2.5,  10};
constexpr double kLongBounds[] = {.01, .05, .1, .3, .5, .8, 1,  1.5, 2,   2.5, 5,
                                  10,  15,  20, 30, 40, 50, 60, 120, 240, 480, 960};
constexpr double kTokenBounds[] = {1,   2,    4,    8,    16,   32,    64,    128,  256,
                                   512, 1024, 2048, 4096, 8192, 16384, 32768, 65536};
constexpr double kByteBounds[] = {0,       1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20,
                                  1 << 21, 1 << 22, 1 << 23, 1 << 24, 1 << 26, 1 << 28};
constexpr double kGroupBounds[] = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096};
constexpr double kRunBounds[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128};

// One writer: no read-modify-write is needed.
void Add(std::atomic<std::uint64_t>& count) noexcept {
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

std::uint64_t HistogramData::Total() const {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

double HistogramData::Quantile(double q) const {
  const double rank = q * static_cast<double>(Total());
  double seen = 0;
  for (std::size_t i = 0; i < bounds.size(); ++i) {
    seen += static_cast<double>(counts[i]);
    if (seen > 0 && seen >= rank) return bounds[i];
  }
  return Total() == 0 ? 0 : bounds.back();
}

Histogram::Histogram(std::span<const double> bounds) : bounds_(bounds) {
  CHECK(!bounds.empty() && bounds.size() <= kMaxBounds);
  CHECK(std::is_sorted(bounds.begin(), bounds.end()));
}

void Histogram::Observe(double value) noexcept {
  const auto bucket = static_cast<std::size_t>(
      std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin());
  Add(counts_[bucket]);
  sum_.store(sum_.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
}

HistogramData Histogram::Load() const {
  HistogramData data = {.bounds = bounds_, .sum = sum_.load(std::memory_order_relaxed)};
  for (std::size_t i = 0; i <= bounds_.size(); ++i)
    data.counts.push_back(counts_[i].load(std::memory_order_relaxed));
  return data;
}

EngineMetrics::EngineMetrics()
    : queue_seconds(kLongBounds),
      ttft_seconds(kTtftBounds),
      itl_seconds(kItlBounds),
      e2e_seconds(kLongBounds),
      step_seconds(kItlBounds),
      step_tokens(kTokenBounds),
      moved_bytes(kByteBounds),
      step_groups(kGroupBounds),
      runs_per_row(kRunBounds),
      prompt_tokens(kTokenBounds),
      output_tokens(kTokenBounds) {}

std::vector<NamedHistogram> EngineMetrics::Histograms() const {
  return {{"request_queue_time_seconds", "request_queue_time_seconds", queue_seconds.Load()},
          {"time_to_first_token_seconds", "time_to_first_token_seconds", ttft_seconds.Load()},
          {"inter_token_latency_seconds", "inter_token_latency_seconds", itl_seconds.Load()},
          {"e2e_request_latency_seconds", "e2e_request_latency_seconds", e2e_seconds.Load()},
          {"request_prompt_tokens", "request_prompt_tokens", prompt_tokens.Load()},
          {"request_generation_tokens", "request_generation_tokens", output_tokens.Load()},
          {"step_tokens", "iteration_tokens_total", step_tokens.Load()},
          {"step_seconds", "", step_seconds.Load()},
          {"step_stage_bytes", "", moved_bytes.Load()},
          {"step_transfer_groups", "", step_groups.Load()},
          {"row_runs", "", runs_per_row.Load()}};
}

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      return "abort";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNothingAllowed:
      return "nothing_allowed";
    case FinishReason::kTimeout:
      return "timeout";
    case FinishReason::kWaited:
      return "queue_timeout";
  }
  return "";
}

}  // namespace kvrm
