// SPDX-License-Identifier: Apache-2.0
#include "replay/fleet_target.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <set>
#include <string>

#include "base/file.h"
#include "replay/cost_device.h"
#include "replay/engine_target.h"
#include "replay/metrics.h"
#include "replay/record.h"
#include "replay/small_engine_for_test.h"
#include "trace/generate.h"

namespace kvrm {
namespace {

struct FleetReplay {
  Workload workload;
  std::uint32_t num_replicas = 4;
  RoutePolicy route = RoutePolicy::kLeastOutstanding;
  ReplayOptions options = {};
  EngineOptions engine = SmallEngine();
  DeviceProfile profile = {};

  RecordHeader Header() const {
    return {.target = "sim",
            .clock = "virtual",
            .workload = workload.name,
            .num_requests = workload.requests.size(),
            .num_replicas = num_replicas};
  }

  template <typename Run>
  static std::string Recorded(const RecordHeader& header, const Run& run) {
    const std::string path =
        ::testing::TempDir() + "kvrm_fleet" + std::to_string(::getpid()) + ".jsonl";
    RecordWriter writer(path, header);
    writer.End(run(writer));
    const Result<std::string> text = ReadFile(path, 64u << 20);
    std::remove(path.c_str());
    return text ? *text : "";
  }

  std::string Run() const {
    return Recorded(Header(), [this](RecordWriter& writer) {
      FleetTarget fleet(profile, {.num_replicas = num_replicas, .route = route, .engine = engine});
      ReplayRun run(workload, options, writer);
      fleet.Run(run);
      return fleet.now_ns();
    });
  }

