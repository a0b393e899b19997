// SPDX-License-Identifier: Apache-2.0
#include "sim/mutants.h"

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "sim/child.h"
#include "sim/runner.h"

namespace kvrm {
namespace {

constexpr std::uint64_t kMostMedian = 1000;
// Series do not overlap.
constexpr std::uint64_t kSeedsApart = 10'000'000;

constexpr std::array kNames = {
    "none",
    "overrun-ring",
    "stale-epoch",
    "tokens-in-place",
    "stale-padding",
    "lose-last-run",
    "target-twice",
    "no-limbo",
    "early-retire",
    "move-unsettled",
    "free-planned",
    "ignore-credit",
    "lose-block",
    "double-release",
    "release-held",
    "missed-copy",
    "copy-without-tokens",
    "fork-forgets-ref",
    "truncate-keeps-name",
    "trim-one-too-many",
    "own-too-early",
    "key-without-tokens",
    "publish-unsettled",
    "publish-partial",
    "publish-holed",
    "find-in-limbo",
    "evict-held",
    "free-keeps-name",
    "lose-copy",
    "no-land",
    "split-off-by-one",
    "merge-across-gap",
    "forget-abandoned",
    "late-deadline",
    "lose-last-layers",
    "host-reuse-early",
    "resume-too-early",
    "park-frees-early",
    "park-unsettled",
    "wrong-tier",
    "park-forgets-tail",
    "discard-keeps-room",
    "give-back-shared",
    "mirror-missing",
    "staged-survives-open",
    "staged-beyond-budget",
    "stage-wrong-block",
    "map-stale",
    "runs-swapped",
    "window-too-early",
    "tail-together",
    "hit-too-long",
    "lose-sequence-id",
    "sample-of-another",
    "cancel-keeps-blocks",
};
static_assert(kNames.size() == kNumMutants + 1);
static_assert(static_cast<std::size_t>(Mutant::kCancelKeepsBlocks) == kNumMutants);

// One line a series: how many schedules it took, or 0.
void Measure(const MutantPlan& plan, Mutant mutant) {
  std::vector<std::uint64_t> found;
  for (std::uint32_t s = 0; s < plan.num_seeds; ++s) {
    const std::optional<std::uint64_t> schedules =
        SchedulesToFailure({.first_seed = 1 + s * kSeedsApart,
                            .num_schedules = plan.max_schedules,
                            .num_ops = plan.num_ops,
                            .mutant = mutant});
    if (schedules) found.push_back(*schedules);
  }
  const bool is_control = mutant == Mutant::kNone;
  std::ranges::sort(found);
  const std::size_t half = plan.num_seeds / 2;
  const bool has_median = found.size() > half;
  const bool ok =
      is_control ? found.empty() : found.size() == plan.num_seeds && found[half] <= kMostMedian;
  std::string line = std::string(ok ? "ok   " : "FAIL ") + MutantName(mutant);
  line.resize(32, ' ');
  line += std::to_string(found.size()) + " of " + std::to_string(plan.num_seeds);
  if (has_median) line += "   median " + std::to_string(found[half]);
  if (!found.empty()) line += "   max " + std::to_string(found.back());
  SayToParent(line);
}

}  // namespace

const char* MutantName(Mutant mutant) {
  return kNames[static_cast<std::size_t>(mutant)];
}

std::optional<Mutant> FindMutant(std::string_view name) {
  const auto at = std::ranges::find(kNames, name);
  if (at == kNames.end()) return std::nullopt;
  return static_cast<Mutant>(at - kNames.begin());
}

bool RunMutants(const MutantPlan& plan) {
  std::vector<Mutant> todo;
  for (std::uint32_t m = 0; m <= kNumMutants; ++m) {
    if (!plan.only || *plan.only == static_cast<Mutant>(m)) todo.push_back(static_cast<Mutant>(m));
  }
  bool ok = true;
  std::uint64_t num_lines = 0;
  // Batches of as many as there are jobs: what one says waits in its pipe for the others.
  for (std::size_t begin = 0; begin < todo.size(); begin += plan.num_jobs) {
    std::vector<std::unique_ptr<Child>> children;
    for (std::size_t m = begin; m < std::min(todo.size(), begin + plan.num_jobs); ++m) {
      children.push_back(
          std::make_unique<Child>([&plan, mutant = todo[m]] { Measure(plan, mutant); }));
    }
    for (const std::unique_ptr<Child>& child : children) {
      const auto show = [&](const std::string& line) {
        std::printf("%s\n", line.c_str());
        std::fflush(stdout);
        ok = ok && line.starts_with("ok");
        ++num_lines;
      };
      while (child->Read(show)) {
      }
      ok = child->Wait().empty() && ok;
    }
  }
  return ok && num_lines == todo.size();
}

}  // namespace kvrm
