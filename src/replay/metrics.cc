// SPDX-License-Identifier: Apache-2.0
#include "replay/metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr double kNsPerMs = 1e6;
constexpr double kSpikeFactor = 3.0;

double Ms(std::int64_t ns) {
  return static_cast<double>(ns) / kNsPerMs;
}

// What the latencies of one request are; outputs are counted in chunks, tokens in tokens.
struct Latencies {
  double ttft_ms = 0.0;
  double e2el_ms = 0.0;
  std::optional<double> tpot_ms;
};

Latencies LatenciesOf(const RequestRecord& request) {
  Latencies latencies;
  const OutputSpan outputs = request.outputs();
  latencies.ttft_ms = Ms(outputs.first_ns);
  latencies.e2el_ms = Ms(outputs.last_ns);
  if (request.output_tokens > 1)
    latencies.tpot_ms = Ms(outputs.last_ns - outputs.first_ns) / (request.output_tokens - 1);
  return latencies;
}

bool IsGood(const Latencies& latencies, const GoodputLimits& limits) {
  return (!limits.ttft_ms || latencies.ttft_ms <= *limits.ttft_ms) &&
         (!limits.e2el_ms || latencies.e2el_ms <= *limits.e2el_ms) &&
         (!limits.tpot_ms || latencies.tpot_ms.value_or(0.0) <= *limits.tpot_ms);
}

void MeasureRequests(const Record& record, const GoodputLimits& limits, Metrics* metrics) {
  std::vector<double> ttft, tpot, itl, e2el, lag;
  std::int64_t begin_ns = std::numeric_limits<std::int64_t>::max();
  std::int64_t end_ns = 0;
  std::uint64_t num_good = 0;
  for (const RequestRecord& request : record.requests) {
    if (request.warmup) {
      ++metrics->warmup;
      continue;
    }
    begin_ns = std::min(begin_ns, request.sent_ns);
    end_ns = std::max(end_ns, request.end_ns);
    lag.push_back(Ms(request.sent_ns - request.arrival_ns));
    if (request.failed() || (request.outputs().count == 0 && request.finish != "cancelled")) {
      ++metrics->failed;
      continue;
    }
    for (std::size_t i = 1; i < request.gaps_ns.size(); ++i)
      itl.push_back(Ms(request.gaps_ns[i]));
    metrics->output_tokens += request.output_tokens;
    if (request.finish == "cancelled") {
      ++metrics->cancelled;
      continue;
    }
    ++metrics->completed;
    metrics->input_tokens += request.prompt_tokens;
    metrics->cached_tokens += request.cached_tokens;
    const Latencies latencies = LatenciesOf(request);
    ttft.push_back(latencies.ttft_ms);
    e2el.push_back(latencies.e2el_ms);
    if (latencies.tpot_ms) tpot.push_back(*latencies.tpot_ms);
    num_good += IsGood(latencies, limits) ? 1u : 0u;
  }
  metrics->ttft_ms = Distribute(std::move(ttft));
  metrics->tpot_ms = Distribute(std::move(tpot));
  metrics->itl_ms =
      record.summary ? Distribute(record.summary->itl_ns) : Distribute(std::move(itl));
  metrics->e2el_ms = Distribute(std::move(e2el));
  metrics->send_lag_ms = Distribute(std::move(lag));
  if (end_ns <= begin_ns) return;
  metrics->duration_s = static_cast<double>(end_ns - begin_ns) * 1e-9;
  metrics->request_throughput = static_cast<double>(metrics->completed) / metrics->duration_s;
  metrics->output_throughput = static_cast<double>(metrics->output_tokens) / metrics->duration_s;
  metrics->total_token_throughput =
      static_cast<double>(metrics->input_tokens + metrics->output_tokens) / metrics->duration_s;
  if (limits.any()) metrics->request_goodput = static_cast<double>(num_good) / metrics->duration_s;
}

void MeasureSteps(const Record& record, StepMetrics* metrics) {
  metrics->count = record.steps.size();
  if (record.steps.empty()) return;
  std::vector<double> ms;
  double rows = 0.0;
  for (const StepRecord& step : record.steps) {
    ms.push_back(Ms(step.ns));
    rows += step.num_rows;
    metrics->moved_bytes += step.moved_bytes;
    metrics->num_groups += step.num_groups;
    metrics->max_moved_bytes =
        std::max(metrics->max_moved_bytes, static_cast<double>(step.moved_bytes));
  }
  metrics->mean_rows = rows / static_cast<double>(ms.size());
  metrics->ms = Distribute(ms);
  double squares = 0.0, sum = 0.0, beyond = 0.0;
  for (const double each : ms) {
    squares += (each - metrics->ms.mean) * (each - metrics->ms.mean);
    sum += each;
    if (each <= kSpikeFactor * metrics->ms.p50) continue;
    ++metrics->num_spikes;
    beyond += each - metrics->ms.p50;
  }
  if (sum <= 0.0) return;
  metrics->cv = std::sqrt(squares / static_cast<double>(ms.size())) / metrics->ms.mean;
  metrics->spike_area = beyond / sum;
}

