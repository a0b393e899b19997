// SPDX-License-Identifier: Apache-2.0
// The whole server on a loopback socket: a scripted client in front, a scripted engine behind.
#include <gtest/gtest.h>

#include <boost/json/serialize.hpp>

#include "base/json.h"
#include "base/rng.h"
#include "server/keys.h"
#include "server/loopback_server_for_test.h"
#include "server/routes.h"

namespace kvrm {
namespace {

constexpr char kChatBody[] = R"({"messages":[{"role":"user","content":"hi"}]})";
constexpr char kChatStream[] = R"({"messages":[{"role":"user","content":"hi"}],"stream":true})";

json::value Parse(const std::string& text) {
  Result<json::value> parsed = ParseJson(text);
  EXPECT_TRUE(parsed.has_value()) << text;
  return parsed ? *std::move(parsed) : json::value();
}

// The data of every event, comments left out.
std::vector<std::string> Events(std::string_view body) {
  std::vector<std::string> events;
  while (!body.empty()) {
    const std::size_t end = body.find("\n\n");
    EXPECT_NE(end, std::string_view::npos) << "an event is cut";
    if (end == std::string_view::npos) break;
    const std::string_view event = body.substr(0, end);
    if (event.starts_with("data: ")) {
      events.emplace_back(event.substr(6));
    } else {
      EXPECT_EQ(event, ":");
    }
    body.remove_prefix(end + 2);
  }
  return events;
}

// The text of choice `index` over all chunks of a chat or completion stream.
std::string StreamedText(const std::vector<std::string>& events, int index = 0) {
  std::string text;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    const json::value chunk = Parse(event);
    for (const json::value& choice : chunk.at("choices").as_array()) {
      if (choice.at("index") != index) continue;
      const json::object& object = choice.as_object();
      if (const json::value* plain = object.if_contains("text")) text += plain->as_string();
      if (const json::value* delta = object.if_contains("delta")) {
        const json::value* content = delta->as_object().if_contains("content");
        if (content != nullptr) text += content->as_string();
      }
    }
  }
  return text;
}

class ServerTest : public LoopbackServer {
 protected:
  RequestId AwaitSubmitted(std::size_t count = 1) {
    EXPECT_TRUE(WaitFor([&] { return engine_.num_submitted() >= count; }));
    return FakeEngine::IdOf(count - 1);
  }
};

TEST_F(ServerTest, SmallRoutesAnswer) {
  Start();
  const ClientResponse health = Ask(GetText("/health"));
  EXPECT_EQ(health.status, 200);
  EXPECT_EQ(health.body, R"({"status":"ok"})");
  EXPECT_NE(health.head.find("Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"), std::string::npos);
  const json::value models = Parse(Ask(GetText("/v1/models")).body);
  EXPECT_EQ(models.at("object"), "list");
  EXPECT_EQ(models.at("data").at(0).at("id"), "fake/model");
  EXPECT_EQ(models.at("data").at(0).at("max_model_len"), 1000);
  EXPECT_EQ(models.at("data").at(0).at("meta").at("n_vocab"), kFakeVocab);
  EXPECT_EQ(Parse(Ask(GetText("/v1/models/fake%2Fmodel")).body).at("object"), "model");
  EXPECT_EQ(Ask(GetText("/v1/models/other")).status, 404);
  EXPECT_EQ(Ask(GetText("/version")).status, 200);
}

TEST_F(ServerTest, LedgerAndMetricsTellTheSameFigures) {
  EngineLedger ledger;
  ledger.view = "extents";
  ledger.kv = {.num_blocks = 9,
               .num_free = 5,
               .num_held = 3,
               .num_cached = 1,
               .longest_hole = 3,
               .reserved_bytes = 1500,
               .pool_bytes = 1000,
               .window_bytes = 500,
               .mapped_bytes = 400,
               .live_bytes = 250,
               .fragmented_bytes = 50,
               .num_host_blocks = 5,
               .num_host_free = 2,
               .num_host_held = 3,
               .num_parked = 2,
               .host_reserved_bytes = 500,
               .host_mapped_bytes = 300,
               .host_live_bytes = 260,
               .num_moved_blocks = 7,
               .num_prefix_hits = 12,
               .num_prefix_misses = 34,
               .num_parked_blocks = 6};
  ledger.engine.num_steps = 42;
  ledger.engine.num_cached_tokens = 192;
  ledger.reserved = {{"kv pool", 1500}, {"packed weights", 77}};
  engine_.SetLedger(ledger);
  Start();
  const json::value body = Parse(Ask(GetText("/v1/kv/ledger")).body);
  EXPECT_EQ(body.at("object"), "kv.ledger");
  EXPECT_EQ(body.at("view"), "extents");
  EXPECT_EQ(body.at("reserved_bytes"), 1577);
  EXPECT_TRUE(body.at("memory_budget_bytes").is_null());
  EXPECT_EQ(body.at("reserved").at(1).at("owner"), "packed weights");
  const json::value& tier = body.at("tiers").at(0);
  EXPECT_EQ(tier.at("tier"), "ram");
  EXPECT_EQ(tier.at("block_bytes"), 100);
  EXPECT_EQ(tier.at("live_bytes"), 250);
  EXPECT_EQ(tier.at("mapped_bytes"), 400);
  EXPECT_EQ(tier.at("reserved_bytes"), 1500);
  EXPECT_EQ(tier.at("padding_bytes"), 100);
  EXPECT_EQ(tier.at("internal_fragmentation_bytes"), 50);
  EXPECT_EQ(tier.at("external_fragmentation_bytes"), 200);
  EXPECT_EQ(tier.at("blocks").at("held"), 3);
  const json::value& host = body.at("tiers").at(1);
  EXPECT_EQ(host.at("tier"), "host");
  EXPECT_EQ(host.at("live_bytes"), 260);
  EXPECT_EQ(host.at("internal_fragmentation_bytes"), 40);
  EXPECT_EQ(host.at("free_bytes"), 200);
  EXPECT_EQ(host.at("parked").at("there"), 2);
  EXPECT_EQ(body.at("movement").at("moved_blocks"), 7);
  EXPECT_EQ(body.at("movement").at("prefix_hit_blocks"), 12);

  const ClientResponse metrics = Ask(GetText("/metrics"));
  EXPECT_EQ(metrics.status, 200);
  EXPECT_NE(metrics.head.find("Content-Type: text/plain; version=0.0.4"), std::string::npos);
  for (const char* line :
       {"# TYPE kvrm:kv_bytes gauge\n", "\nkvrm:kv_bytes{tier=\"ram\",state=\"live\"} 250\n",
        "\nkvrm:kv_bytes{tier=\"ram\",state=\"external_fragmentation\"} 200\n",
        "\nkvrm:kv_bytes{tier=\"host\",state=\"live\"} 260\n", "\nkvrm:parked_requests 2\n",
        "\nkvrm:transfer_bytes_total{src=\"ram\",dst=\"host\"} 600\n",
        "\nkvrm:memory_ledger_bytes{part=\"packed weights\"} 77\n", "\nkvrm:steps_total 42\n",
        "\nkvrm:moved_blocks_total 7\n", "\nkvrm:prefix_hit_blocks_total 12\n",
        "\nkvrm:prefix_missed_blocks_total 34\n", "\nkvrm:cached_tokens_total 192\n"}) {
    EXPECT_NE(metrics.body.find(line), std::string::npos) << line;
  }
  EXPECT_EQ(metrics.body.find("memory_budget_bytes"), std::string::npos);
}

TEST_F(ServerTest, HistogramsAreCumulativeAndHaveBothNamesWhenAskedFor) {
  static constexpr double kBounds[] = {0.001, 0.25, 2};
  EngineLedger ledger;
  ledger.kv.num_blocks = 8;
  ledger.kv.pool_bytes = 900;
  ledger.kv.num_held = 2;
  ledger.histograms = {{"inter_token_latency_seconds",
                        "inter_token_latency_seconds",
                        {.bounds = kBounds, .counts = {3, 0, 4, 1}, .sum = 12.5}},
                       {"step_seconds", "", {.bounds = kBounds, .counts = {1, 0, 0, 0}, .sum = 1}}};
  ledger.num_ended[static_cast<std::size_t>(FinishReason::kWaited)] = 6;
  engine_.SetLedger(ledger);
  ServerOptions options;
  options.vllm_metrics = true;
  Start(options);
  const std::string body = Ask(GetText("/metrics")).body;
  for (const char* text :
       {"# TYPE kvrm:inter_token_latency_seconds histogram\n"
        "kvrm:inter_token_latency_seconds_bucket{le=\"0.001\"} 3\n"
        "kvrm:inter_token_latency_seconds_bucket{le=\"0.25\"} 3\n"
        "kvrm:inter_token_latency_seconds_bucket{le=\"2\"} 7\n"
        "kvrm:inter_token_latency_seconds_bucket{le=\"+Inf\"} 8\n"
        "kvrm:inter_token_latency_seconds_sum 12.5\n"
        "kvrm:inter_token_latency_seconds_count 8\n",
        "\nkvrm:requests_total{finished_reason=\"queue_timeout\"} 6\n",
        "\nkvrm:graph_captures_total 0\n", "\nkvrm:step_seconds_count 1\n",
        "\nvllm:inter_token_latency_seconds_bucket{model_name=\"fake/"
        "model\",engine=\"0\",le=\"2\"} "
        "7\n",
        "\nvllm:kv_cache_usage_perc{model_name=\"fake/model\",engine=\"0\"} 0.25\n"}) {
    EXPECT_NE(body.find(text), std::string::npos) << text << body;
  }
  EXPECT_EQ(body.find("vllm:step_seconds"), std::string::npos);
}

TEST_F(ServerTest, UnknownPathsAndWrongMethods) {
  Start();
  const ClientResponse missing = Ask(GetText("/nothing"));
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(Parse(missing.body).at("error").at("type"), "not_found_error");
  const ClientResponse wrong = Ask(GetText("/v1/chat/completions"));
  EXPECT_EQ(wrong.status, 405);
  EXPECT_NE(wrong.head.find("Allow: OPTIONS, POST\r\n"), std::string::npos);
  EXPECT_EQ(Ask(PostText("/health", "{}")).status, 405);
  const ClientResponse options = Ask("OPTIONS /health HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(options.status, 204);
  EXPECT_NE(options.head.find("Allow: GET, HEAD, OPTIONS\r\n"), std::string::npos);
  EXPECT_EQ(Ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status, 204);
  EXPECT_EQ(Ask("DELETE /health HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);

  TestClient head(port_);
  head.Send("HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  const ClientResponse response = head.ReadResponse(true);
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("Content-Length: 15\r\n"), std::string::npos);
  EXPECT_EQ(head.ReadAll(), "");
}

TEST_F(ServerTest, ChatAnswersWhole) {
  engine_.SetReply("caf\xC3\xA9", FinishReason::kStop);
  Start();
  const ClientResponse response = Ask(PostText(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"temperature":0,"seed":5,"max_tokens":9})",
      "X-Request-Id: mine-1\r\n"));
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("X-Request-Id: mine-1\r\n"), std::string::npos);
  const json::value body = Parse(response.body);
  EXPECT_TRUE(body.at("id").as_string().starts_with("chatcmpl-"));
  EXPECT_EQ(body.at("object"), "chat.completion");
  EXPECT_EQ(body.at("created"), 1700000000);
  EXPECT_EQ(body.at("model"), "fake/model");
  const json::value& choice = body.at("choices").at(0);
  EXPECT_EQ(choice.at("message").at("role"), "assistant");
  EXPECT_EQ(choice.at("message").at("content"), "caf\xC3\xA9");
  EXPECT_EQ(choice.at("finish_reason"), "stop");
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 19);  // "<user>hi<assistant>"
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 6);
  EXPECT_EQ(body.at("usage").at("total_tokens"), 25);

  const Request request = engine_.request(0);
  EXPECT_EQ(request.sampling.temperature, 0.0f);
  EXPECT_EQ(request.sampling.seed, 5u);
  EXPECT_EQ(request.max_tokens, 9u);
  EXPECT_EQ(request.stop_ids, std::vector<std::int32_t>{kFakeEos});
}

