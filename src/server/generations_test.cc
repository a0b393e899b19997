// SPDX-License-Identifier: Apache-2.0
// Several choices of one answer, without sockets: bodies in, engine events in between, bytes out.
#include "server/generations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
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
    Prepared prepared = Prepare(job, model_, limits, &grammars_);
    GenerationPlan* plan = std::get_if<GenerationPlan>(&prepared.outcome);
    ASSERT_NE(plan, nullptr);
    generations_.Start(kExchange, "", std::move(*plan));
  }
  void Deliver() {
    std::array<TokenEvent, 16> events;
    while (const std::size_t count = engine_port_.poll(events)) {
      TopLogprobs logprobs;
      while (engine_port_.poll_logprobs(&logprobs))
        generations_.OnLogprobs(logprobs);
      Embedding embedding;
      while (engine_port_.poll_embedding(&embedding))
        generations_.OnEmbedding(std::move(embedding));
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
  GrammarCache grammars_;
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

TopLogprobs LogprobsOf(RequestId request, std::uint32_t position, std::int32_t token,
                       std::int32_t likeliest) {
  TopLogprobs logprobs;
  logprobs.request = request;
  logprobs.position = position;
  logprobs.token = {.token = token, .logprob = -2.0f};
  logprobs.rank = 2;
  logprobs.num_top = 1;
  logprobs.likeliest[0] = {.token = likeliest, .logprob = -0.5f};
  return logprobs;
}

TEST_F(GenerationsTest, LogprobsOfAChat) {
  Ask(JobKind::kChat, R"({"messages":[{"role":"user","content":"hi"}],"logprobs":true,
                          "top_logprobs":1})");
  ASSERT_EQ(engine_.request(0).num_top_logprobs, 1u);
  EXPECT_FALSE(engine_.request(0).num_prompt_logprobs);
  const RequestId id = FakeEngine::IdOf(0);
  engine_.AddLogprobs(LogprobsOf(id, 19, 0xc3, 'x'));
  engine_.AddLogprobs(LogprobsOf(id, 20, 0xa9, 0xa9));
  engine_.SendText(id, "\xc3\xa9");
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  Deliver();
  const json::value body = Body();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("content"), "\xc3\xa9");
  const json::array& content = choice.at("logprobs").at("content").as_array();
  ASSERT_EQ(content.size(), 2u);  // The stop token is no part of the text.
  EXPECT_EQ(content[0].at("bytes"), (json::array{0xc3}));
  EXPECT_EQ(content[0].at("token"), "\xef\xbf\xbd");
  EXPECT_EQ(content[0].at("top_logprobs").at(0).at("token"), "x");
  EXPECT_EQ(content[0].at("top_logprobs").at(0).at("logprob"), -0.5);
  EXPECT_EQ(content[1].at("bytes"), (json::array{0xa9}));
}

// A client sees the rhythm of the tokens, and each token's log-probability once, in its own chunk.
TEST_F(GenerationsTest, ATokenWhoseTextIsHeldBackHasAChunk) {
  for (const JobKind kind : {JobKind::kChat, JobKind::kCompletion}) {
    const bool is_chat = kind == JobKind::kChat;
    const std::size_t request = engine_.num_submitted();
    streamed_.clear();
    Ask(kind, is_chat ? R"({"messages":[{"role":"user","content":"hi"}],"stream":true,
                            "logprobs":true})"
                      : R"({"prompt":"a","stream":true,"logprobs":0})");
    const RequestId id = FakeEngine::IdOf(request);
    engine_.SendText(id, "\xc3\xa9");  // two tokens, one character
    engine_.Send(id, kFakeEos, FinishReason::kStop);
    Deliver();
    std::vector<std::string> texts;
    std::vector<std::size_t> scored;
    for (const json::value& chunk : Chunks()) {
      const json::value& choice = chunk.at("choices").at(0);
      const json::value& logprobs = choice.at("logprobs");
      const char* const list = is_chat ? "content" : "tokens";
      if (!logprobs.is_null()) {
        scored.push_back(logprobs.at(list).as_array().size());
        const json::object text =
            is_chat ? choice.at("delta").as_object() : json::object{{"content", choice.at("text")}};
        texts.push_back(json::serialize(text));
      }
    }
    EXPECT_EQ(texts, (std::vector<std::string>{is_chat ? "{}" : R"({"content":""})",
                                               "{\"content\":\"\xc3\xa9\"}"}));
    EXPECT_EQ(scored, (std::vector<std::size_t>{1, 1}));
  }
}

