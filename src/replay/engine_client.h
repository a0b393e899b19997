// SPDX-License-Identifier: Apache-2.0
// EngineClient: what stands between a replay and one engine. Submits, steps, and tells the run what
// came of it.
//
// Times are those of the engine's clock, which stood at 0 of the run when the client was made.
// Threading: the engine's thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "engine/engine.h"
#include "replay/driver.h"
#include "replay/step_probe.h"
#include "trace/prompt.h"

namespace kvrm {

// So many steps in a row without work or events while requests run, then it is stuck.
inline constexpr std::uint32_t kPatience = 100000;

struct EngineClientOptions {
  PromptVocab vocab;
  // What the pool's bytes are multiplied by: the simulator's blocks are smaller than they stand
  // for.
  std::uint64_t bytes_scale = 1;
  std::uint32_t replica = 0;
  // Told of every request that has ended, before the run is.
  std::function<void(std::size_t request)> on_end = {};
};

class EngineClient {
 public:
  // All outlive the client.
  EngineClient(Engine& engine, const StepProbe& probe, const Clock& clock, ReplayRun& run,
               const EngineClientOptions& options);

  // A request that the run has taken. What the engine refuses has ended.
  void Submit(std::size_t request);
  // Whether there was work. What moved nothing and ran nothing is no step.
  bool Step();
  // Whether anything came.
  bool Poll();
  // Of all requests that run, once.
  void CancelAll();

  // Requests that were submitted and have not ended.
  std::uint64_t num_running() const { return num_running_; }
  std::int64_t NowNs() const { return clock_.NowNs() - begin_ns_; }

 private:
  struct Served {
    std::size_t request = 0;
    std::uint64_t first_id = 0;
    std::uint32_t num_open = 0;  // samples; 0: nobody is here
    ReplayRun::End end = {};
  };

  void Take(const TokenEvent& event, std::int64_t now_ns);
  void End(std::size_t request, std::int64_t now_ns, const ReplayRun::End& end);

  Engine& engine_;
  const StepProbe& probe_;
  const Clock& clock_;
  ReplayRun& run_;
  const EngineClientOptions options_;
  const std::int64_t begin_ns_;
  // By id of the engine, which ascend: an index into served_.
  std::vector<std::uint32_t> served_of_id_;
  std::vector<Served> served_;
  std::vector<std::uint32_t> free_served_;
  std::array<TokenEvent, 256> events_;
  std::uint64_t num_running_ = 0;
  bool cancelled_ = false;
};

}  // namespace kvrm
