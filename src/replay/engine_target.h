// SPDX-License-Identifier: Apache-2.0
// EngineTarget: replays against an engine in this process, step by step, in real or virtual time.
//
// One thread submits what is due, runs a step, and takes what came of it; a request that becomes
// due during a step is submitted after it, and its latencies begin when it was due, as they would
// behind a queue. In virtual time the clock stands still but for what the executor says a step
// costs, and jumps to the next arrival while nothing runs, so that equal seeds give equal records,
// byte for byte.
//
// Threading: one thread; the executor may have workers.
#pragma once

#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "engine/engine.h"
#include "replay/driver.h"
#include "replay/step_probe.h"
#include "trace/prompt.h"

namespace kvrm {

struct EngineTargetOptions {
  PromptVocab vocab;
  // What the pool's bytes are multiplied by: the simulator's blocks are smaller than they stand
  // for.
  std::uint64_t bytes_scale = 1;
  // Waits until the clock says so, or a little less. Virtual time: moves it there.
  std::function<void(std::int64_t now_ns, std::int64_t until_ns)> wait = {};
};

class EngineTarget {
 public:
  // All outlive the target.
  EngineTarget(Engine& engine, const StepProbe& probe, const Clock& clock,
               const EngineTargetOptions& options);
  // Runs until done; the time 0 of the run is the moment of the call. Throws StartError when the
  // engine makes no progress.
  void Run(ReplayRun& run);

 private:
  Engine& engine_;
  const StepProbe& probe_;
  const Clock& clock_;
  const EngineTargetOptions options_;
};

// Waits in real time, at most 20 ms at once, so that a progress display lives.
void SleepUntil(std::int64_t now_ns, std::int64_t until_ns);

}  // namespace kvrm
