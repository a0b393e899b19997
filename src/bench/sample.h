// SPDX-License-Identifier: Apache-2.0
// Sampling as the engine's thread does it: logits of several rows, one row after the other, with
// the statistics that the executor's workers leave beside them timed apart.
//
// Logits are of two kinds: `zipf`, where the token of rank r has a weight of r^-1.2, as those of a
// trained model nearly do, and `normal`, of deviation 2.5, where half of the vocabulary counts.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/bench.h"

namespace kvrm {

struct SampleBench {
  std::vector<std::uint32_t> vocabs;
  std::vector<std::uint32_t> rows;
};
inline constexpr std::uint32_t kMaxBenchVocab = 1u << 20;

// A line for every vocabulary, number of rows, kind of logits and way of sampling. Throws
// StartError.
void RunSampleBench(const SampleBench& bench, const BenchOptions& options, const BenchSink& sink);

}  // namespace kvrm
