// SPDX-License-Identifier: Apache-2.0
// Metrics: what an engine counts while it steps, for whoever asks from another thread.
//
// Where latencies are measured: at the engine's events, that is when a step's tokens have been
// sampled and before they are taken out of the queue. The way to the client comes on top.
//   queue    Submit to the first pass that plans the request
//   ttft     Submit to its first token
//   itl      one token to the next of the same request
//   e2e      Submit to its last token; only requests that ended with kStop or kLength
//
// Threading: one writer, the engine's thread (num_rejected: any thread); readers anywhere, without
// locks. A reader that meets a writer sees a sum that may lack the last value.
// Memory: none beyond its fields. Observe neither allocates nor throws.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace kvrm {

// As of one moment.
struct HistogramData {
  std::span<const double> bounds = {};     // upper ends, ascending
  std::vector<std::uint64_t> counts = {};  // [bounds + 1], the last beyond all of them
  double sum = 0;

  std::uint64_t Total() const;
  // The upper end of the bucket that holds it; 0 without values, the last bound beyond them.
  double Quantile(double q) const;
};

class Histogram {
 public:
  static constexpr std::size_t kMaxBounds = 24;

  // `bounds`, at most kMaxBounds, outlive it.
  explicit Histogram(std::span<const double> bounds);
  void Observe(double value) noexcept;
  HistogramData Load() const;

 private:
  const std::span<const double> bounds_;
  std::array<std::atomic<std::uint64_t>, kMaxBounds + 1> counts_ = {};
  std::atomic<double> sum_{0};
};

struct NamedHistogram {
  const char* name = "";       // of ours
  const char* vllm_name = "";  // "": there is none
  HistogramData data;
};

struct EngineMetrics {
  EngineMetrics();
  std::vector<NamedHistogram> Histograms() const;

  Histogram queue_seconds;
  Histogram ttft_seconds;
  Histogram itl_seconds;
  Histogram e2e_seconds;
  Histogram step_seconds;  // planning, running and sampling
  Histogram step_tokens;
  Histogram moved_bytes;    // of one step: blocks moved and copied, and bytes staged
  Histogram step_groups;    // transfer groups of one step
  Histogram runs_per_row;   // of every row of every step
  Histogram prompt_tokens;  // of requests that ended, as e2e
  Histogram output_tokens;
  std::array<std::atomic<std::uint64_t>, kNumFinishReasons> num_ended = {};  // by FinishReason
  std::atomic<std::uint64_t> num_rejected_requests{0};  // the queue had too many
  std::atomic<std::uint64_t> num_rejected_tokens{0};    // or their prompts had
};

// "stop", "length", "abort", "error", "timeout", "queue_timeout"; "" for kNone.
const char* FinishReasonName(FinishReason reason);

}  // namespace kvrm
