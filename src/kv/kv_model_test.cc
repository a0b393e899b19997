// SPDX-License-Identifier: Apache-2.0
// KvCache against KvModel: random programs, every short program, and the negative controls.
#include "kv/kv_model.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace kvrm {
namespace {

struct Totals {
  std::uint64_t num_ops = 0;
  std::uint64_t num_executed = 0;
  std::uint64_t num_groups = 0;
  std::uint64_t num_run_overflows = 0;
  std::uint64_t num_staged_bytes = 0;
  std::uint64_t num_maps = 0;
  std::uint64_t num_cow_blocks = 0;
  std::uint64_t num_prefix_hits = 0;
  std::uint64_t num_evictions = 0;
  std::uint64_t num_parks = 0;
  std::uint64_t num_park_refusals = 0;
  std::uint64_t num_resumed = 0;
  std::uint64_t num_resumed_blocks = 0;
};

void RunProgram(std::uint64_t seed, std::uint32_t num_ops, Totals& totals) {
  Choices choices(seed);
  const KvModelOptions options = RandomKvModelOptions(choices);
  KvModel model(options, choices);
  for (std::uint32_t i = 0; i < num_ops; ++i)
    model.RandomOp();
  model.Drain();
  totals.num_ops += num_ops;
  totals.num_executed += model.num_executed();
  const KvStats stats = model.cache().stats();
  totals.num_groups += stats.num_groups;
  totals.num_run_overflows += stats.num_run_overflows;
  totals.num_staged_bytes += stats.num_staged_bytes;
  totals.num_maps += stats.num_maps;
  totals.num_cow_blocks += stats.num_cow_blocks;
  totals.num_prefix_hits += stats.num_prefix_hits;
  totals.num_evictions += stats.num_evictions;
  totals.num_parks += stats.num_parks;
  totals.num_park_refusals += stats.num_park_refusals;
  totals.num_resumed += model.num_resumed();
  totals.num_resumed_blocks += stats.num_resumed_blocks;
}

TEST(KvModel, RandomProgramsKeepContentFencesAndBooks) {
  Totals totals;
  for (std::uint64_t seed = 1; seed <= 1200; ++seed) {
    SCOPED_TRACE(seed);
    RunProgram(seed, 1000, totals);
  }
  // The programs reach what they are meant to reach.
  EXPECT_EQ(totals.num_ops, 1200000u);
  EXPECT_GT(totals.num_executed, 40000u);
  EXPECT_GT(totals.num_groups, 4000u);
  EXPECT_GT(totals.num_run_overflows, 1000u);
  EXPECT_GT(totals.num_staged_bytes, 100000u);
  EXPECT_GT(totals.num_maps, 1000u);
  EXPECT_GT(totals.num_cow_blocks, 500u);
  EXPECT_GT(totals.num_prefix_hits, 1000u);
  EXPECT_GT(totals.num_evictions, 100u);
  EXPECT_GT(totals.num_parks, 1000u);
  EXPECT_GT(totals.num_park_refusals, 1000u);
  EXPECT_GT(totals.num_resumed, 1000u);
  EXPECT_GT(totals.num_resumed_blocks, 1000u);
}

// The letters of every program. A step is committed by one, run and retired by others, so that up
// to two are in flight.
enum class Op : std::uint8_t { kA1, kA17, kB33, kEndA, kEndB, kCutA, kRun, kRetire };
constexpr std::uint32_t kNumOps = 8;

// Grows sequence `s` by `num_tokens` and adds it to the step; opens it where needed.
void Grow(KvModel& model, std::uint32_t s, std::uint32_t num_tokens, bool open,
          std::uint32_t length) {
  if (!open) model.TryOpen(s, 0);
  if (length + num_tokens > model.max_tokens()) return;
  if (!model.Begin()) return;
  if (model.TryExtend(s, length + num_tokens)) {
    model.Plan();
    if (model.AddRow(s, num_tokens)) {
      model.Commit();
      return;
    }
  }
  model.Abandon();
}

void RunLetters(std::uint64_t program, std::uint32_t length, std::uint64_t placement_seed) {
  Choices choices(program);
  KvModel model(
      {.num_blocks = 5,
       .max_seqs = 2,
       .max_runs = 2,
       .max_groups = 2,
       .max_move_blocks = 2,
       .depth = 2,
       .placement = placement_seed != 0 ? PlacementPolicy::kScattered : PlacementPolicy::kInPlace,
       .placement_seed = placement_seed},
      choices);
  for (std::uint32_t i = 0; i < length; ++i, program /= kNumOps) {
    const auto op = static_cast<Op>(program % kNumOps);
    const std::uint32_t s = op == Op::kB33 || op == Op::kEndB ? 1 : 0;
    const bool open = model.is_open(s);
    switch (op) {
      case Op::kA1:
        Grow(model, s, 1, open, model.length(s));
        break;
      case Op::kA17:
        Grow(model, s, 17, open, model.length(s));
        break;
      case Op::kB33:
        Grow(model, s, 33, open, model.length(s));
        break;
      case Op::kEndA:
      case Op::kEndB:
        if (open) model.Release(s);
        break;
      case Op::kCutA:
        if (open) model.Truncate(0, model.length(0) / 2);
        break;
      case Op::kRun:
        model.Execute();
        break;
      case Op::kRetire:
        model.Retire();
        break;
    }
    model.Check();
  }
  model.Drain();
}

TEST(KvModel, EveryProgramOfSixOperationsOnFourBlocks) {
  constexpr std::uint64_t kPrograms = 8 * 8 * 8 * 8 * 8 * 8;  // Shorter ones are their prefixes.
#if defined(KVRM_DEBUG_CHECKS) || defined(__SANITIZE_THREAD__)
  constexpr std::uint64_t kStride = 13;  // Coprime to the alphabet: a sample of all of them.
#else
  constexpr std::uint64_t kStride = 1;
#endif
  for (std::uint64_t program = 0; program < kPrograms; program += kStride) {
    RunLetters(program, 6, 0);
    RunLetters(program, 6, 1 + program % 5);
  }
}

}  // namespace
}  // namespace kvrm
