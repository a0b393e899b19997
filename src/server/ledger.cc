// SPDX-License-Identifier: Apache-2.0
#include "server/ledger.h"

#include <array>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/json.h"

namespace kvrm {
namespace {

std::uint64_t BlockBytes(const KvStats& kv) {
  return kv.pool_bytes / (std::uint64_t{kv.num_blocks} + 1);
}

// Free bytes with memory that are not in the longest hole: there, and of no use to a run as long as
// the whole.
std::uint64_t ExternalFragmentation(const KvStats& kv) {
  return (std::uint64_t{kv.num_free} - kv.num_asleep - kv.longest_hole) * BlockBytes(kv);
}

// The sentinel: reserved, and for rows of padding only.
std::uint64_t PaddingBytes(const KvStats& kv) {
  return kv.pool_bytes - kv.num_blocks * BlockBytes(kv);
}

std::uint64_t ReservedBytesOf(const EngineLedger& ledger) {
  std::uint64_t sum = 0;
  for (const ReservedBytes& reserved : ledger.reserved)
    sum += reserved.bytes;
  return sum;
}

json::object TierObject(const KvStats& kv) {
  return {{"tier", "ram"},
          {"block_bytes", BlockBytes(kv)},
          {"reserved_bytes", kv.reserved_bytes},
          {"committed_bytes", kv.committed_bytes},
          {"mapped_bytes", kv.mapped_bytes},
          {"cached_bytes", kv.cached_bytes},
          {"live_bytes", kv.live_bytes},
          {"padding_bytes", PaddingBytes(kv)},
          {"internal_fragmentation_bytes", kv.fragmented_bytes},
          {"external_fragmentation_bytes", ExternalFragmentation(kv)},
          {"free_bytes", kv.num_free * BlockBytes(kv)},
          {"longest_hole_bytes", kv.longest_hole * BlockBytes(kv)},
          {"window_bytes", kv.window_bytes},
          {"window_address_bytes", kv.window_address_bytes},
          {"blocks", json::object{{"total", kv.num_blocks},
                                  {"free", kv.num_free},
                                  {"asleep", kv.num_asleep},
                                  {"held", kv.num_held},
                                  {"cached", kv.num_cached},
                                  {"limbo", kv.num_limbo},
                                  {"promised", kv.num_promised},
                                  {"soft", kv.num_soft},
                                  {"shared", kv.num_shared}}}};
}

json::object HostTierObject(const KvStats& kv) {
  const std::uint64_t block_bytes = kv.host_reserved_bytes / kv.num_host_blocks;
  return {{"tier", "host"},
          {"block_bytes", block_bytes},
          {"reserved_bytes", kv.host_reserved_bytes},
          {"mapped_bytes", kv.host_mapped_bytes},
          {"live_bytes", kv.host_live_bytes},
          {"internal_fragmentation_bytes", kv.host_mapped_bytes - kv.host_live_bytes},
          {"free_bytes", kv.num_host_free * block_bytes},
          {"blocks", json::object{{"total", kv.num_host_blocks},
                                  {"free", kv.num_host_free},
                                  {"held", kv.num_host_held},
                                  {"limbo", kv.num_host_limbo}}},
          {"parked", json::object{{"leaving", kv.num_parking},
                                  {"there", kv.num_parked},
                                  {"returning", kv.num_resuming}}}};
}

json::array Tiers(const KvStats& kv) {
  json::array tiers = {TierObject(kv)};
  if (kv.num_host_blocks > 0) tiers.push_back(HostTierObject(kv));
  return tiers;
}

json::object MovementObject(const KvStats& kv) {
  return {{"moved_blocks", kv.num_moved_blocks},
          {"groups", kv.num_groups},
          {"mappings", kv.num_maps},
          {"staged_bytes", kv.num_staged_bytes},
          {"copied_on_write_blocks", kv.num_cow_blocks},
          {"prefix_hit_blocks", kv.num_prefix_hits},
          {"prefix_missed_blocks", kv.num_prefix_misses},
          {"evicted_blocks", kv.num_evictions},
          {"run_overflows", kv.num_run_overflows},
          {"waits", kv.num_waits},
          {"parks", kv.num_parks},
          {"park_refusals", kv.num_park_refusals},
          {"resumes", kv.num_resumes},
          {"parked_blocks", kv.num_parked_blocks},
          {"resumed_blocks", kv.num_resumed_blocks},
          {"slab_wakes", kv.num_wakes},
          {"slab_sleeps", kv.num_sleeps},
          {"stalls", kv.num_stalls},
          {"most_runs", kv.max_runs_seen}};
}

std::string NumberText(double value) {
  std::array<char, 32> text = {};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() ? std::string(text.data(), end) : "0";
}

// A line for a metric, with its type before the first of its name.
class MetricLines {
 public:
  // `labels` of every line; "": none.
  explicit MetricLines(std::string prefix, std::string labels = "")
      : prefix_(std::move(prefix)), labels_(std::move(labels)) {}

