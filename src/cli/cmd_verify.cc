// SPDX-License-Identifier: Apache-2.0
// kvrm verify: proves a descriptor log, and replays it without a model.
//
// Exit codes: 0 sound, 1 a rule was broken or the log is cut off or damaged, 2 it cannot be read.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "base/checked_math.h"
#include "base/file.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "step/step_log.h"
#include "step/step_replay.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

struct VerifyFlags {
  std::string path;
  bool quiet = false;
  bool json = false;
  bool replay = false;
  std::uint64_t max_memory_mib = 4096;
};

struct Outcome {
  StepTotals totals;
  std::uint64_t num_bytes = 0;
  std::string problem;  // empty: sound
  std::optional<StepViolation> violation;
};

std::string Hex(std::uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, value);
  return text;
}

// Tables are as large as the pool the log is about; a damaged header must not take all memory.
void CheckMemory(const StepLogHeader& header, const VerifyFlags& flags) {
  const std::uint64_t need =
      StepVerifier::RequiredBytes(header) + (flags.replay ? StepReplay::RequiredBytes(header) : 0);
  const auto limit = CheckedMul(flags.max_memory_mib, 1 << 20);
  if (!limit || need <= *limit) return;
  throw StartError(flags.path + " is about " + std::to_string(header.num_pool_blocks) +
                   " blocks, which takes " + std::to_string(need) + " bytes to verify; --memory " +
                   std::to_string((need >> 20) + 1) + " allows it");
}

// Calls fn(record) for each until it returns false. What is wrong with the file goes to *problem.
template <typename Fn>
void ForEachRecord(StepLogReader reader, std::string* problem, Fn fn) {
  while (!reader.done()) {
    const Result<StepLogRecord> record = reader.Next();
    if (!record) {
      *problem = record.error().message;
      return;
    }
    if (!fn(*record)) return;
  }
}

Outcome Verify(const StepLogReader& reader, std::uint64_t num_bytes) {
  Outcome outcome;
  StepVerifier verifier(reader.header());
  ForEachRecord(reader, &outcome.problem,
                [&verifier](const StepLogRecord& record) { return verifier.Consume(record); });
  outcome.totals = verifier.totals();
  outcome.num_bytes = num_bytes;
  outcome.violation = verifier.violation();
  if (outcome.violation) outcome.problem = outcome.violation->Text();
  return outcome;
}

// Null, and a problem, when the log does not tell enough.
std::unique_ptr<StepReplay> Replay(const StepLogReader& reader, Outcome* outcome) {
  auto replay = std::make_unique<StepReplay>(reader.header());
  bool whole = true;
  ForEachRecord(reader, &outcome->problem,
                [&](const StepLogRecord& record) { return whole = replay->Consume(record); });
  if (whole) return replay;
  outcome->problem = "records were lost: this log cannot be replayed";
  return nullptr;
}

void PrintJson(const StepLogHeader& header, const Outcome& outcome, const StepReplay* replay) {
  const StepTotals& totals = outcome.totals;
  boost::json::object object = {
      {"ok", outcome.problem.empty()},     {"view", header.view},
      {"placement", header.placement},     {"bytes", outcome.num_bytes},
      {"records", totals.num_records},     {"lost_records", totals.num_lost},
      {"steps", totals.num_steps},         {"most_in_flight", totals.most_in_flight},
      {"rows", totals.num_rows},           {"tokens", totals.num_tokens},
      {"samples", totals.num_samples},     {"sequences", totals.num_sequences},
      {"slots_read", totals.num_reads},    {"slots_unknown", totals.num_unknown_reads},
      {"copies", totals.num_copies},       {"copied_blocks", totals.num_copied_blocks},
      {"layer_slices", totals.num_slices}, {"mappings", totals.num_maps}};
  if (!outcome.problem.empty()) object["problem"] = outcome.problem;
  if (outcome.violation) object["rule"] = StepRuleName(outcome.violation->rule);
  if (replay != nullptr) {
    boost::json::array requests;
    for (const auto& [request, sequence] : replay->digests()) {
      requests.push_back({{"request", request},
                          {"tokens", sequence.num_tokens},
                          {"digest", Hex(sequence.digest)}});
    }
    object["requests"] = std::move(requests);
    object["digest"] = Hex(replay->total());
  }
  std::printf("%s\n", boost::json::serialize(object).c_str());
}

void PrintText(const StepLogHeader& header, const Outcome& outcome, const StepReplay* replay) {
  const StepTotals& totals = outcome.totals;
  const auto line = [](const char* what, std::uint64_t value) {
    std::printf("  %-16s %20" PRIu64 "\n", what, value);
  };
  std::printf("view %s, placement %s, %u blocks of %u tokens\n", header.view.c_str(),
              header.placement.c_str(), header.num_pool_blocks, header.limits.block_tokens);
  line("bytes", outcome.num_bytes);
  line("records", totals.num_records);
  if (totals.num_lost > 0) line("lost records", totals.num_lost);
  line("steps", totals.num_steps);
  line("most in flight", totals.most_in_flight);
  line("rows", totals.num_rows);
  line("tokens", totals.num_tokens);
  line("sequences", totals.num_sequences);
  line("slots read", totals.num_reads);
  if (totals.num_unknown_reads > 0) line("  of unknown", totals.num_unknown_reads);
  line("copies", totals.num_copies);
  line("copied blocks", totals.num_copied_blocks);
  line("layer slices", totals.num_slices);
  line("mappings", totals.num_maps);
  if (replay != nullptr) {
    std::printf("\n  %20s %10s  %s\n", "request", "tokens", "digest");
    for (const auto& [request, sequence] : replay->digests()) {
      std::printf("  %20" PRIu64 " %10u  %s\n", request, sequence.num_tokens,
                  Hex(sequence.digest).c_str());
    }
    std::printf("  %20s %10s  %s\n", "all", "", Hex(replay->total()).c_str());
  }
  if (outcome.problem.empty()) std::printf("OK\n");
}

void RunVerify(const VerifyFlags& flags) {
  const MappedFile file = OrThrow(MappedFile::Open(flags.path));
  Result<StepLogReader> reader = StepLogReader::Open(file.bytes());
  if (!reader) throw StartError(flags.path + ": " + reader.error().message);
  CheckMemory(reader->header(), flags);
  Outcome outcome = Verify(*reader, file.bytes().size());
  std::unique_ptr<StepReplay> replay;
  if (flags.replay && outcome.problem.empty()) replay = Replay(*reader, &outcome);
  if (flags.json) {
    PrintJson(reader->header(), outcome, replay.get());
  } else if (!flags.quiet) {
    PrintText(reader->header(), outcome, replay.get());
  }
  if (outcome.problem.empty()) return;
  std::fflush(stdout);
  std::fprintf(stderr, "kvrm: %s: %s\n", flags.path.c_str(), outcome.problem.c_str());
  throw CLI::RuntimeError(1);
}

}  // namespace

void AddVerifyCommand(CLI::App& app) {
  auto flags = std::make_shared<VerifyFlags>();
  CLI::App* command =
      app.add_subcommand("verify", "prove a log of --descriptor-log: no block misused, ever");
  command->add_option("file", flags->path, "the log")->required();
  command->add_flag("-q,--quiet", flags->quiet, "print nothing but what is wrong");
  command->add_flag("--json", flags->json, "one JSON object on standard output");
  command->add_flag("--replay", flags->replay,
                    "run the log without a model; a digest of what each request has read");
  command->add_option("--memory", flags->max_memory_mib, "most MiB to use")->capture_default_str();
  command->callback([flags] { RunVerify(*flags); });
}

}  // namespace kvrm