TEST_F(GenerationsTest, EchoedLogprobsStandInFrontOfTheOutputs) {
  Ask(JobKind::kCompletion,
      R"({"prompt":"ab","n":2,"echo":true,"logprobs":1,"prompt_logprobs":1,"max_tokens":1,
          "return_token_ids":true})");
  EXPECT_EQ(engine_.request(0).num_prompt_logprobs, 1u);
  engine_.AddLogprobs(LogprobsOf(FakeEngine::IdOf(0), 1, 'b', 'B'));
  for (const std::size_t i : {0u, 1u})
    engine_.AddLogprobs(LogprobsOf(FakeEngine::IdOf(i), 2, 'c', 'C'));
  for (const std::size_t i : {0u, 1u})
    engine_.Send(FakeEngine::IdOf(i), 'c', FinishReason::kLength);
  Deliver();
  const json::value body = Body();
  for (const std::size_t i : {0u, 1u}) {
    const json::value& choice = body.at("choices").at(i);
    EXPECT_EQ(choice.at("text"), "abc");
    const json::value& logprobs = choice.at("logprobs");
    EXPECT_EQ(logprobs.at("tokens"), (json::array{"a", "b", "c"}));
    EXPECT_EQ(logprobs.at("text_offset"), (json::array{0, 1, 2}));
    EXPECT_TRUE(logprobs.at("token_logprobs").at(0).is_null());
    EXPECT_EQ(logprobs.at("token_logprobs").at(1), -2.0);
    EXPECT_TRUE(logprobs.at("top_logprobs").at(0).is_null());
    EXPECT_EQ(logprobs.at("top_logprobs").at(1).at("B"), -0.5);
    EXPECT_EQ(logprobs.at("top_logprobs").at(1).at("b"), -2.0);
    EXPECT_EQ(choice.at("prompt_token_ids"), (json::array{'a', 'b'}));
    EXPECT_EQ(choice.at("token_ids"), (json::array{'c'}));
    const json::array& prompt = choice.at("prompt_logprobs").as_array();
    ASSERT_EQ(prompt.size(), 2u);
    EXPECT_TRUE(prompt[0].is_null());
    EXPECT_EQ(prompt[1].at("98").at("rank"), 2);
    EXPECT_EQ(prompt[1].at("66").at("decoded_token"), "B");
  }
}

TEST_F(GenerationsTest, StreamedLogprobsAreThoseOfTheText) {
  Ask(JobKind::kCompletion,
      R"({"prompt":"a","logprobs":0,"stream":true,"stop":"xyz","max_tokens":9})");
  const RequestId id = FakeEngine::IdOf(0);
  engine_.SendText(id, "bxyq");
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  Deliver();
  json::array tokens;
  std::string text;
  for (const json::value& chunk : Chunks()) {
    const json::value& choice = chunk.at("choices").at(0);
    text += choice.at("text").as_string();
    if (choice.at("logprobs").is_null()) continue;
    for (const json::value& token : choice.at("logprobs").at("tokens").as_array())
      tokens.push_back(token);
  }
  EXPECT_EQ(text, "bxyq");
  EXPECT_EQ(tokens, (json::array{"b", "x", "y", "q"}));
}

TEST_F(GenerationsTest, OnlyTheEchoIsGivenWhereNoOutputIsWanted) {
  Ask(JobKind::kCompletion, R"({"prompt":"ab","echo":true,"logprobs":0,"max_tokens":0})");
  EXPECT_EQ(engine_.request(0).max_tokens, 1u);
  engine_.AddLogprobs(LogprobsOf(FakeEngine::IdOf(0), 1, 'b', 'B'));
  engine_.Send(FakeEngine::IdOf(0), 'c', FinishReason::kLength);
  Deliver();
  const json::value body = Body();
  EXPECT_EQ(body.at("choices").at(0).at("text"), "ab");
  EXPECT_EQ(body.at("choices").at(0).at("logprobs").at("tokens"), (json::array{"a", "b"}));
}

