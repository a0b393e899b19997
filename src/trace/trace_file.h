// SPDX-License-Identifier: Apache-2.0
// Trace files: the public formats, read totally (docs/formats.md has the grammars).
//
//   azure      TIMESTAMP,ContextTokens,GeneratedTokens          2023 and later
//   burstgpt   Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type and the later
//              form with Session ID and Elapsed time; columns are found by name
//   mooncake   JSON lines: timestamp (ms), input_length, output_length, hash_ids
//
// Requests are sorted by arrival, which is stable. Those without a prompt or without an output
// (failures, in BurstGPT) are left out and counted.
// Threading: pure functions. Memory: as much as the file has requests; limits in trace/workload.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "trace/workload.h"

namespace kvrm {

enum class TraceFormat : std::uint8_t { kAzure, kBurstGpt, kMooncake };
// "azure", "burstgpt", "mooncake".
const char* TraceFormatName(TraceFormat format);
std::optional<TraceFormat> FindTraceFormat(std::string_view name);
// By the first line. nullopt: none of them.
std::optional<TraceFormat> DetectTraceFormat(std::string_view text);

inline constexpr std::uint64_t kMaxTraceFileBytes = std::uint64_t{2} << 30;
inline constexpr std::size_t kMaxTraceLineBytes = 1u << 20;

struct ParsedTrace {
  Workload workload;
  std::uint64_t num_left_out = 0;
};

// The error names the line, the field and the limit.
Result<ParsedTrace> ParseTrace(TraceFormat format, std::string_view text);

// Reads a file whose format is given or detected; the workload's name is the file's.
Result<ParsedTrace> ReadTrace(const std::string& path, std::optional<TraceFormat> format);

// One line of a Mooncake trace, with its line feed.
std::string MooncakeLine(const Workload& workload, const TraceRequest& request);

}  // namespace kvrm
