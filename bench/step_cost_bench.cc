// SPDX-License-Identifier: Apache-2.0
// What does the host spend on one step of movement?
//
// StepCost/rows    Extend, Plan, AddRow, Commit, Launch, Land, Latch and Retire for steady decode
// of
//                  so many rows, with the prefix cache: a block that is full gets its name
//                  (SHA-256) and is published. Expected: under 20 us of processor time for 64 rows,
//                  and nothing moves.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "device/host_device.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kBlockTokens = 16;
// Blocks of 128 bytes: the cost of deciding, not of copying.
constexpr KvLayout kLayout = {.num_layers = 1,
                              .num_kv_heads = 1,
                              .head_dim = 1,
                              .block_tokens = kBlockTokens,
                              .dtype = DType::kF32};
constexpr std::uint32_t kChunk = 512;
constexpr std::uint32_t kMaxBlocksPerSeq = 1024;
constexpr std::array<std::int32_t, kChunk> kTokens = {};

KvCacheOptions CacheOptions(std::uint32_t num_blocks, std::uint32_t max_seqs,
                            std::uint32_t max_runs) {
  return {.layout = kLayout,
          .num_blocks = num_blocks,
          .max_seqs = max_seqs,
          .max_blocks_per_seq = kMaxBlocksPerSeq,
          .max_runs = max_runs,
          .max_groups = 64,
          .max_move_bytes_per_step = 64 * kLayout.block_bytes(),
          .prefix_cache = true};
}

StepLimits Limits(std::uint32_t max_rows, std::uint32_t max_runs) {
  return {.max_rows = max_rows,
          .max_tokens = std::max(max_rows, 64 * kChunk),
          .max_runs = max_runs,
          .max_groups = 64,
          .max_samples = max_rows,
          .block_tokens = kBlockTokens};
}

void StepCost(benchmark::State& state) {
  const auto num_rows = static_cast<std::uint32_t>(state.range(0));
  constexpr std::uint32_t kMaxRuns = 32;
  HostDevice device;
  KvCache cache(CacheOptions(num_rows * 400, num_rows, kMaxRuns), device);
  StepBuilder builder(Limits(num_rows, kMaxRuns), 2);
  std::vector<std::uint32_t> lengths(num_rows);
  std::vector<std::vector<std::int32_t>> tokens(num_rows);  // no two sequences alike
  std::vector<std::vector<PrefixKey>> keys(num_rows);
  const PrefixKey root = PrefixRoot("bench", kLayout, "");
  for (std::uint32_t s = 0; s < num_rows; ++s) {
    CHECK(cache.Open(SeqId{s}, 0));
    tokens[s].assign(std::size_t{kMaxBlocksPerSeq} * kBlockTokens, static_cast<std::int32_t>(s));
    keys[s].reserve(kMaxBlocksPerSeq);
  }
  std::uint64_t num_groups = 0;
  for (auto _ : state) {
    CHECK(builder.Begin());
    for (std::uint32_t s = 0; s < num_rows; ++s)
      CHECK(cache.Extend(SeqId{s}, lengths[s] + 1));
    cache.Plan(builder, builder.building());
    for (std::uint32_t s = 0; s < num_rows; ++s) {
      CHECK(cache.AddRow(builder, {.seq = SeqId{s},
                                   .first_position = lengths[s]++,
                                   .tokens = std::span(kTokens).first(1),
                                   .num_samples = 1}));
    }
    const StepView step = builder.Commit(0, num_rows);
    num_groups += step.groups.size();
    cache.Launch(step);
    cache.Land();
    builder.Latch();
    cache.Retire(builder.Retire());
    for (std::uint32_t s = 0; s < num_rows; ++s) {
      if (lengths[s] % kBlockTokens == 0) {
        keys[s].push_back(
            NextPrefixKey(keys[s].empty() ? root : keys[s].back(),
                          std::span(tokens[s]).subspan(lengths[s] - kBlockTokens, kBlockTokens)));
        cache.Publish(SeqId{s}, std::span(tokens[s]).first(lengths[s]), keys[s]);
      }
      if (lengths[s] < 2048 + 61 * (s % 64)) continue;
      cache.Release(SeqId{s});
      CHECK(cache.Open(SeqId{s}, 0));
      lengths[s] = 0;
      keys[s].clear();
    }
  }
  state.counters["groups"] = static_cast<double>(num_groups);
  state.counters["runs_max"] = cache.stats().max_runs_seen;
}
BENCHMARK(StepCost)->Arg(1)->Arg(8)->Arg(64)->Arg(256)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace kvrm

BENCHMARK_MAIN();