TEST_F(GenerationsTest, StopReasonNamesWhatStoppedIt) {
  Ask(JobKind::kCompletion,
      R"({"prompt":["a","b","c"],"stop":["!"],"stop_token_ids":[120],"max_tokens":9,
          "include_stop_str_in_output":true})");
  engine_.SendText(FakeEngine::IdOf(0), "q!r");
  engine_.Send(FakeEngine::IdOf(1), 120, FinishReason::kStop);
  engine_.Send(FakeEngine::IdOf(2), kFakeEos, FinishReason::kStop);
  Deliver();
  const json::value body = Body();
  EXPECT_EQ(body.at("choices").at(0).at("text"), "q!");
  EXPECT_EQ(body.at("choices").at(0).at("stop_reason"), "!");
  EXPECT_EQ(body.at("choices").at(1).at("stop_reason"), 120);
  EXPECT_TRUE(body.at("choices").at(2).at("stop_reason").is_null());
  EXPECT_EQ(body.at("timings").at("predicted_n"), 4);
}

constexpr const char* kToolChat =
    R"({"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":)"
    R"({"name":"add","parameters":{"type":"object"}}}])";

TEST_F(GenerationsTest, ToolCallsOfAWholeAnswer) {
  model_.takes_tools = true;
  model_.tool_format = ToolFormat::kHermes;
  model_.may_reason = true;
  Ask(JobKind::kChat, std::string(kToolChat) + "}");
  const RequestId id = FakeEngine::IdOf(0);
  engine_.SendText(id,
                   "<think>two</think>I add. <tool_call>{\"name\": \"add\", \"arguments\": "
                   "{\"a\": 1}}</tool_call>");
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  Deliver();
  const json::value body = Body();
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("content"), "I add.");
  EXPECT_EQ(choice.at("message").at("reasoning_content"), "two");
  EXPECT_EQ(choice.at("message").at("reasoning"), "two");
  const json::value& call = choice.at("message").at("tool_calls").at(0);
  EXPECT_EQ(call.at("type"), "function");
  EXPECT_TRUE(call.at("id").as_string().starts_with("call_"));
  EXPECT_EQ(call.at("function").at("name"), "add");
  EXPECT_EQ(call.at("function").at("arguments"), "{\"a\": 1}");
}

TEST_F(GenerationsTest, ToolCallsAreStreamedAsTheyCome) {
  model_.takes_tools = true;
  model_.tool_format = ToolFormat::kMistral;
  Ask(JobKind::kChat, std::string(kToolChat) + R"(,"stream":true})");
  const RequestId id = FakeEngine::IdOf(0);
  engine_.SendText(id, "[TOOL_CALLS]add[ARGS]{\"a\": 1}");
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  Deliver();
  std::string arguments;
  std::string call_id;
  int num_begun = 0;
  std::string reason;
  for (const json::value& chunk : Chunks()) {
    const json::value& choice = chunk.at("choices").at(0);
    if (choice.at("finish_reason").is_string()) reason = choice.at("finish_reason").as_string();
    const json::object& delta = choice.at("delta").as_object();
    if (!delta.contains("tool_calls")) continue;
    const json::object& call = delta.at("tool_calls").at(0).as_object();
    EXPECT_EQ(call.at("index"), 0);
    arguments += call.at("function").at("arguments").as_string();
    if (!call.contains("id")) continue;
    ++num_begun;
    call_id = call.at("id").as_string();
    EXPECT_EQ(call.at("function").at("name"), "add");
  }
  EXPECT_EQ(num_begun, 1);
  EXPECT_EQ(call_id.size(), 9u);
  EXPECT_EQ(arguments, "{\"a\": 1}");
  EXPECT_EQ(reason, "tool_calls");
}

constexpr const char* kPlainChat = R"({"messages":[{"role":"user","content":"hi"}])";

