// SPDX-License-Identifier: Apache-2.0
// The scheduler in simulated time: what streams notice of others, whose turn it is, and when
// requests end for want of time.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "engine/timed_world_for_test.h"

namespace kvrm {
namespace {

constexpr int kVictims = 8;
constexpr std::size_t kQuietTokens = 300;
constexpr std::size_t kVictimTokens = 3000;

EngineOptions Options() {
  return {.max_rows = 32,
          .max_context = 20'000,
          .kv_tokens = 200'000,
          .max_runs = 64,
          .max_queued = 64};
}

std::vector<RequestId> SubmitMany(TimedWorld& world, int count, std::uint32_t num_prompt,
                                  std::uint32_t num_output) {
  std::vector<RequestId> ids;
  for (int i = 0; i < count; ++i)
    ids.push_back(world.Submit(num_prompt, num_output));
  return ids;
}

struct Ratios {
  double p50 = 0;
  double p99 = 0;
  double p999 = 0;
  double worst = 0;
  int num_served = 0;  // of what disturbed, while the streams ran
};

std::vector<RequestId> Run(TimedWorld& world, const std::function<void(TimedWorld&)>& disturb) {
  const std::vector<RequestId> ids = SubmitMany(world, kVictims, 200, kVictimTokens);
  while (world.record(ids[0]).token_ns.size() < kQuietTokens)
    world.Step();
  disturb(world);
  while (world.record(ids[0]).finish == FinishReason::kNone)
    world.Step();
  return ids;
}

// Eight streams run alone for a while, then beside what `disturb` brings. Each of their gaps over
// that at the same token of a run without it, where their histories are as long.
Ratios Disturb(const EngineOptions& options, const TimedExecutor::Cost& cost,
               const std::function<void(TimedWorld&)>& disturb) {
  TimedWorld quiet(options, cost);
  const std::vector<RequestId> quiet_ids = Run(quiet, [](TimedWorld&) {});
  TimedWorld world(options, cost);
  const std::vector<RequestId> ids = Run(world, disturb);
  std::vector<double> ratios;
  for (int v = 0; v < kVictims; ++v) {
    const std::vector<std::int64_t>& a =
        quiet.record(quiet_ids[static_cast<std::size_t>(v)]).token_ns;
    const std::vector<std::int64_t>& b = world.record(ids[static_cast<std::size_t>(v)]).token_ns;
    // The first to end ends the run; the others were let in later.
    const std::size_t end = std::min(a.size(), b.size());
    EXPECT_GT(end, kVictimTokens - 600);
    for (std::size_t t = kQuietTokens + 1; t < end; ++t)
      ratios.push_back(static_cast<double>(b[t] - b[t - 1]) / static_cast<double>(a[t] - a[t - 1]));
  }
  std::sort(ratios.begin(), ratios.end());
  int num_served = 0;
  for (const auto& [id, record] : world.records())
    num_served += id > ids.back() && record.finish == FinishReason::kLength ? 1 : 0;
  const Ratios result = {.p50 = QuantileOf(ratios, 0.5),
                         .p99 = QuantileOf(ratios, 0.99),
                         .p999 = QuantileOf(ratios, 0.999),
                         .worst = ratios.back(),
                         .num_served = num_served};
  std::printf("of the quiet gap: p50 %.2f, p99 %.2f, p99.9 %.2f, worst %.2f; %d served beside\n",
              result.p50, result.p99, result.p999, result.worst, result.num_served);
  return result;
}

struct ModelCase {
  const char* name = "";
  TimedExecutor::Cost cost;
  std::uint32_t num_long_prompt = 0;
};
void PrintTo(const ModelCase& c, std::ostream* out) {
  *out << c.name;
}

class Victims : public testing::TestWithParam<ModelCase> {};

TEST_P(Victims, OfALongPromptKeepTheirPace) {
  // The last chunks read all of it: as many tokens as a step of this model can still read.
  const std::uint32_t num_prompt = GetParam().num_long_prompt;
  const Ratios ratios =
      Disturb(Options(), GetParam().cost, [=](TimedWorld& w) { w.Submit(num_prompt, 1); });
  EXPECT_EQ(ratios.num_served, 1);
  EXPECT_LE(ratios.p999, 2.0);
  EXPECT_LE(ratios.worst, 3.0);
}

TEST_P(Victims, OfThirtyAtOnceKeepTheirPace) {
  const Ratios ratios =
      Disturb(Options(), GetParam().cost, [](TimedWorld& w) { SubmitMany(w, 30, 128, 64); });
  EXPECT_EQ(ratios.num_served, 30);
  EXPECT_LE(ratios.p999, 2.0);
  EXPECT_LE(ratios.worst, 3.0);
}

// Their prompts are few tokens; what is felt is who decodes beside the streams.
TEST_P(Victims, OfManySamplesKeepTheirPace) {
  const Ratios ratios = Disturb(Options(), GetParam().cost, [](TimedWorld& w) {
    for (std::uint64_t i = 0; i < 3; ++i) {
      Request request = TimedWorld::MakeRequest(128, 64, 1000 + i);
      request.num_samples = 10;
      w.Submit(std::move(request));
    }
  });
  EXPECT_EQ(ratios.num_served, 30);
  EXPECT_LE(ratios.p999, 2.0);
  EXPECT_LE(ratios.worst, 3.0);
}

// The control: without a pace the same traffic is felt, or these tests would show nothing.
TEST_P(Victims, SufferWithoutAPace) {
  EngineOptions options = Options();
  options.pace.itl_factor = 0;
  const Ratios ratios =
      Disturb(options, GetParam().cost, [](TimedWorld& w) { SubmitMany(w, 30, 128, 64); });
  EXPECT_GT(ratios.p999, 4.0);
}

INSTANTIATE_TEST_SUITE_P(OfModels, Victims,
                         testing::Values(ModelCase{"middle", MiddleModelSeconds, 8'000},
                                         ModelCase{"tiny", TinyModelSeconds, 2'000}));

// Seconds from Submit to the first token.
double WaitOf(const TimedWorld::Record& record) {
  return static_cast<double>(record.token_ns.front() - record.submitted_ns) * 1e-9;
}

RequestId SubmitAs(TimedWorld& world, std::uint64_t tenant, std::int32_t priority,
                   std::uint64_t seed) {
  Request request = TimedWorld::MakeRequest(64, 32, seed);
  request.tenant = tenant;
  request.priority = priority;
  return world.Submit(std::move(request));
}

EngineOptions Rows(std::uint32_t max_rows) {
  EngineOptions options = Options();
  options.max_rows = max_rows;
  return options;
}
EngineOptions TwoRows() {
  return Rows(2);
}

TEST(Turns, LowerPrioritiesComeFirstAndEqualOnesInOrderOfArrival) {
  TimedWorld world(Rows(1), MiddleModelSeconds);
  const RequestId late = SubmitAs(world, 0, 5, 1);
  const RequestId first = SubmitAs(world, 0, 0, 2);
  const RequestId second = SubmitAs(world, 0, 0, 3);
  const RequestId early = SubmitAs(world, 0, -3, 4);
  world.RunToEnd();
  const auto began = [&](RequestId id) { return world.record(id).token_ns.front(); };
  EXPECT_LT(began(early), began(first));
  EXPECT_LT(began(first), began(second));
  EXPECT_LT(began(second), began(late));
}

// Whatever comes before it: kAgedNs, and the requests that are running then.
TEST(Turns, NobodyStarvesBehindAFloodOfHigherPriority) {
  TimedWorld world(TwoRows(), MiddleModelSeconds);
  std::uint64_t seed = 1;
  const auto flood = [&] {
    while (world.engine().stats().num_waiting < 4) {
      SubmitAs(world, 0, 0, seed++);
      world.Step();
    }
  };
  flood();
  const RequestId low = SubmitAs(world, 0, 1000, seed++);
  while (world.record(low).token_ns.empty()) {
    flood();
    world.Step();
  }
  EXPECT_GE(WaitOf(world.record(low)), 0.9 * 30);
  EXPECT_LE(WaitOf(world.record(low)), 30 + 2.0);
}

// Everybody who waits has aged, and rows are preempted all the time.
TEST(Turns, WhoWasPreemptedComesBackBeforeThoseThatHaveNotBegun) {
  EngineOptions options = Rows(4);
  options.max_queued = 400;
  options.preempt_seed = 1;
  TimedWorld world(options, MiddleModelSeconds);
  for (std::uint64_t seed = 1; seed <= 300; ++seed)
    SubmitAs(world, 0, 0, seed);
  world.RunFor(60);
  std::int64_t longest_ns = 0;
  int num_aged = 0;
  for (const auto& [id, record] : world.records()) {
    num_aged += record.token_ns.empty() || WaitOf(record) < 30 ? 0 : 1;
    for (std::size_t i = 1; i < record.token_ns.size(); ++i)
      longest_ns = std::max(longest_ns, record.token_ns[i] - record.token_ns[i - 1]);
  }
  EXPECT_GT(num_aged, 20);
  EXPECT_GT(world.engine().stats().num_preemptions, 100u);
  EXPECT_LE(static_cast<double>(longest_ns) * 1e-9, 2.0);
}

TEST(Turns, AFloodOfOneTenantDelaysItself) {
  TimedWorld world(TwoRows(), MiddleModelSeconds);
  std::uint64_t seed = 1;
  for (int i = 0; i < 40; ++i)
    SubmitAs(world, 7, 0, seed++);
  world.RunFor(0.5);
  const RequestId other = SubmitAs(world, 8, 0, seed++);
  world.RunFor(3);
  ASSERT_FALSE(world.record(other).token_ns.empty());
  // One of the two rows, as soon as one ends: 32 tokens and a prompt are about half a second.
  EXPECT_LE(WaitOf(world.record(other)), 1.0);
  EXPECT_GT(world.engine().stats().num_waiting, 10u);
}

// Two tenants that always have work get tokens in the ratio of their weights.
TEST(Turns, WeightsDivideTheTokens) {
  TimedWorld world(TwoRows(), MiddleModelSeconds);
  std::uint64_t seed = 1;
  std::map<RequestId, std::uint64_t> tenants;
  const auto submit = [&](std::uint64_t tenant) {
    Request request = TimedWorld::MakeRequest(64, 32, seed++);
    request.tenant = tenant;
    request.tenant_weight = tenant == 1 ? 3.0f : 1.0f;
    tenants[world.Submit(std::move(request))] = tenant;
  };
  for (int i = 0; i < 30; ++i) {
    submit(1);
    submit(2);
  }
  world.RunFor(4);
  std::map<std::uint64_t, double> tokens;
  for (const auto& [id, tenant] : tenants)
    tokens[tenant] += static_cast<double>(world.record(id).token_ns.size());
  EXPECT_GT(tokens[2], 100);
  EXPECT_NEAR(tokens[1] / tokens[2], 3, 0.6);
}

TEST(Turns, ThePoolIsTakenFromTheHighestPriorityValueFirst) {
  EngineOptions options = Options();
  options.max_rows = 4;
  options.max_context = 512;
  options.kv_tokens = 640;
  options.prefix_cache = false;
  TimedWorld world(options, MiddleModelSeconds);
  std::vector<RequestId> ids;
  for (const std::int32_t priority : {9, 0, 0}) {
    Request request = TimedWorld::MakeRequest(64, 400, ids.size() + 1);
    request.priority = priority;
    ids.push_back(world.Submit(std::move(request)));
  }
  world.RunToEnd();
  EXPECT_GT(world.engine().stats().num_preemptions, 0u);
  for (const RequestId id : ids)
    EXPECT_EQ(world.record(id).token_ns.size(), 400u);
  // The oldest has the highest value: it is the one that gave way.
  EXPECT_LT(world.record(ids[1]).ended_ns, world.record(ids[0]).ended_ns);
  EXPECT_LT(world.record(ids[2]).ended_ns, world.record(ids[0]).ended_ns);
}

// Samples leave the headroom to those who run, as newcomers do: a pool of 99 blocks, 80 of them
// taken by one stream and the prompt, and more samples than there are blocks.
TEST(Turns, SamplesDoNotTakeTheHeadroom) {
  EngineOptions options = Options();
  options.max_context = 1584;
  options.kv_tokens = 1584;
  options.pace.itl_factor = 0;
  TimedWorld world(options, MiddleModelSeconds);
  const RequestId stream = world.Submit(1096, 60);
  while (world.record(stream).token_ns.empty())
    world.Step();
  Request request = TimedWorld::MakeRequest(160, 16, 2);
  request.num_samples = 24;
  world.Submit(std::move(request));
  std::uint32_t most_running = 0;
  while (world.Step())
    most_running = std::max(most_running, world.engine().stats().num_running);
  EXPECT_GE(most_running, 12u);  // as many as there is room for begin together
  EXPECT_EQ(world.engine().stats().num_preemptions, 0u);
  EXPECT_EQ(world.records().size(), 25u);
  for (const auto& [id, record] : world.records())
    EXPECT_EQ(record.finish, FinishReason::kLength);
}

TEST(Deadlines, EndRequestsOnceWithTheirReason) {
  TimedWorld world(TwoRows(), MiddleModelSeconds);
  const auto submit = [&](std::uint64_t seed, const std::function<void(Request&)>& change) {
    Request request = TimedWorld::MakeRequest(64, 2000, seed);
    change(request);
    return world.Submit(std::move(request));
  };
  const RequestId whole = submit(1, [](Request& r) { r.timeout_ms = 800; });
  const RequestId predict = submit(2, [](Request& r) { r.max_predict_ms = 400; });
  const RequestId waits = submit(3, [](Request& r) { r.max_wait_ms = 100; });
  const RequestId queued = submit(4, [](Request& r) { r.timeout_ms = 200; });
  const RequestId last = submit(5, [](Request& r) { r.max_tokens = 3; });
  world.RunToEnd();
  const auto expect = [&](RequestId id, FinishReason reason, double low, double high) {
    const TimedWorld::Record& record = world.record(id);
    EXPECT_EQ(record.finish, reason) << FinishReasonName(record.finish);
    const double seconds = static_cast<double>(record.ended_ns - record.submitted_ns) * 1e-9;
    EXPECT_GE(seconds, low);
    EXPECT_LE(seconds, high);
  };
  // Noticed at the end of a step, which here takes up to 0.1 s.
  expect(whole, FinishReason::kTimeout, 0.8, 0.9);
  EXPECT_GT(world.record(whole).token_ns.size(), 10u);
  expect(predict, FinishReason::kTimeout, 0.4, 0.7);
  expect(waits, FinishReason::kWaited, 0.1, 0.3);
  EXPECT_TRUE(world.record(waits).token_ns.empty());
  expect(queued, FinishReason::kTimeout, 0.2, 0.4);
  expect(last, FinishReason::kLength, 0.3, 2);
  const auto ended = [&](FinishReason reason) {
    return world.engine().metrics().num_ended[static_cast<std::size_t>(reason)].load();
  };
  EXPECT_EQ(ended(FinishReason::kTimeout), 3u);
  EXPECT_EQ(ended(FinishReason::kWaited), 1u);
  EXPECT_EQ(ended(FinishReason::kLength), 1u);
  EXPECT_EQ(world.engine().stats().num_free_blocks, world.engine().stats().num_blocks);
}

TEST(Queue, IsBoundedByPromptTokensAndByRequests) {
  EngineOptions options = TwoRows();
  options.max_queued = 8;
  options.max_queued_tokens = 1000;
  TimedWorld world(options, MiddleModelSeconds);
  // A prompt longer than the bound may wait alone.
  world.Submit(5000, 1);
  const Result<RequestId> refused = world.engine().Submit(TimedWorld::MakeRequest(100, 1, 99));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOverloaded);
  EXPECT_NE(refused.error().message.find("1000"), std::string::npos) << refused.error().message;
  EXPECT_EQ(world.engine().stats().num_queued_tokens, 5000u);
  world.Step();
  EXPECT_EQ(world.engine().stats().num_queued_tokens, 0u);
  int accepted = 0;
  while (world.engine().Submit(
      TimedWorld::MakeRequest(10, 1, 200 + static_cast<std::uint64_t>(accepted))))
    ++accepted;
  EXPECT_EQ(accepted, 9);  // two run or may, eight wait
  EXPECT_EQ(world.engine().metrics().num_rejected_tokens.load(), 1u);
  EXPECT_EQ(world.engine().metrics().num_rejected_requests.load(), 1u);
}

TEST(Queue, SaysBeforeARequestIsMadeThatItIsFull) {
  EngineOptions options = TwoRows();
  options.max_queued = 2;
  options.max_queued_tokens = 1000;
  TimedWorld world(options, MiddleModelSeconds);
  Engine& engine = world.engine();
  EXPECT_FALSE(engine.RefuseIfFull(3));
  EXPECT_TRUE(engine.RefuseIfFull(4));  // those before it take every place
  EXPECT_EQ(engine.metrics().num_rejected_requests.load(), 1u);
  world.Submit(999, 1);
  EXPECT_FALSE(engine.RefuseIfFull(0));
  world.Submit(1, 1);
  const std::optional<Error> refused = engine.RefuseIfFull(0);
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, ErrorCode::kOverloaded);
  EXPECT_EQ(refused->message, engine.Submit(TimedWorld::MakeRequest(1, 1, 99)).error().message);
  EXPECT_EQ(engine.metrics().num_rejected_tokens.load(), 2u);
  world.Step();
  EXPECT_FALSE(engine.RefuseIfFull(1));
  engine.Stop();
  EXPECT_TRUE(engine.RefuseIfFull(0));
}

TEST(Queue, RetryAfterFollowsWhatEndsASecond) {
  TimedWorld world(TwoRows(), MiddleModelSeconds);
  EXPECT_EQ(world.engine().RetryAfterSeconds(), 5u);  // no speed is known
  for (int i = 0; i < 60; ++i)
    world.Submit(64, 32);
  world.RunFor(5);
  const double waiting = world.engine().stats().num_waiting;
  const std::int64_t begin_ns = world.now_ns();
  const std::uint32_t promised = world.engine().RetryAfterSeconds();
  while (world.engine().stats().num_waiting > 0)
    world.Step();
  const double took = static_cast<double>(world.now_ns() - begin_ns) * 1e-9;
  EXPECT_GT(waiting, 10);
  EXPECT_GE(promised, took / 2);
  EXPECT_LE(promised, took * 3);
}

// Whether it waits, computes its prompt or decodes: one step, and its blocks are free.
TEST(Cancellation, TakesOneStep) {
  for (const int steps : {0, 2, 40}) {
    EngineOptions options = TwoRows();
    options.prefix_cache = false;
    TimedWorld world(options, MiddleModelSeconds);
    const RequestId id = world.Submit(2000, 500);
    for (int i = 0; i < steps; ++i)
      world.Step();
    world.engine().Cancel(id);
    world.Step();
    EXPECT_EQ(world.record(id).finish, FinishReason::kAborted) << steps;
    world.Step();  // what was in flight has retired
    EXPECT_EQ(world.engine().stats().num_free_blocks, world.engine().stats().num_blocks);
    EXPECT_EQ(world.engine().stats().num_running, 0u);
  }
}

TEST(Metrics, SayWhatTheEventsSay) {
  TimedWorld world(Options(), MiddleModelSeconds);
  const RequestId id = world.Submit(200, 50);
  world.RunToEnd();
  const EngineMetrics& metrics = world.engine().metrics();
  const TimedWorld::Record& record = world.record(id);
  EXPECT_EQ(metrics.itl_seconds.Load().Total(), 49u);
  EXPECT_NEAR(metrics.itl_seconds.Load().sum,
              static_cast<double>(record.token_ns.back() - record.token_ns.front()) * 1e-9, 1e-6);
  EXPECT_NEAR(metrics.ttft_seconds.Load().sum, WaitOf(record), 1e-6);
  EXPECT_NEAR(metrics.e2e_seconds.Load().sum,
              static_cast<double>(record.ended_ns - record.submitted_ns) * 1e-9, 1e-6);
  EXPECT_EQ(metrics.step_seconds.Load().Total(), world.engine().stats().num_steps);
  EXPECT_NEAR(metrics.step_tokens.Load().sum, 249, 1e-9);
  EXPECT_NEAR(metrics.prompt_tokens.Load().sum, 200, 1e-9);
  EXPECT_NEAR(metrics.output_tokens.Load().sum, 50, 1e-9);
  EXPECT_EQ(metrics.runs_per_row.Load().Total(), 50u);
  EXPECT_EQ(metrics.moved_bytes.Load().Total(), world.engine().stats().num_steps);
}

}  // namespace
}  // namespace kvrm
