// SPDX-License-Identifier: Apache-2.0
#include "sim/world.h"

#include "base/rng.h"
#include "sim/engine_world.h"
#include "sim/kv_world.h"

namespace kvrm {
namespace {

template <typename World>
SimTotals RunIn(const SimSchedule& schedule, SimTrace trace) {
  World world(schedule.seed, trace);
  for (const SimOp& op : schedule.ops)
    world.Do(op);
  world.Finish();
  SimTotals totals = world.totals();
  totals.num_ops = schedule.ops.size();
  return totals;
}

}  // namespace

const char* SimLevelName(SimLevel level) {
  return level == SimLevel::kKv ? "kv" : "engine";
}

void SimTotals::Add(const SimTotals& other) {
  num_ops += other.num_ops;
  num_steps += other.num_steps;
  num_rows += other.num_rows;
  num_copies += other.num_copies;
  num_maps += other.num_maps;
  num_cow_blocks += other.num_cow_blocks;
  num_prefix_hits += other.num_prefix_hits;
  num_evictions += other.num_evictions;
  num_run_overflows += other.num_run_overflows;
  num_waits += other.num_waits;
  num_requests += other.num_requests;
  num_preemptions += other.num_preemptions;
  num_parks += other.num_parks;
  num_resumes += other.num_resumes;
  num_resumed_blocks += other.num_resumed_blocks;
  num_proved_reads += other.num_proved_reads;
}

SimSchedule MakeSchedule(SimLevel level, std::uint64_t seed, std::uint32_t num_ops) {
  SimSchedule schedule = {.level = level, .seed = seed, .ops = {}};
  Rng rng(seed, "ops");
  const std::vector<std::uint8_t> mix =
      level == SimLevel::kKv ? KvWorld::OpMix(seed) : EngineWorld::OpMix(seed);
  for (std::uint32_t i = 0; i < num_ops; ++i)
    schedule.ops.push_back({.kind = mix[rng.Below(mix.size())], .seed = rng.Next()});
  return schedule;
}

SimTotals RunSchedule(const SimSchedule& schedule, SimTrace trace) {
  if (schedule.level == SimLevel::kKv) return RunIn<KvWorld>(schedule, trace);
  return RunIn<EngineWorld>(schedule, trace);
}

}  // namespace kvrm