// Whether or not the request has tools.
TEST_F(GenerationsTest, ChannelsAreThePartsOfAnAnswer) {
  model_.tool_format = ToolFormat::kHarmony;
  model_.takes_tools = true;
  model_.may_reason = true;
  Ask(JobKind::kChat, std::string(kPlainChat) + "}");
  engine_.SendText(FakeEngine::IdOf(0),
                   "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>"
                   "final<|message|>Four.");
  engine_.Send(FakeEngine::IdOf(0), kFakeEos, FinishReason::kStop);
  Deliver();
  json::value choice = Body().at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "stop");
  EXPECT_EQ(choice.at("message").at("content"), "Four.");
  EXPECT_EQ(choice.at("message").at("reasoning_content"), "two");

  Ask(JobKind::kChat, std::string(kToolChat) + R"(,"reasoning_format":"none"})");
  engine_.SendText(FakeEngine::IdOf(1),
                   "<|channel|>analysis<|message|>two<|end|><|start|>assistant<|channel|>"
                   "commentary to=functions.add <|constrain|>json<|message|>{\"a\": 1}");
  engine_.Send(FakeEngine::IdOf(1), kFakeEos, FinishReason::kStop);
  Deliver();
  choice = Body().at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message").at("content"), "<|channel|>analysis<|message|>two<|end|>");
  EXPECT_FALSE(choice.at("message").as_object().contains("reasoning_content"));
  const json::value& call = choice.at("message").at("tool_calls").at(0).at("function");
  EXPECT_EQ(call.at("name"), "add");
  EXPECT_EQ(call.at("arguments"), "{\"a\": 1}");
}

// The form holds from the first token, whatever the prompt has opened.
TEST_F(GenerationsTest, AFormOfJsonIsNoReasoning) {
  model_.may_reason = true;
  model_.render = [](const ChatInputs&) -> Result<std::vector<RenderedPiece>> {
    return std::vector<RenderedPiece>{{"<assistant><think>", true}};
  };
  const std::vector<std::pair<std::string, bool>> forms = {
      {"", true},
      {R"(,"response_format":{"type":"json_object"})", false},
      {R"(,"grammar":"root ::= [a-z]+ \"</think>\" [a-z]+")", true}};
  for (std::size_t i = 0; i < forms.size(); ++i) {
    Ask(JobKind::kChat, kPlainChat + forms[i].first + "}");
    engine_.SendText(FakeEngine::IdOf(i), "{\"a\": 1}");
    engine_.Send(FakeEngine::IdOf(i), kFakeEos, FinishReason::kStop);
    Deliver();
    const json::value message = Body().at("choices").at(0).at("message");
    EXPECT_EQ(message.as_object().contains("reasoning_content"), forms[i].second);
    EXPECT_EQ(message.at("content"), forms[i].second ? "" : "{\"a\": 1}");
  }
  Ask(JobKind::kChat, std::string(kToolChat) + R"(,"tool_choice":"required"})");
  engine_.SendText(FakeEngine::IdOf(3), R"([{"name": "add", "parameters": {"a": 1}}])");
  engine_.Send(FakeEngine::IdOf(3), kFakeEos, FinishReason::kStop);
  Deliver();
  EXPECT_EQ(Body().at("choices").at(0).at("finish_reason"), "tool_calls");
}

// Text that waits for what it will become: a mark, the name of a call, a whole call, a character.
TEST_F(GenerationsTest, ATokenWhoseTextIsHeldBackHasAChunkWithAnEmptyDelta) {
  struct Example {
    ToolFormat format;
    std::string text;
  };
  const std::vector<Example> examples = {
      {ToolFormat::kHermes,
       "<think>t\u00e9</think>Yes.<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": "
       "1}}</tool_call>"},
      {ToolFormat::kGlm,
       "<think>t</think>Yes.<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value>"
       "</tool_call>"},
      {ToolFormat::kHarmony,
       "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>commentary<|message|>"
       "Yes.<|end|><|start|>assistant to=functions.add<|channel|>commentary<|message|>{}<|call|>"}};
  model_.takes_tools = true;
  model_.may_reason = true;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    model_.tool_format = examples[i].format;
    streamed_.clear();
    Ask(JobKind::kChat, std::string(kToolChat) + R"(,"stream":true,"stop":["Yet"]})");
    engine_.SendText(FakeEngine::IdOf(i), examples[i].text);
    engine_.Send(FakeEngine::IdOf(i), kFakeEos, FinishReason::kStop);
    Deliver();
    const std::vector<json::value> chunks = Chunks();
    ASSERT_EQ(chunks.size(), 1 + examples[i].text.size() + 1);  // the role, tokens, the reason
    std::size_t num_empty = 0;
    std::string content;
    for (std::size_t c = 1; c + 1 < chunks.size(); ++c) {
      const json::object& delta = chunks[c].at("choices").at(0).at("delta").as_object();
      if (delta.empty()) ++num_empty;
      if (!delta.contains("content")) continue;
      EXPECT_NE(delta.at("content"), "");
      content += delta.at("content").as_string();
    }
    EXPECT_GT(num_empty, examples[i].text.size() / 2);
    EXPECT_EQ(content, "Yes.");
  }
}

