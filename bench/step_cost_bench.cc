// SPDX-License-Identifier: Apache-2.0
// What does the host spend on one step of movement, and how long do runs stay under churn?
//
// StepCost/rows    Extend, Plan, Runs, AddRow, Commit, Launch, Land, Latch and Retire for steady
//                  decode of so many rows. Expected: under 10 us of processor time for 64 rows,
//                  and nothing moves.
// Churn/R/percent  64 rows, log-normal prompts (median 512, sigma 0.9, at most 8,192) and outputs
//                  (median 256, sigma 1.0, at most 4,096), prompts in chunks of 512, two steps in
//                  flight, a pool in which the same traffic without a limit fills `percent`. A row
//                  that does not fit, or waits 50 steps to be moved together, starts anew.
//                  Expected: at 75 % runs in single figures and, with 32 runs a row, a group in
//                  every fiftieth step and hardly a row that waits. With 8 runs a row, or at 90 %,
//                  holes are too small for moving one sequence at a time to help: many rows wait.
//                  The figures are exact for a seed; only the time varies.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
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
          .max_move_bytes_per_step = 64 * kLayout.block_bytes()};
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
  for (std::uint32_t s = 0; s < num_rows; ++s)
    CHECK(cache.Open(SeqId{s}, 0));
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
      if (lengths[s] < 2048 + 61 * s) continue;
      cache.Release(SeqId{s});
      CHECK(cache.Open(SeqId{s}, 0));
      lengths[s] = 0;
    }
  }
  state.counters["groups"] = static_cast<double>(num_groups);
  state.counters["runs_max"] = cache.stats().max_runs_seen;
}
BENCHMARK(StepCost)->Arg(1)->Arg(8)->Arg(64)->Unit(benchmark::kMicrosecond);

std::uint32_t LogNormal(Rng& rng, double median, double sigma, std::uint32_t most) {
  // Box and Muller; 1 - u lies in (0, 1].
  const double normal =
      std::sqrt(-2.0 * std::log(1.0 - rng.Uniform())) * std::cos(6.283185307179586 * rng.Uniform());
  const double value = std::min(median * std::exp(sigma * normal), static_cast<double>(most));
  return std::max(1u, static_cast<std::uint32_t>(value));
}

// 64 sequences, each replaced by a new one when it ends.
class Traffic {
 public:
  static constexpr std::uint32_t kRows = 64;
  static constexpr std::uint32_t kMostWaits = 50;

  Traffic(std::uint32_t num_blocks, std::uint32_t max_runs, std::uint64_t seed)
      : cache_(CacheOptions(num_blocks, kRows, max_runs), device_),
        builder_(Limits(kRows, max_runs), 3),
        rng_(seed, "churn") {
    for (std::uint32_t s = 0; s < kRows; ++s)
      Start(s);
  }

