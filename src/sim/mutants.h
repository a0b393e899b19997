// SPDX-License-Identifier: Apache-2.0
// The planted bugs by name, and how many schedules it takes to find each.
// Threading: call from a process with one thread. Errors: throws StartError.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/mutant.h"

namespace kvrm {

inline constexpr std::uint32_t kNumMutants = 54;  // kNone not counted
const char* MutantName(Mutant mutant);
std::optional<Mutant> FindMutant(std::string_view name);

struct MutantPlan {
  std::uint32_t num_seeds = 25;         // series of schedules, each from a seed of its own
  std::uint64_t max_schedules = 20000;  // of one series
  std::uint32_t num_ops = 300;
  std::uint32_t num_jobs = 2;
  std::optional<Mutant> only = std::nullopt;
};

// Prints one line a mutant and the control's. False when a mutant was missed by any series, the
// median of one is above 1,000 schedules, or the control found anything.
// Requires: a build with KVRM_MUTANTS.
bool RunMutants(const MutantPlan& plan);

}  // namespace kvrm
