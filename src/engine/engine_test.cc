// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/counted_new_for_test.h"
#include "base/file.h"
#include "base/rng.h"
#include "model/gguf.h"
#include "model/weights.h"

namespace kvrm {
namespace {

const Model& Demo() {
  static const Model model = OrThrow(Model::LoadDemo());
  return model;
}

const SystemClock kClock;

struct Served {
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
  int num_terminal = 0;
};

// Polls everything that waits into `served`.
void Collect(Engine& engine, std::map<RequestId, Served>& served) {
  TokenEvent event;
  while (engine.Poll({&event, 1}) == 1) {
    Served& s = served[event.request];
    EXPECT_EQ(s.num_terminal, 0) << "an event after the last one";
    if (event.token >= 0) s.tokens.push_back(event.token);
    s.finish = event.finish;
    if (event.finish != FinishReason::kNone) ++s.num_terminal;
  }
}

std::map<RequestId, Served> RunToEnd(Engine& engine) {
  std::map<RequestId, Served> served;
  do {
    engine.Step();
    Collect(engine, served);
  } while (engine.stats().num_running + engine.stats().num_waiting > 0);
  return served;
}

Request Story(std::uint32_t max_tokens) {
  return {.prompt = Demo().tokenizer().Encode("Once upon a time", {}),
          .max_tokens = max_tokens,
          .sampling = {.temperature = 0.0f}};
}

EngineOptions Small() {
  return {.max_rows = 4, .max_context = 256, .max_queued = 4, .num_threads = 1};
}

std::map<std::string, std::uint64_t> ByOwner(const std::vector<ReservedBytes>& reserved) {
  std::map<std::string, std::uint64_t> bytes;
  for (const ReservedBytes& part : reserved)
    bytes[part.owner] += part.bytes;
  return bytes;
}

TEST(Engine, MeasuresExactlyWhatItReserves) {
  for (int v = 0; v < kNumKvViews; ++v) {
    EngineOptions options = Small();
    options.view = static_cast<KvView>(v);
    SCOPED_TRACE(KvViewName(options.view));
    const auto measured = ByOwner(Engine::Measure(Demo(), options, kClock));
    const Engine engine(Demo(), options, kClock);
    EXPECT_EQ(measured, ByOwner(engine.reserved()));
    const KvStats kv = engine.kv_stats();
    EXPECT_LE(kv.live_bytes, kv.mapped_bytes);
    EXPECT_LE(kv.mapped_bytes, kv.reserved_bytes);
  }
}

TEST(Engine, BudgetIsKeptToTheByte) {
  EngineOptions options = Small();
  std::uint64_t need = 0;
  for (const ReservedBytes& part : Engine::Measure(Demo(), options, kClock))
    need += part.bytes;
  options.memory_budget = need;
  const Engine fits(Demo(), options, kClock);
  EXPECT_EQ(fits.options().memory_budget, need);
  options.memory_budget = need - 1;
  options.load_progress = [](std::uint64_t, std::uint64_t) { ADD_FAILURE() << "weights packed"; };
  try {
    const Engine refused(Demo(), options, kClock);
    FAIL() << "it fits nowhere";
  } catch (const StartError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("budget is " + std::to_string(need - 1)), std::string::npos) << message;
    EXPECT_NE(message.find(std::to_string(need) + " are needed"), std::string::npos) << message;
  }
}

TEST(Engine, EndsAtMaxTokens) {
  Engine engine(Demo(), Small(), kClock);
  const RequestId id = OrThrow(engine.Submit(Story(12)));
  const std::map<RequestId, Served> served = RunToEnd(engine);
  EXPECT_EQ(served.at(id).tokens.size(), 12u);
  EXPECT_EQ(served.at(id).finish, FinishReason::kLength);
}

TEST(Engine, EndsAtAStopId) {
  Engine engine(Demo(), Small(), kClock);
  const RequestId first = OrThrow(engine.Submit(Story(12)));
  const std::vector<std::int32_t> tokens = RunToEnd(engine).at(first).tokens;
  Request request = Story(12);
  request.stop_ids = {tokens[5]};
  const std::size_t stop_at =
      static_cast<std::size_t>(std::find(tokens.begin(), tokens.end(), tokens[5]) - tokens.begin());
  const RequestId second = OrThrow(engine.Submit(request));
  const Served served = RunToEnd(engine).at(second);
  EXPECT_EQ(served.finish, FinishReason::kStop);
  EXPECT_EQ(served.tokens.size(), stop_at + 1);
}

TEST(Engine, EndsWhenTheContextIsFull) {
  Engine engine(Demo(), Small(), kClock);
  Request request = Story(1000000);
  request.prompt.resize(250, request.prompt.back());
  const RequestId id = OrThrow(engine.Submit(request));
  const Served served = RunToEnd(engine).at(id);
  EXPECT_EQ(served.finish, FinishReason::kLength);
  EXPECT_EQ(served.tokens.size(), 6u);
}

TEST(Engine, RefusesWhatItCannotServe) {
  Engine engine(Demo(), Small(), kClock);
  const auto message = [&](Request request) {
    const Result<RequestId> result = engine.Submit(std::move(request));
    return result ? std::string("accepted") : result.error().message;
  };
  Request request = Story(4);
  request.prompt.clear();
  EXPECT_NE(message(request).find("prompt"), std::string::npos);
  request = Story(4);
  request.prompt.resize(256, 5);
  EXPECT_NE(message(request).find("256"), std::string::npos);
  request = Story(4);
  request.prompt[0] = static_cast<std::int32_t>(Demo().config().vocab_size);
  EXPECT_NE(message(request).find("token id"), std::string::npos);
  EXPECT_NE(message(Story(0)).find("max_tokens"), std::string::npos);
  request = Story(4);
  request.sampling.temperature = -1.0f;
  EXPECT_NE(message(request).find("temperature"), std::string::npos);
  request = Story(4);
  request.sampling.top_p = 0.0f;
  EXPECT_NE(message(request).find("top_p"), std::string::npos);
  request = Story(4);
  request.sampling.min_p = 2.0f;
  EXPECT_NE(message(request).find("min_p"), std::string::npos);
}

TEST(Engine, AFullQueueIsAnAnswer) {
  Engine engine(Demo(), Small(), kClock);
  for (int i = 0; i < 8; ++i)
    EXPECT_TRUE(engine.Submit(Story(4)));
  const Result<RequestId> refused = engine.Submit(Story(4));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOverloaded);
  EXPECT_EQ(RunToEnd(engine).size(), 8u);
  EXPECT_TRUE(engine.Submit(Story(4)));
}

