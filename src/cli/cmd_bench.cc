// SPDX-License-Identifier: Apache-2.0
// kvrm bench: what this machine can do at most, and how much of it the kernels and the executor do.
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "bench/bench.h"
#include "bench/matmul.h"
#include "bench/peak.h"
#include "bench/pinned_threads.h"
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
    const PinnedThreads pinned;
    ReportPeaks(MeasurePeaks({.repetitions = flags->options.repetitions},
                             BenchKernels(flags->options), team, SystemClock()),
                Sink(*flags));
  });
}

// What every other command begins with: the peaks that its lines are compared with.
Peaks ReportedPeaks(const BenchFlags& flags, WorkerTeam& team, const BenchSink& sink) {
  const Peaks peaks = MeasurePeaks({.repetitions = flags.options.repetitions},
                                   BenchKernels(flags.options), team, SystemClock());
  ReportPeaks(peaks, sink);
  return peaks;
}

struct MatMulFlags : BenchFlags {
  std::vector<std::string> types = {"q8_0"};
  std::string shapes;
  std::string rows = "1,8,32,512";
};

void AddMatMulCommand(CLI::App& bench) {
  auto flags = std::make_shared<MatMulFlags>();
  CLI::App* command = bench.add_subcommand("matmul", "matrix products as the executor calls them");
  command->add_option("--type", flags->types, "types of the weights, with commas between them")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--shape", flags->shapes,
                      "OUTPUTSxINPUTS, with commas between them; without it those of 1.2B");
  command->add_option("--rows", flags->rows, "rows of activations")->capture_default_str();
  AddCommonFlags(*command, flags.get());
  command->callback([flags] {
    MatMulBench matmul = {
        .types = {},
        .shapes = flags->shapes.empty() ? DefaultShapes() : ParseShapes("--shape", flags->shapes),
        .rows = ParseCounts("--rows", flags->rows, kMaxBenchRows)};
    for (const std::string& type : flags->types)
      matmul.types.push_back(ParseDType("--type", type));
    WorkerTeam team(CheckBenchOptions(flags->options));
    const PinnedThreads pinned;
    const BenchSink sink = Sink(*flags);
    const Peaks peaks = ReportedPeaks(*flags, team, sink);
    RunMatMulBench(matmul, flags->options, peaks, team, sink);
  });
}

}  // namespace

void AddBenchCommand(CLI::App& app) {
  CLI::App* bench = app.add_subcommand(
      "bench", "bytes, GB/s, GMAC/s and their share of the peak measured in the same run");
  bench->require_subcommand(1);
  AddPeakCommand(*bench);
  AddMatMulCommand(*bench);
}

}  // namespace kvrm
