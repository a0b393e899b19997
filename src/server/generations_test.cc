// SPDX-License-Identifier: Apache-2.0
// Several choices of one answer, without sockets: bodies in, engine events in between, bytes out.
#include "server/generations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "base/json.h"
#include "base/log.h"
#include "server/fakes_for_test.h"

namespace kvrm {
namespace {

constexpr ExchangeId kExchange{7};

class GenerationsTest : public testing::Test {
 protected:
  void SetUp() override { SetLogLevel(LogLevel::kError); }

  void Ask(JobKind kind, const std::string& body) {
    PrepareLimits limits;
    limits.max_context = engine_port_.max_context;
    limits.max_requests = engine_port_.max_requests;
    Job job;
    job.kind = kind;
    job.body = body;
    Prepared prepared = Prepare(job, model_, limits);
    GenerationPlan* plan = std::get_if<GenerationPlan>(&prepared.outcome);
    ASSERT_NE(plan, nullptr);
    generations_.Start(kExchange, "", std::move(*plan));
  }
  void Deliver() {
    std::array<TokenEvent, 16> events;
    while (const std::size_t count = engine_port_.poll(events)) {
      for (std::size_t i = 0; i < count; ++i)
        generations_.OnEvent(events[i]);
    }
  }
  json::value Body() const {
    EXPECT_EQ(response_.status, 200);
    Result<json::value> parsed = ParseJson(response_.body);
    EXPECT_TRUE(parsed.has_value()) << response_.body;
    return parsed ? *std::move(parsed) : json::value();
  }
  // The chunks of the stream, [DONE] left out.
  std::vector<json::value> Chunks() const {
    std::vector<json::value> chunks;
    std::string_view rest = streamed_;
    EXPECT_TRUE(rest.ends_with(kDoneEvent));
    rest.remove_suffix(kDoneEvent.size());
    while (!rest.empty()) {
      const std::size_t end = rest.find("\n\n");
      Result<json::value> parsed = ParseJson(rest.substr(6, end - 6));
      EXPECT_TRUE(parsed.has_value()) << rest;
      if (!parsed) break;
      chunks.push_back(*std::move(parsed));
      rest.remove_prefix(end + 2);
    }
    return chunks;
  }

  FakeClock clock_;
  FakeEngine engine_;
  EnginePort engine_port_ = engine_.Port();
  ModelPort model_ = FakeModel();
  HttpResponse response_;
  std::string streamed_;
  int num_answers_ = 0;  // responses and ends of streams
  Generations generations_{engine_port_, model_,
                           ReplyPort{.respond =
                                         [this](ExchangeId, HttpResponse response) {
                                           response_ = std::move(response);
                                           ++num_answers_;
                                           return true;
                                         },
                                     .start_stream = [](ExchangeId, const auto&) { return true; },
                                     .write =
                                         [this](ExchangeId, std::string_view bytes) {
                                           streamed_ += bytes;
                                           return true;
                                         },
                                     .finish =
                                         [this](ExchangeId) {
                                           ++num_answers_;
                                           return true;
                                         }},
                           clock_, 1};
};

TEST_F(GenerationsTest, ChoicesOfOnePromptAreOneSubmit) {
  Ask(JobKind::kChat,
      R"({"messages":[{"role":"user","content":"hi"}],"n":3,"seed":9,"cache_salt":"s"})");
  ASSERT_EQ(engine_.num_submitted(), 3u);
  EXPECT_EQ(engine_.request(0).num_samples, 3u);
  EXPECT_EQ(engine_.request(0).sampling.seed, 9u);
  EXPECT_EQ(engine_.request(0).cache_salt, "s");
  // The last ends first; what a later output found of the prompt is the first one's work.
  engine_.Send(FakeEngine::IdOf(2), 'c', FinishReason::kLength, 19);
  engine_.Send(FakeEngine::IdOf(0), 'a', FinishReason::kNone, 16);
  engine_.Send(FakeEngine::IdOf(1), kFakeEos, FinishReason::kStop, 19);
  Deliver();
  EXPECT_EQ(num_answers_, 0);
  engine_.Send(FakeEngine::IdOf(0), 'A', FinishReason::kLength, 16);
  Deliver();
  EXPECT_EQ(num_answers_, 1);
  const json::value body = Body();
  const json::array& choices = body.at("choices").as_array();
  ASSERT_EQ(choices.size(), 3u);
  const std::array texts = {"aA", "", "c"};
  const std::array reasons = {"length", "stop", "length"};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(choices[i].at("index"), i);
    EXPECT_EQ(choices[i].at("message").at("content"), texts[i]);
    EXPECT_EQ(choices[i].at("finish_reason"), reasons[i]);
  }
  const json::value& usage = body.at("usage");
  EXPECT_EQ(usage.at("prompt_tokens"), 19);  // "<user>hi<assistant>"
  EXPECT_EQ(usage.at("completion_tokens"), 4);
  EXPECT_EQ(usage.at("total_tokens"), 23);
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 16);
  EXPECT_EQ(generations_.num_active(), 0u);
}

