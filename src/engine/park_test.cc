// SPDX-License-Identifier: Apache-2.0
// Preemption by park and resume: a pool that holds half of what runs serves all of it, computes no
// token twice while the host tier has room, and nobody's output tells.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "engine/outputs_for_test.h"
#include "engine/random_request.h"
#include "model/weights.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kRows = 8;
constexpr std::uint32_t kContext = 128;
constexpr std::uint32_t kRequests = 24;

const SystemClock kClock;

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

// Eight of them need 8 x 100 tokens and more; the pool has 384.
EngineOptions Options(std::uint64_t host_kv_bytes) {
  return {.max_rows = kRows,
          .max_context = kContext,
          .kv_tokens = 384,
          .host_kv_bytes = host_kv_bytes,
          .prefix_cache = false,
          .max_queued = kRequests,
          .num_threads = 1};
}

std::uint64_t TokenBytes() {
  const ModelConfig& config = Demo().config();
  return std::uint64_t{4} * config.num_layers * config.num_kv_heads * config.head_dim;
}

std::vector<Request> Requests() {
  Rng rng(7, "park");
  std::vector<Request> requests(kRequests);
  for (Request& request : requests) {
    for (std::uint64_t i = 30 + rng.Below(30); i > 0; --i)
      request.prompt.push_back(static_cast<std::int32_t>(rng.Below(Demo().config().vocab_size)));
    request.max_tokens = 50 + static_cast<std::uint32_t>(rng.Below(20));
    request.sampling.seed = rng.Next();
    request.sampling.temperature = 0.9f;
  }
  return requests;
}

std::vector<Output> Serve(Engine& engine) {
  std::map<RequestId, std::size_t> index;
  for (Request& request : Requests())
    index[OrThrow(engine.Submit(std::move(request)))] = index.size();
  std::vector<Output> outputs = ServeAll(engine, index);
  engine.CheckInvariants();
  EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
  EXPECT_EQ(engine.kv_stats().num_host_free, engine.kv_stats().num_host_blocks);
  return outputs;
}

void RunToEnd(Engine& engine) {
  TokenEvent event;
  while (engine.Step() || engine.stats().num_running + engine.stats().num_waiting > 0) {
    while (engine.Poll({&event, 1}) == 1) {
    }
  }
}

// Each that comes is more urgent than those before it and is taken in before what is parked.
// Returns how many were parked at most.
std::uint32_t ServeUrgent(Engine& engine, std::uint64_t seed) {
  Rng rng(seed, "urgent");
  std::uint32_t most_parked = 0;
  for (std::int32_t i = 0; i < 8; ++i) {
    Request request = RandomRequest(rng, Demo().config().vocab_size, 40, 60);
    request.priority = -i;
    OrThrow(engine.Submit(std::move(request)));
    for (int step = 0; step < 40; ++step)
      engine.Step();
    most_parked = std::max(most_parked, engine.kv_stats().num_parked);
  }
  RunToEnd(engine);
  return most_parked;
}

TEST(Park, AnOversubscribedPoolComputesNothingTwiceWhileTheHostHasRoom) {
  EngineOptions ample = Options(0);
  ample.kv_tokens = 0;
  Engine alone(Demo(), ample, kClock);
  const std::vector<Output> expected = Serve(alone);
  EXPECT_EQ(alone.stats().num_preemptions, 0u);
  for (const bool cache : {false, true}) {
    SCOPED_TRACE(cache);
    EngineOptions options = Options(kHostKvAuto);
    options.prefix_cache = cache;
    Engine engine(Demo(), options, kClock);
    EXPECT_EQ(engine.options().host_kv_bytes, 4 * kRows * kContext * TokenBytes());
    EXPECT_EQ(Serve(engine), expected);
    EXPECT_GT(engine.stats().num_preemptions, 3u);
    EXPECT_EQ(engine.stats().num_recomputed_tokens, 0u);
    const KvStats kv = engine.kv_stats();
    EXPECT_EQ(kv.num_parks, engine.stats().num_preemptions);
    EXPECT_EQ(kv.num_park_refusals, 0u);
    EXPECT_GT(kv.num_resumed_blocks, 0u);
  }
  Engine without(Demo(), Options(0), kClock);
  EXPECT_EQ(Serve(without), expected);
  EXPECT_GT(without.stats().num_recomputed_tokens, 0u);
}

// Samples share their prompt's blocks in the pool; in the tier each history has its own.
TEST(Park, SamplesAreComputedOnceWhileTheHostHasRoom) {
  std::uint64_t num_parks = 0;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    EngineOptions options = Options(std::uint64_t{1} << 26);
    options.prefix_cache = seed % 2 == 0;
    options.max_queued = 256;
    Engine engine(Demo(), options, kClock);
    Rng rng(seed, "samples");
    for (int i = 0; i < 24; ++i) {
      Request request = RandomRequest(rng, Demo().config().vocab_size,
                                      static_cast<std::uint32_t>(20 + rng.Below(40)),
                                      static_cast<std::uint32_t>(20 + rng.Below(40)));
      request.num_samples = static_cast<std::uint32_t>(1 + rng.Below(4));
      OrThrow(engine.Submit(std::move(request)));
      for (std::uint64_t steps = rng.Below(20); steps > 0; --steps)
        engine.Step();
    }
    RunToEnd(engine);
    EXPECT_EQ(engine.kv_stats().num_park_refusals, 0u);
    EXPECT_EQ(engine.stats().num_recomputed_tokens, 0u);
    num_parks += engine.kv_stats().num_parks;
  }
  EXPECT_GT(num_parks, 10u);
}

