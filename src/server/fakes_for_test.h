// SPDX-License-Identifier: Apache-2.0
// Stand-ins for tests of this floor: a clock set by hand, an engine that says what it is told to,
// a model whose tokens are bytes, and a scripted HTTP client on a real loopback socket.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "server/ports.h"

namespace kvrm {

class FakeClock final : public Clock {
 public:
  std::int64_t NowNs() const noexcept override { return now_ns_; }
  std::int64_t UnixSeconds() const noexcept override { return 1700000000; }
  void AdvanceMs(std::int64_t ms) { now_ns_ += ms * 1000000; }

 private:
  std::atomic<std::int64_t> now_ns_{1};
};

// Waits for another thread; false after ten seconds, which only a broken build reaches.
inline bool WaitFor(const std::function<bool()>& condition) {
  for (int i = 0; i < 10000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return condition();
}

// Token ids are bytes; 256 ends the output.
inline constexpr std::int32_t kFakeEos = 256;
inline constexpr std::uint32_t kFakeVocab = 257;

// With a reply set, every request gets it at once; without, the test sends the tokens itself.
class FakeEngine {
 public:
  EnginePort Port() {
    return {.submit = [this](Request request) { return Submit(std::move(request)); },
            .refuse_if_full = [this](std::uint32_t num_ahead) -> std::optional<Error> {
              if (num_ahead < num_places_) return std::nullopt;
              return Error{ErrorCode::kOverloaded, "the queue is full"};
            },
            .cancel = [this](RequestId request) { Cancel(request); },
            .poll = [this](std::span<TokenEvent> events) { return Poll(events); },
            .poll_logprobs =
                [this](TopLogprobs* logprobs) {
                  if (logprobs_.empty()) return false;
                  *logprobs = logprobs_.front();
                  logprobs_.erase(logprobs_.begin());
                  return true;
                },
            .poll_embedding =
                [this](Embedding* embedding) {
                  if (embeddings_.empty()) return false;
                  *embedding = embeddings_.front();
                  embeddings_.erase(embeddings_.begin());
                  return true;
                },
            .set_wake = [this](std::function<void()> wake) { wake_ = std::move(wake); },
            .ledger = [this] { return ledger_; },
            .max_context = 1000,
            .max_requests = 20,
            .max_rows = 4};
  }

  // Before the server starts.
  void SetLedger(const EngineLedger& ledger) { ledger_ = ledger; }
  // Before the server starts.
  void SetReply(std::string text, FinishReason finish) {
    reply_ = std::move(text);
    reply_finish_ = finish;
    has_reply_ = true;
  }
  // Events are there to be polled, but nobody says so. Before the server starts.
  void SetSilent() { silent_ = true; }
  // That refuses; what comes while so many others are prepared is refused by its head.
  void SetFull(bool full) { full_ = full; }
  void SetPlaces(std::uint32_t num_places) { num_places_ = num_places; }

  void Send(RequestId request, std::int32_t token, FinishReason finish,
            std::uint32_t num_cached_tokens = 0) {
    CHECK(events_.TryPush({.request = request,
                           .token = token,
                           .logprob = 0,
                           .finish = finish,
                           .num_cached_tokens = num_cached_tokens}));
    if (!silent_) wake_();
  }
  void SendText(RequestId request, std::string_view text) {
    for (const char c : text)
      Send(request, static_cast<unsigned char>(c), FinishReason::kNone);
  }

  // Without a server only: they wait to be polled on the same thread.
  void AddLogprobs(const TopLogprobs& logprobs) { logprobs_.push_back(logprobs); }
  void AddEmbedding(const Embedding& embedding) { embeddings_.push_back(embedding); }

  // Outputs, which are requests of their own: a request for n of them counts as n.
  std::size_t num_submitted() const { return num_submitted_.load(std::memory_order_acquire); }
  // Requires: index < num_submitted().
  const Request& request(std::size_t index) const { return requests_.at(index); }
  static RequestId IdOf(std::size_t index) { return RequestId{index + 1}; }
  bool cancelled(RequestId request) const { return cancelled_.at(IndexOf(request)); }

 private:
  static constexpr std::size_t kMaxRequests = 1024;
  static std::size_t IndexOf(RequestId request) { return static_cast<std::size_t>(request) - 1; }

  // I/O thread only; the counter hands the request over to the test.
  Result<RequestId> Submit(Request request) {
    if (full_) return Error{ErrorCode::kOverloaded, "the queue holds 0 requests and is full"};
    const std::size_t index = num_submitted_.load(std::memory_order_relaxed);
    const std::size_t num_samples = request.num_samples;
    CHECK(index + num_samples <= kMaxRequests);
    for (std::size_t i = 0; i < num_samples; ++i)
      requests_[index + i] = request;
    num_submitted_.store(index + num_samples, std::memory_order_release);
    if (has_reply_) {
      for (std::size_t i = 0; i < num_samples; ++i)
        Reply(IdOf(index + i));
    }
    return IdOf(index);
  }

  void Reply(RequestId id) {
    if (reply_finish_ == FinishReason::kLength) {
      SendText(id, std::string_view(reply_).substr(0, reply_.size() - 1));
      Send(id, static_cast<unsigned char>(reply_.back()), reply_finish_);
    } else {
      SendText(id, reply_);
      Send(id, reply_finish_ == FinishReason::kStop ? kFakeEos : -1, reply_finish_);
    }
  }

  void Cancel(RequestId request) {
    cancelled_.at(IndexOf(request)) = true;
    Send(request, -1, FinishReason::kAborted);
  }

  std::size_t Poll(std::span<TokenEvent> events) {
    std::size_t count = 0;
    while (count < events.size()) {
      const std::optional<TokenEvent> event = events_.TryPop();
      if (!event) break;
      events[count++] = *event;
    }
    return count;
  }

  std::vector<Request> requests_ = std::vector<Request>(kMaxRequests);
  std::atomic<std::size_t> num_submitted_{0};
  std::array<std::atomic<bool>, kMaxRequests> cancelled_{};
  std::vector<TopLogprobs> logprobs_;
  std::vector<Embedding> embeddings_;
  EngineLedger ledger_;
  std::string reply_;
  FinishReason reply_finish_ = FinishReason::kStop;
  bool has_reply_ = false;
  bool silent_ = false;
  std::atomic<bool> full_{false};
  std::atomic<std::uint32_t> num_places_{~std::uint32_t{0}};
  BoundedQueue<TokenEvent> events_{1 << 16};
  std::function<void()> wake_ = [] {};
};

// Bytes as tokens. The stream holds back an unfinished UTF-8 sequence, as the real one does.
inline TextStream OpenByteStream() {
  return [held = std::string()](std::optional<std::int32_t> id) mutable -> std::string {
    if (id && *id < 256) held.push_back(static_cast<char>(*id));
    const std::size_t num_certain = held.size() - (id ? TruncatedUtf8Tail(held) : 0);
    std::string text;
    AppendValidUtf8(text, std::string_view(held).substr(0, num_certain));
    held.erase(0, num_certain);
    return text;
  };
}

inline ModelPort FakeModel() {
  ModelPort model;
  model.served_name = "fake/model";
  model.created_unix = 1700000000;
  model.vocab_size = kFakeVocab;
  model.trained_context = 1000;
  model.hidden_dim = 32;
  model.num_parameters = 12345;
  model.weight_bytes = 24690;
  model.stop_ids = {kFakeEos};
  const auto encode = [](std::string_view text) {
    std::vector<std::int32_t> ids;
    for (const char c : text)
      ids.push_back(static_cast<unsigned char>(c));
    return ids;
  };
  model.encode = [encode](std::string_view text, const EncodeOptions&) { return encode(text); };
  model.encode_pieces = [encode](std::span<const TextPiece> pieces, bool) {
    std::string text;
    for (const TextPiece& piece : pieces)
      text += piece.text;
    return encode(text);
  };
  model.token_bytes = [](std::int32_t id) {
    return id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  };
  model.open_stream = [](StreamDecoder::Start, bool) { return OpenByteStream(); };
  model.render = [](const ChatInputs& inputs) -> Result<std::vector<RenderedPiece>> {
    std::vector<RenderedPiece> pieces;
    for (const json::value& message : inputs.messages) {
      const json::value& content = message.at("content");
      pieces.push_back({"<" + std::string(message.at("role").as_string()) + ">", true});
      pieces.push_back({content.is_string() ? std::string(content.as_string()) : "", false});
    }
    if (inputs.add_generation_prompt) pieces.push_back({"<assistant>", true});
    return pieces;
  };
  return model;
}

struct ClientResponse {
  int status = 0;
  std::string head;
  std::string body;    // chunks joined
  bool whole = false;  // the body was complete by its framing
};

// Blocking reads of at most ten seconds.
class TestClient {
 public:
  explicit TestClient(std::uint16_t port, int receive_buffer_bytes = 0)
      : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    CHECK(fd_ >= 0);
    if (receive_buffer_bytes > 0) {
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(int));
    }
    const int one = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  }
  ~TestClient() { Close(); }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void EndSending() { ::shutdown(fd_, SHUT_WR); }
  // Closes with RST.
  void Reset() {
    const linger now{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    Close();
  }

  // False when the server has closed.
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
  }
  void SendByteByByte(std::string_view bytes) {
    for (const char c : bytes) {
      if (!Send({&c, 1})) return;
    }
  }