TEST_F(ServerTest, ChatStreams) {
  engine_.SetReply("caf\xC3\xA9!", FinishReason::kLength);
  Start();
  const ClientResponse response = Ask(PostText(
      "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}})"));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.whole);
  EXPECT_NE(response.head.find("Content-Type: text/event-stream\r\n"), std::string::npos);
  const std::vector<std::string> events = Events(response.body);
  ASSERT_GE(events.size(), 5u);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(StreamedText(events), "caf\xC3\xA9!");
  const json::value first = Parse(events[0]);
  EXPECT_EQ(first.at("object"), "chat.completion.chunk");
  EXPECT_EQ(first.at("choices").at(0).at("delta").at("role"), "assistant");
  EXPECT_TRUE(first.at("choices").at(0).at("finish_reason").is_null());
  EXPECT_TRUE(first.at("usage").is_null());
  const json::value last = Parse(events[events.size() - 3]);
  EXPECT_EQ(last.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_TRUE(last.at("choices").at(0).at("delta").as_object().empty());
  const json::value usage = Parse(events[events.size() - 2]);
  EXPECT_TRUE(usage.at("choices").as_array().empty());
  EXPECT_EQ(usage.at("usage").at("completion_tokens"), 6);
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    const json::value chunk = Parse(events[i]);
    EXPECT_EQ(chunk.at("id"), first.at("id"));
    EXPECT_EQ(chunk.at("created"), first.at("created"));
    EXPECT_EQ(chunk.at("model"), first.at("model"));
  }
}

