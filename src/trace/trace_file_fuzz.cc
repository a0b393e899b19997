// SPDX-License-Identifier: Apache-2.0
// Trace files: any bytes give a workload within its limits or an error of one line.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "trace/prompt.h"
#include "trace/trace_file.h"

namespace kvrm {
namespace {

void Try(const std::uint8_t* data, std::size_t size) {
  const auto format = static_cast<TraceFormat>(data[0] % 3);
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  Result<ParsedTrace> trace = ParseTrace(format, text);
  if (!trace) {
    CHECK(!trace.error().message.empty());
    CHECK(trace.error().message.find('\n') == std::string::npos);
    return;
  }
  Workload& workload = trace->workload;
  std::int64_t last_ns = 0;
  for (const TraceRequest& request : workload.requests) {
    CHECK(request.arrival_ns >= last_ns && request.arrival_ns <= kMaxTraceNs);
    CHECK(request.prompt_tokens >= 1 && request.prompt_tokens <= kMaxTraceTokens);
    CHECK(request.output_tokens >= 1 && request.output_tokens <= kMaxTraceTokens);
    CHECK(request.first_hash + request.num_hashes <= workload.hash_ids.size());
    last_ns = request.arrival_ns;
  }
  // What was read can be written and read again.
  const std::string line = MooncakeLine(workload, workload.requests.front());
  CHECK(ParseTrace(TraceFormat::kMooncake, line));
  Shape({.max_requests = 10, .max_prompt = 100}, &workload);
  if (!workload.requests.empty())
    CHECK(PromptTokens(workload, 0, {3, 100}).size() == workload.requests[0].prompt_tokens);
}

}  // namespace
}  // namespace kvrm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > 0) kvrm::Try(data, size);
  return 0;
}
