// SPDX-License-Identifier: Apache-2.0
#include "replay/url_target.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"
#include "replay/metrics.h"
#include "replay/record.h"

namespace kvrm {
namespace {

// A server on loopback that answers one connection after the other. Prompts of 13 tokens are
// refused, of 17 cut in the middle, of 19 fail in the stream, of 15 are never answered.
class FakeServer {
 public:
  explicit FakeServer(bool has_ledger)
      : has_ledger_(has_ledger), fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    EXPECT_EQ(::listen(fd_, 256), 0);
    thread_ = std::thread([this] { Serve(); });
  }
  ~FakeServer() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    for (const int peer : silent_)
      ::close(peer);
    ::close(fd_);
  }
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/v1"; }
  // Requests whose fields were not those of a replay.
  int num_wrong() const { return num_wrong_.load(); }

 private:
  void Serve() {
    while (true) {
      const int peer = ::accept(fd_, nullptr, nullptr);
      if (peer < 0) return;
      const std::string request = Read(peer);
      const std::string reply = Reply(request);
      if (reply.empty()) {
        silent_.push_back(peer);
        continue;
      }
      EXPECT_EQ(::send(peer, reply.data(), reply.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(reply.size()));
      ::close(peer);
    }
  }

  static std::string Read(int peer) {
    std::string request;
    char buffer[65536];
    while (true) {
      const std::size_t end = request.find("\r\n\r\n");
      if (end != std::string::npos) {
        const std::size_t length = request.find("Content-Length: ");
        const std::size_t body = length > end ? 0 : std::stoul(request.substr(length + 16));
        if (request.size() >= end + 4 + body) return request;
      }
      const ssize_t n = ::recv(peer, buffer, sizeof(buffer), 0);
      if (n <= 0) return request;
      request.append(buffer, static_cast<std::size_t>(n));
    }
  }

  static std::string Whole(const std::string& status, const std::string& body) {
    return "HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) +
           "\r\n\r\n" + body;
  }

  std::string Reply(const std::string& request) {
    if (request.starts_with("GET /v1/models "))
      return Whole("200 OK",
                   R"({"data":[{"id":"fake","max_model_len":4096,"meta":{"n_vocab":100}}]})");
    if (request.starts_with("GET /v1/kv/ledger ") && has_ledger_)
      return Whole("200 OK",
                   R"({"tiers":[{"reserved_bytes":300,"mapped_bytes":200,"live_bytes":100,)"
                   R"("blocks":{"total":10}}]})");
    if (!request.starts_with("POST /v1/completions ")) return Whole("404 Not Found", "{}");
    return Completion(request.substr(request.find("\r\n\r\n") + 4));
  }

  std::string Completion(const std::string& body) {
    const json::value value = ParseJson(body).value();
    const auto prompt = value.at("prompt").as_array();
    const std::int64_t asked = value.at("max_tokens").as_int64();
    const bool right = value.at("model") == "fake" && value.at("ignore_eos") == true &&
                       value.at("stream_options").at("include_usage") == true;
    for (const json::value& id : prompt)
      num_wrong_ += id.as_int64() < 0 || id.as_int64() >= 100 ? 1 : 0;
    num_wrong_ += right ? 0 : 1;
    if (prompt.size() == 13) return Whole("429 Too Many Requests", "slow\ndown");
    if (prompt.size() == 15) return "";
    std::string events;
    for (std::int64_t i = 0; i < asked; ++i)
      events += "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\n\n";
    const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    if (prompt.size() == 17) return head + events;
    if (prompt.size() == 19) return head + events + "data: {\"error\":{\"message\":\"oh\"}}\n\n";
    events += "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n";
    events +=
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":" + std::to_string(prompt.size()) +
        ",\"completion_tokens\":" + std::to_string(asked) + "}}\n\n";
    return head + events + "data: [DONE]\n\n";
  }

  const bool has_ledger_;
  const int fd_;
  std::uint16_t port_ = 0;
  std::atomic<int> num_wrong_ = 0;
  std::vector<int> silent_;  // connections that stay open
  std::thread thread_;
};

Record Replayed(UrlTarget& target, const Workload& workload) {
  const std::string path =
      ::testing::TempDir() + "kvrm_url_target" + std::to_string(::getpid()) + ".jsonl";
  {
    RecordWriter writer(path, {.target = "url", .clock = "real"});
    const ReplayOptions options;
    ReplayRun run(workload, options, writer);
    target.Run(run);
    writer.End(1);
  }
  Result<Record> record = ReadRecord(path);
  std::remove(path.c_str());
  EXPECT_TRUE(record);
  return record ? *record : Record();
}

TEST(UrlTarget, ReplaysManyConnectionsAtOnce) {
  FakeServer server(true);
  const SystemClock clock;
  UrlTarget target({.url = server.url()}, clock);
  EXPECT_EQ(target.model(), "fake");
  EXPECT_EQ(target.vocab_size(), 100u);
  EXPECT_EQ(target.max_context(), 4096u);
  EXPECT_EQ(target.pool_tokens(), 160u);
  Workload workload;
  workload.num_clients = 60;
  for (std::uint32_t i = 0; i < 200; ++i)
    workload.requests.push_back(
        {.prompt_tokens = 20 + i % 50, .output_tokens = 1 + i % 9, .arrival = Arrival::kClosed});
  const Record record = Replayed(target, workload);
  ASSERT_EQ(record.requests.size(), 200u);
  for (const RequestRecord& request : record.requests) {
    EXPECT_EQ(request.finish, "length") << request.error;
    EXPECT_EQ(request.output_tokens, request.asked_tokens);
    EXPECT_EQ(request.gaps_ns.size(), request.asked_tokens);
    EXPECT_EQ(request.prompt_tokens, workload.requests[request.request].prompt_tokens);
  }
  ASSERT_FALSE(record.memory.empty());
  EXPECT_EQ(record.memory[0].live_bytes, 100u);
  EXPECT_EQ(server.num_wrong(), 0);
}

TEST(UrlTarget, AFailureIsOfItsRequestAlone) {
  FakeServer server(false);
  const SystemClock clock;
  UrlTarget target({.url = server.url()}, clock);
  EXPECT_FALSE(target.has_ledger());
  Workload workload;
  for (const std::uint32_t prompt : {13u, 17u, 19u, 23u})
    workload.requests.push_back({.prompt_tokens = prompt, .output_tokens = 3});
  Record record = Replayed(target, workload);
  ASSERT_EQ(record.requests.size(), 4u);
  std::string errors[4];
  for (const RequestRecord& request : record.requests)
    errors[request.request] = request.error;
  EXPECT_EQ(errors[0], "status 429: slow down");
  EXPECT_EQ(errors[1], "the stream had no [DONE]");
  EXPECT_EQ(errors[2], "oh");
  EXPECT_EQ(errors[3], "");
  EXPECT_EQ(Measure(record, {}).failed, 3u);
}

// Every look at it is a tenth of a second.
class LookingClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return now_ns_ += 100'000'000; }
  std::int64_t UnixSeconds() const noexcept override { return 0; }

 private:
  mutable std::int64_t now_ns_ = 0;
};

TEST(UrlTarget, SilenceEndsARequest) {
  FakeServer server(false);
  const LookingClock clock;
  UrlTarget target({.url = server.url(), .silence_limit_ns = 5'000'000'000}, clock);
  Workload workload;
  workload.requests.push_back({.prompt_tokens = 15, .output_tokens = 3});
  const Record record = Replayed(target, workload);
  ASSERT_EQ(record.requests.size(), 1u);
  EXPECT_EQ(record.requests[0].error, "nothing came for too long");
  EXPECT_GE(record.requests[0].end_ns - record.requests[0].sent_ns, 5'000'000'000);
}

TEST(UrlTarget, NobodyThereIsSaidAtStart) {
  std::string url;
  {
    const FakeServer server(false);
    url = server.url();
  }
  const SystemClock clock;
  EXPECT_THROW(UrlTarget({.url = url}, clock), StartError);
}

}  // namespace
}  // namespace kvrm