TEST(Engine, CancelEndsARequestWithinOneStep) {
  Engine engine(Demo(), Small(), kClock);
  std::map<RequestId, Served> served;
  std::vector<RequestId> ids;
  for (int i = 0; i < 6; ++i)
    ids.push_back(OrThrow(engine.Submit(Story(100))));
  for (int i = 0; i < 5; ++i)
    engine.Step();
  Collect(engine, served);
  engine.Cancel(ids[1]);  // running
  engine.Cancel(ids[5]);  // waiting
  engine.Cancel(ids[5]);  // twice is once
  engine.Cancel(RequestId{123456});
  engine.Step();
  Collect(engine, served);
  EXPECT_EQ(served[ids[1]].finish, FinishReason::kAborted);
  EXPECT_EQ(served[ids[5]].finish, FinishReason::kAborted);
  for (const auto& [id, rest] : RunToEnd(engine)) {
    EXPECT_EQ(rest.finish, FinishReason::kLength);
  }
  EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
}

TEST(Engine, AConsumerThatDoesNotPollStopsTheStepsAndLosesNothing) {
  EngineOptions options = Small();
  options.max_rows = 1;
  options.max_queued = 1;
  Engine engine(Demo(), options, kClock);
  const RequestId id = OrThrow(engine.Submit(Story(200)));
  std::uint64_t steps = 0;
  while (engine.Step())
    ++steps;
  EXPECT_LT(steps, 200u);
  std::map<RequestId, Served> served;
  Collect(engine, served);
  while (served[id].finish == FinishReason::kNone) {
    engine.Step();
    Collect(engine, served);
  }
  EXPECT_EQ(served[id].tokens.size(), 200u);
}

