// SPDX-License-Identifier: Apache-2.0
// The negative control of the settings that views_test compares: planted bugs (base/mutant.h) that
// make a row read a wrong block or a wrong position must show in the tokens or log-probabilities of
// the small model of random weights. No check of the cache's or the engine's counts, only the bits.
//
// Not among them, of those that make wrong content, for
//   the cache or the executor refuses it   kMissedCopy, kForkForgetsRef, kStageWrongBlock,
//                                          kTailTogether, kLoseLastRun, kParkFreesEarly,
//                                          kFreeKeepsName
//   this device copies at once             kNoLand, kResumeTooEarly
//   one step is in flight at a time        kNoLimbo, kOwnTooEarly, kTokensInPlace, kFreePlanned
// The simulator and the step verifier find those.
//
// Each setting runs in a process of its own, for the cache's own checks may come first and abort.
#ifdef KVRM_MUTANTS

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "base/mutant.h"
#include "base/result.h"
#include "engine/engine.h"
#include "engine/timed_world_for_test.h"
#include "engine/view_settings_for_test.h"
#include "model/random_model_for_test.h"
#include "model/weights.h"

namespace kvrm {
namespace {

// Of the product, in random order.
constexpr std::size_t kMaxSettings = 200;
// A bug may leave the engine without an end.
constexpr unsigned kMaxSeconds = 30;
constexpr int kDifferent = 100;

std::vector<Output> Serve(const Model& model, const std::vector<Request>& requests,
                          const EngineOptions& options, bool forks) {
  // It stands still: how long steps take decides what they hold, and a setting must be one run.
  const SteppedClock clock;
  Engine engine(model, options, clock);
  return ServeRequests(engine, requests, forks);
}

class ViewsMutant : public testing::Test {
 protected:
  ViewsMutant()
      : model_(OrThrow(Model::FromGgufBytes(image_.bytes(), "random"))),
        requests_(MakeRequests(model_)),
        dense_(Serve(model_, requests_, DenseOptions(), false)),
        cells_(PartOfProduct(1, 100)) {
    cells_.resize(kMaxSettings);
  }

  // kDifferent: other bits than the dense run's; 0: the same; else: it aborted or had no end.
  int RunInChild(Mutant mutant, const Cell& cell) {
    const pid_t child = ::fork();
    if (child == 0) {
      const rlimit no_core = {};
      ::setrlimit(RLIMIT_CORE, &no_core);
      ::close(STDERR_FILENO);  // Where the aborts would be told.
      ::alarm(kMaxSeconds);
      active_mutant = mutant;
      const EngineOptions options = OptionsOf(cell, model_.config());
      _exit(Serve(model_, requests_, options, (cell[6] & 2) != 0) == dense_ ? 0 : kDifferent);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const RandomModelImage image_;
  const Model model_;
  const std::vector<Request> requests_;
  const std::vector<Output> dense_;
  std::vector<Cell> cells_;
};

struct Planted {
  Mutant mutant;
  const char* name;
};

class PlantedBug : public ViewsMutant, public testing::WithParamInterface<Planted> {};

TEST_P(PlantedBug, ShowsInTheBits) {
  std::size_t num_ended_badly = 0;
  for (std::size_t i = 0; i < cells_.size(); ++i) {
    const int status = RunInChild(GetParam().mutant, cells_[i]);
    if (status == kDifferent) {
      std::printf("shows in setting %zu, %s (%zu ended badly before)\n", i + 1,
                  NameOf(cells_[i]).c_str(), num_ended_badly);
      return;
    }
    num_ended_badly += status != 0 ? 1 : 0;
  }
  FAIL() << "the same bits in " << cells_.size() << " settings but for " << num_ended_badly
         << " that ended badly";
}

#define KVRM_PLANTED(name) \
  Planted {                \
    Mutant::name, #name    \
  }
INSTANTIATE_TEST_SUITE_P(All, PlantedBug,
                         testing::Values(KVRM_PLANTED(kTargetTwice),
                                         KVRM_PLANTED(kCopyWithoutTokens), KVRM_PLANTED(kLoseCopy),
                                         KVRM_PLANTED(kSplitOffByOne),
                                         KVRM_PLANTED(kMergeAcrossGap), KVRM_PLANTED(kWrongTier),
                                         KVRM_PLANTED(kParkForgetsTail),
                                         KVRM_PLANTED(kMirrorMissing),
                                         KVRM_PLANTED(kStagedSurvivesOpen), KVRM_PLANTED(kMapStale),
                                         KVRM_PLANTED(kRunsSwapped)),
                         [](const auto& test) { return std::string(test.param.name + 1); });

TEST_F(ViewsMutant, WithNonePlantedNothingShows) {
  for (std::size_t i = 0; i < 50; ++i)
    EXPECT_EQ(RunInChild(Mutant::kNone, cells_[i]), 0) << NameOf(cells_[i]);
}

}  // namespace
}  // namespace kvrm

#endif
