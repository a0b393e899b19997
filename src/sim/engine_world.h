// SPDX-License-Identifier: Apache-2.0
// EngineWorld: the production engine, scheduler, cache and transport on a simulated clock, device
// and executor, with requests from outside.
//
// Checked: every event's token and log-probability are those of the request alone (R8, K7), every
// accepted request ends exactly once and for its own reason (R1, R4; a deadline not before its
// time), events for unknown requests
// have no effect (R3), a full queue refuses (R6), and in the liveness phase everything ends (R5)
// and gives back what it had (K1). A share of the schedules has a descriptor log, in memory, which
// StepVerifier must have nothing to object to when the engine has gone.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "sim/history.h"
#include "sim/sim_clock.h"
#include "sim/sim_device.h"
#include "sim/world.h"

namespace kvrm {

struct EngineScenario {
  EngineOptions engine;
  SimDeviceOptions device;
  std::uint32_t shared_percent = 0;  // prompts that begin like others
  bool has_log = false;
  std::uint64_t clock_seed = 0;        // RestlessClock
  std::uint32_t timeout_percent = 0;   // requests with deadlines
  std::uint32_t priority_percent = 0;  // with priorities and tenants of their own
};
EngineScenario RandomEngineScenario(std::uint64_t seed);
std::string ToString(const EngineScenario& scenario);

class EngineWorld {
 public:
  enum Kind : std::uint8_t { kSubmit, kCancel, kStep, kPoll, kNumKinds };
  static std::vector<std::uint8_t> OpMix(std::uint64_t seed);

  EngineWorld(std::uint64_t seed, SimTrace trace)
      : EngineWorld(RandomEngineScenario(seed), trace) {}
  EngineWorld(const EngineScenario& scenario, SimTrace trace);
  ~EngineWorld();
  EngineWorld(const EngineWorld&) = delete;
  EngineWorld& operator=(const EngineWorld&) = delete;

  void Do(const SimOp& op);
  // Liveness: faults end, everything that was begun ends, and nothing is left. Then the engine
  // goes.
  void Finish();
  SimTotals totals() const { return totals_; }  // after Finish

 private:
  struct Served {
    History history{1};
    SamplingParams sampling;
    std::vector<std::int32_t> stop_ids;
    std::uint32_t num_prompt_tokens = 0;
    std::uint32_t max_length = 0;
    bool cancelled = false;
    std::int64_t timeout_at_ns = 0;  // 0: none, of the whole and of the wait
    std::int64_t wait_until_ns = 0;
    bool ended = false;
  };

  EngineParts Parts();
  EngineOptions Options() const;
  SimTotals Totals() const;
  void VerifyLog();
  void Submit(Rng& rng);
  void Cancel(Rng& rng);
  void Step();
  void Poll(std::uint32_t most);
  void Take(const TokenEvent& event);
  Request RandomRequest(Rng& rng) const;
  void Note(const std::string& text) const {
    if (trace_) trace_.Line(text);
  }

  const EngineScenario scenario_;
  const SimTrace trace_;
  RestlessClock clock_;
  Rng device_rng_{0};
  SimDevice device_;
  const int log_fd_;  // -1: none
  std::optional<Engine> engine_;
  SimTotals totals_;
  Sampler sampler_;
  PlainLogitStats stats_;
  std::vector<float> logits_;
  std::map<RequestId, Served> served_;
  std::uint32_t num_open_ = 0;      // accepted and not seen to end
  std::uint32_t num_commands_ = 0;  // at most so many wait in the engine's queue
  std::uint64_t num_events_ = 0;
};

}  // namespace kvrm