TEST(Engine, AStepAllocatesNothing) {
  EngineOptions options = Small();
  options.kv_tokens = 320;  // Preempts as well.
  Engine engine(Demo(), options, kClock);
  Rng rng(3);
  const SamplingParams ways[] = {{.top_p = 0.9f, .top_k = 20},
                                 {.temperature = 0.8f},
                                 {.top_p = 0.9f},
                                 {.temperature = 0.7f, .top_p = 0.8f, .min_p = 0.01f},
                                 {.top_k = 300},
                                 {.min_p = 0.05f},
                                 {.temperature = 0.0f}};
  for (std::size_t i = 0; i < 8; ++i) {
    Request request = Story(60);
    request.prompt.resize(20 + rng.Below(60), 9);
    request.sampling = ways[i % std::size(ways)];
    request.sampling.seed = rng.Next();
    ASSERT_TRUE(engine.Submit(request));
  }
  std::uint64_t num_allocations = 0;
  std::uint64_t steps = 0;
  std::map<RequestId, Served> served;
  do {
    const std::uint64_t before = ThreadNew().num_allocations;
    engine.Step();
    num_allocations += ThreadNew().num_allocations - before;
    ++steps;
    Collect(engine, served);
  } while (engine.stats().num_running + engine.stats().num_waiting > 0);
  EXPECT_GT(steps, 60u);
  EXPECT_GT(engine.stats().num_preemptions, 0u);
  EXPECT_EQ(num_allocations, 0u);
}

TEST(Engine, StopEndsEverythingThatRunsOrWaits) {
  Engine engine(Demo(), Small(), kClock);
  std::atomic<int> wakes{0};
  engine.SetWake([&] { wakes.fetch_add(1); });
  std::thread loop([&] { engine.Run(); });
  std::map<RequestId, Served> served;
  for (int i = 0; i < 6; ++i)
    served[OrThrow(engine.Submit(Story(240)))] = {};
  while (wakes.load() < 3)
    std::this_thread::yield();
  engine.Stop();
  loop.join();
  Collect(engine, served);
  EXPECT_EQ(served.size(), 6u);
  for (const auto& [id, s] : served)
    EXPECT_EQ(s.num_terminal, 1);
  EXPECT_EQ(engine.Submit(Story(1)).error().code, ErrorCode::kOverloaded);
  EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
}

TEST(Engine, EveryRequestAcceptedWhileItStopsEndsOnce) {
  for (std::uint64_t round = 0; round < 20; ++round) {
    EngineOptions options = Small();
    options.max_queued = 64;
    Engine engine(Demo(), options, kClock);
    std::thread loop([&] { engine.Run(); });
    std::atomic<std::uint64_t> num_accepted{0};
    std::vector<std::thread> clients;
    for (int c = 0; c < 2; ++c) {
      clients.emplace_back([&] {
        for (;;) {
          const Result<RequestId> id = engine.Submit(Story(200));
          if (id) num_accepted.fetch_add(1);
          if (!id && id.error().message == "draining") return;
        }
      });
    }
    while (num_accepted.load() < 3 + round)
      std::this_thread::yield();
    engine.Stop();
    for (std::thread& client : clients)
      client.join();
    loop.join();
    std::map<RequestId, Served> served;
    Collect(engine, served);
    EXPECT_EQ(served.size(), num_accepted.load());
    for (const auto& [id, s] : served)
      EXPECT_EQ(s.num_terminal, 1);
  }
}

// A consumer on another thread may empty the queue during a step by as much as the step fills it:
// it must be woken all the same, or it sleeps on the last events of a request.
TEST(Engine, EveryStepThatEmitsWakes) {
  Engine engine(Demo(), Small(), kClock);
  int wakes = 0;
  engine.SetWake([&] { ++wakes; });
  OrThrow(engine.Submit(Story(200)));
  std::thread consumer([&] {
    TokenEvent event;
    while (event.finish == FinishReason::kNone)
      engine.Poll({&event, 1});
  });
  while (engine.Step()) {
  }
  consumer.join();
  EXPECT_EQ(wakes, 200);
}

