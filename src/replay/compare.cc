// SPDX-License-Identifier: Apache-2.0
#include "replay/compare.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cstdio>

#include "base/json.h"
#include "base/result.h"
#include "engine/step_loop.h"
#include "replay/text.h"

namespace kvrm {
namespace {

constexpr double kMib = 1024.0 * 1024.0;

std::string Config(const Record& record, std::string_view name) {
  for (const auto& [key, value] : record.header.config) {
    if (key == name) return value;
  }
  return "";
}

// Bytes that no other request can use, mean over time: blocks held or cached and windows of open
// sequences; of a static view the lanes of its rows, full or not.
double BoundBytes(const Metrics& metrics, const Record& record) {
  const std::string text = Config(record, "rows");
  double rows = 0.0;
  std::from_chars(text.data(), text.data() + text.size(), rows);
  const auto view = FindKvView(Config(record, "view"));
  if (!view || !IsStaticView(*view) || rows <= 0.0) return metrics.memory.mapped_mean;
  double weights = 0.0, bound = 0.0;
  for (std::size_t i = 0; i + 1 < record.steps.size(); ++i) {
    const StepRecord& step = record.steps[i];
    const double weight = static_cast<double>(record.steps[i + 1].at_ns - step.at_ns);
    weights += weight;
    bound += weight * step.num_rows / rows * static_cast<double>(step.reserved_bytes);
  }
  return weights > 0.0 ? bound / weights : 0.0;
}

double BoundOverLive(const Metrics& metrics, const Record& record) {
  const double live = metrics.memory.live_mean;
  return live > 0.0 ? BoundBytes(metrics, record) / live : 0.0;
}

// Steps over three times the median that moved KV.
double MovedSpikes(const Metrics& metrics, const Record& record) {
  return static_cast<double>(std::ranges::count_if(record.steps, [&](const StepRecord& step) {
    return step.moved_bytes > 0 && static_cast<double>(step.ns) > 3e6 * metrics.steps.ms.p50;
  }));
}

double PerStep(double total, const Metrics& metrics) {
  return metrics.steps.count > 0 ? total / static_cast<double>(metrics.steps.count) : 0.0;
}

constexpr ComparedMeasure kMeasures[] = {
    {"output_throughput", "out tok/s",
     [](const Metrics& m, const Record&) { return m.output_throughput; }},
    {"itl_p50_ms", "ITL p50", [](const Metrics& m, const Record&) { return m.itl_ms.p50; }},
    {"itl_p99_ms", "ITL p99", [](const Metrics& m, const Record&) { return m.itl_ms.p99; }},
    {"itl_p99_over_p50", "p99/p50",
     [](const Metrics& m, const Record&) {
       return m.itl_ms.p50 > 0.0 ? m.itl_ms.p99 / m.itl_ms.p50 : 0.0;
     }},
    {"ttft_p50_ms", "TTFT p50", [](const Metrics& m, const Record&) { return m.ttft_ms.p50; }},
    {"spike_area_percent", "spikes %",
     [](const Metrics& m, const Record&) { return 100.0 * m.steps.spike_area; }},
    {"moved_spikes", "moved spikes", MovedSpikes},
    {"reserved_mib", "reserved MiB",
     [](const Metrics& m, const Record&) { return m.memory.reserved_mean / kMib; }},
    {"bound_mib", "bound MiB",
     [](const Metrics& m, const Record& r) { return BoundBytes(m, r) / kMib; }},
    {"bound_over_live", "bound/live", BoundOverLive},
    {"moved_mib_per_step", "moved MiB/step",
     [](const Metrics& m, const Record&) {
       return PerStep(static_cast<double>(m.steps.moved_bytes) / kMib, m);
     }},
    {"groups_per_step", "groups/step",
     [](const Metrics& m, const Record&) {
       return PerStep(static_cast<double>(m.steps.num_groups), m);
     }},
    {"mean_rows", "rows", [](const Metrics& m, const Record&) { return m.steps.mean_rows; }},
    {"failed", "failed",
     [](const Metrics& m, const Record&) { return static_cast<double>(m.failed); }}};

std::vector<double> Column(const ComparedConfig& config, std::size_t measure) {
  std::vector<double> values;
  for (const std::vector<double>& run : config.runs)
    values.push_back(run[measure]);
  return values;
}

const ComparedConfig* Baseline(const Comparison& comparison) {
  for (const ComparedConfig& config : comparison.configs) {
    if (!config.runs.empty()) return &config;
  }
  return nullptr;
}

// Of throughput, over the baseline's.
Estimate Ratio(const ComparedConfig& config, const ComparedConfig& baseline, std::size_t measure) {
  if (config.runs.size() != baseline.runs.size()) return {};
  return EstimateRatio(Column(config, measure), Column(baseline, measure));
}

std::string RatioText(const Estimate& ratio) {
  if (ratio.count == 0) return "-";
  return Format("%.3f [%.3f, %.3f]", ratio.mean, ratio.low, ratio.high);
}

std::string ValueText(const Estimate& value) {
  const double half = value.high - value.mean;
  return value.mean >= 1000.0 ? Format("%.0f ±%.0f", value.mean, half)
                              : Format("%.3g ±%.2g", value.mean, half);
}

json::object EstimateJson(const Estimate& estimate) {
  return {{"count", estimate.count},
          {"mean", estimate.mean},
          {"low", estimate.low},
          {"high", estimate.high}};
}

// Of every measure, over every other configuration that ran.
json::object RatiosJson(const ComparedConfig& config, const Comparison& comparison) {
  json::object ratios;
  for (const ComparedConfig& baseline : comparison.configs) {
    if (&baseline == &config || config.runs.empty() || baseline.runs.empty()) continue;
    json::object over;
    for (std::size_t i = 0; i < std::size(kMeasures); ++i)
      over[kMeasures[i].name] = EstimateJson(Ratio(config, baseline, i));
    ratios[baseline.name] = std::move(over);
  }
  return ratios;
}

json::object ConfigJson(const ComparedConfig& config, const Comparison& comparison) {
  json::object measures;
  json::array records, commands;
  if (!config.runs.empty()) {
    for (std::size_t i = 0; i < std::size(kMeasures); ++i)
      measures[kMeasures[i].name] = EstimateJson(EstimateMean(Column(config, i)));
  }
  for (const std::string& record : config.records)
    records.emplace_back(record);
  for (const std::string& command : config.commands)
    commands.emplace_back(command);
  json::array runs;
  for (const std::vector<double>& run : config.runs)
    runs.emplace_back(json::array(run.begin(), run.end()));
  return {{"name", config.name},
          {"refused", config.refused},
          {"rows", config.max_rows},
          {"pool_tokens", config.pool_tokens},
          {"measures", std::move(measures)},
          {"ratios", RatiosJson(config, comparison)},
          {"runs", std::move(runs)},
          {"records", std::move(records)},
          {"commands", std::move(commands)}};
}

// Tokens that a row's window takes beside the pool.
std::uint64_t WindowTokens(KvView view, std::uint64_t context, std::uint32_t num_layers) {
  if (view == KvView::kStagedWindows) return context;
  if (view == KvView::kStagedLayers) return (2 * context + num_layers - 1) / num_layers;
  return 0;
}

}  // namespace

std::span<const ComparedMeasure> ComparedMeasures() {
  return kMeasures;
}

std::string ChoiceName(const ComparedChoice& choice, std::span<const ComparedChoice> all) {
  std::string name = KvViewName(choice.view);
  const bool one_placement =
      std::ranges::all_of(all, [&](const auto& c) { return c.placement == all[0].placement; });
  const bool one_memory = std::ranges::all_of(
      all, [&](const auto& c) { return c.memory_tokens == all[0].memory_tokens; });
  if (!one_placement) name += std::string(" ") + PlacementPolicyName(choice.placement);
  if (!one_memory) name += " " + std::to_string(choice.memory_tokens);
  return name;
}

void SizeForMemory(const ComparedChoice& choice, std::uint32_t num_layers, EngineOptions* options) {
  const std::uint32_t block = options->block_tokens;
  const std::uint64_t context = (options->max_context + block - 1) / block * std::uint64_t{block};
  options->view = choice.view;
  options->placement = choice.placement;
  options->host_kv_bytes = 0;
  options->max_wait_ms = 0;
  // The sentinel is one block of it.
  const std::uint64_t memory =
      choice.memory_tokens / block * block - std::min<std::uint64_t>(block, choice.memory_tokens);
  std::uint64_t rows = options->max_rows;
  if (IsStaticView(choice.view)) {
    rows = std::min(rows, memory / context);
    options->kv_tokens = 0;
  } else {
    const std::uint64_t window = WindowTokens(choice.view, context, num_layers);
    if (window > 0) {
      const auto most = static_cast<std::uint64_t>(kWindowShare * static_cast<double>(memory));
      rows = std::min(rows, most / window);
    }
    options->kv_tokens = (memory - std::min(memory, rows * window)) / block * block;
    if (options->kv_tokens < context) rows = 0;
  }
  if (rows == 0)
    throw StartError("the view '" + std::string(KvViewName(choice.view)) +
                     "' has no room for one context of " + std::to_string(context) + " tokens in " +
                     std::to_string(choice.memory_tokens) + " tokens of memory");
  options->max_rows = static_cast<std::uint32_t>(rows);
}

std::string CompareText(const Comparison& comparison) {
  const ComparedConfig* baseline = Baseline(comparison);
  std::string text = comparison.workload + " on " + comparison.target +
                     ": means and 95 % intervals (Student's t)\n" + Format("%-24s", "");
  for (const ComparedMeasure& measure : kMeasures)
    text += Format(" %15s", measure.title);
  text += "  out tok/s over the first\n";
  for (const ComparedConfig& config : comparison.configs) {
    text += Format("%-24.24s", config.name.c_str());
    if (config.runs.empty()) {
      text += " not run: " + config.refused + "\n";
      continue;
    }
    for (std::size_t i = 0; i < std::size(kMeasures); ++i) {
      // One byte more: the sign takes two.
      text += Format(" %16s", ValueText(EstimateMean(Column(config, i))).c_str());
    }
    text += "  " + RatioText(Ratio(config, *baseline, 0)) + "\n";
  }
  return text;
}

std::string CompareJson(const Comparison& comparison) {
  json::array configs, measures;
  for (const ComparedConfig& config : comparison.configs)
    configs.push_back(ConfigJson(config, comparison));
  for (const ComparedMeasure& measure : kMeasures)
    measures.emplace_back(measure.name);
  return json::serialize(json::object{{"workload", comparison.workload},
                                      {"target", comparison.target},
                                      {"command", comparison.command},
                                      {"interval", "95 %, Student's t"},
                                      {"columns", std::move(measures)},
                                      {"configs", std::move(configs)}}) +
         "\n";
}

std::string CompareHtml(const Comparison& comparison) {
  const ComparedConfig* baseline = Baseline(comparison);
  std::string html = "<h2>Comparison</h2><p>" + EscapedHtml(comparison.workload) + " on " +
                     EscapedHtml(comparison.target) +
                     "; means of repetitions and intervals of 95 % (Student's t); the charts show "
                     "the first repetition.</p><div class=\"scroll\"><table><tr><th>configuration"
                     "</th><th>out tok/s over the first</th>";
  for (const ComparedMeasure& measure : kMeasures)
    html += std::string("<th>") + measure.title + "</th>";
  html += "</tr>";
  for (const ComparedConfig& config : comparison.configs) {
    html += "<tr><td>" + EscapedHtml(config.name) + "</td>";
    if (config.runs.empty()) {
      html += Format("<td colspan=\"%zu\">not run: ", std::size(kMeasures) + 1) +
              EscapedHtml(config.refused) + "</td></tr>";
      continue;
    }
    html += "<td>" + RatioText(Ratio(config, *baseline, 0)) + "</td>";
    for (std::size_t i = 0; i < std::size(kMeasures); ++i)
      html += "<td>" + ValueText(EstimateMean(Column(config, i))) + "</td>";
    html += "</tr>";
  }
  return html + "</table></div><pre>" + EscapedHtml(comparison.command) + "</pre>";
}

}  // namespace kvrm