void MeasureSteps(const RecordSummary& summary, StepMetrics* metrics) {
  const LogHistogram& ns = summary.step_ns;
  metrics->count = ns.count();
  if (ns.count() == 0) return;
  double rows = 0.0;
  for (const ReplicaSummary& replica : summary.replicas) {
    rows += static_cast<double>(replica.num_rows);
    metrics->moved_bytes += replica.moved_bytes;
    metrics->num_groups += replica.num_groups;
    metrics->max_moved_bytes =
        std::max(metrics->max_moved_bytes, static_cast<double>(replica.max_moved_bytes));
  }
  const double count = static_cast<double>(ns.count());
  metrics->mean_rows = rows / count;
  metrics->ms = Distribute(ns);
  const double median_ns = metrics->ms.p50 * kNsPerMs;
  double beyond_ns = 0.0;
  for (std::uint32_t bucket = 0; bucket < ns.counts().size(); ++bucket) {
    const double middle = std::min(LogHistogram::Middle(bucket), static_cast<double>(ns.max()));
    if (middle <= kSpikeFactor * median_ns) continue;
    metrics->num_spikes += ns.counts()[bucket];
    beyond_ns += static_cast<double>(ns.counts()[bucket]) * (middle - median_ns);
  }
  if (ns.sum() <= 0.0) return;
  const double mean_ns = ns.sum() / count;
  metrics->cv = std::sqrt(std::max(ns.squares() / count - mean_ns * mean_ns, 0.0)) / mean_ns;
  metrics->spike_area = beyond_ns / ns.sum();
}

// Of steps where they are known, else of samples.
std::vector<MemoryRecord> MemoryOf(const Record& record) {
  if (record.steps.empty()) return record.memory;
  std::vector<MemoryRecord> memory;
  for (const StepRecord& step : record.steps)
    memory.push_back({.at_ns = step.at_ns + step.ns,
                      .reserved_bytes = step.reserved_bytes,
                      .mapped_bytes = step.mapped_bytes,
                      .live_bytes = step.live_bytes});
  return memory;
}

void MeasureMemory(const Record& record, MemoryMetrics* metrics) {
  const std::vector<MemoryRecord> memory = MemoryOf(record);
  metrics->num_samples = memory.size();
  for (const MemoryRecord& sample : record.memory)
    metrics->resident_max = std::max(metrics->resident_max, sample.resident_bytes);
  double weights = 0.0, reserved = 0.0, mapped = 0.0, live = 0.0;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const MemoryRecord& sample = memory[i];
    metrics->reserved_max = std::max(metrics->reserved_max, sample.reserved_bytes);
    metrics->mapped_max = std::max(metrics->mapped_max, sample.mapped_bytes);
    metrics->live_max = std::max(metrics->live_max, sample.live_bytes);
    if (i + 1 == memory.size()) break;
    const double weight = static_cast<double>(memory[i + 1].at_ns - sample.at_ns);
    weights += weight;
    reserved += weight * static_cast<double>(sample.reserved_bytes);
    mapped += weight * static_cast<double>(sample.mapped_bytes);
    live += weight * static_cast<double>(sample.live_bytes);
  }
  if (weights <= 0.0) return;
  metrics->reserved_mean = reserved / weights;
  metrics->mapped_mean = mapped / weights;
  metrics->live_mean = live / weights;
  if (live <= 0.0) return;
  metrics->reserved_over_live = reserved / live;
  metrics->mapped_over_live = mapped / live;
}

void MeasureMemory(const RecordSummary& summary, MemoryMetrics* metrics) {
  for (const ReplicaSummary& replica : summary.replicas) {
    metrics->num_samples += replica.num_steps;
    metrics->reserved_max += replica.reserved.max;
    metrics->mapped_max += replica.mapped.max;
    metrics->live_max += replica.live.max;
    const double ns = static_cast<double>(replica.last_end_ns - replica.first_end_ns);
    if (ns <= 0.0) continue;
    metrics->reserved_mean += replica.reserved.byte_ns / ns;
    metrics->mapped_mean += replica.mapped.byte_ns / ns;
    metrics->live_mean += replica.live.byte_ns / ns;
  }
  if (metrics->live_mean <= 0.0) return;
  metrics->reserved_over_live = metrics->reserved_mean / metrics->live_mean;
  metrics->mapped_over_live = metrics->mapped_mean / metrics->live_mean;
}