TEST(Engine, ManyThreadsSubmitAndCancel) {
  EngineOptions options = Small();
  options.max_queued = 64;
  Engine engine(Demo(), options, kClock);
  std::thread loop([&] { engine.Run(); });
  std::atomic<int> accepted{0};
  std::vector<std::thread> clients;
  for (std::uint64_t c = 0; c < 3; ++c) {
    clients.emplace_back([&, c] {
      Rng rng(c);
      for (int i = 0; i < 20; ++i) {
        const Result<RequestId> id =
            engine.Submit(Story(1 + static_cast<std::uint32_t>(rng.Below(8))));
        if (!id) continue;
        accepted.fetch_add(1);
        if (rng.Below(2) == 0) engine.Cancel(*id);
      }
    });
  }
  for (std::thread& client : clients)
    client.join();
  std::map<RequestId, Served> served;
  int ended = 0;
  while (ended < accepted.load()) {
    Collect(engine, served);
    ended = 0;
    for (const auto& [id, s] : served)
      ended += s.num_terminal;
    std::this_thread::yield();
  }
  engine.Stop();
  loop.join();
  EXPECT_EQ(static_cast<int>(served.size()), accepted.load());
}

TEST(Engine, LogitsThatAreNotFiniteEndTheirRequestAlone) {
  // One row of the embedding gets scales that are NaN; whoever's prompt has that token is affected,
  // and nobody else: the output projection is a matrix of its own.
  const std::string path = std::string(KVRM_SOURCE_DIR) + "/testdata/golden/llama-gqa-Q8_0.gguf";
  std::string bytes = OrThrow(ReadFile(path, 1u << 24));
  constexpr std::int32_t kPoison = 77;
  {
    const GgufFile file = OrThrow(GgufFile::Parse(std::as_bytes(std::span(bytes)), "poisoned"));
    const GgufTensor& table = *file.FindTensor("token_embd.weight");
    ASSERT_EQ(table.type, DType::kQ8_0);
    const std::size_t row_bytes = table.dims[0] / 32 * 34;
    std::byte* row = reinterpret_cast<std::byte*>(bytes.data()) +
                     (table.data.data() - reinterpret_cast<const std::byte*>(bytes.data())) +
                     kPoison * row_bytes;
    for (std::size_t at = 0; at < row_bytes; at += 34)
      row[at + 1] = std::byte{0x7e};
  }
  const Model model = OrThrow(Model::FromGgufBytes(std::as_bytes(std::span(bytes)), "poisoned"));
  const auto serve = [&](std::vector<std::vector<std::int32_t>> prompts) {
    Engine engine(model, Small(), kClock);
    for (std::vector<std::int32_t>& prompt : prompts) {
      CHECK(engine.Submit(
          {.prompt = std::move(prompt), .max_tokens = 6, .sampling = {.temperature = 0.0f}}));
    }
    std::map<RequestId, Served> served = RunToEnd(engine);
    EXPECT_EQ(engine.stats().num_free_blocks, engine.stats().num_blocks);
    return served;
  };
  const Served alone = serve({{5, 6, 7}}).at(RequestId{1});
  ASSERT_EQ(alone.finish, FinishReason::kLength);
  const std::map<RequestId, Served> together = serve({{9, kPoison, 9}, {5, 6, 7}, {kPoison}});
  EXPECT_EQ(together.at(RequestId{1}).finish, FinishReason::kError);
  EXPECT_TRUE(together.at(RequestId{1}).tokens.empty());
  EXPECT_EQ(together.at(RequestId{2}).tokens, alone.tokens);
  EXPECT_EQ(together.at(RequestId{3}).finish, FinishReason::kError);
}

TEST(Engine, TheStartUpTableSumsWhatIsReserved) {
  Engine engine(Demo(), Small(), kClock);
  std::uint64_t total = 0;
  for (const ReservedBytes& r : engine.reserved()) {
    EXPECT_FALSE(r.owner.empty());
    EXPECT_GT(r.bytes, 0u) << r.owner;
    total += r.bytes;
  }
  EXPECT_GT(total, Demo().weight_bytes() / 2);
}