TEST_F(ServerTest, CompletionsTakeManyPromptsAndEcho) {
  engine_.SetReply("yes", FinishReason::kStop);
  Start();
  const json::value body =
      Parse(Ask(PostText("/v1/completions", R"({"prompt":["ab","cde"],"echo":true})")).body);
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_TRUE(body.at("id").as_string().starts_with("cmpl-"));
  ASSERT_EQ(body.at("choices").as_array().size(), 2u);
  EXPECT_EQ(body.at("choices").at(0).at("text"), "abyes");
  EXPECT_EQ(body.at("choices").at(1).at("text"), "cdeyes");
  EXPECT_EQ(body.at("choices").at(1).at("index"), 1);
  EXPECT_EQ(body.at("usage").at("prompt_tokens"), 5);
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 8);

  const std::vector<std::string> events = Events(
      Ask(PostText("/completions", R"({"prompt":[[104,105],[106]],"stream":true,"echo":true})"))
          .body);
  EXPECT_EQ(StreamedText(events, 0), "hiyes");
  EXPECT_EQ(StreamedText(events, 1), "jyes");
}

TEST_F(ServerTest, StopStringsEndTheOutputAndCancelTheRest) {
  engine_.SetReply("one two three", FinishReason::kStop);
  Start();
  const json::value body =
      Parse(Ask(PostText("/v1/completions", R"({"prompt":"a","stop":" tw"})")).body);
  EXPECT_EQ(body.at("choices").at(0).at("text"), "one");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "stop");
  EXPECT_TRUE(engine_.cancelled(FakeEngine::IdOf(0)));  // Before the answer went out.
  EXPECT_EQ(body.at("usage").at("completion_tokens"), 6);

  const std::vector<std::string> events = Events(
      Ask(PostText("/v1/completions", R"({"prompt":"a","stop":["two","xx"],"stream":true})")).body);
  EXPECT_EQ(StreamedText(events), "one ");
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  EXPECT_GT(Stop().generations.num_late_events, 0u);  // what the engine had sent already
}

