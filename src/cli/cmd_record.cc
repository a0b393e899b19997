// SPDX-License-Identifier: Apache-2.0
// kvrm record: a trace that can be passed on: lengths, times and what prompts share, no content.
#include <cstdio>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "base/result.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "trace/trace_file.h"

namespace kvrm {
namespace {

struct RecordFlags {
  std::string source;
  std::string output;
};

// Whatever the hash ids of the source were, those of the result are numbers in order of appearance.
void Renumber(Workload* workload) {
  std::unordered_map<std::uint64_t, std::uint64_t> numbers;
  for (std::uint64_t& id : workload->hash_ids)
    id = numbers.emplace(id, numbers.size()).first->second;
}

void RunRecord(const RecordFlags& flags) {
  ParsedTrace trace = OrThrow(ReadTrace(flags.source, std::nullopt));
  Renumber(&trace.workload);
  std::string text;
  for (const TraceRequest& request : trace.workload.requests)
    text += MooncakeLine(trace.workload, request);
  OrThrow(WriteFile(flags.output, text));
}

}  // namespace

void AddRecordCommand(CLI::App& app) {
  auto flags = std::make_shared<RecordFlags>();
  CLI::App* command = app.add_subcommand(
      "record", "turn what kvrm serve --record-trace wrote, or any trace, into a Mooncake trace");
  command->add_option("source", flags->source, "the file")->required();
  command->add_option("-o,--output", flags->output, "the trace")->required();
  command->callback([flags] { RunRecord(*flags); });
}

}  // namespace kvrm