TEST(Park, MoreThanThereAreRowsMayBeParked) {
  EngineOptions options = Options(std::uint64_t{1} << 26);
  options.max_rows = 2;
  options.kv_tokens = 160;
  Engine engine(Demo(), options, kClock);
  const std::uint32_t most_parked = ServeUrgent(engine, 3);
  EXPECT_GT(most_parked, 2u);
  EXPECT_EQ(engine.kv_stats().num_park_refusals, 0u);
  EXPECT_EQ(engine.stats().num_recomputed_tokens, 0u);
}

// What the pool lacks for its two rows is less than one history, and more urgent ones push out more
// than one.
TEST(Park, TheDefaultHoldsAllThatMayBeParked) {
  EngineOptions options = Options(kHostKvAuto);
  options.max_rows = 2;
  options.kv_tokens = 160;
  Engine engine(Demo(), options, kClock);
  EXPECT_EQ(engine.options().host_kv_bytes, 8 * kContext * TokenBytes());
  const std::uint32_t most_parked = ServeUrgent(engine, 5);
  EXPECT_GT(most_parked, 2u);
  EXPECT_EQ(engine.kv_stats().num_park_refusals, 0u);
  EXPECT_EQ(engine.stats().num_recomputed_tokens, 0u);
}

TEST(Park, TheDefaultIsAtMostAQuarterOfMemory) {
  EngineOptions options = Options(kHostKvAuto);
  options.max_context = 1 << 20;
  options.max_rows = 1024;
  const KvLayout layout = {.num_layers = 64, .num_kv_heads = 8, .head_dim = 128};
  const EngineParts parts = {.layout = layout, .max_context = options.max_context};
  const std::uint64_t bytes = ResolvedOptions(options, parts).host_kv_bytes;
  const std::uint64_t quarter = static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                                static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) / 4;
  EXPECT_LE(bytes, quarter);
  EXPECT_GT(bytes, quarter / 2);
}

TEST(Park, WhatFindsNoRoomIsRecomputedAndCounted) {
  Engine engine(Demo(), Options(96 * TokenBytes()), kClock);
  Serve(engine);
  const KvStats kv = engine.kv_stats();
  EXPECT_EQ(kv.num_host_blocks, 6u);
  EXPECT_GT(kv.num_park_refusals, 0u);
  EXPECT_GT(engine.stats().num_recomputed_tokens, 0u);
}

// A budget of one block a step: parking takes many steps, and rows sit them out.
TEST(Park, EverybodyEndsHoweverSlowlyBlocksLeave) {
  EngineOptions options = Options(kHostKvAuto);
  options.max_move_bytes_per_step = 16 * TokenBytes();
  options.max_edits_per_step = 1;
  Engine engine(Demo(), options, kClock);
  Serve(engine);
  EXPECT_GT(engine.kv_stats().num_resumes, 0u);
  EXPECT_EQ(engine.stats().num_recomputed_tokens, 0u);
}

TEST(Park, MayBeCancelledAtAnyPoint) {
  for (std::uint32_t cancel_after = 0; cancel_after < 12; ++cancel_after) {
    SCOPED_TRACE(cancel_after);
    EngineOptions options = Options(kHostKvAuto);
    options.max_move_bytes_per_step = 16 * TokenBytes();
    Engine engine(Demo(), options, kClock);
    std::vector<RequestId> ids;
    for (Request& request : Requests())
      ids.push_back(OrThrow(engine.Submit(std::move(request))));
    while (engine.kv_stats().num_parks == 0)
      ASSERT_TRUE(engine.Step());
    for (std::uint32_t step = 0; step < cancel_after; ++step)
      engine.Step();
    for (const RequestId id : ids)
      engine.Cancel(id);
    engine.Step();
    engine.CheckInvariants();
    EXPECT_EQ(engine.stats().num_running + engine.stats().num_waiting, 0u);
    EXPECT_EQ(engine.kv_stats().num_parking + engine.kv_stats().num_parked, 0u);
    EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
    EXPECT_EQ(engine.kv_stats().num_host_free, engine.kv_stats().num_host_blocks);
  }
}

TEST(Park, ABudgetForMemoryMustNameTheTier) {
  EngineOptions options = Options(kHostKvAuto);
  options.memory_budget = std::uint64_t{1} << 40;
  const Engine engine(Demo(), options, kClock);
  EXPECT_EQ(engine.options().host_kv_bytes, 0u);
  options.host_kv_bytes = 100 * TokenBytes();
  const Engine with(Demo(), options, kClock);
  EXPECT_EQ(with.options().host_kv_bytes, 96 * TokenBytes());  // whole blocks
  EXPECT_EQ(with.kv_stats().host_reserved_bytes, 96 * TokenBytes());
}

}  // namespace
}  // namespace kvrm
