// SPDX-License-Identifier: Apache-2.0
// Whole steps of the executor on a model: decode steps of rows with histories of given lengths, and
// a prompt in chunks as the engine cuts it.
//
// The histories lie in one run of blocks each and hold made-up numbers: what a step costs does not
// depend on them. The engine, its scheduler and the sampler have no part in this.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/bench.h"
#include "bench/peak.h"
#include "model/weights.h"

namespace kvrm {

// The contexts of the rows of one step, tokens each, the own one included.
struct DecodeCase {
  std::string name;  // "1024", or "mixed"
  std::vector<std::uint32_t> contexts;
};

struct StepsBench {
  DType kv_type = DType::kF16;
  std::vector<DecodeCase> decode = {};      // a line each
  std::vector<std::uint32_t> prompts = {};  // tokens; a line each
  std::uint32_t chunk = 256;                // tokens of a prompt that one step takes
};
inline constexpr std::uint32_t kMaxStepRows = 4096;

// All pairs of rows and contexts; of `mixed`, one case whose rows have these contexts.
std::vector<DecodeCase> DecodeCases(const std::vector<std::uint32_t>& rows,
                                    const std::vector<std::uint32_t>& contexts,
                                    const std::vector<std::uint32_t>& mixed);

// Throws StartError when a context is beyond the model's.
void CheckStepsBench(const StepsBench& bench, const Model& model);

// `model` outlives the call. Throws StartError as above and when the memory cannot be had.
void RunStepsBench(const StepsBench& bench, const BenchOptions& options, const Model& model,
                   const Peaks& peaks, const BenchSink& sink);

}  // namespace kvrm
