// SPDX-License-Identifier: Apache-2.0
// Limits, origins, prefixes and counters of the whole server on a loopback socket; what the API
// says is in server_test.cc.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <atomic>

#include "server/loopback_server_for_test.h"
#include "server/request_json.h"

namespace kvrm {
namespace {

constexpr char kCompletion[] = R"({"prompt":"a"})";
constexpr char kCompletionStream[] = R"({"prompt":"a","stream":true})";

class ServerLimitsTest : public LoopbackServer {
 protected:
  // Before the server starts: whoever tokenizes is counted and waits for go_on_.
  void HoldEncoding() {
    model_.encode = [this, encode = model_.encode](std::string_view text,
                                                   const EncodeOptions& options) {
      ++num_begun_;
      EXPECT_TRUE(WaitFor([this] { return go_on_.load(); }));
      return encode(text, options);
    };
  }

  std::vector<int> fillers_;
  std::atomic<int> num_begun_{0};
  std::atomic<bool> go_on_{false};
};

TEST_F(ServerLimitsTest, BodyThatStopsIsRefusedAfterTenSeconds) {
  Start();
  TestClient client(port_);
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n" +
              std::string(60000, ' '));
  EXPECT_EQ(Ask(GetText("/health")).status, 200);  // so that those bytes have arrived
  clock_.AdvanceMs(9900);
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  EXPECT_TRUE(client.buffer().empty());
  clock_.AdvanceMs(200);
  EXPECT_EQ(client.ReadResponse().status, 408);
  EXPECT_TRUE(client.closed_by_server());
}

TEST_F(ServerLimitsTest, BodyThatTricklesIsRefusedAfterItsGrace) {
  Start();
  TestClient client(port_);
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n");
  // 100 bytes a second never pause for long, and are below 4 KiB/s.
  for (int second = 0; second < 5; ++second) {
    client.Send(std::string(100, ' '));
    EXPECT_EQ(Ask(GetText("/health")).status, 200);
    clock_.AdvanceMs(1000);
  }
  EXPECT_EQ(client.ReadResponse().status, 408);
  EXPECT_EQ(Stop().http.num_timed_out, 1u);
}

TEST_F(ServerLimitsTest, BodyOfFourKiBPerSecondIsRead) {
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  TestClient client(port_);
  const std::string body = kCompletion + std::string(40000 - sizeof kCompletion + 1, ' ');
  client.Send("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n");
  for (std::size_t at = 0; at < body.size(); at += 5000) {
    client.Send(body.substr(at, 5000));
    EXPECT_EQ(Ask(GetText("/health")).status, 200);
    clock_.AdvanceMs(1000);
  }
  EXPECT_EQ(client.ReadResponse().status, 200);
}

TEST_F(ServerLimitsTest, BodiesInFlightAreBoundedOverAll) {
  ServerOptions options;
  options.http.max_bodies_bytes = 10000;
  Start(options);
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 6000\r\n\r\n";
  auto first = std::make_unique<TestClient>(port_);
  first->Send(head);
  EXPECT_EQ(Ask(GetText("/health")).status, 200);  // so that the first is counted
  const ClientResponse refused = Ask(head);
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(Has(refused, "Retry-After: 1"));
  // Chunks are counted as they come.
  TestClient chunked(port_);
  chunked.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" +
      std::string(5000, ' '));
  EXPECT_EQ(chunked.ReadResponse().status, 503);
  first.reset();
  EXPECT_TRUE(WaitFor([&] { return Ask(head + std::string(6000, ' ')).status == 400; }));
}

TEST_F(ServerLimitsTest, ConnectionsOfOneAddressAreLimited) {
  ServerOptions options;
  options.http.max_connections_per_address = 2;
  options.http.count_loopback = true;
  Start(options);
  auto first = std::make_unique<TestClient>(port_);
  TestClient second(port_);
  for (TestClient* client : {first.get(), &second}) {
    client->Send(GetText("/health"));
    EXPECT_EQ(client->ReadResponse().status, 200);
  }
  TestClient third(port_);
  EXPECT_TRUE(third.closed_by_server());
  first.reset();
  EXPECT_TRUE(WaitFor([&] {
    TestClient again(port_);
    return again.Send(GetText("/health")) && again.ReadResponse().status == 200;
  }));
  EXPECT_GE(Stop().http.num_turned_away, 1u);
}

