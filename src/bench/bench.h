// SPDX-License-Identifier: Apache-2.0
// What every measurement of `kvrm bench` shares: options, output, and the least time of several.
//
// Times are the least of several short repetitions: a neighbour on the machine only ever adds.
// Threading: one thread; what is measured brings workers of its own (exec/worker_team.h).
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "kernels/cpu_kernels.h"
#include "step/dtype.h"

namespace kvrm {

struct BenchOptions {
  std::uint32_t num_workers = 0;  // 0: all cores
  std::uint32_t repetitions = 5;  // of which the least time is taken
  std::uint64_t seed = 1;         // of weights and activations
  std::string kernels = {};       // "": as KVRM_ISA or the best; else a table's name
};
inline constexpr std::uint32_t kMaxBenchWorkers = 1024;
inline constexpr std::uint32_t kMaxRepetitions = 10000;

// num_workers with 0 replaced. Throws StartError when an option is beyond its limit.
std::uint32_t CheckBenchOptions(const BenchOptions& options);
// The table that options.kernels asks for. Throws StartError.
const CpuKernels& BenchKernels(const BenchOptions& options);

// Takes a finished line: keys in the order in which they are shown.
using BenchSink = std::function<void(const json::object& line)>;
// One JSON object a line, or a table: a line of names wherever they change, then values.
// `write` gets whole lines.
BenchSink JsonLines(std::function<void(const std::string& text)> write);
BenchSink TextTable(std::function<void(const std::string& text)> write);

// Seconds that run(0) .. run(count - 1) take together: each counts with the least of its times in
// `passes` passes over all, so that a neighbour must disturb every one of them to be seen.
double LeastSeconds(const Clock& clock, std::uint32_t passes, std::uint64_t count,
                    const std::function<void(std::uint64_t)>& run);

// "1,8,32" in [1, max] each; throws StartError that names `flag` and the limit.
std::vector<std::uint32_t> ParseCounts(std::string_view flag, std::string_view text,
                                       std::uint32_t max);
// "q4_0", as the type of all weights. Throws StartError that names `flag` and all types.
DType ParseDType(std::string_view flag, std::string_view text);

// Throws StartError that names the bytes when the machine has not so much memory to give: a buffer
// is touched as a whole, and the system would rather end a program than refuse it.
void CheckMemory(std::string_view owner, std::uint64_t bytes);

// Rounded to `digits` significant digits, for numbers that are no better than that.
double Rounded(double value, int digits = 4);

}  // namespace kvrm
