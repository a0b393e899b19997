// SPDX-License-Identifier: Apache-2.0
// Every allocation of the server's two threads fails once, in each of a dozen scenarios: the
// request in work gets an answer, an error or a closed connection; the next one is served; nothing
// is left.
//
// operator new is replaced here. It throws at the nth call of any thread but the test's own, then
// works again; n rises until a scenario is through before it is reached.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>

#include "base/log.h"
#include "failing_new.h"
#include "server/api.h"
#include "server/fakes_for_test.h"

namespace {

std::atomic<std::int64_t> countdown{-1};  // calls until one fails; below 0: none does
thread_local bool is_exempt = false;

bool FailsNow() {
  return !is_exempt && countdown.load(std::memory_order_relaxed) >= 0 &&
         countdown.fetch_sub(1, std::memory_order_relaxed) == 0;
}

}  // namespace

namespace kvrm {
namespace {

constexpr int kMaxFailures = 20000;

// A whole answer, or the end of the connection: not silence.
void ExpectEnded(TestClient& client) {
  const ClientResponse response = client.ReadResponse();
  if (!response.whole) {
    EXPECT_TRUE(client.closed_by_server()) << "no answer and no end";
  }
}

struct Scenario {
  const char* name;
  std::function<void(std::uint16_t port, FakeEngine& engine, Server& server)> run;
};

void AskOnce(std::uint16_t port, const std::string& request) {
  TestClient client(port);
  client.Send(request);
  ExpectEnded(client);
}

std::vector<Scenario> Scenarios() {
  const auto asking = [](const std::string& request) {
    return [request](std::uint16_t port, FakeEngine&, Server&) { AskOnce(port, request); };
  };
  constexpr const char* kKey = "X-Api-Key: k\r\n";
  const std::string chat = R"({"messages":[{"role":"user","content":"hi"}],"n":2,"stop":"zz")";
  return {
      {"health", asking(GetText("/health"))},
      {"metrics", asking("GET /metrics HTTP/1.1\r\nHost: a\r\nX-Api-Key: k\r\n\r\n")},
      {"no such path", asking(GetText("/nothing"))},
      {"no key", asking(PostText("/v1/completions", "{}"))},
      {"malformed head", asking("nonsense\r\n\r\n")},
      {"malformed JSON", asking(PostText("/v1/completions", "{\"a\":", kKey))},
      {"tokenize", asking(PostText("/tokenize", R"({"content":"hello"})", kKey))},
      {"completion",
       asking(PostText("/v1/completions", R"({"prompt":["a","b"],"echo":true})", kKey))},
      {"chat", asking(PostText("/v1/chat/completions", chat + "}", kKey))},
      {"chat stream", asking(PostText("/v1/chat/completions", chat + ",\"stream\":true}", kKey))},
      {"chunked body",
       asking("POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Api-Key: k\r\nTransfer-Encoding: "
              "chunked\r\n\r\n5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n")},
      {"two requests on one connection",
       [](std::uint16_t port, FakeEngine&, Server&) {
         TestClient client(port);
         for (int i = 0; i < 2; ++i) {
           client.Send(PostText("/v1/completions", R"({"prompt":"a"})", kKey));
           if (!client.ReadResponse().whole) break;
         }
       }},
      {"client that leaves",
       [](std::uint16_t port, FakeEngine&, Server&) {
         TestClient client(port);
         client.Send(PostText("/v1/completions", R"({"prompt":"a","stream":true})", kKey));
         AskOnce(port, GetText("/health"));  // so that the request has been read
         client.Reset();
         AskOnce(port, GetText("/health"));
       }},
      {"drain",
       [](std::uint16_t port, FakeEngine&, Server& server) {
         TestClient idle(port);
         TestClient client(port);
         const std::string request = PostText("/v1/completions", R"({"prompt":"a"})", kKey);
         client.Send(request.substr(0, 40));
         AskOnce(port, GetText("/health"));  // so that both are known
         server.BeginDrain();
         client.Send(request.substr(40));
         ExpectEnded(client);
         EXPECT_TRUE(idle.closed_by_server());
         idle.Close();
         client.Close();
         EXPECT_TRUE(WaitFor([&] { return server.drained(); }));
       }},
  };
}

// Returns whether the nth allocation was reached.
bool FailNth(const Scenario& scenario, std::int64_t n) {
  FakeClock clock;
  FakeEngine engine;
  engine.SetReply("some text", FinishReason::kStop);
  ServerOptions options;
  options.port = 0;
  options.http.tick_ms = 1;
  options.api_keys = {"k"};
  Server server(engine.Port(), FakeModel(), options, clock);
  const std::uint16_t port = server.Listen();
  server.Start();
  AskOnce(port, GetText("/health"));  // What is allocated once, by both, is.
  countdown = n;
  scenario.run(port, engine, server);
  const bool reached = countdown < 0;
  countdown = -1;
  if (std::string_view(scenario.name) != "drain") {
    TestClient next(port);
    next.Send(PostText("/v1/completions", R"({"prompt":"a"})", "X-Api-Key: k\r\n"));
    EXPECT_EQ(next.ReadResponse().status, 200) << "the request after the failure";
    server.BeginDrain();
    next.Close();
    EXPECT_TRUE(WaitFor([&] { return server.drained(); })) << "something is left";
  }
  server.Stop();
  const ServerStats stats = server.stats();
  EXPECT_EQ(stats.generations.num_started, stats.generations.num_completed +
                                               stats.generations.num_failed +
                                               stats.generations.num_abandoned);
  return reached;
}

TEST(AllocationFailure, CostsOneRequestAndNothingElse) {
  is_exempt = true;
  SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  std::int64_t total = 0;
  for (const Scenario& scenario : Scenarios()) {
    std::int64_t n = 0;
    while (FailNth(scenario, n)) {
      ASSERT_FALSE(HasFailure()) << scenario.name << ", allocation " << n;
      ASSERT_LT(++n, kMaxFailures) << scenario.name;
    }
    ASSERT_FALSE(HasFailure()) << scenario.name << ", allocation " << n;
    std::printf("%6lld allocations failed, one at a time: %s\n", static_cast<long long>(n),
                scenario.name);
    total += n;
  }
  EXPECT_GT(total, 500);
}

}  // namespace
}  // namespace kvrm