  // Reads until `mark` has arrived (and stays in the buffer) or the connection ends.
  bool ReadUntil(std::string_view mark) {
    while (buffer_.find(mark) == std::string::npos) {
      if (!ReadSome()) return false;
    }
    return true;
  }
  // Everything until the server closes.
  std::string ReadAll() {
    while (ReadSome()) {
    }
    return std::exchange(buffer_, {});
  }
  bool closed_by_server() {
    while (ReadSome()) {
    }
    return ended_;
  }
  const std::string& buffer() const { return buffer_; }

  ClientResponse ReadResponse(bool head_only = false) {
    ClientResponse response;
    if (!ReadUntil("\r\n\r\n")) return response;
    const std::size_t head_end = buffer_.find("\r\n\r\n") + 4;
    response.head = buffer_.substr(0, head_end);
    buffer_.erase(0, head_end);
    response.status = static_cast<int>(ReadNumber(std::string_view(response.head).substr(9)));
    const std::size_t length_at = response.head.find("Content-Length: ");
    if (head_only || response.status == 204) {
      response.whole = true;
    } else if (length_at != std::string::npos) {
      const std::size_t length = ReadNumber(std::string_view(response.head).substr(length_at + 16));
      while (buffer_.size() < length && ReadSome()) {
      }
      response.whole = buffer_.size() >= length;
      response.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    } else if (response.head.find("Transfer-Encoding: chunked") != std::string::npos) {
      ReadChunks(response);
    } else {
      response.body = ReadAll();
      response.whole = true;
    }
    return response;
  }

