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
#include <memory>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/parts.h"
#include "replay/driver.h"
#include "trace/prompt.h"

namespace kvrm {

// What the last step was, as its descriptor says it.
struct StepProbe {
  std::uint64_t num_steps = 0;  // so far
  std::uint32_t num_rows = 0;
  std::uint32_t num_tokens = 0;
  std::uint32_t num_groups = 0;
  std::uint64_t moved_bytes = 0;
  // Copies: a group each, and one a layer where all rows are gathered layer by layer.
  std::uint32_t num_copies = 0;
  std::uint32_t num_maps = 0;
  // Tokens of history that its rows attend, padding included: what a decoder reads.
  std::uint64_t attended_tokens = 0;
  // Over the tokens of rows that have more than one: positions each attends. What a prompt
  // computes.
  std::uint64_t prompt_pairs = 0;

  void See(const StepView& step, const KvLayout& layout);
};

// The same parts; every step that their executor runs is seen. `probe` outlives the executor.
EngineParts Probed(EngineParts parts, StepProbe* probe);

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
  class Session;
  Engine& engine_;
  const StepProbe& probe_;
  const Clock& clock_;
  const EngineTargetOptions options_;
};

// Waits in real time, at most 20 ms at once, so that a progress display lives.
void SleepUntil(std::int64_t now_ns, std::int64_t until_ns);

}  // namespace kvrm
