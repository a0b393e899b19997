// SPDX-License-Identifier: Apache-2.0
// Metrics of a record, with the names and the definitions of `vllm bench serve`:
//
//   TTFT   first output - sent
//   E2EL   last output - sent
//   TPOT   (E2EL - TTFT) / (output tokens - 1), of requests with at least two
//   ITL    all gaps between outputs that follow one another, of all requests together
//
// and percentiles as numpy's default: linear between the two nearest. Requests that failed, that
// were cancelled or that belong to the warm-up have no part in latencies; what a cancelled one
// produced counts in ITL and in the throughput of tokens, as its tokens took part in the load.
//
//   step time   CV = standard deviation / mean; a spike is a step of more than 3 times the median;
//               spike area is the time of spikes beyond the median, as a share of all step time
//   memory      time-weighted means of the samples, from the first to the last; a step's is as of
//               its end
//
// Of a summarised record the percentiles of ITL and of step times, spikes and spike area are those
// of its histograms, all else is exact; memory is summed over the replicas, of which each has means
// and peaks of its own.
//
// tools/metrics_check.py computes the same on its own. Threading: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "replay/record.h"

namespace kvrm {

// Of values in ms. count 0: all else is 0.
struct Distribution {
  std::uint64_t count = 0;
  double mean = 0.0;
  double p50 = 0.0;
  double p90 = 0.0;
  double p99 = 0.0;
  double p999 = 0.0;
  double max = 0.0;
};
Distribution Distribute(std::vector<double> values);
// Of values in ns; percentiles as LogHistogram has them.
Distribution Distribute(const LogHistogram& ns);
// Of sorted values; 0 <= share <= 1. Requires: not empty.
double Percentile(std::span<const double> sorted, double share);

// A request is good when it ended well and stays below all limits that are given.
struct GoodputLimits {
  std::optional<double> ttft_ms = {};
  std::optional<double> tpot_ms = {};
  std::optional<double> e2el_ms = {};
  bool any() const { return ttft_ms || tpot_ms || e2el_ms; }
};

// From "ttft:500", "tpot:100", "e2el:10000". Throws StartError.
GoodputLimits ParseGoodput(std::span<const std::string> words);

struct PhaseMetrics {
  std::string name;
  Distribution itl;  // of the first group, of gaps that end in this phase
  // Its percentiles over the median of the phase "quiet".
  double p50_ratio = 0.0;
  double p99_ratio = 0.0;
  double p999_ratio = 0.0;
  double max_ratio = 0.0;
};

struct MemoryMetrics {
  std::uint64_t num_samples = 0;
  double reserved_mean = 0.0;
  double mapped_mean = 0.0;
  double live_mean = 0.0;
  std::uint64_t reserved_max = 0;
  std::uint64_t mapped_max = 0;
  std::uint64_t live_max = 0;
  std::uint64_t resident_max = 0;
  // Of the means; 0: nothing lived.
  double reserved_over_live = 0.0;
  double mapped_over_live = 0.0;
};

struct StepMetrics {
  std::uint64_t count = 0;
  Distribution ms;
  double cv = 0.0;
  std::uint64_t num_spikes = 0;
  double spike_area = 0.0;
  double mean_rows = 0.0;
  std::uint64_t moved_bytes = 0;
  std::uint64_t num_groups = 0;
  double max_moved_bytes = 0.0;  // of one step
};

// How evenly the router has shared the requests, of a summarised record of several engines.
struct ReplicaMetrics {
  std::uint64_t count = 0;
  std::uint64_t min_requests = 0;
  std::uint64_t max_requests = 0;
  std::uint64_t min_output_tokens = 0;
  std::uint64_t max_output_tokens = 0;
};

struct Metrics {
  std::uint64_t completed = 0;
  std::uint64_t failed = 0;
  std::uint64_t cancelled = 0;
  std::uint64_t warmup = 0;
  double duration_s = 0.0;          // first sent to last end, of what is counted
  std::uint64_t input_tokens = 0;   // of completed requests, as the output's
  std::uint64_t output_tokens = 0;  // those of cancelled requests included
  std::uint64_t cached_tokens = 0;
  double request_throughput = 0.0;
  double output_throughput = 0.0;
  double total_token_throughput = 0.0;
  double request_goodput = 0.0;
  double offered_rps = 0.0;
  Distribution ttft_ms, tpot_ms, itl_ms, e2el_ms;
  Distribution send_lag_ms;  // sent - arrival: how late the replay itself was
  StepMetrics steps;
  MemoryMetrics memory;
  ReplicaMetrics replicas;
  std::vector<PhaseMetrics> phases;
};
Metrics Measure(const Record& record, const GoodputLimits& limits);

}  // namespace kvrm
