// SPDX-License-Identifier: Apache-2.0
// kvrm sim: the production engine, scheduler, cache and transport in a simulated world.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/result.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "sim/exhaustive.h"
#include "sim/runner.h"

namespace kvrm {
namespace {

struct SimFlags {
  SimPlan plan;
  bool shrink = false;
  bool trace = false;
  bool exhaustive = false;
  std::uint32_t depth = 12;
};

void PrintTotals(const SimReport& report, double seconds) {
  const SimTotals& t = report.totals;
  std::printf("%" PRIu64 " schedules, %" PRIu64 " operations, %" PRIu64 " steps, %" PRIu64
              " rows, %" PRIu64 " copies, %" PRIu64 " mappings, %" PRIu64
              " blocks copied on write, %" PRIu64 " prefix hits, %" PRIu64 " evictions, %" PRIu64
              " run overflows, %" PRIu64 " waits, %" PRIu64 " requests, %" PRIu64
              " preemptions, %" PRIu64 " parks, %" PRIu64 " resumes, %" PRIu64
              " blocks resumed, %" PRIu64 " reads proved in %.1f s, %.0f schedules a second\n",
              report.num_schedules, t.num_ops, t.num_steps, t.num_rows, t.num_copies, t.num_maps,
              t.num_cow_blocks, t.num_prefix_hits, t.num_evictions, t.num_run_overflows,
              t.num_waits, t.num_requests, t.num_preemptions, t.num_parks, t.num_resumes,
              t.num_resumed_blocks, t.num_proved_reads, seconds,
              static_cast<double>(report.num_schedules) / std::max(seconds, 1e-3));
}

// The shortest list of operations that still fails, as it happens.
void ShowShortest(const SimFlags& flags, std::uint64_t seed) {
  const SimSchedule whole =
      MakeSchedule(LevelOf(flags.plan.levels, seed), seed, flags.plan.num_ops);
  const SimSchedule shortest = Shrink(whole, flags.plan.mutant);
  std::printf("%zu of %zu operations are enough:\n", shortest.ops.size(), whole.ops.size());
  std::fflush(stdout);
  RunTraced(shortest, flags.plan.mutant);
}

void RunExhaustive(const SimFlags& flags, KvView view) {
  const SystemClock clock;
  const std::int64_t begin_ns = clock.NowNs();
  const ExhaustiveReport report = Explore(flags.depth, view);
  std::printf("%s: %" PRIu64 " states, %" PRIu64
              " programs of up to %u operations, %s, in %.1f s\n",
              KvViewName(view), report.num_states, report.num_programs, report.num_ops,
              report.complete ? "no state left" : "not all states reached",
              static_cast<double>(clock.NowNs() - begin_ns) * 1e-9);
  if (report.failure.empty()) return;
  std::printf("sim failed: %s\n", report.failure.c_str());
  throw CLI::RuntimeError(1);
}

void RunSim(const SimFlags& flags) {
  if (flags.exhaustive) {
    for (const KvView view : {KvView::kExtents, KvView::kStagedWindows, KvView::kMapped})
      RunExhaustive(flags, view);
    return;
  }
  const SystemClock clock;
  if (flags.trace) {
    return RunTraced(MakeSchedule(LevelOf(flags.plan.levels, flags.plan.first_seed),
                                  flags.plan.first_seed, flags.plan.num_ops),
                     flags.plan.mutant);
  }
  Progress progress("sim: schedule", flags.plan.num_schedules);
  const std::int64_t begin_ns = clock.NowNs();
  const SimReport report =
      RunPlan(flags.plan, [&progress](std::uint64_t done) { progress.Update(done); });
  PrintTotals(report, static_cast<double>(clock.NowNs() - begin_ns) * 1e-9);
  for (const SimFailure& failure : report.failures) {
    const char* level = LevelOf(flags.plan.levels, failure.seed) == SimLevel::kKv ? "kv" : "engine";
    std::printf("sim failed: %s\n  repeat: kvrm sim --seed %" PRIu64
                " --schedules 1 --steps %u --level %s --shrink\n",
                failure.what.c_str(), failure.seed, flags.plan.num_ops, level);
    if (flags.shrink) ShowShortest(flags, failure.seed);
  }
  if (!report.failures.empty()) throw CLI::RuntimeError(1);
}

}  // namespace

void AddSimCommand(CLI::App& app) {
  auto flags = std::make_shared<SimFlags>();
  SimPlan& plan = flags->plan;
  CLI::App* command =
      app.add_subcommand("sim", "run random schedules in a simulated world and check everything");
  plan.num_jobs = std::max(1u, std::thread::hardware_concurrency());
  command->add_option("--seed", plan.first_seed, "of the first schedule; the others follow");
  command->add_option("--schedules", plan.num_schedules, "how many");
  command->add_option("--steps", plan.num_ops, "operations of a schedule");
  command->add_option("--jobs", plan.num_jobs, "worker processes; all cores")
      ->check(CLI::Range(1u, 256u));
  const std::map<std::string, SimLevels> levels = {
      {"both", SimLevels::kBoth}, {"kv", SimLevels::kKv}, {"engine", SimLevels::kEngine}};
  command->add_option("--level", plan.levels, "kv, engine or both")
      ->transform(CLI::CheckedTransformer(levels, CLI::ignore_case));
  command->add_option("--failures", plan.max_failures, "stop after so many");
  command->add_flag("--shrink", flags->shrink, "print the shortest trace that still fails");
  command->add_flag("--trace", flags->trace, "print what the first schedule does");
  command->add_flag("--exhaustive", flags->exhaustive,
                    "every program of two sequences on three blocks instead");
  command->add_option("--depth", flags->depth, "operations of the longest, with --exhaustive");
  command->callback([flags] { RunSim(*flags); });
}

}  // namespace kvrm