TEST_F(ServerTest, StreamShowsNothingOfAStopString) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/completions", R"({"prompt":"a","stop":"</s>","stream":true})"));
  const RequestId id = AwaitSubmitted();
  engine_.SendText(id, "x</");
  ASSERT_TRUE(client.ReadUntil("\"x\""));
  EXPECT_EQ(client.buffer().find("</"), std::string::npos);
  engine_.SendText(id, "s");
  engine_.SendText(id, ">");
  const std::vector<std::string> events = Events(client.ReadResponse().body);
  EXPECT_EQ(StreamedText(events), "x");
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(id); }));
}

TEST_F(ServerTest, TokenizeAndDetokenize) {
  Start();
  const json::value plain = Parse(Ask(PostText("/tokenize", R"({"content":"hi"})")).body);
  EXPECT_EQ(json::serialize(plain.at("tokens")), "[104,105]");
  EXPECT_EQ(plain.at("count"), 2);
  EXPECT_EQ(plain.at("max_model_len"), 1000);
  const json::value pieces =
      Parse(Ask(PostText("/tokenize", R"({"prompt":"a\u00e9","with_pieces":true})")).body);
  EXPECT_EQ(json::serialize(pieces.at("tokens")),
            R"([{"id":97,"piece":"a"},{"id":195,"piece":[195]},{"id":169,"piece":[169]}])");
  EXPECT_EQ(Parse(Ask(PostText("/tokenize", kChatBody)).body).at("count"), 19);
  const json::value text = Parse(Ask(PostText("/detokenize", R"({"tokens":[104,105]})")).body);
  EXPECT_EQ(text.at("content"), "hi");
  EXPECT_EQ(text.at("prompt"), "hi");
  EXPECT_EQ(Ask(PostText("/detokenize", R"({"tokens":[257]})")).status, 400);
}

