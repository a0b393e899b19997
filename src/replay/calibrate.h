// SPDX-License-Identifier: Apache-2.0
// Calibrate: the device profile of a real engine, from steps that it runs on purpose.
//
// The steps are those of the whole engine, planning, sampling and events included, because that is
// what a replay waits for; a bench of the executor alone has none of it. Rows that decode behind
// prompts of given lengths, prompts alone, and prompts beside rows that decode; the pace is off, so
// that the grid is what was asked for. Costs are fitted by least squares of relative errors and
// none is below zero.
//
// Threading: one thread; the executor may have workers.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/parts.h"
#include "replay/device_profile.h"

namespace kvrm {

struct CalibrateOptions {
  std::vector<std::uint32_t> rows = {1, 2, 4, 8, 16, 32};
  std::vector<std::uint32_t> contexts = {32, 512};  // of the rows when they begin to decode
  std::uint32_t decode_steps = 48;                  // of each pair of them
  std::uint32_t repetitions = 6;                    // of each prompt
  std::uint32_t longest_prompt = 1024;              // tokens
  std::uint32_t max_step_tokens = EngineOptions{}.max_step_tokens;
  std::uint64_t seed = 1;
};

// Steps of one kind, which took so long.
struct StepCell {
  double rows = 0.0;
  double tokens = 0.0;
  double attended_bytes = 0.0;
  double prompt_pairs = 0.0;
  double ns = 0.0;                   // the mean, without what lost its core
  std::vector<double> each_ns = {};  // of which it is the mean, ascending
};

// What the profile fitted to `cells` says of them; `profile` brings what is not fitted. The spread
// is of all steps of cells with at least kSpreadSteps of them, each over the mean of its cell, and
// is none without such cells; its mean is 1. Requires: cells.
inline constexpr std::size_t kSpreadSteps = 12;
DeviceProfile FitProfile(std::span<const StepCell> cells, const DeviceProfile& profile);
double PredictNs(const DeviceProfile& profile, const StepCell& cell);

// Runs the grid. `parts` as Engine's; `options` are the engine's, but for what the grid sets.
// Throws StartError when the grid is beyond the engine.
std::vector<StepCell> MeasureSteps(const CalibrateOptions& calibrate, EngineParts parts,
                                   EngineOptions options, const Clock& clock);

// ns that this machine takes to copy a byte.
double MeasureMoveByteNs(const Clock& clock);

}  // namespace kvrm
