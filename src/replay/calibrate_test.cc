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
  const DeviceProfile known = KnownProfile();
  const Result<DeviceProfile> read = ParseDeviceProfile(DeviceProfileJson(known));
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(DeviceProfileJson(*read), DeviceProfileJson(known));
  EXPECT_DOUBLE_EQ(TokensUs(*read, 1.0), 0.0);
  EXPECT_DOUBLE_EQ(TokensUs(*read, 4.5), 35.0);
  EXPECT_DOUBLE_EQ(TokensUs(*read, 448.0), 7100.0);  // as the last stretch
}

TEST(CalibrateTest, PointsThatDoNotAscendAreRefused) {
  for (const char* points : {"[[2,1],[1,2]]", "[[1,2],[2,1]]", "[[1]]", "[[1,-1]]", "3"}) {
    const std::string text = std::string(R"({"name": "x", "tokens_us": )") + points + "}";
    EXPECT_FALSE(ParseDeviceProfile(text)) << points;
  }
}

}  // namespace
}  // namespace kvrm
