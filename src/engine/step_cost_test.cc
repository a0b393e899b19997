// SPDX-License-Identifier: Apache-2.0
#include "engine/step_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "base/rng.h"

namespace kvrm {
namespace {

using TrueCost = std::function<double(const StepLoad&)>;

// Microseconds a step, as measured: a row or a prompt token of the first costs as much as its
// weights (the demo model), of the second an eighth, of the third almost nothing (memory bound).
double Tiny(const StepLoad& load) {
  return 20 + 26 * load.rows + 0.05 * (load.context + load.prompt_context) +
         25 * load.prompt_tokens + 0.01 * load.attended;
}
double Middle(const StepLoad& load) {
  return 6300 + 950 * load.rows + 2 * (load.context + load.prompt_context) +
         900 * load.prompt_tokens + 0.6 * load.attended;
}
double Large(const StepLoad& load) {
  return 50000 + 300 * load.rows + 1 * (load.context + load.prompt_context) +
         350 * load.prompt_tokens + 0.1 * load.attended;
}

double Uniform(Rng& rng) {
  return static_cast<double>(rng.Below(1'000'001)) * 1e-6;
}

StepLoad DecodeLoad(double rows, double length) {
  StepLoad load;
  for (double r = 0; r < rows; ++r)
    load.AddRow(length);
  return load;
}

// Rows come and go, histories grow, and half of the steps have a chunk of a prompt.
StepLoad RandomLoad(Rng& rng) {
  StepLoad load =
      DecodeLoad(1 + static_cast<double>(rng.Below(12)), 64 + static_cast<double>(rng.Below(2000)));
  if (rng.Below(2) == 0) {
    load.AddPrompt(static_cast<double>(rng.Below(4000)), 1 + static_cast<double>(rng.Below(48)));
  }
  return load;
}

void Teach(StepCost& cost, const TrueCost& truth, int steps, std::uint64_t seed) {
  Rng rng(seed, "loads");
  for (int i = 0; i < steps; ++i) {
    const StepLoad load = RandomLoad(rng);
    cost.Observe(load, truth(load));
  }
}

// The largest error of a prediction, as a share of the truth.
double WorstError(const StepCost& cost, const TrueCost& truth, std::uint64_t seed) {
  Rng rng(seed, "loads");
  double worst = 0;
  for (int i = 0; i < 500; ++i) {
    const StepLoad load = RandomLoad(rng);
    worst = std::max(worst, std::abs(cost.Predict(load) - truth(load)) / truth(load));
  }
  return worst;
}

TEST(StepCost, LearnsWhatStepsTake) {
  for (const TrueCost& truth : {TrueCost(Tiny), TrueCost(Middle), TrueCost(Large)}) {
    StepCost cost;
    Teach(cost, truth, 400, 1);
    EXPECT_LT(WorstError(cost, truth, 2), 0.1);
  }
}

TEST(StepCost, IsNearAfterTheFirstStepOfItsKind) {
  StepCost cost;
  const StepLoad load = DecodeLoad(8, 300);
  cost.Observe(load, Middle(load));
  EXPECT_NEAR(cost.Predict(load) / Middle(load), 1, 1e-9);
  StepLoad mixed = load;
  mixed.AddPrompt(0, 16);
  cost.Observe(mixed, Middle(mixed));
  EXPECT_NEAR(cost.Predict(mixed) / Middle(mixed), 1, 1e-9);
}

// A prompt that enters an idle engine is the usual first step.
TEST(StepCost, BeginsWithAPromptAsWell) {
  StepCost cost;
  StepLoad prompt;
  prompt.AddPrompt(0, 256);
  cost.Observe(prompt, Middle(prompt));
  EXPECT_NEAR(cost.Predict(prompt) / Middle(prompt), 1, 1e-9);
  const StepLoad load = DecodeLoad(4, 300);
  cost.Observe(load, Middle(load));
  EXPECT_NEAR(cost.Predict(load) / Middle(load), 1, 1e-9);
}

// A constant load for a long time says nothing about other loads, and must not spoil them either.
TEST(StepCost, DoesNotForgetWhatIsNotExcited) {
  StepCost cost;
  Teach(cost, Middle, 400, 1);
  const StepLoad load = DecodeLoad(4, 500);
  for (int i = 0; i < 100'000; ++i)
    cost.Observe(load, Middle(load));
  EXPECT_LT(WorstError(cost, Middle, 2), 0.3);
}

TEST(StepCost, NoiseAndStolenCoresMoveItLittle) {
  StepCost cost;
  Teach(cost, Middle, 400, 1);
  Rng rng(3, "noise");
  for (int i = 0; i < 2000; ++i) {
    const StepLoad load = RandomLoad(rng);
    double factor = 0.9 + 0.2 * Uniform(rng);
    if (rng.Below(100) == 0) factor = 2 + 20 * Uniform(rng);  // one step in a hundred
    cost.Observe(load, Middle(load) * factor);
  }
  EXPECT_LT(WorstError(cost, Middle, 2), 0.25);
}

TEST(StepCost, OneOutlierIsAFewPerCent) {
  StepCost cost;
  Teach(cost, Middle, 400, 1);
  const StepLoad load = DecodeLoad(8, 300);
  const double before = cost.Predict(load);
  cost.Observe(load, 100 * Middle(load));
  EXPECT_LT(cost.Predict(load) / before, 1.1);
}

TEST(StepCost, FollowsAMachineThatStaysSlow) {
  StepCost cost;
  Teach(cost, Middle, 400, 1);
  const auto slow = [](const StepLoad& load) { return 2.5 * Middle(load); };
  Teach(cost, slow, 200, 4);
  EXPECT_LT(WorstError(cost, slow, 2), 0.2);
}

// Whatever it is told, more work is predicted to take longer, and nothing is infinite or negative.
TEST(StepCost, StaysMonotoneOnNonsense) {
  Rng rng(5, "nonsense");
  StepCost cost;
  for (int i = 0; i < 20'000; ++i) {
    const StepLoad load = RandomLoad(rng);
    const double seconds = rng.Below(50) == 0 ? 0.0 : std::exp(20 * Uniform(rng) - 15);
    cost.Observe(load, seconds);
    const double predicted = cost.Predict(load);
    ASSERT_TRUE(std::isfinite(predicted) && predicted > 0) << i;
    StepLoad more = load;
    more.AddRow(100);
    ASSERT_GT(cost.Predict(more), predicted) << i;
    more = load;
    more.AddPrompt(10, 1);
    ASSERT_GT(cost.Predict(more), predicted) << i;
  }
}

// Weights that take 10 ms and rows that take next to nothing: the priors are 90 times too high for
// rows and history, so that their coefficients fall to the least, where they must not push the
// first one up. With prompts in between, that have been learnt beside the wrong prediction.
TEST(StepCost, ComesDownFromPriorsThatAreFarTooHigh) {
  const TrueCost truth = [](const StepLoad& load) {
    return 10'000 + 12.0 * load.rows + 0.08 * (load.context + load.prompt_context) +
           85 * load.prompt_tokens + 0.003 * load.attended;
  };
  StepCost cost;
  StepLoad first;
  first.AddPrompt(0, 512);
  cost.Observe(first, truth(first));
  cost.Observe(DecodeLoad(1, 500), truth(DecodeLoad(1, 500)));
  double before = cost.Predict(DecodeLoad(92, 900));
  ASSERT_GT(before, 10 * truth(DecodeLoad(92, 900)));
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < 8; ++i) {
      StepLoad mixed = DecodeLoad(92, 900);
      mixed.AddPrompt(256, 100);
      cost.Observe(mixed, truth(mixed));
    }
    const StepLoad quiet = DecodeLoad(92, 900);
    cost.Observe(quiet, truth(quiet));
    const double after = cost.Predict(quiet);
    EXPECT_LE(after, std::max(before, 1.1 * truth(quiet))) << "round " << round;
    before = after;
  }
  EXPECT_NEAR(before / truth(DecodeLoad(92, 900)), 1, 0.1);
  StepLoad mixed = DecodeLoad(92, 900);
  mixed.AddPrompt(256, 100);
  EXPECT_NEAR(cost.Predict(mixed) / truth(mixed), 1, 0.1);
}

TEST(StepCost, TokensWithinATimeAreTheMostThatFit) {
  StepCost cost;
  Teach(cost, Middle, 400, 1);
  Rng rng(6, "fits");
  for (int i = 0; i < 300; ++i) {
    StepLoad load = DecodeLoad(static_cast<double>(rng.Below(12)), 400);
    const auto before = static_cast<double>(rng.Below(8000));
    const double seconds = Middle(load) * (0.5 + 3 * Uniform(rng));
    const std::uint32_t count = cost.PromptTokensWithin(load, before, seconds, 4096);
    const auto predicted = [&](std::uint32_t tokens) {
      StepLoad with = load;
      with.AddPrompt(before, tokens);
      return cost.Predict(with);
    };
    if (count > 0) {
      EXPECT_LE(predicted(count), seconds * (1 + 1e-9));
    }
    if (count < 4096) {
      EXPECT_GT(predicted(count + 1), seconds * (1 - 1e-9));
    }
  }
}

}  // namespace
}  // namespace kvrm
