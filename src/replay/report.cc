// SPDX-License-Identifier: Apache-2.0
#include "replay/report.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cstdio>

#include "base/json.h"
#include "replay/text.h"

namespace kvrm {
namespace {

std::string CountLine(const char* name, std::uint64_t value) {
  return Format("  %-34s %12llu\n", name, static_cast<unsigned long long>(value));
}

std::string ValueLine(const char* name, double value) {
  return Format("  %-34s %12.2f\n", name, value);
}

std::string DistributionLine(const char* name, const Distribution& d) {
  if (d.count == 0) return "";
  return Format("  %-12s %10.2f %10.2f %10.2f %10.2f %10.2f %10.2f\n", name, d.mean, d.p50, d.p90,
                d.p99, d.p999, d.max);
}

double Mib(double bytes) {
  return bytes / (1024.0 * 1024.0);
}

std::string StepsText(const StepMetrics& steps) {
  if (steps.count == 0) return "";
  return "  Steps\n" + CountLine("steps", steps.count) + ValueLine("rows, mean", steps.mean_rows) +
         Format("  %-34s %12.3f\n", "step time CV", steps.cv) +
         CountLine("spikes (> 3x median)", steps.num_spikes) +
         Format("  %-34s %11.3f%%\n", "spike area", 100.0 * steps.spike_area) +
         ValueLine("moved (MiB)", Mib(static_cast<double>(steps.moved_bytes))) +
         ValueLine("moved in one step, most (MiB)", Mib(steps.max_moved_bytes)) +
         CountLine("transfer groups", steps.num_groups);
}

std::string MemoryText(const MemoryMetrics& memory) {
  if (memory.num_samples == 0) return "";
  std::string text = "  KV memory (MiB)                        mean         peak\n";
  const auto line = [&text](const char* name, double mean, std::uint64_t peak) {
    text += Format("  %-30s %12.2f %12.2f\n", name, Mib(mean), Mib(static_cast<double>(peak)));
  };
  line("reserved", memory.reserved_mean, memory.reserved_max);
  line("mapped", memory.mapped_mean, memory.mapped_max);
  line("live", memory.live_mean, memory.live_max);
  text += Format("  %-30s %12.3f\n  %-30s %12.3f\n", "reserved / live", memory.reserved_over_live,
                 "mapped / live", memory.mapped_over_live);
  if (memory.resident_max > 0)
    text += Format("  %-30s %12s %12.2f\n", "resident memory of the server", "",
                   Mib(static_cast<double>(memory.resident_max)));
  return text;
}

std::string ReplicasText(const ReplicaMetrics& replicas) {
  if (replicas.count < 2) return "";
  const auto line = [](const char* name, std::uint64_t least, std::uint64_t most) {
    return Format("  %-34s %12llu to %llu\n", name, static_cast<unsigned long long>(least),
                  static_cast<unsigned long long>(most));
  };
  return CountLine("Replicas", replicas.count) +
         line("requests of one", replicas.min_requests, replicas.max_requests) +
         line("generated tokens of one", replicas.min_output_tokens, replicas.max_output_tokens);
}

std::string PhasesText(std::span<const PhaseMetrics> phases) {
  if (phases.empty()) return "";
  std::string text =
      "  ITL of victims (ms)     gaps       p50       p99     p99.9       max"
      "   p50/q   p99/q p99.9/q   max/q\n";
  for (const PhaseMetrics& phase : phases) {
    text += Format("  %-18s %9llu %9.2f %9.2f %9.2f %9.2f", phase.name.c_str(),
                   static_cast<unsigned long long>(phase.itl.count), phase.itl.p50, phase.itl.p99,
                   phase.itl.p999, phase.itl.max);
    text += Format(" %7.2f %7.2f %7.2f %7.2f\n", phase.p50_ratio, phase.p99_ratio, phase.p999_ratio,
                   phase.max_ratio);
  }
  return text + "  q: the median of the quiet phase\n";
}

json::object DistributionJson(const Distribution& d) {
  return {{"count", d.count}, {"mean", d.mean},  {"p50", d.p50}, {"p90", d.p90},
          {"p99", d.p99},     {"p99.9", d.p999}, {"max", d.max}};
}

json::object StepsJson(const StepMetrics& steps) {
  return {{"count", steps.count},
          {"ms", DistributionJson(steps.ms)},
          {"cv", steps.cv},
          {"spikes", steps.num_spikes},
          {"spike_area", steps.spike_area},
          {"mean_rows", steps.mean_rows},
          {"moved_bytes", steps.moved_bytes},
          {"groups", steps.num_groups}};
}

json::object MemoryJson(const MemoryMetrics& memory) {
  return {{"samples", memory.num_samples},
          {"reserved_mean", memory.reserved_mean},
          {"mapped_mean", memory.mapped_mean},
          {"live_mean", memory.live_mean},
          {"reserved_max", memory.reserved_max},
          {"mapped_max", memory.mapped_max},
          {"live_max", memory.live_max},
          {"resident_max", memory.resident_max},
          {"reserved_over_live", memory.reserved_over_live},
          {"mapped_over_live", memory.mapped_over_live}};
}

json::object MetricsJson(const ReportedRecord& reported) {
  const Metrics& m = reported.metrics;
  json::array phases;
  for (const PhaseMetrics& phase : m.phases) {
    phases.push_back(json::object{{"name", phase.name},
                                  {"itl_ms", DistributionJson(phase.itl)},
                                  {"p50_ratio", phase.p50_ratio},
                                  {"p99_ratio", phase.p99_ratio},
                                  {"p99.9_ratio", phase.p999_ratio},
                                  {"max_ratio", phase.max_ratio}});
  }
  return {{"record", reported.name},
          {"target", reported.record->header.target},
          {"workload", reported.record->header.workload},
          {"complete", reported.record->complete},
          {"completed", m.completed},
          {"failed", m.failed},
          {"cancelled", m.cancelled},
          {"warmup", m.warmup},
          {"duration_s", m.duration_s},
          {"total_input_tokens", m.input_tokens},
          {"total_output_tokens", m.output_tokens},
          {"cached_tokens", m.cached_tokens},
          {"offered_rps", m.offered_rps},
          {"request_throughput", m.request_throughput},
          {"request_goodput", m.request_goodput},
          {"output_throughput", m.output_throughput},
          {"total_token_throughput", m.total_token_throughput},
          {"ttft_ms", DistributionJson(m.ttft_ms)},
          {"tpot_ms", DistributionJson(m.tpot_ms)},
          {"itl_ms", DistributionJson(m.itl_ms)},
          {"e2el_ms", DistributionJson(m.e2el_ms)},
          {"send_lag_ms", DistributionJson(m.send_lag_ms)},
          {"steps", StepsJson(m.steps)},
          {"memory", MemoryJson(m.memory)},
          {"replicas",
           {{"count", m.replicas.count},
            {"min_requests", m.replicas.min_requests},
            {"max_requests", m.replicas.max_requests},
            {"min_output_tokens", m.replicas.min_output_tokens},
            {"max_output_tokens", m.replicas.max_output_tokens}}},
          {"phases", std::move(phases)}};
}

// The first failures, each kind once.
std::string FailuresText(const Record& record) {
  std::vector<std::string> kinds;
  for (const RequestRecord& request : record.requests) {
    if (!request.failed() || kinds.size() == 5) continue;
    if (std::ranges::find(kinds, request.error) == kinds.end()) kinds.push_back(request.error);
  }
  std::string text;
  for (const std::string& kind : kinds)
    text += "  failed: " + kind.substr(0, 200) + "\n";
  return text;
}

}  // namespace

std::string ReportText(const ReportedRecord& reported) {
  const Metrics& m = reported.metrics;
  const RecordHeader& header = reported.record->header;
  std::string text = reported.name + ": " + header.workload + " on " + header.target + ", " +
                     header.clock + " time, seed " + std::to_string(header.seed) + "\n";
  if (!reported.record->complete) text += "  the record was cut short: it has no end\n";
  text += CountLine("Successful requests", m.completed) + CountLine("Failed requests", m.failed);
  if (m.cancelled > 0) text += CountLine("Cancelled by the replay", m.cancelled);
  if (m.warmup > 0) text += CountLine("Warm-up requests, not counted", m.warmup);
  text += FailuresText(*reported.record);
  text += ValueLine("Benchmark duration (s)", m.duration_s) +
          CountLine("Total input tokens", m.input_tokens) +
          CountLine("  of these cached", m.cached_tokens) +
          CountLine("Total generated tokens", m.output_tokens);
  if (m.offered_rps > 0.0) text += ValueLine("Offered load (req/s)", m.offered_rps);
  text += ValueLine("Request throughput (req/s)", m.request_throughput);
  if (m.request_goodput > 0.0) text += ValueLine("Request goodput (req/s)", m.request_goodput);
  text += ValueLine("Output token throughput (tok/s)", m.output_throughput) +
          ValueLine("Total token throughput (tok/s)", m.total_token_throughput) +
          "  ms                 mean        p50        p90        p99      p99.9        max\n" +
          DistributionLine("TTFT", m.ttft_ms) + DistributionLine("TPOT", m.tpot_ms) +
          DistributionLine("ITL", m.itl_ms) + DistributionLine("E2EL", m.e2el_ms) +
          DistributionLine("step time", m.steps.ms) + DistributionLine("send lag", m.send_lag_ms) +
          ReplicasText(m.replicas) + StepsText(m.steps) + MemoryText(m.memory) +
          PhasesText(m.phases);
  return text;
}

std::string ReportTable(std::span<const ReportedRecord> reported) {
  std::string text =
      Format("%-24s %9s %9s %9s %9s %9s %9s %8s %9s %9s\n", "record", "req/s", "out tok/s",
             "TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "step CV", "spikes %", "res/live");
  for (const ReportedRecord& each : reported) {
    const Metrics& m = each.metrics;
    text += Format("%-24.24s %9.2f %9.1f %9.1f %9.1f", each.name.c_str(), m.request_throughput,
                   m.output_throughput, m.ttft_ms.p50, m.ttft_ms.p99);
    text += Format(" %9.2f %9.2f %8.3f %9.3f %9.2f\n", m.itl_ms.p50, m.itl_ms.p99, m.steps.cv,
                   100.0 * m.steps.spike_area, m.memory.reserved_over_live);
  }
  return text;
}

std::string ReportJson(std::span<const ReportedRecord> reported) {
  json::array all;
  for (const ReportedRecord& each : reported)
    all.push_back(MetricsJson(each));
  return json::serialize(all) + "\n";
}

}  // namespace kvrm
