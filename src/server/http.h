// SPDX-License-Identifier: Apache-2.0
// HttpServer: connections, limits and SSE framing, on Boost.Asio; no opinion about routes.
//
// One connection carries one request at a time (an exchange). The owner answers an exchange by its
// id, whenever it likes, from the I/O thread: at once with Respond, or as a stream with
// StartStream, Write and Finish. An id whose client has gone is not an error: the verb returns
// false and has no effect, and on_gone has been called once.
//
// Threading: Run is the I/O thread; every callback runs on it and every verb belongs to it, except
// Wake, Stop and BeginDrain, which any thread may call.
// Memory: per connection a socket, the request as far as it has arrived, and at most
// max_output_bytes of unsent output. Bytes are read through one buffer that all connections share.
//
//   reading  -> waiting     the request is complete: on_request
//   waiting  -> streaming   StartStream
//   waiting  -> sending     Respond            streaming -> sending   Finish
//   sending  -> reading     all sent, connection kept
//   sending  -> lingering   all sent, connection not kept: send FIN, discard what still comes
//   any      -> closed      client gone, a deadline, a limit, or an exception in a handler
//
// Deadlines are checked every tick_ms against the Clock: head 10 s from its first byte (from
// accept for the first one), body 120 s, 30 s without send progress, keep-alive 30 s, lingering 2
// s.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "server/http_parser.h"

namespace kvrm {

// One request on one connection; never reused.
enum class ExchangeId : std::uint64_t {};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

struct HttpOptions {
  ParserLimits parser;
  std::uint32_t max_connections = 1024;
  std::size_t max_output_bytes = 256 << 10;  // unsent bytes of a stream, then it is cut
  std::int64_t head_ms = 10000;
  std::int64_t body_ms = 120000;
  std::int64_t send_ms = 30000;
  std::int64_t keep_alive_ms = 30000;
  std::int64_t linger_ms = 2000;
  std::int64_t ping_ms = 15000;  // silence of a stream before a comment line
  std::int64_t tick_ms = 250;
  std::uint32_t max_requests_per_connection = 1000;
  int send_buffer_bytes = 0;  // of the socket; 0: the system's choice
};

struct HttpStats {
  std::uint64_t num_accepted = 0;
  std::uint64_t num_requests = 0;
  std::uint64_t num_refused = 0;  // malformed or over a limit
  std::uint64_t num_timed_out = 0;
  std::uint64_t num_overflowed = 0;  // streams cut because the client did not read
  std::uint64_t num_exceptions = 0;  // stopped at the I/O boundary
};

struct HttpCallbacks {
  // The head is complete and the body has not been read. An answer refuses the request.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> on_head;
  std::function<void(ExchangeId, HttpRequest)> on_request;
  // The client left before its answer was complete.
  std::function<void(ExchangeId)> on_gone;
  std::function<void()> on_wake;  // after Wake; several calls may become one
  std::function<void()> on_tick;
  // The body of an error the server itself answers (400, 413, ...).
  std::function<std::string(int status, std::string_view message)> error_body;
};

class HttpServer {
 public:
  // `clock` outlives the server. Every callback is set.
  HttpServer(const HttpOptions& options, const Clock& clock, HttpCallbacks callbacks);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Binds an IP address (or "localhost"); port 0: any free one. Returns the port. Throws
  // StartError.
  std::uint16_t Listen(const std::string& host, std::uint16_t port);

  void Run();
  void Wake() noexcept;
  // Run returns; connections are cut.
  void Stop() noexcept;
  // No new connections; idle ones are closed; the others close after their answer.
  void BeginDrain() noexcept;

  bool Respond(ExchangeId exchange, HttpResponse response);
  // Status 200, text/event-stream.
  bool StartStream(ExchangeId exchange,
                   const std::vector<std::pair<std::string, std::string>>& headers);
  // Complete SSE events. False also when the stream was cut for not being read.
  bool Write(ExchangeId exchange, std::string_view bytes);
  bool Finish(ExchangeId exchange);

  std::size_t num_connections() const;
  const HttpStats& stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