// Whoever cannot be served is turned away with the descriptor kept for that, and others are served
// when there are some again.
TEST_F(ServerLimitsTest, WithoutDescriptorsClientsAreTurnedAway) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer itself opens a pipe to look at objects";
#endif
  Start();
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  std::array<int, 5> sockets{};
  for (int& fd : sockets)
    fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // Numbers below the limit that are free would still be given out.
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(sockets[0]);
  for (int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC); fd >= 0 && fd < sockets[0];
       fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) {
    fillers_.push_back(fd);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port_);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (const int fd : sockets)
    EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  for (const int fd : sockets) {
    pollfd ended{.fd = fd, .events = POLLIN, .revents = 0};
    EXPECT_EQ(::poll(&ended, 1, 10000), 1);
    char byte = 0;
    EXPECT_LE(::recv(fd, &byte, 1, 0), 0);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  for (const int fd : sockets)
    ::close(fd);
  for (const int fd : fillers_)
    ::close(fd);
  EXPECT_TRUE(WaitFor([&] { return Ask(GetText("/health")).status == 200; }));
  EXPECT_EQ(Stop().http.num_turned_away, 5u);
}

TEST_F(ServerLimitsTest, OldConnectionsEndWithTheirNextAnswer) {
  Start();
  TestClient client(port_);
  client.Send(GetText("/health"));
  EXPECT_FALSE(Has(client.ReadResponse(), "Connection: close"));
  for (int i = 0; i < 180; ++i) {  // an hour, in steps below the limit of an idle connection
    clock_.AdvanceMs(20001);
    client.Send(GetText("/health"));
    const ClientResponse response = client.ReadResponse();
    ASSERT_EQ(response.status, 200);
    if (i < 178) continue;
    EXPECT_EQ(Has(response, "Connection: close"), i == 179);
  }
  EXPECT_TRUE(client.closed_by_server());
}

TEST_F(ServerLimitsTest, OriginsAreAllowedByName) {
  ServerOptions options;
  options.http.cors_origins = {"https://app.example", "null"};
  options.api_keys = {"k"};
  Start(options);
  const auto ask = [&](const std::string& method, const std::string& fields) {
    return Ask(method + " /v1/models HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n");
  };
  const ClientResponse preflight =
      ask("OPTIONS", "Origin: https://app.example\r\nAccess-Control-Request-Method: GET\r\n");
  EXPECT_EQ(preflight.status, 204);
  EXPECT_TRUE(Has(preflight, "Access-Control-Allow-Origin: https://app.example"));
  EXPECT_TRUE(Has(preflight, "Access-Control-Allow-Methods: GET, HEAD, OPTIONS"));
  EXPECT_TRUE(Has(preflight, "Vary: Origin"));
  const ClientResponse allowed = ask("GET", "Origin: https://app.example\r\nX-Api-Key: k\r\n");
  EXPECT_EQ(allowed.status, 200);
  EXPECT_TRUE(Has(allowed, "Access-Control-Allow-Origin: https://app.example"));
  // An error is readable too: otherwise a script cannot tell a wrong key from a dead server.
  EXPECT_TRUE(Has(ask("GET", "Origin: https://app.example\r\n"),
                  "Access-Control-Allow-Origin: https://app.example"));
  for (const char* origin : {"http://app.example", "https://app.example.evil",
                             "https://APP.example", "https://app.example:8443", "*"}) {
    const ClientResponse other =
        ask("GET", std::string("X-Api-Key: k\r\nOrigin: ") + origin + "\r\n");
    EXPECT_EQ(other.head.find("Access-Control-Allow-Origin"), std::string::npos) << origin;
    EXPECT_EQ(other.head.find("Allow-Credentials"), std::string::npos) << origin;
  }
}

