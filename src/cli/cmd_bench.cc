// SPDX-License-Identifier: Apache-2.0
// kvrm bench: what this machine can do at most, and how much of it the kernels and the executor do.
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "bench/bench.h"
#include "bench/peak.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "exec/worker_team.h"

namespace kvrm {
namespace {

struct BenchFlags {
  BenchOptions options;
  bool json = false;
};

void Write(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw StartError("cannot write standard output");
  }
}

BenchSink Sink(const BenchFlags& flags) {
  return flags.json ? JsonLines(Write) : TextTable(Write);
}

void AddCommonFlags(CLI::App& command, BenchFlags* flags) {
  command.add_option("-t,--workers", flags->options.num_workers, "worker threads; 0: all cores");
  command
      .add_option("--repetitions", flags->options.repetitions,
                  "repetitions of which the least time counts")
      ->capture_default_str();
  command.add_option("-s,--seed", flags->options.seed, "of weights and activations")
      ->capture_default_str();
  command.add_flag("--json", flags->json, "one JSON object a line (docs/benchmarking.md)");
}

void AddPeakCommand(CLI::App& bench) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* command = bench.add_subcommand("peak", "memory bandwidth and rates of multiply-adds");
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    WorkerTeam team(CheckBenchOptions(flags->options));
    ReportPeaks(MeasurePeaks({.repetitions = flags->options.repetitions},
                             BenchKernels(flags->options), team, SystemClock()),
                Sink(*flags));
  });
}

}  // namespace

void AddBenchCommand(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench", "bytes, GB/s, GMAC/s and their share of the peak measured in the same run");
  bench->require_subcommand(1);
  AddPeakCommand(*bench);
}

}  // namespace kvrm
