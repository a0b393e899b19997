// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "exec/cpu_executor.h"
#include "exec/worker_team.h"

namespace kvrm {
namespace {

struct Relay {
  WorkerTeam* team;
  std::vector<std::uint64_t> values;  // one per worker, plain memory: only barriers order it
  std::uint64_t sum = 0;
  bool torn = false;
};

// Each worker writes its own value; after the barrier everybody must see all of them.
void PassOn(void* argument, std::uint32_t worker) {
  Relay& relay = *static_cast<Relay*>(argument);
  for (std::uint64_t round = 1; round <= 50; ++round) {
    relay.values[worker] = round * (worker + 1);
    relay.team->Barrier();
    std::uint64_t sum = 0;
    for (const std::uint64_t value : relay.values)
      sum += value;
    const std::uint64_t n = relay.values.size();
    if (sum != round * n * (n + 1) / 2) relay.torn = true;
    relay.team->Barrier();
  }
}

TEST(WorkerTeam, BarriersMakeWritesVisibleToAll) {
  for (const std::uint32_t workers : {1u, 2u, 3u, 5u}) {
    WorkerTeam team(workers);
    Relay relay = {.team = &team, .values = std::vector<std::uint64_t>(workers)};
    for (int run = 0; run < 20; ++run) {
      team.Start(&PassOn, &relay);
      team.Join();
    }
    EXPECT_FALSE(relay.torn) << workers;
  }
}

TEST(WorkerTeam, EveryWorkerRunsOnceARun) {
  WorkerTeam team(4);
  std::atomic<std::uint32_t> ran[4] = {};
  for (int run = 0; run < 100; ++run) {
    team.Start(
        [](void* argument, std::uint32_t worker) {
          static_cast<std::atomic<std::uint32_t>*>(argument)[worker].fetch_add(1);
        },
        ran);
    team.Join();
  }
  for (const std::atomic<std::uint32_t>& count : ran)
    EXPECT_EQ(count.load(), 100u);
}

TEST(PlanBuckets, AreFewAscendAndHoldTheLimits) {
  for (const std::uint32_t rows : {1u, 2u, 3u, 7u, 8u, 31u, 32u, 33u, 64u, 256u, 1000u, 1024u}) {
    for (const std::uint32_t extra : {0u, 1u, 64u, 224u, 4096u}) {
      const StepLimits limits = {.max_rows = rows, .max_tokens = rows + extra};
      const std::vector<Bucket> buckets = PlanBuckets(limits);
      ASSERT_GE(buckets.size(), 1u);
      ASSERT_LE(buckets.size(), kMaxBuckets);
      for (std::size_t i = 1; i < buckets.size(); ++i) {
        EXPECT_LE(buckets[i - 1].max_rows, buckets[i].max_rows);
        EXPECT_LT(buckets[i - 1].max_tokens, buckets[i].max_tokens) << rows << ' ' << extra;
      }
      EXPECT_EQ(buckets.back().max_rows, limits.max_rows);
      EXPECT_EQ(buckets.back().max_tokens, limits.max_tokens);
    }
  }
}

TEST(PlanBuckets, DecodeBucketsDoubleForServingSizes) {
  const std::vector<Bucket> buckets = PlanBuckets({.max_rows = 32, .max_tokens = 256});
  std::vector<std::uint32_t> tokens;
  for (const Bucket& bucket : buckets)
    tokens.push_back(bucket.max_tokens);
  EXPECT_EQ(tokens, (std::vector<std::uint32_t>{1, 2, 4, 8, 16, 32, 64, 256}));
}

}  // namespace
}  // namespace kvrm
