// SPDX-License-Identifier: Apache-2.0
// HttpSession: what HttpServer keeps of one connection, and its bytes in and out, with or without
// TLS.
//
// Threading: the I/O thread. Memory: the socket, the request as far as it has arrived, what is not
// sent yet.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "server/http.h"
#include "server/http_parser.h"
#include "server/tls.h"

namespace kvrm {

inline constexpr std::int64_t kHttpNever = INT64_MAX;

enum class HttpPhase {
  kHandshake,
  kReading,
  kWaiting,
  kStreaming,
  kSending,
  kLingering,
  kClosed,
};

struct HttpSession {
  using Socket = boost::asio::ip::tcp::socket;

  HttpSession(std::uint64_t session_id, Socket accepted, const ParserLimits& limits);

  // What can be moved at once. kEnd: the peer sends no more.
  IoResult Read(std::span<char> buffer);
  // Of what is not sent yet.
  IoResult WriteUnsent();
  // After the last byte: the peer sees the end, and may still send.
  void EndSending();
  std::size_t unsent() const { return out.size() - out_offset; }
  // Whether the bytes of a body are awaited.
  bool reads_body() const {
    return phase == HttpPhase::kReading && parser.state() == RequestParser::State::kBody;
  }

  std::uint64_t num_body_bytes() const { return parser.num_body_bytes(); }

  // Takes what belongs to a body that is read past.
  void Skip(std::string_view* bytes);

  const std::uint64_t id;
  Socket socket;
  std::optional<TlsSession> tls;
  RequestParser parser;
  HttpPhase phase = HttpPhase::kReading;
  std::uint64_t exchange = 0;  // 0: none is open
  std::string out;             // [out_offset, end) is not sent yet
  std::size_t out_offset = 0;
  bool close_after = false;  // this exchange is the connection's last
  bool chunked = false;      // framing of the stream
  bool head_only = false;
  bool old_version = false;  // HTTP/1.0
  bool read_armed = false;
  bool write_armed = false;
  bool read_wants_write = false;  // TLS must send before it can read on
  bool told = false;              // closed, and the owner knows
  bool peer_ended = false;        // The client has sent FIN.
  int num_pending = 0;            // handlers the io_context holds; the session outlives them all
  std::uint32_t num_requests = 0;
  std::size_t num_discarded = 0;
  std::uint64_t skip_bytes = 0;  // still to come of the body of a request refused by its head
  std::uint64_t body_bytes = 0;  // counted among the bodies in flight
  std::uint64_t address = 0;     // key of the per-address count; 0: not counted
  std::int64_t accepted_ns = 0;
  std::int64_t deadline_ns = kHttpNever;       // of the phase
  std::int64_t send_deadline_ns = kHttpNever;  // while output waits
  std::int64_t last_write_ns = 0;
  std::int64_t last_read_ns = 0;
  std::int64_t body_begin_ns = 0;
  std::string origin;     // of a request whose origin may read the answer
  bool recorded = true;   // the current request's AccessRecord has been given
  AccessRecord record{};  // of the current request
};

}  // namespace kvrm