TEST_F(GenerationsTest, ATokenOfACompletionThatIsHeldBackHasEmptyText) {
  Ask(JobKind::kCompletion, R"({"prompt":"a","stream":true,"stop":["xyz"]})");
  engine_.SendText(FakeEngine::IdOf(0), "xy!");
  engine_.Send(FakeEngine::IdOf(0), kFakeEos, FinishReason::kStop);
  Deliver();
  const std::vector<json::value> chunks = Chunks();
  ASSERT_EQ(chunks.size(), 4u);
  EXPECT_EQ(chunks[0].at("choices").at(0).at("text"), "");
  EXPECT_EQ(chunks[1].at("choices").at(0).at("text"), "");
  EXPECT_EQ(chunks[2].at("choices").at(0).at("text"), "xy!");
}

TEST_F(GenerationsTest, UsageComesWithEveryChunkWhereItIsAskedFor) {
  Ask(JobKind::kCompletion,
      R"({"prompt":"a","stream":true,"timings_per_token":true,
          "stream_options":{"continuous_usage_stats":true}})");
  engine_.SendText(FakeEngine::IdOf(0), "bc");
  engine_.Send(FakeEngine::IdOf(0), kFakeEos, FinishReason::kStop);
  Deliver();
  const std::vector<json::value> chunks = Chunks();
  ASSERT_EQ(chunks.size(), 3u);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    EXPECT_EQ(chunks[i].at("usage").at("completion_tokens"), i + 1);
    EXPECT_EQ(chunks[i].at("timings").at("predicted_n"), i + 1);
  }
}

TEST_F(GenerationsTest, EmbeddingsHaveLengthOne) {
  Ask(JobKind::kEmbeddings, R"({"input":["ab","c"],"dimensions":2})");
  ASSERT_EQ(engine_.num_submitted(), 2u);
  EXPECT_EQ(engine_.request(0).pooling, Pooling::kLast);
  EXPECT_EQ(engine_.request(0).num_samples, 1u);
  for (const std::size_t i : {1u, 0u}) {
    engine_.AddEmbedding({.request = FakeEngine::IdOf(i), .values = {3.0f, 4.0f, 99.0f}});
    engine_.Send(FakeEngine::IdOf(i), -1, FinishReason::kStop);
  }
  Deliver();
  const json::value body = Body();
  EXPECT_EQ(body.at("object"), "list");
  ASSERT_EQ(body.at("data").as_array().size(), 2u);
  EXPECT_NEAR(body.at("data").at(1).at("embedding").at(0).to_number<double>(), 0.6, 1e-6);
  EXPECT_NEAR(body.at("data").at(1).at("embedding").at(1).to_number<double>(), 0.8, 1e-6);
  EXPECT_EQ(body.at("data").at(1).at("embedding").as_array().size(), 2u);
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 3);
}

TEST_F(GenerationsTest, EmbeddingsInBase64) {
  Ask(JobKind::kEmbeddings, R"({"input":"a","encoding_format":"base64"})");
  engine_.AddEmbedding({.request = FakeEngine::IdOf(0), .values = {0.0f, 2.0f}});
  engine_.Send(FakeEngine::IdOf(0), -1, FinishReason::kStop);
  Deliver();
  EXPECT_EQ(Body().at("data").at(0).at("embedding"), "AAAAAAAAgD8=");  // 0, 1
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
