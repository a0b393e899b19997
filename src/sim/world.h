// SPDX-License-Identifier: Apache-2.0
// A simulated schedule: a list of operations over a scenario drawn from a seed, and a world that
// carries them out (KvWorld, EngineWorld). Safety first; then liveness: faults end, everything that
// was begun ends, and nothing is left.
//
// Every operation draws what it needs from a seed of its own, and does nothing where it does not
// apply: so any operation can be left out and the rest still means something, which is how a
// failing schedule is made shorter. A violation aborts through CHECK.
//
// Threading: one thread. Memory: allocates.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace kvrm {

enum class SimLevel : std::uint8_t {
  kKv,      // KvCache and StepBuilder, every verb, up to three steps in flight
  kEngine,  // Engine, scheduler and all below, requests from outside
};
const char* SimLevelName(SimLevel level);

struct SimOp {
  std::uint8_t kind = 0;  // of the world's own list
  std::uint64_t seed = 0;
};

struct SimSchedule {
  SimLevel level = SimLevel::kKv;
  std::uint64_t seed = 0;  // of the scenario
  std::vector<SimOp> ops;
};

// What a schedule did, for the summary: a simulation that reaches nothing proves nothing.
struct SimTotals {
  std::uint64_t num_ops = 0;
  std::uint64_t num_steps = 0;
  std::uint64_t num_rows = 0;
  std::uint64_t num_copies = 0;
  std::uint64_t num_maps = 0;
  std::uint64_t num_cow_blocks = 0;
  std::uint64_t num_prefix_hits = 0;
  std::uint64_t num_evictions = 0;
  std::uint64_t num_run_overflows = 0;
  std::uint64_t num_waits = 0;
  std::uint64_t num_requests = 0;
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_parks = 0;
  std::uint64_t num_resumes = 0;
  std::uint64_t num_resumed_blocks = 0;
  std::uint64_t num_proved_reads = 0;  // slots that StepVerifier compared
  void Add(const SimTotals& other);
};

// Says what happens, one line each. Silent without a file.
class SimTrace {
 public:
  explicit SimTrace(std::FILE* out) : out_(out) {}
  explicit operator bool() const { return out_ != nullptr; }
  void Line(const std::string& text) const {
    std::fprintf(out_, "%s\n", text.c_str());
    std::fflush(out_);
  }

 private:
  std::FILE* out_;
};

// The schedule of a seed, `num_ops` operations long.
SimSchedule MakeSchedule(SimLevel level, std::uint64_t seed, std::uint32_t num_ops);
// All of it: safety, then liveness.
SimTotals RunSchedule(const SimSchedule& schedule, SimTrace trace);

}  // namespace kvrm
