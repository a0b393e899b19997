// SPDX-License-Identifier: Apache-2.0
#include "engine/step_pace.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvrm {
namespace {

double TrueSeconds(const StepLoad& load) {
  return 5e-3 + 1e-3 * load.rows + 1e-6 * (load.context + load.prompt_context) +
         1e-3 * load.prompt_tokens + 1e-7 * load.attended;
}

StepLoad Rows(int count) {
  StepLoad load;
  for (int i = 0; i < count; ++i)
    load.AddRow(100);
  return load;
}

// Steps of so many rows, one behind the other.
class Pacing {
 public:
  explicit Pacing(const StepPaceOptions& options = {.itl_factor = 1.5}) : pace(options) {}

  void Decode(int rows, int steps) {
    for (int i = 0; i < steps; ++i)
      Observe(Rows(rows));
  }
  void Observe(const StepLoad& load) {
    const double seconds = TrueSeconds(load);
    now_s += seconds;
    pace.Observe(load, seconds, now_s);
  }

  StepPace pace;
  double now_s = 100;
};

TEST(StepPace, TakesWhatFitsIntoTheBoundAndAtLeastTheMinimum) {
  Pacing p;
  p.Decode(8, 100);
  // What has been seen is trusted for twice as much, so the budget is reached in a few steps.
  for (int i = 0; i < 6; ++i) {
    StepLoad load = Rows(8);
    load.AddPrompt(0, p.pace.PromptTokens(load, 0, 256, false));
    p.Observe(load);
  }
  const std::uint32_t alone = p.pace.PromptTokens(Rows(8), 0, 256, false);
  const std::uint32_t shared = p.pace.PromptTokens(Rows(8), 0, 256, true);
  EXPECT_NEAR(alone, 6, 1);  // half of 13 ms, a millisecond each
  EXPECT_LT(shared, alone);
  // A step of far more rows than usual has no room; prompts go on all the same, one of them.
  StepLoad full = Rows(24);
  EXPECT_EQ(p.pace.PromptTokens(full, 0, 256, false), 4u);
  EXPECT_EQ(p.pace.PromptTokens(full, 0, 2, false), 2u);
  full.AddPrompt(0, 4);
  EXPECT_EQ(p.pace.PromptTokens(full, 0, 256, false), 0u);
}

TEST(StepPace, HasNoBoundWhileNothingDecodes) {
  Pacing p;
  p.Decode(8, 100);
  EXPECT_EQ(p.pace.PromptTokens({}, 0, 256, false), 256u);
  EXPECT_EQ(p.pace.Bound({}), std::numeric_limits<double>::infinity());
  const StepPace off({.itl_factor = 0});
  EXPECT_EQ(off.PromptTokens(Rows(8), 0, 256, false), 256u);
}

// A large device: weights take 10 ms, a prompt's token 0.1 ms, and there is a prompt in every step
// that may have one.
TEST(StepPace, LearnsTheQuietStepWherePromptsNeverEnd) {
  StepPace pace({.itl_factor = 1.5});
  double now_s = 100;
  const auto observe = [&](const StepLoad& load) {
    const double seconds = 10e-3 + 0.1e-3 * load.prompt_tokens;
    now_s += seconds;
    pace.Observe(load, seconds, now_s);
  };
  StepLoad first;
  first.AddPrompt(0, 256);
  observe(first);
  int num_quiet = 0;
  double tokens = 0;
  for (int step = 0; step < 1000; ++step) {
    StepLoad load = Rows(8);
    const std::uint32_t count = pace.PromptTokens(load, 0, 256, false);
    if (count > 0) load.AddPrompt(0, count);
    if (step >= 500) {  // what is known is looked at seldom
      num_quiet += count == 0 ? 1 : 0;
      tokens += count;
    }
    observe(load);
  }
  EXPECT_NEAR(tokens / 500, 50, 5);  // half of 10 ms
  EXPECT_NEAR(num_quiet, 500.0 / StepPace::kQuietEverySteps, 1);
}

// Eight rows, of which a hundred tokens of history each or four thousand.
double BoundOf(double fixed_s, double row_s, double token_s, double history, double easy_s = 0.09) {
  StepPace pace({.itl_factor = 1.5, .easy_step_seconds = easy_s});
  StepLoad load;
  for (int i = 0; i < 300; ++i) {
    load = {};
    for (int row = 0; row < (i < 100 ? 2 + i % 7 : 8); ++row)
      load.AddRow(history + i);
    const double seconds = fixed_s + row_s * load.rows + token_s * load.context;
    pace.Observe(load, seconds, 100 + i * seconds);
  }
  return pace.Bound(load);
}

TEST(StepPace, WhereTheModelIsSlowAStepMayTakeAsLongAsIsEasy) {
  EXPECT_NEAR(BoundOf(17e-3, 0.9e-3, 0, 100), 90e-3, 1e-6) << "24 ms of 1.2 billion parameters";
  EXPECT_NEAR(BoundOf(17e-3, 0.9e-3, 0, 100, 0), 1.5 * 24.2e-3, 1e-3) << "the factor alone";
  EXPECT_NEAR(BoundOf(6e-3, 0.9e-3, 0, 100), 1.5 * 13.2e-3, 1e-3);
  EXPECT_NEAR(BoundOf(6e-3, 0.9e-3, 0.6e-6, 4000), 1.5 * 32.4e-3, 5e-3) << "of long histories";
  EXPECT_NEAR(BoundOf(90e-3, 1e-3, 0, 100), 1.5 * 98e-3, 5e-3) << "slower than is easy";
}

TEST(StepPace, ATimeTakesThePlaceOfTheFactor) {
  Pacing p({.itl_factor = 1.5, .max_step_seconds = 0.5});
  p.Decode(8, 100);
  EXPECT_NEAR(p.pace.Bound(Rows(8)), 0.5, 1e-12);
  EXPECT_TRUE(p.pace.MayJoin(Rows(100), 100, {}));
  EXPECT_FALSE(p.pace.MayJoin(Rows(500), 100, {}));
}

TEST(StepPace, RationsCompanyAndLetsInWhoHasWaited) {
  Pacing p;
  p.Decode(8, 20);
  EXPECT_TRUE(p.pace.MayJoin(Rows(30), 100, {})) << "nobody has streamed for long";
  p.Decode(8, 100);
  EXPECT_TRUE(p.pace.MayJoin(Rows(3), 100, {})) << "few rows";
  EXPECT_TRUE(p.pace.MayJoin(Rows(9), 100, {})) << "16 of 13 ms";
  EXPECT_FALSE(p.pace.MayJoin(Rows(12), 100, {}));
  EXPECT_FALSE(p.pace.MayJoin(Rows(9), 20'000, {})) << "a long history";
  EXPECT_TRUE(p.pace.MayJoin(Rows(12), 100, {.steps = StepPace::kJoinWaitSteps}));
  EXPECT_FALSE(p.pace.MayJoin(Rows(12), 100, {.steps = StepPace::kJoinWaitSteps})) << "one";
  p.Decode(8, static_cast<int>(StepPace::kJoinEverySteps));
  EXPECT_TRUE(p.pace.MayJoin(Rows(12), 100, {.seconds = StepPace::kJoinWaitSeconds}));
}

TEST(StepPace, WhoCameTogetherAtAnIdleEngineComesInTogether) {
  Pacing p;
  p.Decode(8, StepPace::kColdSteps + 20);
  const double before = p.pace.QuietSeconds();
  EXPECT_FALSE(p.pace.MayJoin(Rows(12), 100, {.steps = 19}));
  EXPECT_TRUE(p.pace.MayJoin(Rows(12), 100, {.steps = 20}));
  EXPECT_TRUE(p.pace.MayJoin(Rows(13), 100, {.steps = StepPace::kColdSteps}));
  // And they are what is usual from now on.
  EXPECT_GT(p.pace.QuietSeconds(), before);
  EXPECT_NEAR(p.pace.QuietSeconds() / TrueSeconds(Rows(14)), 1, 0.2);
}

TEST(StepPace, WhatIsUsualFollowsSlowlyAndIsForgottenInAPause) {
  Pacing p;
  p.Decode(8, 100);
  const double before = p.pace.QuietSeconds();
  p.Decode(16, 200);
  EXPECT_GT(p.pace.QuietSeconds(), before);
  EXPECT_LT(p.pace.QuietSeconds(), 1.2 * before);
  p.Decode(16, 20 * static_cast<int>(StepPace::kMemorySteps));
  EXPECT_NEAR(p.pace.QuietSeconds() / TrueSeconds(Rows(16)), 1, 0.2);
  p.now_s += 2 * StepPace::kIdleSeconds;
  p.Decode(1, 1);
  EXPECT_TRUE(p.pace.MayJoin(Rows(30), 100, {}));
}

}  // namespace
}  // namespace kvrm
