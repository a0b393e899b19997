// SPDX-License-Identifier: Apache-2.0
// Runner: many schedules in forked workers, and what to do with one that fails.
//
// A violation aborts the worker it happens in; the parent notes the seed and what was said, and
// starts a worker for the rest. A schedule that does not end within 20 seconds has failed as well.
// Threading: call from a process with one thread. Errors: throws StartError where the system gives
// no process or pipe.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/mutant.h"
#include "sim/world.h"

namespace kvrm {

enum class SimLevels : std::uint8_t { kBoth, kKv, kEngine };
// Of the schedule with this seed: with both levels every fourth is the engine's, which has less to
// vary and costs more.
SimLevel LevelOf(SimLevels levels, std::uint64_t seed);

struct SimPlan {
  std::uint64_t first_seed = 1;
  std::uint64_t num_schedules = 30000;
  std::uint32_t num_ops = 300;
  std::uint32_t num_jobs = 1;
  SimLevels levels = SimLevels::kBoth;
  std::uint32_t max_failures = 1;  // then it stops
  Mutant mutant = Mutant::kNone;
};

struct SimFailure {
  std::uint64_t seed = 0;
  std::string what;
};

struct SimReport {
  std::uint64_t num_schedules = 0;  // that were run, failed ones included
  SimTotals totals;                 // of those that did not fail
  std::vector<SimFailure> failures;
};

// `progress` is called now and then with how many schedules are done.
SimReport RunPlan(const SimPlan& plan, const std::function<void(std::uint64_t)>& progress = {});

// Runs one schedule in a child; what it said when it failed.
std::optional<std::string> FailureOf(const SimSchedule& schedule, Mutant mutant);
// Runs it in this process and says what happens on standard output.
void RunTraced(const SimSchedule& schedule, Mutant mutant);
// Leaves operations out for as long as it still fails. Requires: it fails.
SimSchedule Shrink(SimSchedule schedule, Mutant mutant);

// How many schedules from `first_seed` on it takes to fail; none within `most`.
std::optional<std::uint64_t> SchedulesToFailure(const SimPlan& plan);

}  // namespace kvrm