TEST_F(ServerLimitsTest, WithoutOriginsThereAreNoCorsHeaders) {
  Start();
  const ClientResponse response =
      Ask("GET /health HTTP/1.1\r\nHost: a\r\nOrigin: https://app.example\r\n\r\n");
  EXPECT_EQ(response.head.find("Access-Control"), std::string::npos);
  EXPECT_EQ(response.head.find("Vary"), std::string::npos);
}

TEST_F(ServerLimitsTest, RootPathMayStandBeforeEveryPath) {
  ServerOptions options;
  options.root_path = "/llm";
  Start(options);
  EXPECT_EQ(Ask(GetText("/llm/health")).status, 200);
  EXPECT_EQ(Ask(GetText("/health")).status, 200);
  EXPECT_EQ(Ask(GetText("/llm/v1/models/fake%2Fmodel")).status, 200);
  EXPECT_EQ(Ask(GetText("/llmhealth")).status, 404);
  EXPECT_EQ(Ask(GetText("/llm/llm/health")).status, 404);
  EXPECT_EQ(Ask(GetText("/llm")).status, 404);
  for (const char* wrong : {"llm", "/llm/", "/a?b", "/a\"b"}) {
    ServerOptions bad;
    bad.root_path = wrong;
    EXPECT_THROW(Server(engine_.Port(), FakeModel(), bad, clock_), StartError) << wrong;
  }
}

TEST_F(ServerLimitsTest, EveryAnswerNamesItsRequest) {
  Start();
  const auto id_of = [&](const ClientResponse& response) {
    const std::size_t at = response.head.find("X-Request-Id: ");
    EXPECT_NE(at, std::string::npos) << response.head;
    return at == std::string::npos
               ? ""
               : response.head.substr(at + 14, response.head.find("\r\n", at) - at - 14);
  };
  const std::string first = id_of(Ask(GetText("/health")));
  const std::string second = id_of(Ask(GetText("/nothing")));
  EXPECT_TRUE(first.starts_with("req-"));
  EXPECT_NE(first, second);
  id_of(Ask("nonsense\r\n\r\n"));
  EXPECT_EQ(id_of(Ask("GET /health HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n")), "mine");
  const std::string ours =
      id_of(Ask("GET /health HTTP/1.1\r\nHost: a\r\nX-Request-Id: two words\r\n\r\n"));
  EXPECT_TRUE(ours.starts_with("req-"));
}

