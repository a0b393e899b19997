// SPDX-License-Identifier: Apache-2.0
// FleetTarget: replays against several engines behind a router, in one virtual time.
//
// Every replica is a whole engine on a described device (replay/device_profile.h) with a clock of
// its own. Its step is computed at once when it begins, and its clock then shows the step's end;
// what came of it is taken when the run's time gets there. So the run goes from one moment to the
// next at which a step ends or a request is due, and at each moment
//   1. replicas whose step ends there tell what came of it, in order of their numbers;
//   2. the requests that are due are routed, by what has ended so far;
//   3. these replicas, and those that stood still and were sent something, begin a step.
// A request that is routed to a replica in the middle of a step is submitted after it. Equal seeds
// give equal records, byte for byte, and one replica does what EngineTarget does.
//
// Threading: one thread. Memory: the engines, and 12 bytes a request.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "replay/device_profile.h"
#include "replay/driver.h"
#include "replay/router.h"

namespace kvrm {

struct FleetOptions {
  std::uint32_t num_replicas = 1;  // 1 .. kMaxReplicas
  RoutePolicy route = RoutePolicy::kLeastOutstanding;
  // Of every replica; bytes moved by a step are those of the simulated pool (ProfileBytesScale).
  EngineOptions engine;
  std::uint64_t seed = 1;  // of the profile's spread; each replica draws its own
};

class FleetTarget {
 public:
  // Throws StartError as the engines.
  FleetTarget(const DeviceProfile& profile, const FleetOptions& options);
  ~FleetTarget();
  FleetTarget(const FleetTarget&) = delete;
  FleetTarget& operator=(const FleetTarget&) = delete;

  // Any of them: all are alike.
  const Engine& engine() const;
  // The time of the run, which begins at 0.
  std::int64_t now_ns() const { return now_ns_; }
  // Runs until done, once. Throws StartError when an engine makes no progress.
  void Run(ReplayRun& run);

 private:
  struct Replica;
  class Session;

  const DeviceProfile profile_;
  const FleetOptions options_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::int64_t now_ns_ = 0;
};

}  // namespace kvrm
