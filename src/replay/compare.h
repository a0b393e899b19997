// SPDX-License-Identifier: Apache-2.0
// Several configurations of one engine at equal KV memory, and what their repetitions say.
//
// Memory counts all that the KV takes from the device, in tokens: pool, windows, layer buffers. A
// static view has as many rows as longest contexts fit. A staged one pays for windows, at most
// kWindowShare of the memory, before the pool. The others have all of it as their pool. Nobody has
// a host tier, and nobody's request times out in the queue, so that all serve the same requests.
//
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "replay/estimate.h"
#include "replay/report.h"

namespace kvrm {

inline constexpr double kWindowShare = 0.75;

struct ComparedChoice {
  KvView view = KvView::kExtents;
  PlacementPolicy placement = PlacementPolicy::kSoft;
  std::uint64_t memory_tokens = 0;
};

// "extents", and where they differ between choices the placement and the memory: "extents soft
// 65536".
std::string ChoiceName(const ComparedChoice& choice, std::span<const ComparedChoice> all);

// Rows (at most options->max_rows) and pool of the choice. Requires: max_context resolved. Throws
// StartError with the numbers when not one row of the longest context fits.
void SizeForMemory(const ComparedChoice& choice, std::uint32_t num_layers, EngineOptions* options);

// One number of a run, as the tables name it.
struct ComparedMeasure {
  const char* name;  // of JSON
  const char* title;
  double (*value)(const Metrics& metrics, const Record& record);
};
std::span<const ComparedMeasure> ComparedMeasures();

struct ComparedConfig {
  std::string name;
  std::string refused = {};  // why it could not start; no runs then
  std::uint32_t max_rows = 0;
  std::uint64_t pool_tokens = 0;
  std::vector<std::string> records = {};       // files, one a repetition
  std::vector<std::string> commands = {};      // kvrm replay of the same
  std::vector<std::vector<double>> runs = {};  // [repetition][measure]
};

struct Comparison {
  std::string workload = {};
  std::string target;
  std::string command;
  std::vector<ComparedConfig> configs = {};  // the first that ran is the baseline of text and page
};

std::string CompareText(const Comparison& comparison);
// Has the ratios over every other configuration.
std::string CompareJson(const Comparison& comparison);
// A part of a page, for ReportHtml.
std::string CompareHtml(const Comparison& comparison);

}  // namespace kvrm