TEST(Engine, ImpossibleOptionsNameTheNumber) {
  const auto message = [](EngineOptions options) {
    try {
      Engine engine(Demo(), options, kClock);
      return std::string("started");
    } catch (const StartError& error) {
      return std::string(error.what());
    }
  };
  EngineOptions options = Small();
  options.max_context = 1u << 20;
  EXPECT_NE(message(options).find("1048576"), std::string::npos);
  options = Small();
  options.block_tokens = 24;
  EXPECT_NE(message(options).find("24"), std::string::npos);
  options.block_tokens = 0;
  EXPECT_NE(message(options).find("block size"), std::string::npos);
  options = Small();
  options.num_threads = 5000;
  EXPECT_NE(message(options).find("5000"), std::string::npos);
  options = Small();
  options.kv_tokens = 100;
  EXPECT_NE(message(options).find("100"), std::string::npos);
  options = Small();
  options.kernels = "quantum";
  EXPECT_NE(message(options).find("quantum"), std::string::npos);
  options = Small();
  options.max_move_bytes_per_step = 1000;
  EXPECT_NE(message(options).find("1000 bytes, is less than one block"), std::string::npos);
  options = Small();
  options.max_edits_per_step = 0;
  EXPECT_NE(message(options).find("edits per step"), std::string::npos);
  options = Small();
  options.view = KvView::kStatic;
  options.kv_tokens = 512;  // 32 blocks and the sentinel; four sequences need 64.
  EXPECT_NE(message(options).find("needs 65 blocks"), std::string::npos);
}

// Its next token is the length of the row's context.
class CountingExecutor final : public Executor {
 public:
  explicit CountingExecutor(const ExecutorNeeds& needs)
      : bucket_{.max_rows = needs.limits.max_rows, .max_tokens = needs.limits.max_tokens} {}
  std::span<const Bucket> buckets() const noexcept override { return {&bucket_, 1}; }
  void Run(const StepView& step) noexcept override { step_ = step; }
  void Wait() noexcept override {
    for (std::uint32_t i = 0; i < step_.header->num_samples; ++i)
      contexts_[i] = step_.positions[step_.sample_token[i]] + 1;
    ++num_replays_;
  }
  std::span<const float> Logits(std::uint32_t sample) const noexcept override {
    logits_.fill(0.0f);
    logits_[static_cast<std::size_t>(contexts_[sample])] = 1.0f;
    return logits_;
  }
  LogitStats Stats(std::uint32_t sample) const noexcept override {
    return stats_.Compute(0, Logits(sample));
  }
  std::span<const std::uint64_t> replays() const noexcept override { return {&num_replays_, 1}; }

 private:
  const Bucket bucket_;
  StepView step_;
  std::array<std::int32_t, 4> contexts_ = {};
  mutable std::array<float, 64> logits_ = {};
  mutable PlainLogitStats stats_{1, 64};
  std::uint64_t num_replays_ = 0;
};

TEST(Engine, RunsOnADeviceAndAnExecutorOfTheCaller) {
  HostDevice device;
  const EngineParts parts = {
      .layout = {.num_layers = 1, .num_kv_heads = 1, .head_dim = 2},
      .vocab_size = 64,
      .max_context = 64,
      .device = &device,
      .make_executor = [](const ExecutorNeeds& needs) -> std::unique_ptr<Executor> {
        EXPECT_EQ(needs.limits.max_rows, 4u);
        EXPECT_EQ(needs.memory.size(), (1 + 4 * 64 / 16) * needs.layout.block_bytes());
        return std::make_unique<CountingExecutor>(needs);
      }};
  for (const KvView view : {KvView::kExtents, KvView::kStatic}) {
    Engine engine(parts, {.max_rows = 4, .view = view}, kClock);
    EXPECT_EQ(engine.max_context(), 64u);
    const Request request = {
        .prompt = {1, 2, 3}, .max_tokens = 4, .sampling = {.temperature = 0.0f}};
    const RequestId id = OrThrow(engine.Submit(request));
    EXPECT_EQ(RunToEnd(engine).at(id).tokens, (std::vector<std::int32_t>{3, 4, 5, 6}));
  }
}

}  // namespace
}  // namespace kvrm
