// SPDX-License-Identifier: Apache-2.0
// Movement is invisible: 200 random requests give bit-identical tokens and logprobs alone, in
// batches, with prompts cut into chunks, on one and two threads, in pools that scatter, preempt or
// move blocks together.
//
// The table of runs covers every pair of (rows, chunk, threads, pool, block size). The negative
// control is this same test linked with kernels built to break the promise (CMakeLists.txt): there
// it must report differences.
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/outputs_for_test.h"
#include "model/weights.h"

namespace kvrm {
namespace {

constexpr std::size_t kNumRequests = 200;
constexpr std::uint32_t kMaxContext = 128;

// Tight ones preempt: with a host tier and without one.
enum class Pool { kAmple, kScattered, kTight, kTightRecomputed, kCrowded };

struct Setting {
  std::uint32_t rows;
  std::uint32_t chunk;  // 0: whole prompts
  std::uint32_t threads;
  Pool pool;
  std::uint32_t block_tokens;
};

constexpr Setting kAlone = {1, 0, 1, Pool::kAmple, 16};
constexpr Setting kSettings[] = {
    {1, 1, 2, Pool::kScattered, 16},
    {1, 7, 1, Pool::kTight, 32},
    {1, 64, 2, Pool::kAmple, 32},
    {2, 0, 2, Pool::kTight, 16},
    {2, 1, 1, Pool::kAmple, 32},
    {2, 7, 2, Pool::kAmple, 16},
    {2, 64, 1, Pool::kScattered, 32},
    {7, 0, 1, Pool::kScattered, 32},
    {7, 1, 2, Pool::kTight, 32},
    {7, 7, 1, Pool::kAmple, 16},
    {7, 64, 2, Pool::kTight, 16},
    {32, 0, 2, Pool::kAmple, 32},
    {32, 1, 1, Pool::kTight, 16},
    {32, 7, 2, Pool::kScattered, 32},
    {32, 64, 1, Pool::kAmple, 16},
    {32, 0, 1, Pool::kTight, 32},
    {7, 7, 2, Pool::kCrowded, 16},
    {32, 64, 1, Pool::kCrowded, 16},
    {32, 0, 1, Pool::kTightRecomputed, 32},
    {7, 64, 2, Pool::kTightRecomputed, 16},
};

// Prompts of 1 to 80 tokens and outputs of 1 to 40, short ones more often; a third greedy, the rest
// with random truncation. Words come from the vocabulary as they may; meaning is not the point.
std::vector<Request> MakeRequests(const Model& model) {
  Rng rng(20260501, "invariance");
  std::vector<Request> requests(kNumRequests);
  for (Request& request : requests) {
    const std::uint64_t length = 1 + rng.Below(1 + rng.Below(80));
    for (std::uint64_t i = 0; i < length; ++i) {
      request.prompt.push_back(static_cast<std::int32_t>(rng.Below(model.config().vocab_size)));
    }
    request.max_tokens = static_cast<std::uint32_t>(rng.Between(1, 1 + rng.Below(40)));
    request.sampling.seed = rng.Next();
    if (rng.Below(3) == 0) {
      request.sampling.temperature = 0.0f;
    } else {
      request.sampling.temperature = static_cast<float>(0.2 + 1.3 * rng.Uniform());
      if (rng.Below(2) == 0) request.sampling.top_k = static_cast<std::int32_t>(rng.Between(1, 60));
      if (rng.Below(2) == 0) request.sampling.top_p = static_cast<float>(0.5 + 0.5 * rng.Uniform());
    }
    request.stop_ids = model.tokenizer().stop_ids();
  }
  return requests;
}

EngineOptions OptionsOf(const Setting& setting) {
  EngineOptions options = {.max_rows = setting.rows,
                           .max_context = kMaxContext,
                           .max_step_tokens = 256,
                           .block_tokens = setting.block_tokens,
                           .max_queued = kNumRequests,
                           .max_wait_ms = 0,  // a busy machine may take minutes
                           .num_threads = setting.threads,
                           .prompt_chunk = setting.chunk};
  options.max_runs = kMaxContext / setting.block_tokens;
  switch (setting.pool) {
    case Pool::kAmple:
      options.kv_tokens = std::uint64_t{setting.rows} * kMaxContext;
      break;
    case Pool::kScattered:
      options.kv_tokens = std::uint64_t{setting.rows} * kMaxContext;
      options.placement_seed = 77 + setting.rows;
      break;
    case Pool::kCrowded:
      // Blocks anywhere and few runs a row: histories are moved together all the time.
      options.kv_tokens = std::uint64_t{2} * setting.rows * kMaxContext;
      options.placement_seed = 5;
      options.max_runs = 3;
      break;
    case Pool::kTightRecomputed:
      options.host_kv_bytes = 0;
      [[fallthrough]];
    case Pool::kTight:
      // Room for one typical sequence beside the one that must always fit.
      options.kv_tokens = kMaxContext + 32;
      break;
  }
  return options;
}

std::vector<Output> Serve(const Model& model, const std::vector<Request>& requests,
                          const Setting& setting, EngineStats* stats) {
  const SystemClock clock;
  Engine engine(model, OptionsOf(setting), clock);
  std::map<RequestId, std::size_t> index;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    Result<RequestId> id = engine.Submit(requests[i]);
    CHECK(id.has_value());
    index[*id] = i;
  }
  std::vector<Output> outputs = ServeAll(engine, index);
  *stats = engine.stats();
  return outputs;
}

TEST(Invariance, TokensAndLogprobsAreThoseOfTheRunAlone) {
  const Result<Model> model = Model::LoadDemo();
  ASSERT_TRUE(model.has_value()) << model.error().message;
  const std::vector<Request> requests = MakeRequests(*model);
  EngineStats stats;
  const std::vector<Output> alone = Serve(*model, requests, kAlone, &stats);
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_moved_blocks = 0;
  std::printf("%5s %6s %8s %10s %6s %6s %9s %9s %9s\n", "rows", "chunk", "threads", "pool", "block",
              "steps", "preempted", "moved", "different");
  for (const Setting& setting : kSettings) {
    const std::vector<Output> outputs = Serve(*model, requests, setting, &stats);
    std::size_t num_different = 0;
    for (std::size_t i = 0; i < requests.size(); ++i)
      num_different += outputs[i] != alone[i];
    const char* const pool = setting.pool == Pool::kAmple       ? "ample"
                             : setting.pool == Pool::kCrowded   ? "crowded"
                             : setting.pool == Pool::kScattered ? "scattered"
                             : setting.pool == Pool::kTight     ? "tight"
                                                                : "recomputed";
    std::printf("%5u %6u %8u %10s %6u %6llu %9llu %9llu %9zu\n", setting.rows, setting.chunk,
                setting.threads, pool, setting.block_tokens,
                static_cast<unsigned long long>(stats.num_steps),
                static_cast<unsigned long long>(stats.num_preemptions),
                static_cast<unsigned long long>(stats.num_moved_blocks), num_different);
    num_preemptions += stats.num_preemptions;
    num_moved_blocks += stats.num_moved_blocks;
    EXPECT_EQ(num_different, 0u) << "output differs from the run alone";
    EXPECT_EQ(stats.num_free_blocks, stats.num_blocks) << "blocks leaked";
  }
  EXPECT_GT(num_preemptions, 50u) << "the tight pools were meant to preempt";
  EXPECT_GT(num_moved_blocks, 50u) << "the crowded pools were meant to move blocks";
}

}  // namespace
}  // namespace kvrm
