// SPDX-License-Identifier: Apache-2.0
// Matrix products as the executor calls them: weights packed by the table, rows prepared before,
// outputs divided among the workers in fixed shares.
//
// Each weight matrix is there several times, and the copies are taken in turn: together they are
// twice the last-level cache, so that a product finds its weights in memory, as in a model.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "bench/bench.h"
#include "bench/peak.h"
#include "exec/worker_team.h"

namespace kvrm {

struct MatShape {
  std::uint32_t outputs = 0;
  std::uint32_t inputs = 0;
};
inline constexpr std::uint32_t kMaxBenchDim = 1u << 20;
inline constexpr std::uint32_t kMaxBenchRows = 4096;

// "8192x2048,2048x8192": outputs x inputs. Throws StartError that names the flag and the limit.
std::vector<MatShape> ParseShapes(std::string_view flag, std::string_view text);
// Those of one layer of the 1.2B shape, and its output.
std::vector<MatShape> DefaultShapes();

struct MatMulBench {
  std::vector<DType> types;
  std::vector<MatShape> shapes;
  std::vector<std::uint32_t> rows;
  std::uint64_t weight_bytes = 0;  // of all copies; 0: twice the last-level cache
};

// A line for every type, shape and number of rows. Throws StartError, also for a shape whose inputs
// are no whole blocks of a type.
void RunMatMulBench(const MatMulBench& bench, const BenchOptions& options, const Peaks& peaks,
                    WorkerTeam& team, const BenchSink& sink);

}  // namespace kvrm