TEST_F(ServerLimitsTest, RequestsAreCountedByRouteMethodAndStatus) {
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  Ask(PostText("/v1/completions", kCompletion));
  Ask(PostText("/completions", kCompletionStream));
  Ask(GetText("/v1/models/other"));
  Ask(GetText("/random/1"));
  Ask(GetText("/random/2"));
  Ask("BREW /health HTTP/1.1\r\nHost: a\r\n\r\n");
  Ask("nonsense\r\n\r\n");
  const std::string text = Ask(GetText("/metrics")).body;
  for (const char* line :
       {"http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"200\"} 1\n",
        "http_requests_total{handler=\"/completions\",method=\"POST\",status=\"200\"} 1\n",
        "http_requests_total{handler=\"/v1/models/\",method=\"GET\",status=\"404\"} 1\n",
        "http_requests_total{handler=\"other\",method=\"GET\",status=\"404\"} 2\n",
        "http_requests_total{handler=\"/health\",method=\"other\",status=\"405\"} 1\n",
        "http_requests_total{handler=\"other\",method=\"other\",status=\"400\"} 1\n",
        "http_request_duration_seconds_bucket{handler=\"/v1/completions\",le=\"+Inf\"} 1\n",
        "http_request_duration_seconds_count{handler=\"other\"} 3\n", "kvrm:http_refused_total 1\n",
        "# TYPE kvrm:io_longest_stall_seconds gauge\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
}

TEST_F(ServerLimitsTest, AClientThatLeavesIsCountedAs499) {
  Start();
  TestClient client(port_);
  client.Send(PostText("/v1/completions", kCompletion));
  EXPECT_TRUE(WaitFor([&] { return engine_.num_submitted() == 1; }));
  client.Reset();
  EXPECT_TRUE(WaitFor([&] {
    return Ask(GetText("/metrics"))
               .body.find("{handler=\"/v1/completions\",method=\"POST\",status=\"499\"} 1\n") !=
           std::string::npos;
  }));
}

constexpr char kHeadOfBody[] = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";

// Nothing of the body has been sent, and nothing of it is asked for.
TEST_F(ServerLimitsTest, AFullQueueRefusesByTheHeadAlone) {
  engine_.SetReply("abc", FinishReason::kStop);
  engine_.SetPlaces(0);
  Start();
  for (const char* framing :
       {"Content-Length: 8000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n",
        "Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"}) {
    SCOPED_TRACE(framing);
    TestClient client(port_);
    client.Send(std::string(kHeadOfBody) + framing);
    const ClientResponse refused = client.ReadResponse();
    EXPECT_EQ(refused.status, 429);
    EXPECT_TRUE(Has(refused, "Retry-After: 1"));
    EXPECT_TRUE(Has(refused, "Connection: close"));
    EXPECT_TRUE(client.closed_by_server());
  }
  // What needs no place is served.
  EXPECT_EQ(Ask(PostText("/tokenize", R"({"content":"a"})")).status, 200);
  engine_.SetPlaces(1);
  EXPECT_EQ(Ask(PostText("/v1/completions", kCompletion)).status, 200);
}

// However its bytes are cut, what belongs to the refused body is not taken for a request.
TEST_F(ServerLimitsTest, AShortRefusedBodyIsReadPast) {
  engine_.SetPlaces(0);
  Start();
  const std::string body = GetText("/version") + std::string(200, ' ');
  const std::string head =
      kHeadOfBody + ("Content-Length: " + std::to_string(body.size()) + "\r\n\r\n");
  TestClient client(port_);
  for (const std::size_t with_head : {std::size_t{0}, std::size_t{10}, body.size()}) {
    SCOPED_TRACE(with_head);
    client.Send(head + body.substr(0, with_head));
    const ClientResponse refused = client.ReadResponse();
    EXPECT_EQ(refused.status, 429);
    EXPECT_FALSE(Has(refused, "Connection: close"));
    client.SendByteByByte(body.substr(with_head));
    client.Send(GetText("/health"));
    const ClientResponse health = client.ReadResponse();
    EXPECT_EQ(health.status, 200);
    EXPECT_EQ(health.body, R"({"status":"ok"})");
  }
  client.Send(head + body + GetText("/health"));  // pipelined
  EXPECT_TRUE(Has(client.ReadResponse(), "Connection: close"));
  EXPECT_EQ(client.ReadAll(), "");
}

// One is being tokenized and takes the only place; who comes with a body after it is not read, who
// had sent a part of it is not parsed.
TEST_F(ServerLimitsTest, WhatIsPreparedTakesItsPlace) {
  HoldEncoding();
  engine_.SetReply("abc", FinishReason::kStop);
  engine_.SetPlaces(1);
  Start();
  const std::string late_text = PostText("/v1/completions", kCompletion);
  TestClient late(port_);
  late.Send(late_text.substr(0, late_text.size() - 1));
  EXPECT_EQ(Ask(GetText("/health")).status, 200);  // the head of it has been taken
  TestClient prepared(port_);
  prepared.Send(PostText("/v1/completions", kCompletion));
  EXPECT_TRUE(WaitFor([&] { return num_begun_ == 1; }));
  late.Send(late_text.substr(late_text.size() - 1));
  EXPECT_EQ(late.ReadResponse().status, 429);
  EXPECT_EQ(Ask(PostText("/v1/completions", kCompletion)).status, 429);
  go_on_ = true;
  EXPECT_EQ(prepared.ReadResponse().status, 200);
  EXPECT_EQ(Ask(PostText("/v1/completions", kCompletion)).status, 200);
  EXPECT_EQ(num_begun_, 2);
  EXPECT_EQ(Stop().num_rejected, 2u);
}

// Whatever has been read whole is answered, its first token come or not; what has not, is refused.
TEST_F(ServerLimitsTest, DrainFinishesWhatWasAccepted) {
  Start();
  TestClient running(port_);
  running.Send(PostText("/v1/completions", kCompletion));
  EXPECT_TRUE(WaitFor([&] { return engine_.num_submitted() == 1; }));
  engine_.SendText(FakeEngine::IdOf(0), "a");
  TestClient queued(port_);
  queued.Send(PostText("/v1/completions", kCompletionStream));
  EXPECT_TRUE(WaitFor([&] { return engine_.num_submitted() == 2; }));
  const std::string late_text = PostText("/v1/completions", kCompletion);
  TestClient late(port_);
  late.Send(late_text.substr(0, late_text.size() - 1));
  EXPECT_EQ(Ask(GetText("/health")).status, 200);  // the head of it has been taken
  server_->BeginDrain();
  late.Send(late_text.substr(late_text.size() - 1));
  const ClientResponse refused = late.ReadResponse();
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(Has(refused, "Retry-After: 1"));
  EXPECT_FALSE(server_->drained());
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(engine_.cancelled(FakeEngine::IdOf(i)));
    engine_.SendText(FakeEngine::IdOf(i), "b");
    engine_.Send(FakeEngine::IdOf(i), kFakeEos, FinishReason::kStop);
  }
  EXPECT_EQ(running.ReadResponse().status, 200);
  const ClientResponse waited = queued.ReadResponse();
  EXPECT_EQ(waited.status, 200);
  EXPECT_NE(waited.body.find("data: [DONE]"), std::string::npos);
  for (TestClient* client : {&running, &queued, &late})
    client->Close();
  EXPECT_TRUE(WaitFor([&] { return server_->drained(); }));
  EXPECT_EQ(engine_.num_submitted(), 2u);
}

// It is being tokenized, or waits for that, when the drain begins.
TEST_F(ServerLimitsTest, DrainFinishesWhatIsBeingPrepared) {
  HoldEncoding();
  engine_.SetReply("abc", FinishReason::kStop);
  Start();
  TestClient prepared(port_);
  prepared.Send(PostText("/v1/completions", kCompletion));
  EXPECT_TRUE(WaitFor([&] { return num_begun_ == 1; }));
  TestClient behind(port_);
  behind.Send(PostText("/v1/completions", kCompletion));
  EXPECT_EQ(Ask(GetText("/health")).status, 200);  // that one has been taken, too
  server_->BeginDrain();
  EXPECT_EQ(engine_.num_submitted(), 0u);
  go_on_ = true;
  for (TestClient* client : {&prepared, &behind}) {
    EXPECT_EQ(client->ReadResponse().status, 200);
    client->Close();
  }
  EXPECT_TRUE(WaitFor([&] { return server_->drained(); }));
}

TEST_F(ServerLimitsTest, RepeatedKeysAndManyValuesAreRefused) {
  Start();
  const ClientResponse twice =
      Ask(PostText("/v1/completions", R"({"prompt":"a","x":{"b":1,"b":2}})"));
  EXPECT_EQ(twice.status, 400);
  EXPECT_NE(twice.body.find(R"(the key \"b\" twice)"), std::string::npos);
  std::string many = R"({"prompt":"a","x":[0)";
  for (int i = 0; i < 200000; ++i)
    many += ",0";
  EXPECT_EQ(Ask(PostText("/v1/completions", many + "]}")).status, 400);
}

TEST(RequestJson, TakesWhatIsWithinItsLimits) {
  std::string many = "[0";
  for (std::size_t i = 0; i + 2 < kMaxRequestValues; ++i)
    many += ",0";
  EXPECT_TRUE(ParseRequestJson(many + "]").has_value());
  EXPECT_FALSE(ParseRequestJson(many + ",0]").has_value());
  EXPECT_TRUE(ParseRequestJson(R"({"a":{"a":[{"a":1},{"a":2}]},"b":{"a":1}})").has_value());
  // The same name, written in two ways.
  EXPECT_FALSE(ParseRequestJson(R"({"a":1,"\u0061":2})").has_value());
  EXPECT_FALSE(ParseRequestJson("{\"a\":1").has_value());
  EXPECT_FALSE(ParseRequestJson(std::string(100000, '[')).has_value());
}

}  // namespace
}  // namespace kvrm
