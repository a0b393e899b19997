// SPDX-License-Identifier: Apache-2.0
// VictimsBench: what streams that decode steadily notice of others, in the engine itself.
//
// Streams decode alone for a while, then beside one disturbance: a long prompt, many requests at
// once, or more of them than the pool holds. Gaps are measured at the engine's events, each in
// units of the median gap of a run without the disturbance near the same token: histories grow, and
// that is not the disturbance's doing. A line says how the gaps since its begin compare, and how
// fast it was served.
//
// On a machine that others use as well, gaps in processor time (one worker) tell what the schedule
// does, and real ones mostly what the others do.
// Threading: one thread, which steps the engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "engine/engine.h"
#include "model/weights.h"

namespace kvrm {

enum class Disturbance : std::uint8_t { kPrompt, kBurst, kOversubscribed };

struct VictimsBench {
  std::uint32_t streams = 8;
  std::uint32_t stream_prompt = 128;
  std::uint32_t quiet_tokens = 100;      // of every stream before the disturbance
  std::uint32_t disturbed_tokens = 600;  // and after its begin, at most
  std::uint32_t long_prompt = 4096;
  std::uint32_t burst = 30;
  std::uint32_t burst_prompt = 128;
  std::uint32_t burst_output = 64;
  StepPaceOptions pace = {};    // of the budget "pace"
  bool processor_time = false;  // with one worker only, which is the thread that steps
  // Budgets of a step, each measured by itself: "pace" is the model of what steps take, a number is
  // so many tokens whatever they take.
  std::vector<std::string> budgets = {"16", "32", "64", "256", "pace"};
  std::vector<std::string> disturbances = {"prompt", "burst", "oversubscribed"};
};

// Throws StartError when the model's context is too short for the bench, or for an unknown name.
void RunVictimsBench(const VictimsBench& bench, const BenchOptions& options, const Model& model,
                     const BenchSink& sink);

}  // namespace kvrm