TEST_F(ServerTest, ErrorsNameTheField) {
  Start();
  const ClientResponse response =
      Ask(PostText("/v1/completions", R"({"prompt":"a","temperature":3})"));
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body, R"({"error":{"message":"temperature must be between 0 and 2",)"
                           R"("type":"invalid_request_error","param":"temperature","code":400}})");
  // More than can ever run and wait together is no matter of trying again.
  const ClientResponse many = Ask(PostText("/v1/completions", R"({"prompt":["a","b"],"n":11})"));
  EXPECT_EQ(many.body, R"({"error":{"message":"the request asks for 22 choices; at most 20 run or )"
                       R"(wait at once","type":"invalid_request_error","param":"n","code":400}})");
  EXPECT_EQ(Ask(PostText("/v1/completions", R"({"prompt":""})")).status, 400);
  EXPECT_EQ(Ask(PostText("/v1/completions", R"({"prompt":[257]})")).status, 400);
  EXPECT_EQ(Ask(PostText("/v1/completions", "{")).status, 400);
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(ServerTest, PromptsBeyondTheContextSayHowLong) {
  Start();
  const ClientResponse response =
      Ask(PostText("/v1/completions", "{\"prompt\":\"" + std::string(1000, 'a') + "\"}"));
  EXPECT_EQ(response.status, 400);
  const json::value error = Parse(response.body).at("error");
  EXPECT_EQ(error.at("type"), "exceed_context_size_error");
  EXPECT_EQ(error.at("n_prompt_tokens"), 1000);
  EXPECT_EQ(error.at("n_ctx"), 1000);
}

TEST_F(ServerTest, FullQueueIs429WithRetryAfter) {
  engine_.SetFull(true);
  Start();
  const ClientResponse response = Ask(PostText("/v1/chat/completions", kChatStream));
  EXPECT_EQ(response.status, 429);
  EXPECT_NE(response.head.find("Retry-After: 1\r\n"), std::string::npos);
}

TEST_F(ServerTest, AnEngineThatForgetsToWakeIsHeardAtTheNextTick) {
  engine_.SetReply("abc", FinishReason::kStop);
  engine_.SetSilent();
  Start();
  EXPECT_EQ(Ask(PostText("/v1/chat/completions", kChatBody)).status, 200);
}

TEST_F(ServerTest, EarlyFailureOfAStreamHasARealStatus) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/chat/completions", kChatStream));
  engine_.Send(AwaitSubmitted(), -1, FinishReason::kError);
  const ClientResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 500);
  EXPECT_EQ(Parse(response.body).at("error").at("type"), "server_error");
}

TEST_F(ServerTest, LateFailureOfAStreamIsAnEvent) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/chat/completions", kChatStream));
  const RequestId id = AwaitSubmitted();
  engine_.SendText(id, "a");
  engine_.Send(id, -1, FinishReason::kError);
  const ClientResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  const std::vector<std::string> events = Events(response.body);
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(Parse(events[events.size() - 2]).at("error").at("code"), 500);
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(ServerTest, ClientThatLeavesAStreamIsCancelled) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/chat/completions", kChatStream));
  const RequestId id = AwaitSubmitted();
  engine_.SendText(id, "a");
  ASSERT_TRUE(client.ReadUntil("\"a\""));
  client.Close();
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(id); }));
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  const ServerStats stats = Stop();
  EXPECT_EQ(stats.generations.num_abandoned, 1u);
  EXPECT_EQ(stats.generations.num_late_events, 1u);  // its kAborted
}

TEST_F(ServerTest, ClientThatLeavesWhileItWaitsIsCancelled) {
  Start();
  TestClient reset(port_);
  reset.Send(PostText("/v1/chat/completions", kChatBody));
  const RequestId first = AwaitSubmitted(1);
  reset.Reset();
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(first); }));
  TestClient half(port_);
  half.Send(PostText("/v1/chat/completions", kChatBody));
  const RequestId second = AwaitSubmitted(2);
  half.EndSending();
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(second); }));
  EXPECT_TRUE(half.closed_by_server());
}

TEST_F(ServerTest, ClientThatDoesNotReadIsCut) {
  ServerOptions options;
  options.http.send_buffer_bytes = 4096;
  options.http.max_output_bytes = 32 << 10;
  Start(options);
  TestClient client(port_, 4096);
  client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
  const RequestId id = AwaitSubmitted();
  EXPECT_TRUE(WaitFor([&] {
    engine_.SendText(id, "some more text for somebody who does not read it");
    return engine_.cancelled(id);
  }));
  EXPECT_EQ(Stop().http.num_overflowed, 1u);
}

TEST_F(ServerTest, ClientThatStopsReadingTimesOut) {
  ServerOptions options;
  options.http.send_buffer_bytes = 4096;
  options.http.max_output_bytes = 64 << 20;
  Start(options);
  TestClient client(port_, 4096);
  client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})"));
  const RequestId id = AwaitSubmitted();
  // Far more than the socket buffers hold.
  for (int i = 0; i < 200; ++i) {
    engine_.SendText(id, std::string(100, 'x'));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_FALSE(engine_.cancelled(id));
  EXPECT_TRUE(WaitFor([&] {
    clock_.AdvanceMs(10000);
    return engine_.cancelled(id);
  }));
  EXPECT_EQ(Stop().http.num_timed_out, 1u);
}

