// SPDX-License-Identifier: Apache-2.0
// foreign_graph: the conformance kit over the example's own program.
//
//   foreign_graph                 every check; exit code 0: conforms, 1: does not
//   foreign_graph --break BUG     the same over a program or device with a planted bug: fails
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "broken_device.h"
#include "dense_decoder.h"
#include "kit.h"

namespace {

using foreign::BrokenDevice;
using foreign::DenseDecoder;

struct NamedBug {
  const char* name;
  std::optional<DenseDecoder::Bug> program;
  std::optional<BrokenDevice::Bug> device;
};

constexpr NamedBug kBugs[] = {
    {"skip-copy", std::nullopt, BrokenDevice::Bug::kSkipCopy},
    {"short-copy", std::nullopt, BrokenDevice::Bug::kShortCopy},
    {"late-copy", std::nullopt, BrokenDevice::Bug::kLateCopy},
    {"stale-map", std::nullopt, BrokenDevice::Bug::kStaleMap},
    {"lost-park", std::nullopt, BrokenDevice::Bug::kLostPark},
    {"skip-mirror", DenseDecoder::Bug::kSkipMirror, std::nullopt},
    {"idle-write", DenseDecoder::Bug::kIdleWrite, std::nullopt},
    {"long-mask", DenseDecoder::Bug::kLongMask, std::nullopt},
    {"batch-sum", DenseDecoder::Bug::kBatchSum, std::nullopt},
};

int Usage() {
  std::fprintf(stderr,
               "usage: foreign_graph [--seed N] [--requests N] [--rounds N] [--only CHECK] "
               "[--break BUG]\n  checks:");
  for (const std::string& name : foreign::CheckNames())
    std::fprintf(stderr, " %s", name.c_str());
  std::fprintf(stderr, "\n  bugs:");
  for (const NamedBug& bug : kBugs)
    std::fprintf(stderr, " %s", bug.name);
  std::fprintf(stderr, "\n");
  return 2;
}

// The whole text as a number from 1 to 2^31; nullopt for anything else.
std::optional<std::uint32_t> Number(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if (value == 0 || value > 1u << 31) return std::nullopt;
  return value;
}

void Print(const std::vector<foreign::CheckResult>& results) {
  std::printf("%-11s %-7s %6s %7s %9s %6s %6s %7s %6s %6s %6s\n", "check", "result", "steps",
              "tokens", "compared", "groups", "moved", "staged", "hits", "forks", "preempt");
  for (const foreign::CheckResult& result : results) {
    const foreign::SessionFigures& f = result.figures;
    const char* const outcome = result.outcome == foreign::Outcome::kPassed   ? "ok"
                                : result.outcome == foreign::Outcome::kFailed ? "FAILED"
                                                                              : "skipped";
    std::printf("%-11s %-7s %6llu %7llu %9llu %6llu %6llu %6lluK %6llu %6llu %6llu\n",
                result.name.c_str(), outcome, static_cast<unsigned long long>(f.num_steps),
                static_cast<unsigned long long>(f.num_tokens),
                static_cast<unsigned long long>(f.num_compared),
                static_cast<unsigned long long>(f.kv.num_groups),
                static_cast<unsigned long long>(f.kv.num_moved_blocks),
                static_cast<unsigned long long>(f.kv.num_staged_bytes / 1024),
                static_cast<unsigned long long>(f.kv.num_prefix_hits),
                static_cast<unsigned long long>(f.num_forks),
                static_cast<unsigned long long>(f.num_preemptions));
    if (!result.what.empty()) std::printf("            %s\n", result.what.c_str());
  }
}

foreign::MakeProgram Maker(const NamedBug* bug) {
  return [bug]() -> std::unique_ptr<foreign::Program> {
    constexpr std::uint64_t kWeightSeed = 7;
    if (bug != nullptr && bug->device)
      return std::make_unique<foreign::BrokenDeviceDecoder>(kWeightSeed, *bug->device);
    return std::make_unique<DenseDecoder>(
        kWeightSeed, bug != nullptr ? *bug->program : DenseDecoder::Bug::kNone);
  };
}

}  // namespace

int main(int argc, char** argv) {
  foreign::KitOptions options;
  const NamedBug* bug = nullptr;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) return Usage();
    const std::string_view value = argv[++i];
    const std::optional<std::uint32_t> number = Number(value);
    if (name == "--seed" && number) {
      options.seed = *number;
    } else if (name == "--requests" && number) {
      options.num_requests = *number;
    } else if (name == "--rounds" && number) {
      options.num_rounds = *number;
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--break") {
      for (const NamedBug& candidate : kBugs) {
        if (value == candidate.name) bug = &candidate;
      }
      if (bug == nullptr) return Usage();
    } else {
      return Usage();
    }
  }
  const auto results = foreign::RunConformance(Maker(bug), options);
  if (results.empty()) return Usage();
  Print(results);
  bool passed = true;
  for (const foreign::CheckResult& result : results)
    passed = passed && result.outcome != foreign::Outcome::kFailed;
  std::printf("%s\n", passed ? "PASS" : "FAIL");
  return passed ? 0 : 1;
}
