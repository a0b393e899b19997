// SPDX-License-Identifier: Apache-2.0
#include "replay/calibrate.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/result.h"
#include "device/host_device.h"
#include "replay/engine_target.h"
#include "sim/sim_clock.h"

namespace kvrm {
namespace {

DeviceProfile KnownProfile() {
  return {.name = "known",
          .step_us = 100.0,
          .row_us = 5.0,
          .token_us = 0.0,
          .kv_byte_ns = 0.1,
          .pair_ns = 50.0,
          .move_byte_ns = 0.0,
          .kv_token_bytes = 8,
          .max_context = 2048,
          .tokens_us = {{1.0, 0.0}, {8.0, 70.0}, {64.0, 900.0}, {256.0, 4000.0}}};
}

// What the engine does on a device of known costs gives these costs back.
TEST(CalibrateTest, FindsTheCostsOfAKnownDevice) {
  const DeviceProfile known = KnownProfile();
  SimClock clock;
  HostDevice device;
  StepProbe probe;
  const std::vector<StepCell> cells =
      MeasureSteps({}, ProfileParts(known, device, &probe, &clock), {.kernels = "scalar"}, clock);
  ASSERT_GE(cells.size(), 20u);
  const DeviceProfile fitted = FitProfile(cells, {.name = "fitted"});
  for (const StepCell& cell : cells) {
    EXPECT_NEAR(PredictNs(known, cell) / cell.ns, 1.0, 1e-3);
    EXPECT_NEAR(PredictNs(fitted, cell) / cell.ns, 1.0, 0.02);
  }
  // And of a step that was not among them.
  const StepCell other = {
      .rows = 12.0, .tokens = 100.0, .attended_bytes = 3e4, .prompt_pairs = 4e3};
  EXPECT_NEAR(PredictNs(fitted, other) / PredictNs(known, other), 1.0, 0.05);
}

// A machine whose steps differ gives back how much they do, and the means all the same.
TEST(CalibrateTest, FindsHowMuchStepsDiffer) {
  DeviceProfile known = KnownProfile();
  known.spread = {{0.0, 0.8}, {0.9, 1.0}, {1.0, 1.8}};  // of mean 0.95
  SimClock clock;
  HostDevice device;
  StepProbe probe;
  const std::vector<StepCell> cells =
      MeasureSteps({.decode_steps = 400}, ProfileParts(known, device, &probe, &clock, /*seed=*/5),
                   {.kernels = "scalar"}, clock);
  const DeviceProfile fitted = FitProfile(cells, {.name = "fitted"});
  ASSERT_FALSE(fitted.spread.empty());
  EXPECT_EQ(fitted.spread.front().share, 0.0);
  EXPECT_EQ(fitted.spread.back().share, 1.0);
  for (const double share : {0.1, 0.5, 0.9, 0.95, 0.99}) {
    EXPECT_NEAR(SpreadFactor(fitted, share), SpreadFactor(known, share) / 0.95, 0.06) << share;
  }
  const StepCell other = {.rows = 12.0, .tokens = 12.0, .attended_bytes = 3e4};
  EXPECT_NEAR(PredictNs(fitted, other) / PredictNs(known, other), 0.95, 0.04);
  // Steps that do not differ have none to speak of.
  SimClock even_clock;
  const std::vector<StepCell> even =
      MeasureSteps({}, ProfileParts(KnownProfile(), device, &probe, &even_clock),
                   {.kernels = "scalar"}, even_clock);
  EXPECT_NEAR(SpreadFactor(FitProfile(even, {}), 0.99), 1.0, 0.02);
}

TEST(CalibrateTest, ASpreadThatIsNoneIsRefused) {
  for (const char* points : {"[[0,1]]", "[[0,1],[0.5,2]]", "[[0.1,1],[1,2]]", "[[0,2],[1,1]]",
                             "[[0,1],[1,1001]]", "[[0,1],[1,-1]]", "3"}) {
    const std::string text = std::string(R"({"name": "x", "spread": )") + points + "}";
    const Result<DeviceProfile> profile = ParseDeviceProfile(text);
    ASSERT_FALSE(profile) << points;
    EXPECT_NE(profile.error().message.find("spread"), std::string::npos);
  }
  EXPECT_TRUE(ParseDeviceProfile(R"({"name": "x", "spread": []})"));
}

TEST(CalibrateTest, AHistoryBeyondTheModelIsRefused) {
  SimClock clock;
  HostDevice device;
  StepProbe probe;
  const DeviceProfile known = KnownProfile();
  EXPECT_THROW(MeasureSteps({.longest_prompt = 4096}, ProfileParts(known, device, &probe, &clock),
                            {}, clock),
               StartError);
}

TEST(CalibrateTest, AProfileSurvivesItsText) {
  DeviceProfile known = KnownProfile();
  known.spread = {{0.0, 0.75}, {0.5, 1.0}, {1.0, 1.25}};
  const Result<DeviceProfile> read = ParseDeviceProfile(DeviceProfileJson(known));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(DeviceProfileJson(*read), DeviceProfileJson(known));
  EXPECT_DOUBLE_EQ(TokensUs(*read, 1.0), 0.0);
  EXPECT_DOUBLE_EQ(TokensUs(*read, 4.5), 35.0);
  EXPECT_DOUBLE_EQ(TokensUs(*read, 448.0), 7100.0);  // as the last stretch
  EXPECT_DOUBLE_EQ(SpreadFactor(*read, 0.25), 0.875);
  EXPECT_DOUBLE_EQ(SpreadFactor(*read, 1.0), 1.25);
}

TEST(CalibrateTest, PointsThatDoNotAscendAreRefused) {
  for (const char* points : {"[[2,1],[1,2]]", "[[1,2],[2,1]]", "[[1]]", "[[1,-1]]", "3"}) {
    const std::string text = std::string(R"({"name": "x", "tokens_us": )") + points + "}";
    EXPECT_FALSE(ParseDeviceProfile(text)) << points;
  }
}

}  // namespace
}  // namespace kvrm