 private:
  // The digits the text begins with.
  static std::size_t ReadNumber(std::string_view text, int base = 10) {
    std::size_t number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number, base);
    return number;
  }

  void ReadChunks(ClientResponse& response) {
    for (;;) {
      if (!ReadUntil("\r\n")) return;
      const std::size_t size = ReadNumber(buffer_, 16);
      const std::size_t data = buffer_.find("\r\n") + 2;
      while (buffer_.size() < data + size + 2) {
        if (!ReadSome()) return;
      }
      response.body += buffer_.substr(data, size);
      buffer_.erase(0, data + size + 2);
      if (size == 0) {
        response.whole = true;
        return;
      }
    }
  }

  bool ReadSome() {
    pollfd waiting{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&waiting, 1, 10000) <= 0) return false;
    char bytes[16384];
    const ssize_t count = ::recv(fd_, bytes, sizeof bytes, 0);
    if (count <= 0) {
      ended_ = true;
      return false;
    }
    buffer_.append(bytes, static_cast<std::size_t>(count));
    return true;
  }

  int fd_;
  bool ended_ = false;
  std::string buffer_;
};

inline std::string PostText(std::string_view path, std::string_view body,
                            std::string_view headers = "") {
  return "POST " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n" + std::string(headers) +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body);
}
inline std::string GetText(std::string_view path) {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n\r\n";
}

}  // namespace kvrm