TEST_F(GenerationsTest, ChoicesOfManyPromptsAreInOrderOfPrompts) {
  Ask(JobKind::kCompletion,
      R"({"prompt":["ab","cde"],"n":2,"echo":true,"stream":true,"max_tokens":5,
          "stream_options":{"include_usage":true}})");
  ASSERT_EQ(engine_.num_submitted(), 4u);
  EXPECT_EQ(engine_.request(0).prompt.size(), 2u);
  EXPECT_EQ(engine_.request(2).prompt.size(), 3u);
  for (std::size_t i : {3u, 0u, 2u, 1u}) {
    engine_.SendText(FakeEngine::IdOf(i), std::string(1, static_cast<char>('w' + i)));
    engine_.Send(FakeEngine::IdOf(i), '!', FinishReason::kLength, 100);
  }
  Deliver();
  EXPECT_EQ(num_answers_, 1);
  std::map<std::int64_t, std::string> texts;
  const std::vector<json::value> chunks = Chunks();
  for (const json::value& chunk : chunks) {
    for (const json::value& choice : chunk.at("choices").as_array())
      texts[choice.at("index").as_int64()] += choice.at("text").as_string();
  }
  EXPECT_EQ(texts, (std::map<std::int64_t, std::string>{
                       {0, "abw!"}, {1, "abx!"}, {2, "cdey!"}, {3, "cdez!"}}));
  const json::value& usage = chunks.back().at("usage");
  EXPECT_EQ(usage.at("prompt_tokens"), 5);
  EXPECT_EQ(usage.at("completion_tokens"), 8);
  // What the first events said, which is nothing.
  EXPECT_EQ(usage.at("prompt_tokens_details").at("cached_tokens"), 0);
}

TEST_F(GenerationsTest, CachedTokensAreSummedOverPrompts) {
  Ask(JobKind::kCompletion, R"({"prompt":["ab","cde"],"n":2})");
  for (std::uint32_t i = 0; i < 4; ++i)
    engine_.Send(FakeEngine::IdOf(i), 'x', FinishReason::kLength, i == 2 ? 2 : 1);
  Deliver();
  EXPECT_EQ(Body().at("usage").at("prompt_tokens_details").at("cached_tokens"), 3);
}

TEST_F(GenerationsTest, EveryChatChoiceHasARole) {
  Ask(JobKind::kChat, R"({"messages":[{"role":"user","content":"hi"}],"n":2,"stream":true})");
  engine_.Send(FakeEngine::IdOf(1), 'b', FinishReason::kLength);
  engine_.Send(FakeEngine::IdOf(0), kFakeEos, FinishReason::kStop);
  Deliver();
  std::map<std::int64_t, int> roles;
  for (const json::value& chunk : Chunks()) {
    const json::value& choice = chunk.at("choices").at(0);
    if (choice.at("delta").as_object().contains("role")) ++roles[choice.at("index").as_int64()];
  }
  EXPECT_EQ(roles, (std::map<std::int64_t, int>{{0, 1}, {1, 1}}));
}

TEST_F(GenerationsTest, AStopStringEndsItsOwnChoiceOnly) {
  Ask(JobKind::kCompletion, R"({"prompt":"a","n":2,"stop":"."})");
  engine_.SendText(FakeEngine::IdOf(0), "one.two");
  engine_.SendText(FakeEngine::IdOf(1), "three");
  Deliver();
  EXPECT_TRUE(engine_.cancelled(FakeEngine::IdOf(0)));
  EXPECT_FALSE(engine_.cancelled(FakeEngine::IdOf(1)));
  EXPECT_EQ(num_answers_, 0);
  engine_.Send(FakeEngine::IdOf(1), kFakeEos, FinishReason::kStop);
  Deliver();
  EXPECT_EQ(Body().at("choices").at(0).at("text"), "one");
  EXPECT_EQ(Body().at("choices").at(1).at("text"), "three");
}