  void Step() {
    CHECK(builder_.Begin());
    std::array<std::uint32_t, kRows> want = {};
    for (std::uint32_t s = 0; s < kRows; ++s) {
      Seq& seq = seqs_[s];
      const std::uint32_t more =
          seq.length < seq.prompt ? std::min(kChunk, seq.prompt - seq.length) : 1;
      // As an engine does: what does not fit, or waited too long to be moved together, starts anew.
      if (seq.num_waits < kMostWaits && cache_.Extend(SeqId{s}, seq.length + more)) {
        want[s] = more;
      } else {
        ++num_restarted_;
        Restart(s);
      }
    }
    cache_.Plan(builder_, builder_.building());
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (want[s] == 0) continue;
      if (!cache_.AddRow(builder_, {.seq = SeqId{s},
                                    .first_position = seqs_[s].length,
                                    .tokens = std::span(kTokens).first(want[s])})) {
        ++seqs_[s].num_waits;
        continue;
      }
      seqs_[s].num_waits = 0;
      num_runs_.push_back(static_cast<std::uint32_t>(cache_.home(SeqId{s}).size()));
      seqs_[s].length += want[s];
    }
    const StepView step = builder_.Commit(0, kRows);
    cache_.Launch(step);
    cache_.Land();
    builder_.Latch();
    // The step before retires after this one was planned and committed.
    if (step.header->step > StepId{1}) cache_.Retire(builder_.Retire());
    num_held_ += cache_.stats().num_held;
    num_grouped_steps_ += step.groups.empty() ? 0u : 1u;
    ++num_steps_;
    for (std::uint32_t s = 0; s < kRows; ++s) {
      if (seqs_[s].length >= seqs_[s].prompt + seqs_[s].output) {
        cache_.Release(SeqId{s});
        Start(s);
      }
    }
  }

  const KvCache& cache() const { return cache_; }
  double mean_held() const {
    return static_cast<double>(num_held_) / static_cast<double>(num_steps_);
  }
  void Report(benchmark::State& state) {
    std::sort(num_runs_.begin(), num_runs_.end());
    std::uint64_t sum = 0;
    for (const std::uint32_t runs : num_runs_)
      sum += runs;
    const auto steps = static_cast<double>(num_steps_);
    const KvStats stats = cache_.stats();
    state.counters["occupancy"] = mean_held() / stats.num_blocks;
    state.counters["runs_mean"] = static_cast<double>(sum) / static_cast<double>(num_runs_.size());
    state.counters["runs_p99"] = num_runs_[num_runs_.size() * 99 / 100];
    state.counters["runs_max"] = num_runs_.back();
    state.counters["groups_step"] = static_cast<double>(stats.num_groups) / steps;
    state.counters["moved_step"] = static_cast<double>(stats.num_moved_blocks) / steps;
    state.counters["steps_moving"] = static_cast<double>(num_grouped_steps_) / steps;
    state.counters["overflows"] = static_cast<double>(stats.num_run_overflows);
    state.counters["stalls"] = static_cast<double>(stats.num_stalls);
    state.counters["restarts"] = static_cast<double>(num_restarted_);
  }

 private:
  struct Seq {
    std::uint32_t prompt = 0;
    std::uint32_t output = 0;
    std::uint32_t length = 0;
    std::uint32_t num_waits = 0;  // steps without a row, since the last one
  };
  void Start(std::uint32_t s) {
    CHECK(cache_.Open(SeqId{s}, 0));
    seqs_[s] = {.prompt = LogNormal(rng_, 512, 0.9, 8192),
                .output = LogNormal(rng_, 256, 1.0, 4096)};
  }
  // Its tokens so far are a prompt to compute again.
  void Restart(std::uint32_t s) {
    cache_.Release(SeqId{s});
    CHECK(cache_.Open(SeqId{s}, 0));
    seqs_[s].length = 0;
    seqs_[s].num_waits = 0;
  }

  HostDevice device_;
  KvCache cache_;
  StepBuilder builder_;
  Rng rng_;
  std::array<Seq, kRows> seqs_ = {};
  std::vector<std::uint32_t> num_runs_;
  std::uint64_t num_held_ = 0;
  std::uint64_t num_steps_ = 0;
  std::uint64_t num_grouped_steps_ = 0;
  std::uint64_t num_restarted_ = 0;
};

void Churn(benchmark::State& state) {
  constexpr std::uint32_t kSteps = 30000;
  const auto max_runs = static_cast<std::uint32_t>(state.range(0));
  Traffic unlimited(64 * kMaxBlocksPerSeq, max_runs, 1);
  for (std::uint32_t i = 0; i < kSteps; ++i)
    unlimited.Step();
  const double load = static_cast<double>(state.range(1)) / 100.0;
  const auto num_blocks = static_cast<std::uint32_t>(unlimited.mean_held() / load);
  for (auto _ : state) {
    Traffic traffic(num_blocks, max_runs, 1);
    for (std::uint32_t i = 0; i < kSteps; ++i)
      traffic.Step();
    traffic.cache().CheckInvariants();
    state.PauseTiming();
    traffic.Report(state);
    state.ResumeTiming();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * kSteps);
}
BENCHMARK(Churn)
    ->ArgsProduct({{512, 32, 8}, {75, 90}})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace kvrm

BENCHMARK_MAIN();