TEST_F(ServerTest, SilentStreamIsPinged) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/chat/completions", kChatStream));
  const RequestId id = AwaitSubmitted();
  engine_.SendText(id, "a");
  ASSERT_TRUE(client.ReadUntil("\"a\""));
  clock_.AdvanceMs(15001);
  EXPECT_TRUE(client.ReadUntil("\r\n:\n\n\r\n"));
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  EXPECT_EQ(StreamedText(Events(client.ReadResponse().body)), "a");
}

TEST_F(ServerTest, SlowHeadAndSlowBodyAreRefused) {
  Start();
  TestClient head(port_);
  head.Send("GET /health HTTP/1.1\r\n");
  TestClient silent(port_);
  TestClient body(port_);
  body.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{");
  // A request on a fourth connection shows that the others' bytes have arrived.
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  clock_.AdvanceMs(10001);
  EXPECT_EQ(head.ReadResponse().status, 408);
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_TRUE(body.buffer().empty());
  clock_.AdvanceMs(110000);
  EXPECT_EQ(body.ReadResponse().status, 408);
  EXPECT_TRUE(body.closed_by_server());
}

TEST_F(ServerTest, ConnectionsAreKeptAndThenClosed) {
  Start();
  TestClient client(port_);
  for (int i = 0; i < 3; ++i) {
    client.Send(GetText("/health"));
    EXPECT_EQ(client.ReadResponse().status, 200);
  }
  // An answer to somebody else shows that the server has done with this one.
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  clock_.AdvanceMs(30001);
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(Stop().http.num_timed_out, 0u);
}

TEST_F(ServerTest, RequestsPerConnectionAreLimited) {
  ServerOptions options;
  options.http.max_requests_per_connection = 2;
  Start(options);
  TestClient client(port_);
  client.Send(GetText("/health"));
  EXPECT_EQ(client.ReadResponse().head.find("Connection: close"), std::string::npos);
  client.Send(GetText("/health"));
  EXPECT_NE(client.ReadResponse().head.find("Connection: close"), std::string::npos);
  EXPECT_TRUE(client.closed_by_server());
}

TEST_F(ServerTest, OldVersionsGetNoChunks) {
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  TestClient client(port_);
  const std::string body = kChatStream;
  client.Send("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  const ClientResponse response = client.ReadResponse();
  EXPECT_EQ(response.head.find("Transfer-Encoding"), std::string::npos);
  EXPECT_NE(response.head.find("Connection: close"), std::string::npos);
  EXPECT_EQ(StreamedText(Events(response.body)), "abc");
}

TEST_F(ServerTest, ByteByByteIsTheSameRequest) {
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  TestClient client(port_);
  client.SendByteByByte(PostText("/v1/chat/completions", kChatBody));
  EXPECT_EQ(Parse(client.ReadResponse().body).at("choices").at(0).at("message").at("content"),
            "abc");
  client.SendByteByByte(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "10\r\n{\"messages\":[{\"r\r\n1e\r\nole\":\"user\",\"content\":\"hi\"}]}\r\n0\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 400);  // 0x1e is one more than what follows
  EXPECT_TRUE(client.closed_by_server());
}

TEST_F(ServerTest, ChunkedBodiesAreRead) {
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  TestClient client(port_);
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 200);
  client.Send(GetText("/health"));
  EXPECT_EQ(client.ReadResponse().status, 200);
}

// The cases that turned one framed request into two, or ended the process, in example servers.
TEST_F(ServerTest, SmuggledRequestsGetOneAnswerAndNoSecond) {
  Start();
  const std::string hidden = "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n";
  for (const std::string& fields :
       {std::string("Transfer-Encoding: gzip\r\n"), std::string("Transfer-Encoding: xchunked\r\n"),
        std::string("Transfer-Encoding: chunked, gzip\r\n"),
        std::string("Transfer-Encoding: gzip\r\nContent-Length: 0\r\n"),
        std::string("Content-Length: 0, 0\r\n"),
        std::string("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n")}) {
    TestClient client(port_);
    client.Send("POST /tokenize HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" + hidden);
    const std::string answer = client.ReadAll();
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400 ")) << fields;
    EXPECT_EQ(answer.find("HTTP/1.1", 1), std::string::npos) << fields;
  }
}

TEST_F(ServerTest, HugeTrailersAndExtensionsEndOneConnectionOnly) {
  Start();
  const std::string head =
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string& body :
       {"0\r\nX: " + std::string(70000, 'a') + "\r\n\r\n",
        "5;" + std::string(70000, 'a') + "\r\nhello\r\n0\r\n\r\n", std::string(70000, '0')}) {
    TestClient client(port_);
    client.Send(head + body);
    EXPECT_EQ(client.ReadResponse().status, 400);
    EXPECT_TRUE(client.closed_by_server());
  }
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
}

TEST_F(ServerTest, PipelinedRequestsAreNotServed) {
  Start();
  TestClient client(port_);
  client.Send(GetText("/health") + GetText("/version") + GetText("/version"));
  const std::string all = client.ReadAll();
  EXPECT_TRUE(all.starts_with("HTTP/1.1 200 OK"));
  EXPECT_NE(all.find("Connection: close"), std::string::npos);
  EXPECT_EQ(all.find("HTTP/1.1", 1), std::string::npos);
  TestClient refused(port_);
  refused.Send(GetText("/nothing") + GetText("/version"));
  EXPECT_EQ(refused.ReadAll().find("HTTP/1.1", 1), std::string::npos);
}

TEST_F(ServerTest, ContinueIsSentOnlyWhenTheBodyIsWanted) {
  Start();
  TestClient client(port_);
  client.Send(
      "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n");
  ASSERT_TRUE(client.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n"));
  client.Send(R"({"content":"a"})");
  EXPECT_TRUE(client.ReadUntil("HTTP/1.1 200 OK"));
  TestClient refused(port_);
  refused.Send(
      "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(refused.ReadResponse().status, 404);
  EXPECT_TRUE(refused.closed_by_server());
}

TEST_F(ServerTest, ConnectionsBeyondTheLimitWait) {
  ServerOptions options;
  options.http.max_connections = 2;
  Start(options);
  auto first = std::make_unique<TestClient>(port_);
  TestClient second(port_);
  first->Send(GetText("/health"));
  EXPECT_EQ(first->ReadResponse().status, 200);
  second.Send(GetText("/health"));
  EXPECT_EQ(second.ReadResponse().status, 200);
  TestClient third(port_);
  third.Send(GetText("/health"));
  first.reset();
  EXPECT_EQ(third.ReadResponse().status, 200);
}

TEST_F(ServerTest, EveryRouteButHealthNeedsTheKey) {
  ServerOptions options;
  options.api_keys = {"other", "secret"};
  Start(options);
  const auto status = [&](const Route& route, const std::string& fields) {
    const std::string path = std::string(route.path) + (route.id == RouteId::kModel ? "x" : "");
    return Ask((route.is_post ? "POST " : "GET ") + path + " HTTP/1.1\r\nHost: a\r\n" + fields +
               "\r\n")
        .status;
  };
  for (const Route& route : AllRoutes()) {
    if (route.is_public) {
      EXPECT_EQ(route.id, RouteId::kHealth);
      EXPECT_EQ(status(route, ""), 200);
      continue;
    }
    EXPECT_EQ(status(route, ""), 401) << route.path;
    EXPECT_EQ(status(route, "Authorization: Bearer secre\r\n"), 401) << route.path;
    EXPECT_EQ(status(route, "Authorization: Bearer secreT\r\n"), 401) << route.path;
    EXPECT_EQ(status(route, "Authorization: Bearer secretsecret\r\n"), 401) << route.path;
    EXPECT_NE(status(route, "Authorization: Bearer secret\r\n"), 401) << route.path;
    EXPECT_NE(status(route, "X-Api-Key: secret\r\n"), 401) << route.path;
  }
}

TEST_F(ServerTest, HoldersOfDifferentKeysShareNeitherPrefixesNorTurns) {
  ServerOptions options;
  options.api_keys = {"one", "two"};
  Start(options);
  std::vector<std::unique_ptr<TestClient>> clients;
  for (const char* const key : {"one", "two", "one"}) {
    clients.push_back(std::make_unique<TestClient>(port_));
    clients.back()->Send(PostText("/v1/completions", R"({"prompt":"a","cache_salt":"s"})",
                                  "X-Api-Key: " + std::string(key) + "\r\n"));
    AwaitSubmitted(clients.size());
  }
  EXPECT_NE(engine_.request(0).cache_salt, engine_.request(1).cache_salt);
  EXPECT_NE(engine_.request(0).tenant, engine_.request(1).tenant);
  EXPECT_EQ(engine_.request(0).cache_salt, engine_.request(2).cache_salt);
  EXPECT_EQ(engine_.request(0).tenant, engine_.request(2).tenant);
}

TEST_F(ServerTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  Start();
  TestClient idle(port_);
  TestClient client(port_);
  client.Send(PostText("/v1/chat/completions", kChatStream));
  TestClient late(port_);
  late.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Le");
  const RequestId id = AwaitSubmitted();
  engine_.SendText(id, "a");
  ASSERT_TRUE(client.ReadUntil("\"a\""));
  server_->BeginDrain();
  EXPECT_TRUE(idle.closed_by_server());
  late.Send("ngth: 2\r\n\r\n{}");
  EXPECT_EQ(late.ReadResponse().status, 503);
  late.Close();
  EXPECT_FALSE(server_->drained());
  engine_.SendText(id, "b");
  engine_.Send(id, kFakeEos, FinishReason::kStop);
  EXPECT_EQ(StreamedText(Events(client.ReadResponse().body)), "ab");
  client.Close();
  EXPECT_TRUE(WaitFor([&] { return server_->drained(); }));
}

TEST_F(ServerTest, AbortAllAnswersEverybody) {
  Start();
  TestClient streaming(port_);
  streaming.Send(PostText("/v1/chat/completions", kChatStream));
  const RequestId first = AwaitSubmitted(1);
  engine_.SendText(first, "a");
  ASSERT_TRUE(streaming.ReadUntil("\"a\""));
  TestClient waiting(port_);
  waiting.Send(PostText("/v1/chat/completions", kChatBody));
  AwaitSubmitted(2);
  server_->BeginDrain();
  server_->AbortAll();
  EXPECT_EQ(waiting.ReadResponse().status, 503);
  const std::vector<std::string> events = Events(streaming.ReadResponse().body);
  EXPECT_EQ(events.back(), "[DONE]");
  EXPECT_EQ(Parse(events[events.size() - 2]).at("error").at("code"), 503);
  EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(first); }));
}

