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
// With TLS a connection begins in handshake, under the deadline of the first head.
//
// Deadlines are checked every tick_ms against the Clock: head 10 s from its first byte (from
// accept for the first one), body 120 s in all, 10 s without a byte of it and, after 5 s, an
// average of 4 KiB/s; 30 s without send progress, keep-alive 30 s, a connection 1 h, lingering 2 s.
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
  std::uint32_t max_connections = 10000;  // less where the process may not have as many descriptors
  std::uint32_t max_connections_per_address = 256;  // 0: any number; loopback is not counted
  bool count_loopback = false;
  std::uint64_t max_bodies_bytes = std::uint64_t{256}
                                   << 20;    // of all requests being read or queued
  std::size_t max_output_bytes = 256 << 10;  // unsent bytes of a stream, then it is cut
  std::int64_t head_ms = 10000;
  std::int64_t body_ms = 120000;
  std::int64_t body_idle_ms = 10000;
  std::int64_t body_grace_ms = 5000;             // before the rate is looked at
  std::uint32_t min_body_bytes_per_s = 4 << 10;  // on average
  std::int64_t send_ms = 30000;
  std::int64_t keep_alive_ms = 30000;
  std::int64_t connection_ms = 3600000;
  std::int64_t linger_ms = 2000;
  std::int64_t ping_ms = 15000;  // silence of a stream before a comment line
  std::int64_t tick_ms = 250;
  std::int64_t stall_ms = 10;  // a handler that takes longer is counted
  std::uint32_t max_requests_per_connection = 1000;
  int send_buffer_bytes = 0;  // of the socket; 0: the system's choice
  // PEM files; both or none.
  std::string tls_certificate_file = {};
  std::string tls_key_file = {};
  // Origins whose scripts may read answers, compared exactly; "*": all. Credentials in the sense of
  // CORS (cookies) are never allowed.
  std::vector<std::string> cors_origins = {};
  std::uint64_t id_seed = 0;  // of request ids
};

struct HttpStats {
  std::uint64_t num_accepted = 0;
  std::uint64_t num_requests = 0;
  std::uint64_t num_refused = 0;  // malformed or over a limit
  std::uint64_t num_timed_out = 0;
  std::uint64_t num_overflowed = 0;     // streams cut because the client did not read
  std::uint64_t num_exceptions = 0;     // stopped at the I/O boundary
  std::uint64_t num_turned_away = 0;    // too many of one address, or no descriptor left
  std::uint64_t num_tls_failures = 0;   // handshakes
  std::uint64_t num_stalls = 0;         // handlers longer than stall_ms
  std::int64_t longest_handler_ns = 0;  // how long everybody else has waited at most
  std::int64_t longest_cpu_ns = 0;      // of it at work, not waiting for a processor
};

// One request, when its last byte has been handed to the system or its connection has ended.
struct AccessRecord {
  ExchangeId exchange{};   // 0: refused before it was one
  std::string request_id;  // the client's X-Request-Id where it is short and printable
  std::string method;      // "" when the head could not be read
  std::string path;
  int status = 0;         // 499: the client left before there was one
  bool complete = false;  // the whole answer was handed over
  std::uint64_t num_bytes_in = 0;
  std::uint64_t num_bytes_out = 0;
  std::int64_t begin_ns = 0;     // first byte of the request
  std::int64_t duration_ns = 0;  // from there
};

struct HttpCallbacks {
  // The head is complete and the body has not been read. An answer refuses the request: it is sent
  // at once, a body of a Content-Length of at most 64 KiB is read past and the connection kept; any
  // other body ends it.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> on_head;
  std::function<void(ExchangeId, HttpRequest)> on_request;
  // The client left before its answer was complete.
  std::function<void(ExchangeId)> on_gone;
  std::function<void()> on_wake;  // after Wake; several calls may become one
  std::function<void()> on_tick;
  std::function<void(const AccessRecord&)> on_done = [](const AccessRecord&) {};
  // The body of an error the server itself answers (400, 413, ...).
  std::function<std::string(int status, std::string_view message)> error_body;
};

class HttpServer {
 public:
  // `clock` outlives the server. Every callback is set. Throws StartError for what is wrong with
  // the files of TLS.
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
  // Closes its connection: for an owner that has not the memory to say more.
  void Cut(ExchangeId exchange) noexcept;

  std::size_t num_connections() const;
  const HttpStats& stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