TEST_F(GenerationsTest, AClientThatLeavesReleasesWhatStillRuns) {
  Ask(JobKind::kCompletion, R"({"prompt":["a","b"],"n":4,"stream":true})");
  ASSERT_EQ(engine_.num_submitted(), 8u);
  engine_.Send(FakeEngine::IdOf(5), 'x', FinishReason::kLength);
  Deliver();
  generations_.OnGone(kExchange);
  for (std::size_t i = 0; i < 8; ++i)
    EXPECT_EQ(engine_.cancelled(FakeEngine::IdOf(i)), i != 5) << i;
  EXPECT_EQ(generations_.num_active(), 0u);
  Deliver();
  EXPECT_EQ(generations_.stats().num_cancels, 7u);
  EXPECT_EQ(generations_.stats().num_late_events, 7u);
  EXPECT_EQ(generations_.stats().num_abandoned, 1u);
  EXPECT_EQ(num_answers_, 0);
}

TEST_F(GenerationsTest, OneFailureEndsAllChoices) {
  Ask(JobKind::kCompletion, R"({"prompt":"a","n":3})");
  engine_.Send(FakeEngine::IdOf(1), -1, FinishReason::kError);
  Deliver();
  EXPECT_EQ(response_.status, 500);
  EXPECT_EQ(num_answers_, 1);
  EXPECT_TRUE(engine_.cancelled(FakeEngine::IdOf(0)));
  EXPECT_TRUE(engine_.cancelled(FakeEngine::IdOf(2)));
  EXPECT_EQ(generations_.num_active(), 0u);
}

TEST_F(GenerationsTest, TimesAndTurnsReachTheEngine) {
  Ask(JobKind::kCompletion,
      R"({"prompt":"a","priority":-3,"timeout":1.5,"t_max_predict_ms":250,"cache_salt":"x"})");
  EXPECT_EQ(engine_.request(0).priority, -3);
  EXPECT_EQ(engine_.request(0).timeout_ms, 1500u);
  EXPECT_EQ(engine_.request(0).max_predict_ms, 250u);
  engine_.Send(FakeEngine::IdOf(0), 'a', FinishReason::kLength);
  Deliver();
  Ask(JobKind::kCompletion, R"({"prompt":"a","t_max_predict_ms":-1,"cache_salt":"y"})");
  EXPECT_EQ(engine_.request(1).max_predict_ms, 0u);
  EXPECT_NE(engine_.request(0).tenant, engine_.request(1).tenant);
}

TEST_F(GenerationsTest, WhoWaitedTooLongIsToldWhenToTryAgain) {
  engine_port_.retry_after_s = [] { return 7u; };
  Ask(JobKind::kCompletion, R"({"prompt":"a"})");
  engine_.Send(FakeEngine::IdOf(0), -1, FinishReason::kWaited);
  Deliver();
  EXPECT_EQ(response_.status, 503);
  const std::pair<std::string, std::string> header = {"Retry-After", "7"};
  EXPECT_NE(std::ranges::find(response_.headers, header), response_.headers.end());
  EXPECT_EQ(num_answers_, 1);
}

// What has begun is an answer that was cut; what has not is no answer.
TEST_F(GenerationsTest, ATimeoutCutsTheAnswerOrIsAnError) {
  Ask(JobKind::kCompletion, R"({"prompt":"a"})");
  engine_.Send(FakeEngine::IdOf(0), 'a', FinishReason::kNone);
  engine_.Send(FakeEngine::IdOf(0), -1, FinishReason::kTimeout);
  Deliver();
  EXPECT_EQ(Body().at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(Body().at("choices").at(0).at("text"), "a");
  EXPECT_EQ(Body().at("usage").at("completion_tokens"), 1);
  Ask(JobKind::kCompletion, R"({"prompt":"a"})");
  engine_.Send(FakeEngine::IdOf(1), -1, FinishReason::kTimeout);
  Deliver();
  EXPECT_EQ(response_.status, 503);
  EXPECT_EQ(num_answers_, 2);
}

}  // namespace
}  // namespace kvrm
