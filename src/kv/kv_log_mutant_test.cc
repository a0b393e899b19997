// SPDX-License-Identifier: Apache-2.0
// The negative control of StepVerifier: planted bugs in cache and ring (base/mutant.h) that
// descriptors show. The verifier is told what a log would hold and must object; the model's own
// checks are off.
//
// Not among them, for
//   no descriptor shows it   books that do not add up (kIgnoreCredit, kLoseBlock), copies
//                            that are not made as told (kLoseCopy, kSplitOffByOne, kLateDeadline,
//                            kWrongTier), room that is lost (kDiscardKeepsRoom)
//   blocks have one layer    kLoseLastLayers: the verifier's own tests have it
//   the cache refuses it     kReleaseHeld, kDoubleRelease, kFindInLimbo, kEvictHeld, kTailTogether
//   nothing comes of it      kStagedSurvivesTruncate: the window still holds all that is read;
//                            kPublishPartial, as long as callers name full blocks only
//   it is too rare           kPublishUnsettled: a hit and a copy within one step's flight;
//                            kPublishHoled: a hit over blocks cut out and blocks behind them;
//                            kOwnTooEarly: the last sharer cut into the block in the same flight
//
// Each program runs in a process of its own, for the cache's own checks may come first and abort.
#ifdef KVRM_MUTANTS

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>

#include "base/mutant.h"
#include "kv/kv_model.h"
#include "step/step_verifier.h"

namespace kvrm {
namespace {

// 0: nothing, 100 + rule: the verifier objects.
int RunProgram(Mutant mutant, std::uint64_t seed) {
  active_mutant = mutant;
  Choices choices(seed);
  KvModelOptions options = RandomKvModelOptions(choices);
  options.check_books = options.check_fences = options.check_content = false;
  std::unique_ptr<StepVerifier> verifier;
  options.on_record = [&](const StepLogRecord& record) {
    if (!verifier->Consume(record)) _exit(100 + static_cast<int>(verifier->violation()->rule));
  };
  KvModel model(options, choices);
  verifier = std::make_unique<StepVerifier>(model.log_header());
  for (std::uint32_t i = 0; i < 1000; ++i)
    model.RandomOp();
  return 0;
}

int RunInChild(Mutant mutant, std::uint64_t seed) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit no_core = {};
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::close(STDERR_FILENO);  // Where the aborts would be told.
    _exit(RunProgram(mutant, seed));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct Planted {
  Mutant mutant;
  const char* name;
};

class KvLogMutant : public testing::TestWithParam<Planted> {};

TEST_P(KvLogMutant, IsFoundInItsDescriptors) {
  std::uint64_t num_aborts = 0;
  for (std::uint64_t seed = 1; seed <= 1000; ++seed) {
    const int status = RunInChild(GetParam().mutant, seed);
    if (status >= 100) {
      std::printf("found by program %llu: %s (%llu aborted before)\n",
                  static_cast<unsigned long long>(seed),
                  StepRuleName(static_cast<StepRule>(status - 100)),
                  static_cast<unsigned long long>(num_aborts));
      return;
    }
    num_aborts += status != 0 ? 1 : 0;
  }
  FAIL() << "not found in 1000 programs, of which " << num_aborts << " aborted";
}

#define KVRM_PLANTED(name) \
  Planted {                \
    Mutant::name, #name    \
  }
INSTANTIATE_TEST_SUITE_P(
    All, KvLogMutant,
    testing::Values(
        KVRM_PLANTED(kOverrunRing), KVRM_PLANTED(kStaleEpoch), KVRM_PLANTED(kTokensInPlace),
        KVRM_PLANTED(kStalePadding), KVRM_PLANTED(kLoseLastRun), KVRM_PLANTED(kTargetTwice),
        KVRM_PLANTED(kNoLimbo), KVRM_PLANTED(kEarlyRetire), KVRM_PLANTED(kMoveUnsettled),
        KVRM_PLANTED(kFreePlanned), KVRM_PLANTED(kMissedCopy), KVRM_PLANTED(kCopyWithoutTokens),
        KVRM_PLANTED(kForkForgetsRef), KVRM_PLANTED(kTruncateKeepsName),
        KVRM_PLANTED(kTrimOneTooMany), KVRM_PLANTED(kKeyWithoutTokens),
        KVRM_PLANTED(kFreeKeepsName), KVRM_PLANTED(kNoLand), KVRM_PLANTED(kMergeAcrossGap),
        KVRM_PLANTED(kForgetAbandoned), KVRM_PLANTED(kMirrorMissing),
        KVRM_PLANTED(kStagedSurvivesOpen), KVRM_PLANTED(kStageWrongBlock), KVRM_PLANTED(kMapStale),
        KVRM_PLANTED(kWindowTooEarly), KVRM_PLANTED(kRunsSwapped), KVRM_PLANTED(kHostReuseEarly),
        KVRM_PLANTED(kResumeTooEarly), KVRM_PLANTED(kParkUnsettled), KVRM_PLANTED(kParkForgetsTail),
        KVRM_PLANTED(kParkFreesEarly)),
    [](const auto& test) { return std::string(test.param.name + 1); });

TEST(KvLogMutant, NoneIsFoundWhereNoneIsPlanted) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed)
    EXPECT_EQ(RunInChild(Mutant::kNone, seed), 0) << seed;
}

}  // namespace
}  // namespace kvrm

#endif