  void Gauge(std::string_view name, std::uint64_t value, std::string_view labels = "") {
    Add(name, "gauge", std::to_string(value), labels);
  }
  void Share(std::string_view name, double value) { Add(name, "gauge", NumberText(value), ""); }
  void Counter(std::string_view name, std::uint64_t value, std::string_view labels = "") {
    Add(name, "counter", std::to_string(value), labels);
  }
  void Histogram(std::string_view name, const HistogramData& data) {
    Type(name, "histogram");
    const std::string bucket = std::string(name) + "_bucket";
    std::uint64_t below = 0;
    for (std::size_t i = 0; i < data.bounds.size(); ++i) {
      below += data.counts[i];
      Line(bucket, std::to_string(below), "le=\"" + NumberText(data.bounds[i]) + '"');
    }
    below += data.counts.back();
    Line(bucket, std::to_string(below), "le=\"+Inf\"");
    Line(std::string(name) + "_sum", NumberText(data.sum), "");
    Line(std::string(name) + "_count", std::to_string(below), "");
  }
  std::string text;

 private:
  void Add(std::string_view name, std::string_view type, std::string_view value,
           std::string_view labels) {
    Type(name, type);
    Line(name, value, labels);
  }
  void Type(std::string_view name, std::string_view type) {
    if (name == last_) return;
    text += "# TYPE " + prefix_ + std::string(name) + ' ' + std::string(type) + '\n';
    last_ = name;
  }
  void Line(std::string_view name, std::string_view value, std::string_view labels) {
    text += prefix_ + std::string(name);
    const char* const comma = labels_.empty() || labels.empty() ? "" : ",";
    if (!labels_.empty() || !labels.empty())
      text += '{' + labels_ + comma + std::string(labels) + '}';
    text += ' ' + std::string(value) + '\n';
  }

  const std::string prefix_;
  const std::string labels_;
  std::string last_;
};

// Of a label: what Prometheus wants escaped is.
std::string Escaped(std::string_view value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    text += c == '\n' ? std::string("\\n") : std::string(1, c);
  }
  return text;
}

void AddHostTier(const KvStats& kv, MetricLines* lines) {
  lines->Gauge("parked_requests", kv.num_parking + kv.num_parked);
  lines->Counter("parks_total", kv.num_parks);
  lines->Counter("park_refusals_total", kv.num_park_refusals);
  lines->Counter("resumes_total", kv.num_resumes);
  const std::uint64_t block_bytes = BlockBytes(kv);
  lines->Counter("transfer_bytes_total", kv.num_parked_blocks * block_bytes,
                 "src=\"ram\",dst=\"host\"");
  lines->Counter("transfer_bytes_total", kv.num_resumed_blocks * block_bytes,
                 "src=\"host\",dst=\"ram\"");
}

void AddMemory(const EngineLedger& ledger, MetricLines* lines) {
  const KvStats& kv = ledger.kv;
  const auto kv_bytes = [lines](const char* state, std::uint64_t value) {
    lines->Gauge("kv_bytes", value, "tier=\"ram\",state=\"" + std::string(state) + '"');
  };
  kv_bytes("reserved", kv.reserved_bytes);
  kv_bytes("committed", kv.committed_bytes);
  kv_bytes("mapped", kv.mapped_bytes);
  kv_bytes("cached", kv.cached_bytes);
  kv_bytes("live", kv.live_bytes);
  kv_bytes("padding", PaddingBytes(kv));
  kv_bytes("internal_fragmentation", kv.fragmented_bytes);
  kv_bytes("external_fragmentation", ExternalFragmentation(kv));
  const auto host_bytes = [lines](const char* state, std::uint64_t value) {
    lines->Gauge("kv_bytes", value, "tier=\"host\",state=\"" + std::string(state) + '"');
  };
  host_bytes("reserved", kv.host_reserved_bytes);
  host_bytes("mapped", kv.host_mapped_bytes);
  host_bytes("live", kv.host_live_bytes);
  const auto blocks = [lines](const char* state, std::uint64_t value) {
    lines->Gauge("kv_blocks", value, "tier=\"ram\",state=\"" + std::string(state) + '"');
  };
  blocks("free", kv.num_free);
  blocks("asleep", kv.num_asleep);
  blocks("held", kv.num_held);
  blocks("cached", kv.num_cached);
  blocks("limbo", kv.num_limbo);
  lines->Gauge("kv_longest_hole_blocks", kv.longest_hole);
  // Owners are names of our own, without quotes or backslashes.
  for (const ReservedBytes& reserved : ledger.reserved)
    lines->Gauge("memory_ledger_bytes", reserved.bytes, "part=\"" + reserved.owner + '"');
  if (ledger.memory_budget != 0) lines->Gauge("memory_budget_bytes", ledger.memory_budget);
}

void AddRequests(const EngineLedger& ledger, MetricLines* lines) {
  for (int i = 1; i < kNumFinishReasons; ++i) {
    const char* const name = FinishReasonName(static_cast<FinishReason>(i));
    lines->Counter("requests_total", ledger.num_ended[static_cast<std::size_t>(i)],
                   "finished_reason=\"" + std::string(name) + '"');
  }
  lines->Counter("admission_rejections_total", ledger.num_rejected_requests, "reason=\"requests\"");
  lines->Counter("admission_rejections_total", ledger.num_rejected_tokens, "reason=\"tokens\"");
}

// What dashboards for vLLM look at; only names that mean the same here.
std::string VllmText(const EngineLedger& ledger, const std::string& model_name) {
  const EngineStats& engine = ledger.engine;
  const KvStats& kv = ledger.kv;
  MetricLines lines("vllm:", "model_name=\"" + Escaped(model_name) + "\",engine=\"0\"");
  lines.Gauge("num_requests_running", engine.num_running);
  lines.Gauge("num_requests_waiting", engine.num_waiting);
  lines.Share("kv_cache_usage_perc",
              kv.num_blocks == 0 ? 0.0 : static_cast<double>(kv.num_held) / kv.num_blocks);
  lines.Counter("num_preemptions_total", engine.num_preemptions);
  lines.Counter("prompt_tokens_total", engine.num_prompt_tokens + engine.num_cached_tokens);
  lines.Counter("prompt_tokens_cached_total", engine.num_cached_tokens);
  lines.Counter("generation_tokens_total", engine.num_output_tokens);
  lines.Counter("prefix_cache_queries_total",
                (kv.num_prefix_hits + kv.num_prefix_misses) * ledger.block_tokens);
  lines.Counter("prefix_cache_hits_total", kv.num_prefix_hits * ledger.block_tokens);
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kAborted, FinishReason::kError}) {
    lines.Counter("request_success_total", ledger.num_ended[static_cast<std::size_t>(reason)],
                  "finished_reason=\"" + std::string(FinishReasonName(reason)) + '"');
  }
  lines.Counter("admission_rejections_total",
                ledger.num_rejected_requests + ledger.num_rejected_tokens, "reason=\"queue\"");
  for (const NamedHistogram& histogram : ledger.histograms) {
    if (*histogram.vllm_name != 0) lines.Histogram(histogram.vllm_name, histogram.data);
  }
  return std::move(lines.text);
}

}  // namespace