  // By the target of one engine.
  std::string RunAlone(const RecordHeader& header) const {
    return Recorded(header, [this](RecordWriter& writer) {
      SimClock clock;
      CostDevice device;
      StepProbe probe;
      Engine alone(ProfileParts(profile, device, &probe, &clock), engine, clock);
      ReplayRun run(workload, options, writer);
      const auto wait = [&clock](std::int64_t now_ns, std::int64_t until_ns) {
        clock.Advance(until_ns - now_ns);
      };
      EngineTarget(
          alone, probe, clock,
          {.vocab = {0, kProfileVocab}, .bytes_scale = ProfileBytesScale(profile), .wait = wait})
          .Run(run);
      return clock.NowNs();
    });
  }
};

Workload Mixed(WorkloadFamily family = WorkloadFamily::kMixed) {
  return Generate(
      {.family = family, .seed = 9, .num_requests = 150, .rate_rps = 60.0, .length_scale = 0.2});
}

Record Parsed(const std::string& text) {
  const Result<Record> record = ParseRecord(text);
  EXPECT_TRUE(record) << record.error().message;
  return record ? *record : Record{};
}

TEST(FleetTarget, EqualSeedsGiveEqualRecordsAndEveryRequestEndsOnce) {
  for (const RoutePolicy route :
       {RoutePolicy::kLeastOutstanding, RoutePolicy::kRoundRobin, RoutePolicy::kPrefix}) {
    for (const WorkloadFamily family :
         {WorkloadFamily::kMixed, WorkloadFamily::kMultiTurn, WorkloadFamily::kFork}) {
      const FleetReplay replay = {.workload = Mixed(family), .route = route};
      const std::string text = replay.Run();
      EXPECT_EQ(text, replay.Run()) << RoutePolicyName(route);
      const Record record = Parsed(text);
      EXPECT_TRUE(record.complete);
      std::set<std::uint64_t> ended;
      for (const RequestRecord& request : record.requests) {
        EXPECT_TRUE(ended.insert(request.request).second) << request.request;
        EXPECT_EQ(request.finish, "length") << request.error;
        EXPECT_EQ(request.output_tokens, request.asked_tokens);
        EXPECT_EQ(request.outputs().count, request.output_tokens);
      }
      EXPECT_EQ(ended.size(), replay.workload.requests.size());
    }
  }
}

TEST(FleetTarget, ReplicasSumUpToTheWhole) {
  const FleetReplay replay = {.workload = Mixed()};
  const Record record = Parsed(replay.Run());
  ASSERT_EQ(record.summary->replicas.size(), 4u);
  std::uint64_t prompts = 0;
  std::uint64_t outputs = 0;
  for (const RequestRecord& request : record.requests) {
    prompts += request.prompt_tokens;
    outputs += request.output_tokens;
  }
  std::uint64_t steps = 0;
  std::uint64_t tokens = 0;
  for (const ReplicaSummary& replica : record.summary->replicas) {
    EXPECT_GT(replica.num_steps, 0u);
    steps += replica.num_steps;
    tokens += replica.num_tokens;
  }
  EXPECT_EQ(steps, record.summary->step_ns.count());
  // Every token of a prompt is computed once, and of an output all but the last: nothing is cached
  // and nobody preempted.
  EXPECT_EQ(tokens, prompts + outputs - record.requests.size());
  EXPECT_EQ(record.summary->itl_ns.count(), outputs - record.requests.size());
  const Metrics metrics = Measure(record, {});
  EXPECT_EQ(metrics.completed, record.requests.size());
  EXPECT_EQ(metrics.output_tokens, outputs);
  EXPECT_EQ(metrics.replicas.count, 4u);
}

TEST(FleetTarget, OneReplicaDoesWhatAnEngineAloneDoes) {
  for (const WorkloadFamily family : {WorkloadFamily::kMixed, WorkloadFamily::kMultiTurn}) {
    FleetReplay replay = {.workload = Mixed(family), .num_replicas = 1};
    replay.options.warmup_requests = 7;
    replay.workload.requests[5].prompt_tokens = 4000;  // refused
    EXPECT_EQ(replay.Run(), replay.RunAlone(replay.Header()));
  }
  FleetReplay closed = {.workload = Generate({.family = WorkloadFamily::kEosHeavy,
                                              .arrivals = ArrivalProcess::kClosed,
                                              .seed = 3,
                                              .num_requests = 60,
                                              .num_clients = 5,
                                              .think_s = 0.1,
                                              .length_scale = 0.3}),
                        .num_replicas = 1};
  EXPECT_EQ(closed.Run(), closed.RunAlone(closed.Header()));
}

// What a summary leaves out is off by what its histograms are, and nothing else is.
TEST(FleetTarget, ASummaryHasTheMetricsOfEveryTokensTime) {
  FleetReplay replay = {.workload = Mixed(), .num_replicas = 1};
  replay.options.warmup_requests = 7;
  const GoodputLimits limits = {.ttft_ms = 300.0, .tpot_ms = 20.0};
  RecordHeader header = replay.Header();
  const Metrics summed = Measure(Parsed(replay.RunAlone(header)), limits);
  header.num_replicas = 0;
  const Metrics exact = Measure(Parsed(replay.RunAlone(header)), limits);
  for (const auto& [a, b] :
       {std::pair(summed.ttft_ms, exact.ttft_ms), std::pair(summed.tpot_ms, exact.tpot_ms),
        std::pair(summed.e2el_ms, exact.e2el_ms)}) {
    EXPECT_EQ(a.count, b.count);
    EXPECT_DOUBLE_EQ(a.mean, b.mean);
    EXPECT_DOUBLE_EQ(a.p999, b.p999);
  }
  for (const auto& [a, b] :
       {std::pair(summed.itl_ms, exact.itl_ms), std::pair(summed.steps.ms, exact.steps.ms)}) {
    EXPECT_EQ(a.count, b.count);
    EXPECT_NEAR(a.mean, b.mean, 1e-9 * b.mean);
    EXPECT_DOUBLE_EQ(a.max, b.max);
    for (const auto& [p, q] : {std::pair(a.p50, b.p50), std::pair(a.p90, b.p90),
                               std::pair(a.p99, b.p99), std::pair(a.p999, b.p999)})
      EXPECT_NEAR(p, q, q / 512.0);
  }
  EXPECT_DOUBLE_EQ(summed.duration_s, exact.duration_s);
  EXPECT_DOUBLE_EQ(summed.request_goodput, exact.request_goodput);
  EXPECT_GT(exact.request_goodput, 0.0);
  EXPECT_NEAR(summed.steps.cv, exact.steps.cv, 1e-6);
  EXPECT_DOUBLE_EQ(summed.steps.mean_rows, exact.steps.mean_rows);
  EXPECT_EQ(summed.steps.num_groups, exact.steps.num_groups);
  EXPECT_DOUBLE_EQ(summed.memory.live_mean, exact.memory.live_mean);
  EXPECT_EQ(summed.memory.mapped_max, exact.memory.mapped_max);
}

TEST(FleetTarget, StopsAtItsLimitAndEveryRequestThatWasSentEnds) {
  FleetReplay replay = {.workload = Mixed()};
  replay.options.stop_ns = 1'000'000'000;
  const Record record = Parsed(replay.Run());
  EXPECT_TRUE(record.complete);
  const Metrics metrics = Measure(record, {});
  EXPECT_GT(metrics.completed, 0u);
  EXPECT_GT(metrics.cancelled, 0u);
  EXPECT_LT(record.requests.size(), replay.workload.requests.size());
  EXPECT_EQ(metrics.completed + metrics.cancelled, record.requests.size());
}

TEST(Router, TakesTheLeastOutstandingAndOfEqualsTheOneChosenLongestAgo) {
  Workload workload;
  for (const std::uint32_t tokens : {100u, 10u, 10u, 10u, 10u, 10u})
    workload.requests.push_back({.prompt_tokens = tokens, .output_tokens = 1});
  Router router(RoutePolicy::kLeastOutstanding, 3, workload);
  EXPECT_EQ(router.Route(0), 0u);
  EXPECT_EQ(router.Route(1), 1u);
  EXPECT_EQ(router.Route(2), 2u);
  EXPECT_EQ(router.Route(3), 1u);  // all have one request: the shortest prompts, chosen before 2
  router.Ended(0, 0);
  EXPECT_EQ(router.Route(4), 0u);
  router.Ended(2, 2);
  router.Ended(0, 4);
  EXPECT_EQ(router.Route(5), 2u);  // 0 and 2 have none, and 0 was chosen after 2
}

TEST(Router, FollowsTheLongestPrefixWithinTheShareOfOne) {
  Workload workload;
  workload.hash_ids = {1, 2, 3, 1, 2, 4, 1, 9};
  for (const std::uint32_t first : {0u, 3u, 6u})
    workload.requests.push_back({.prompt_tokens = 1024,
                                 .output_tokens = 1,
                                 .first_hash = first,
                                 .num_hashes = first < 6 ? 3u : 2u});
  workload.requests.push_back({.prompt_tokens = 5, .output_tokens = 1});
  Router router(RoutePolicy::kPrefix, 2, workload);
  EXPECT_EQ(router.Route(0), 0u);
  EXPECT_EQ(router.Route(3), 1u);  // no hash ids: the least outstanding
  EXPECT_EQ(router.Route(1), 0u);  // begins as request 0
  // It has n of n + 1, and is followed up to n <= 1 + 5/4 * (n + 1)/2: up to 4.
  for (int n = 2; n <= 4; ++n)
    EXPECT_EQ(router.Route(n == 2 ? 2 : 1), 0u);
  EXPECT_EQ(router.Route(1), 1u);
}

}  // namespace
}  // namespace kvrm