TEST_F(ServerTest, BodyOverTheLimitIsRefusedBeforeItIsSent) {
  Start();
  TestClient client(port_);
  client.Send("POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 8388609\r\n\r\n");
  EXPECT_EQ(client.ReadResponse().status, 413);
}

// Many clients at once, a third of which leave in the middle: every request ends exactly once.
TEST_F(ServerTest, ManyClientsSomeOfWhomLeave) {
  Start();
  constexpr std::size_t kClients = 60;
  std::vector<std::unique_ptr<TestClient>> clients;
  for (std::size_t i = 0; i < kClients; ++i) {
    clients.push_back(std::make_unique<TestClient>(port_));
    clients[i]->Send(PostText("/v1/chat/completions", i % 2 == 0 ? kChatStream : kChatBody));
    AwaitSubmitted(i + 1);  // so that request i is client i's
  }
  for (std::size_t i = 0; i < kClients; ++i)
    engine_.SendText(FakeEngine::IdOf(i), "tok");
  for (std::size_t i = 0; i < kClients; i += 3)
    clients[i]->Reset();
  for (std::size_t i = 0; i < kClients; i += 3)
    EXPECT_TRUE(WaitFor([&] { return engine_.cancelled(FakeEngine::IdOf(i)); })) << i;
  for (std::size_t i = 0; i < kClients; ++i)
    engine_.Send(FakeEngine::IdOf(i), kFakeEos, FinishReason::kStop);
  for (std::size_t i = 0; i < kClients; ++i) {
    if (i % 3 == 0) continue;
    const ClientResponse response = clients[i]->ReadResponse();
    EXPECT_EQ(response.status, 200);
    EXPECT_TRUE(response.whole);
    if (i % 2 == 0) {
      EXPECT_EQ(StreamedText(Events(response.body)), "tok");
    }
  }
  const ServerStats stats = Stop();
  EXPECT_EQ(stats.generations.num_started, kClients);
  EXPECT_EQ(stats.generations.num_abandoned, kClients / 3);
  EXPECT_EQ(stats.generations.num_completed, kClients - kClients / 3);
  EXPECT_EQ(stats.generations.num_cancels, kClients / 3);
  EXPECT_EQ(stats.http.num_exceptions, 0u);
}

TEST(Listen, RefusesWhatIsNoAddressAndTakenPorts) {
  FakeClock clock;
  FakeEngine engine;
  ServerOptions options;
  options.port = 0;
  options.host = "example.org";
  Server named(engine.Port(), FakeModel(), options, clock);
  EXPECT_THROW(named.Listen(), StartError);
  options.host = "localhost";
  Server first(engine.Port(), FakeModel(), options, clock);
  options.port = first.Listen();
  Server second(engine.Port(), FakeModel(), options, clock);
  EXPECT_THROW(second.Listen(), StartError);
}

}  // namespace
}  // namespace kvrm