std::string LedgerBody(const EngineLedger& ledger) {
  json::array reserved;
  for (const ReservedBytes& part : ledger.reserved)
    reserved.push_back({{"owner", part.owner}, {"bytes", part.bytes}});
  json::object body = {
      {"object", "kv.ledger"},           {"view", ledger.view},
      {"placement", ledger.placement},   {"reserved_bytes", ReservedBytesOf(ledger)},
      {"memory_budget_bytes", nullptr},  {"reserved", std::move(reserved)},
      {"tiers", Tiers(ledger.kv)},       {"table_bytes", ledger.kv.table_bytes},
      {"sequences", ledger.kv.num_open}, {"movement", MovementObject(ledger.kv)}};
  if (ledger.memory_budget != 0) body["memory_budget_bytes"] = ledger.memory_budget;
  return json::serialize(body);
}

std::string MetricsText(const EngineLedger& ledger, const MetricsNames& names) {
  const EngineStats& engine = ledger.engine;
  const KvStats& kv = ledger.kv;
  MetricLines lines("kvrm:");
  lines.Gauge("num_requests_running", engine.num_running);
  lines.Gauge("num_requests_waiting", engine.num_waiting);
  lines.Gauge("num_queued_prompt_tokens", engine.num_queued_tokens);
  lines.Counter("steps_total", engine.num_steps);
  // Every graph is made before "ready"; no executor of ours has a way to make one after.
  lines.Counter("graph_captures_total", 0);
  lines.Counter("prompt_tokens_total", engine.num_prompt_tokens);
  lines.Counter("generation_tokens_total", engine.num_output_tokens);
  lines.Counter("cached_tokens_total", engine.num_cached_tokens);
  lines.Counter("recomputed_tokens_total", engine.num_recomputed_tokens);
  lines.Counter("num_preemptions_total", engine.num_preemptions);
  AddMemory(ledger, &lines);
  AddHostTier(kv, &lines);
  lines.Counter("slab_wakes_total", kv.num_wakes);
  lines.Counter("slab_sleeps_total", kv.num_sleeps);
  lines.Counter("moved_blocks_total", kv.num_moved_blocks);
  lines.Counter("transfer_groups_total", kv.num_groups);
  lines.Counter("mappings_total", kv.num_maps);
  lines.Counter("staged_bytes_total", kv.num_staged_bytes);
  lines.Counter("copied_on_write_blocks_total", kv.num_cow_blocks);
  lines.Counter("prefix_hit_blocks_total", kv.num_prefix_hits);
  lines.Counter("prefix_missed_blocks_total", kv.num_prefix_misses);
  lines.Counter("evicted_blocks_total", kv.num_evictions);
  lines.Counter("run_overflows_total", kv.num_run_overflows);
  lines.Counter("row_waits_total", kv.num_waits);
  lines.Counter("row_stalls_total", kv.num_stalls);
  AddRequests(ledger, &lines);
  for (const NamedHistogram& histogram : ledger.histograms)
    lines.Histogram(histogram.name, histogram.data);
  if (names.vllm) lines.text += VllmText(ledger, names.model_name);
  return std::move(lines.text);
}

}  // namespace kvrm