void MeasureReplicas(const Record& record, ReplicaMetrics* metrics) {
  metrics->count = record.header.num_replicas;
  std::vector<std::uint64_t> requests(metrics->count, 0);
  std::vector<std::uint64_t> outputs(metrics->count, 0);
  for (const RequestRecord& request : record.requests) {
    ++requests[request.replica];
    outputs[request.replica] += request.output_tokens;
  }
  metrics->min_requests = *std::ranges::min_element(requests);
  metrics->max_requests = *std::ranges::max_element(requests);
  metrics->min_output_tokens = *std::ranges::min_element(outputs);
  metrics->max_output_tokens = *std::ranges::max_element(outputs);
}

void MeasurePhases(const Record& record, std::vector<PhaseMetrics>* phases) {
  const std::vector<RecordPhase>& named = record.header.phases;
  if (named.empty()) return;
  std::vector<std::vector<double>> gaps(named.size());
  for (const RequestRecord& request : record.requests) {
    if (request.group != "victim" || request.failed()) continue;
    std::int64_t at_ns = request.sent_ns;
    for (std::size_t i = 0; i < request.gaps_ns.size(); ++i) {
      at_ns += request.gaps_ns[i];
      const auto after = std::ranges::upper_bound(named, at_ns, {}, &RecordPhase::begin_ns);
      if (i == 0 || after == named.begin()) continue;
      gaps[static_cast<std::size_t>(after - named.begin() - 1)].push_back(Ms(request.gaps_ns[i]));
    }
  }
  double quiet = 0.0;
  for (std::size_t i = 0; i < named.size(); ++i) {
    phases->push_back({.name = named[i].name, .itl = Distribute(std::move(gaps[i]))});
    if (named[i].name == "quiet") quiet = phases->back().itl.p50;
  }
  for (PhaseMetrics& phase : *phases) {
    if (quiet <= 0.0) break;
    phase.p50_ratio = phase.itl.p50 / quiet;
    phase.p99_ratio = phase.itl.p99 / quiet;
    phase.p999_ratio = phase.itl.p999 / quiet;
    phase.max_ratio = phase.itl.max / quiet;
  }
}

}  // namespace

double Percentile(std::span<const double> sorted, double share) {
  CHECK(!sorted.empty() && share >= 0.0 && share <= 1.0);
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return sorted[below] + part * (sorted[above] - sorted[below]);
}

Distribution Distribute(std::vector<double> values) {
  Distribution distribution;
  distribution.count = values.size();
  if (values.empty()) return distribution;
  double sum = 0.0;
  for (const double value : values)
    sum += value;
  std::ranges::sort(values);
  distribution.mean = sum / static_cast<double>(values.size());
  distribution.p50 = Percentile(values, 0.5);
  distribution.p90 = Percentile(values, 0.9);
  distribution.p99 = Percentile(values, 0.99);
  distribution.p999 = Percentile(values, 0.999);
  distribution.max = values.back();
  return distribution;
}

Distribution Distribute(const LogHistogram& ns) {
  if (ns.count() == 0) return {};
  return {.count = ns.count(),
          .mean = ns.sum() / static_cast<double>(ns.count()) / kNsPerMs,
          .p50 = ns.Quantile(0.5) / kNsPerMs,
          .p90 = ns.Quantile(0.9) / kNsPerMs,
          .p99 = ns.Quantile(0.99) / kNsPerMs,
          .p999 = ns.Quantile(0.999) / kNsPerMs,
          .max = static_cast<double>(ns.max()) / kNsPerMs};
}

GoodputLimits ParseGoodput(std::span<const std::string> words) {
  GoodputLimits limits;
  for (const std::string& word : words) {
    const std::size_t colon = word.find(':');
    const std::string name = word.substr(0, colon);
    const std::string text = colon == word.npos ? "" : word.substr(colon + 1);
    double ms = 0.0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ms);
    std::optional<double>* const limit = name == "ttft"   ? &limits.ttft_ms
                                         : name == "tpot" ? &limits.tpot_ms
                                         : name == "e2el" ? &limits.e2el_ms
                                                          : nullptr;
    if (limit == nullptr || error != std::errc() || end != text.data() + text.size() || ms <= 0.0)
      throw StartError("--goodput " + word + " is not ttft:MS, tpot:MS or e2el:MS");
    *limit = ms;
  }
  return limits;
}

Metrics Measure(const Record& record, const GoodputLimits& limits) {
  Metrics metrics;
  metrics.offered_rps = record.header.offered_rps;
  MeasureRequests(record, limits, &metrics);
  if (record.header.is_summary()) MeasureReplicas(record, &metrics.replicas);
  if (record.summary) {
    MeasureSteps(*record.summary, &metrics.steps);
    MeasureMemory(*record.summary, &metrics.memory);
  } else {
    MeasureSteps(record, &metrics.steps);
    MeasureMemory(record, &metrics.memory);
  }
  MeasurePhases(record, &metrics.phases);
  return metrics;
}

}  // namespace kvrm
