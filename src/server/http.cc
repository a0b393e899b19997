// SPDX-License-Identifier: Apache-2.0
#include "server/http.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <memory>
#include <unordered_map>

#include "base/check.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "server/http_admission.h"
#include "server/http_session.h"
#include "server/http_text.h"
#include "server/tls.h"

namespace kvrm {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCodeOf = boost::system::error_code;

constexpr std::int64_t kNsPerMs = 1000000;
// One read takes at most this much, so that one fast sender does not starve the others.
constexpr std::size_t kReadBytes = 64 << 10;
constexpr std::size_t kMaxLingerBytes = 64 << 10;
constexpr int kBacklog = 1024;
constexpr std::int64_t kNever = kHttpNever;

constexpr std::size_t kMaxRequestIdBytes = 128;
// nginx's word for it: the client closed the connection before there was an answer.
constexpr int kClientGone = 499;

using Phase = HttpPhase;
using Session = HttpSession;

// The client's own id, where it is short and printable.
std::string ClientsId(const HttpRequest& request) {
  const std::string_view id = request.Field("x-request-id");
  const bool clean = id.size() <= kMaxRequestIdBytes &&
                     std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
  return clean ? std::string(id) : std::string();
}

}  // namespace

struct HttpServer::State {
  State(const HttpOptions& options_in, const Clock& clock_in, HttpCallbacks callbacks_in);

  void StartAccept();
  void OnAccept(const ErrorCodeOf& error, tcp::socket socket);
  void ArmRead(Session& session);
  void ArmWrite(Session& session);
  void ArmTick();
  void ArmWake();
  template <typename Body>
  void RunHandler(Session& session, Body body);
  template <typename Body>
  void Protect(const char* where, Body body);

  void OnReadable(Session& session);
  bool ContinueHandshake(Session& session);
  void OnPeerEnd(Session& session, bool properly);
  void Consume(Session& session, std::string_view bytes);
  void Advance(Session& session, bool bytes_follow);
  void OnHead(Session& session, bool bytes_follow);
  void OnComplete(Session& session);
  void Refuse(Session& session, int status, std::string_view message);
  bool ReserveBody(Session& session, std::uint64_t bytes);
  void ReleaseBody(Session& session);

  void SendResponse(Session& session, const HttpResponse& response);
  std::string Head(Session& session, int status, std::string_view content_type);
  void FinishHead(std::string& head, Session& session,
                  const std::vector<std::pair<std::string, std::string>>& headers);
  void Append(Session& session, std::string_view bytes);
  void Flush(Session& session);
  void OnSent(Session& session);
  void AppendEvent(Session& session, std::string_view bytes);

  void BeginRecord(Session& session);
  void EndRecord(Session& session, bool complete);
  bool MayRead(std::string_view origin) const;

  void Close(Session& session);
  void Reap(std::uint64_t id);
  void Tick();
  void CheckDeadlines(Session& session, std::int64_t now_ns);
  bool BodyIsTooSlow(const Session& session, std::int64_t now_ns) const;
  Session* Find(ExchangeId exchange, Phase phase);
  std::int64_t After(std::int64_t ms) const { return clock.NowNs() + ms * kNsPerMs; }

  const HttpOptions options;
  const Clock& clock;
  const HttpCallbacks callbacks;
  std::unique_ptr<TlsContext> tls;  // null: plain
  HttpAdmission admission;
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  asio::steady_timer tick{io};
  asio::posix::stream_descriptor wake{io};
  bool accept_armed = false;
  bool draining = false;
  std::uint64_t next_session = 1;
  std::uint64_t next_exchange = 1;
  std::uint64_t next_request = 0;
  std::uint64_t bodies_bytes = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<Session>> sessions;
  std::unordered_map<std::uint64_t, Session*> exchanges;
  std::array<char, kReadBytes> scratch{};
  std::int64_t date_second = 0;
  std::string date;
  HttpStats stats;
};

HttpServer::State::State(const HttpOptions& options_in, const Clock& clock_in,
                         HttpCallbacks callbacks_in)
    : options(options_in),
      clock(clock_in),
      callbacks(std::move(callbacks_in)),
      admission(options.max_connections, options.max_connections_per_address,
                options.count_loopback) {
  if (options.tls_certificate_file.empty() != options.tls_key_file.empty()) {
    throw StartError("TLS needs a certificate and its key, and one of the two is not given");
  }
  if (!options.tls_key_file.empty()) {
    tls = std::make_unique<TlsContext>(options.tls_certificate_file, options.tls_key_file);
  }
  const int fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) throw StartError("cannot create an eventfd");
  wake.assign(fd);
}

// The I/O boundary: whatever a handler throws ends one connection, not the process (F7).
template <typename Body>
void HttpServer::State::Protect(const char* where, Body body) {
  const std::int64_t begin_ns = clock.NowNs();
  try {
    body();
  } catch (const std::exception& error) {
    ++stats.num_exceptions;
    Log(LogLevel::kError, "http_exception", {{"where", where}, {"what", error.what()}});
  }
  // The stall watchdog: nobody else was served meanwhile.
  const std::int64_t taken_ns = clock.NowNs() - begin_ns;
  stats.longest_handler_ns = std::max(stats.longest_handler_ns, taken_ns);
  if (taken_ns > options.stall_ms * kNsPerMs) ++stats.num_stalls;
}

// Requires: the session's num_pending was raised when the handler was given to the io_context.
template <typename Body>
void HttpServer::State::RunHandler(Session& session, Body body) {
  --session.num_pending;
  const std::uint64_t before = stats.num_exceptions;
  if (session.phase != Phase::kClosed) Protect("session", body);
  if (stats.num_exceptions != before) Close(session);
  if (session.phase == Phase::kClosed) Reap(session.id);
}

void HttpServer::State::StartAccept() {
  if (accept_armed || draining || !acceptor.is_open()) return;
  // At the limit nobody is accepted: they wait in the backlog until somebody leaves.
  if (sessions.size() >= admission.max_connections()) return;
  accept_armed = true;
  acceptor.async_accept([this](const ErrorCodeOf& error, tcp::socket socket) {
    accept_armed = false;
    Protect("accept", [&] { OnAccept(error, std::move(socket)); });
  });
}

void HttpServer::State::OnAccept(const ErrorCodeOf& error, tcp::socket socket) {
  if (error) {
    if (error == asio::error::operation_aborted) return;
    Log(LogLevel::kWarning, "accept_failed", {{"error", error.message()}});
    if (error == asio::error::no_descriptors || error.value() == ENFILE) {
      stats.num_turned_away += admission.TurnAway(acceptor.native_handle());
    }
    // Trying again at once would burn a core. The next tick tries.
    return;
  }
  ++stats.num_accepted;
  ErrorCodeOf ignored;
  const std::uint64_t address = admission.KeyOf(socket.remote_endpoint(ignored).address());
  if (!admission.Enter(address)) {
    ++stats.num_turned_away;
    socket.close(ignored);
    return StartAccept();
  }
  socket.non_blocking(true, ignored);
  socket.set_option(tcp::no_delay(true), ignored);
  if (options.send_buffer_bytes > 0) {
    socket.set_option(asio::socket_base::send_buffer_size(options.send_buffer_bytes), ignored);
  }
  const std::uint64_t id = next_session++;
  auto owned = std::make_unique<Session>(id, std::move(socket), options.parser);
  Session& session = *owned;
  session.address = address;
  session.accepted_ns = clock.NowNs();
  session.deadline_ns = After(options.head_ms);
  sessions.emplace(id, std::move(owned));
  if (tls) {
    session.tls.emplace(*tls, session.socket.native_handle());
    session.phase = Phase::kHandshake;
  }
  ArmRead(session);
  StartAccept();
}

void HttpServer::State::ArmRead(Session& session) {
  if (session.read_armed || session.peer_ended || session.phase == Phase::kClosed) return;
  session.read_armed = true;
  ++session.num_pending;
  session.socket.async_wait(tcp::socket::wait_read, [this, &session](const ErrorCodeOf& error) {
    session.read_armed = false;
    RunHandler(session, [&] {
      if (error) return Close(session);
      OnReadable(session);
      if (session.tls && session.unsent() > 0) Flush(session);
      ArmRead(session);
    });
  });
}

void HttpServer::State::ArmWrite(Session& session) {
  if (session.write_armed || session.phase == Phase::kClosed) return;
  session.write_armed = true;
  ++session.num_pending;
  session.socket.async_wait(tcp::socket::wait_write, [this, &session](const ErrorCodeOf& error) {
    session.write_armed = false;
    RunHandler(session, [&] {
      if (error) return Close(session);
      if (std::exchange(session.read_wants_write, false)) OnReadable(session);
      Flush(session);
    });
  });
}

void HttpServer::State::ArmTick() {
  tick.expires_after(std::chrono::milliseconds(options.tick_ms));
  tick.async_wait([this](const ErrorCodeOf& error) {
    if (error) return;
    Protect("tick", [this] { Tick(); });
    Protect("tick", [this] { callbacks.on_tick(); });
    ArmTick();
  });
}

void HttpServer::State::ArmWake() {
  wake.async_wait(asio::posix::stream_descriptor::wait_read, [this](const ErrorCodeOf& error) {
    if (error) return;
    std::uint64_t count = 0;
    // Clears the counter; a Wake after this line makes the descriptor readable again.
    if (::read(wake.native_handle(), &count, sizeof count) > 0) {
      Protect("wake", [this] { callbacks.on_wake(); });
    }
    ArmWake();
  });
}

void HttpServer::State::OnReadable(Session& session) {
  if (session.phase == Phase::kHandshake && !ContinueHandshake(session)) return;
  const IoResult result = session.Read(scratch);
  switch (result.state) {
    case IoState::kDone:
      session.last_read_ns = clock.NowNs();
      return Consume(session, std::string_view(scratch.data(), result.num_bytes));
    case IoState::kWantRead:
      return;
    case IoState::kWantWrite:
      session.read_wants_write = true;
      return ArmWrite(session);
    default:
      return OnPeerEnd(session, result.state == IoState::kEnd);
  }
}

// Whether it is over, and well.
bool HttpServer::State::ContinueHandshake(Session& session) {
  const IoState state = session.tls->Handshake();
  if (state == IoState::kDone) {
    session.phase = Phase::kReading;
    return true;
  }
  if (state == IoState::kWantWrite) {
    session.read_wants_write = true;
    ArmWrite(session);
  } else if (state != IoState::kWantRead) {
    ++stats.num_tls_failures;
    Close(session);
  }
  return false;
}

// A client that ends its side while it waits has gone: half-closed connections are not served. Only
// an answer that is already on its way is still sent.
void HttpServer::State::OnPeerEnd(Session& session, bool properly) {
  session.peer_ended = true;
  if (properly && session.phase == Phase::kSending) {
    session.close_after = true;
    return;
  }
  Close(session);
}

void HttpServer::State::Consume(Session& session, std::string_view bytes) {
  if (session.phase != Phase::kReading) {
    // Bytes beyond the request: no pipelining. The answer is sent, then the connection ends.
    session.close_after = true;
    session.num_discarded += bytes.size();
    if (session.num_discarded > kMaxLingerBytes) Close(session);
    return;
  }
  if (!session.parser.begun()) {
    if (session.num_requests > 0) session.deadline_ns = After(options.head_ms);
    BeginRecord(session);
  }
  while (!bytes.empty() && session.phase == Phase::kReading) {
    const std::size_t used = session.parser.Feed(bytes);
    session.record.num_bytes_in += used;
    bytes.remove_prefix(used);
    Advance(session, !bytes.empty());
  }
}

// Acts on the parser's state. `bytes_follow`: the client has sent more than the parser took.
void HttpServer::State::Advance(Session& session, bool bytes_follow) {
  RequestParser& parser = session.parser;
  if (parser.state() == RequestParser::State::kHeadDone) OnHead(session, bytes_follow);
  if (session.phase != Phase::kReading) return;
  const bool has_room = ReserveBody(session, parser.request().body.size());
  if (parser.state() == RequestParser::State::kFailed) {
    Refuse(session, parser.error_status(), parser.error_message());
  } else if (!has_room) {
    Refuse(session, 503, "too many request bodies are in flight, try again later");
  } else if (parser.state() == RequestParser::State::kDone) {
    if (bytes_follow) session.close_after = true;
    OnComplete(session);
  }
}

void HttpServer::State::OnHead(Session& session, bool bytes_follow) {
  HttpRequest& request = session.parser.request();
  AccessRecord& record = session.record;
  record.method = request.method;
  record.path = request.path;
  if (std::string id = ClientsId(request); !id.empty()) record.request_id = std::move(id);
  request.request_id = record.request_id;
  session.origin = MayRead(request.Field("origin")) ? request.Field("origin") : "";
  session.head_only = request.method == "HEAD";
  session.old_version = request.version_minor == 0;
  const bool pipelined = bytes_follow && !session.parser.has_body();
  session.close_after = pipelined || !request.keep_alive || draining ||
                        ++session.num_requests >= options.max_requests_per_connection ||
                        record.begin_ns - session.accepted_ns >= options.connection_ms * kNsPerMs;
  session.deadline_ns = After(options.body_ms);
  session.body_begin_ns = clock.NowNs();
  if (const std::optional<HttpResponse> refusal = callbacks.on_head(request)) {
    // Its body, if any, stays unread, so nothing on this connection can be framed any more.
    if (session.parser.has_body()) session.close_after = true;
    return SendResponse(session, *refusal);
  }
  if (!ReserveBody(session, session.parser.declared_bytes())) {
    return Refuse(session, 503, "too many request bodies are in flight, try again later");
  }
  const bool send_continue = request.expects_continue;
  session.parser.ContinueToBody();
  if (send_continue) Append(session, "HTTP/1.1 100 Continue\r\n\r\n");
}

void HttpServer::State::OnComplete(Session& session) {
  ++stats.num_requests;
  session.phase = Phase::kWaiting;
  session.deadline_ns = kNever;
  session.exchange = next_exchange++;
  session.record.exchange = ExchangeId{session.exchange};
  exchanges.emplace(session.exchange, &session);
  callbacks.on_request(ExchangeId{session.exchange}, std::move(session.parser.request()));
}

void HttpServer::State::Refuse(Session& session, int status, std::string_view message) {
  ++stats.num_refused;
  session.close_after = true;
  HttpResponse response;
  response.status = status;
  response.body = callbacks.error_body(status, message);
  if (status == 503) response.headers.emplace_back("Retry-After", "1");
  response.headers.emplace_back("X-Request-Id", session.record.request_id);
  SendResponse(session, response);
}

// Counts the body among those in flight; false: there is no room for it.
bool HttpServer::State::ReserveBody(Session& session, std::uint64_t bytes) {
  if (bytes <= session.body_bytes) return true;
  const std::uint64_t more = bytes - session.body_bytes;
  if (more > options.max_bodies_bytes - std::min(bodies_bytes, options.max_bodies_bytes)) {
    return false;
  }
  bodies_bytes += more;
  session.body_bytes = bytes;
  return true;
}

void HttpServer::State::ReleaseBody(Session& session) {
  bodies_bytes -= std::exchange(session.body_bytes, 0);
}

void HttpServer::State::BeginRecord(Session& session) {
  static constexpr char kHex[] = "0123456789abcdef";
  session.recorded = false;
  session.record = {};
  session.record.begin_ns = clock.NowNs();
  std::string id = "req-";
  const std::uint64_t bits = Mix64(options.id_seed ^ ++next_request);
  for (int shift = 60; shift >= 0; shift -= 4)
    id += kHex[bits >> shift & 15];
  session.record.request_id = std::move(id);
}

void HttpServer::State::EndRecord(Session& session, bool complete) {
  if (std::exchange(session.recorded, true)) return;
  AccessRecord& record = session.record;
  if (record.status == 0) record.status = kClientGone;
  record.complete = complete;
  record.duration_ns = clock.NowNs() - record.begin_ns;
  callbacks.on_done(record);
}

bool HttpServer::State::MayRead(std::string_view origin) const {
  return !origin.empty() && std::any_of(options.cors_origins.begin(), options.cors_origins.end(),
                                        [&](const std::string& allowed) {
                                          return allowed == "*" || allowed == origin;
                                        });
}

std::string HttpServer::State::Head(Session& session, int status, std::string_view content_type) {
  const std::int64_t second = clock.UnixSeconds();
  if (second != date_second || date.empty()) {
    date = HttpDate(second);
    date_second = second;
  }
  session.record.status = status;
  std::string head = "HTTP/1.1 " + std::to_string(status) + ' ' + HttpReason(status) +
                     "\r\nDate: " + date + "\r\n";
  if (!content_type.empty()) {
    head += "Content-Type: ";
    head += content_type;
    head += "\r\n";
  }
  head += "X-Content-Type-Options: nosniff\r\n";
  if (!options.cors_origins.empty()) head += "Vary: Origin\r\n";
  if (!session.origin.empty()) {
    head += "Access-Control-Allow-Origin: " + session.origin +
            "\r\nAccess-Control-Expose-Headers: X-Request-Id, Retry-After\r\n";
  }
  if (session.close_after) {
    head += "Connection: close\r\n";
  } else if (session.old_version) {
    head += "Connection: keep-alive\r\n";
  }
  return head;
}

void HttpServer::State::FinishHead(
    std::string& head, Session& session,
    const std::vector<std::pair<std::string, std::string>>& headers) {
  for (const auto& [name, value] : headers) {
    if (!IsFieldValue(value)) continue;
    head += name;
    head += ": ";
    head += value;
    head += "\r\n";
  }
  head += "\r\n";
  Append(session, head);
}

void HttpServer::State::SendResponse(Session& session, const HttpResponse& response) {
  if (draining) session.close_after = true;
  exchanges.erase(session.exchange);
  session.exchange = 0;
  session.phase = Phase::kSending;
  session.deadline_ns = kNever;
  ReleaseBody(session);
  const bool bodyless = response.status == 204;
  std::string head = Head(session, response.status, bodyless ? "" : response.content_type);
  if (!bodyless) head += "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
  FinishHead(head, session, response.headers);
  if (!session.head_only && !bodyless) Append(session, response.body);
  Flush(session);
}

void HttpServer::State::Append(Session& session, std::string_view bytes) {
  if (session.unsent() == 0) session.send_deadline_ns = After(options.send_ms);
  session.out.append(bytes);
  if (session.phase == Phase::kReading) Flush(session);
}

void HttpServer::State::Flush(Session& session) {
  while (session.unsent() > 0 && session.phase != Phase::kClosed) {
    const IoResult result = session.WriteUnsent();
    // Readability is always awaited, and Flush is called after it.
    if (result.state == IoState::kWantRead) return;
    if (result.state == IoState::kWantWrite) return ArmWrite(session);
    if (result.state != IoState::kDone) return Close(session);
    session.record.num_bytes_out += result.num_bytes;
    session.send_deadline_ns = After(options.send_ms);
  }
  if (session.phase == Phase::kClosed) return;
  session.out.clear();
  if (session.out.capacity() > 4096) session.out.shrink_to_fit();
  session.out_offset = 0;
  session.send_deadline_ns = kNever;
  if (session.phase == Phase::kSending) OnSent(session);
}

void HttpServer::State::OnSent(Session& session) {
  EndRecord(session, true);
  session.parser.Reset();
  session.origin.clear();
  session.head_only = false;
  if (!session.close_after) {
    session.phase = Phase::kReading;
    session.num_discarded = 0;
    session.deadline_ns = After(options.keep_alive_ms);
    return;
  }
  if (session.peer_ended) return Close(session);
  // Closing with unread input would send RST, which can destroy the answer before it is read.
  session.EndSending();
  session.phase = Phase::kLingering;
  session.deadline_ns = After(options.linger_ms);
}

void HttpServer::State::AppendEvent(Session& session, std::string_view bytes) {
  session.last_write_ns = clock.NowNs();
  if (session.head_only) return;
  if (session.chunked) {
    char size[20];
    const auto end = std::to_chars(size, size + sizeof size, bytes.size(), 16).ptr;
    Append(session, std::string_view(size, static_cast<std::size_t>(end - size)));
    Append(session, "\r\n");
    Append(session, bytes);
    Append(session, "\r\n");
  } else {
    Append(session, bytes);
  }
}

// Never calls back at once: verbs are called in the middle of the owner's own work.
void HttpServer::State::Close(Session& session) {
  if (session.phase == Phase::kClosed) return;
  session.phase = Phase::kClosed;
  ErrorCodeOf ignored;
  session.socket.close(ignored);
  ReleaseBody(session);
  admission.Leave(session.address);
  const std::uint64_t exchange = session.exchange;
  exchanges.erase(exchange);
  ++session.num_pending;
  asio::post(io, [this, &session, exchange] {
    --session.num_pending;
    if (exchange != 0) Protect("gone", [&] { callbacks.on_gone(ExchangeId{exchange}); });
    Protect("record", [&] { EndRecord(session, false); });
    Reap(session.id);
  });
}

void HttpServer::State::Reap(std::uint64_t id) {
  const auto found = sessions.find(id);
  if (found == sessions.end() || found->second->num_pending > 0) return;
  sessions.erase(found);
  StartAccept();
}

void HttpServer::State::Tick() {
  const std::int64_t now_ns = clock.NowNs();
  for (const auto& entry : sessions) {
    if (entry.second->phase != Phase::kClosed) CheckDeadlines(*entry.second, now_ns);
  }
  StartAccept();
}

void HttpServer::State::CheckDeadlines(Session& session, std::int64_t now_ns) {
  if (now_ns >= session.send_deadline_ns) {
    ++stats.num_timed_out;
    return Close(session);
  }
  if (now_ns >= session.deadline_ns || BodyIsTooSlow(session, now_ns)) {
    if (session.phase == Phase::kReading && session.parser.begun()) {
      ++stats.num_timed_out;
      return Refuse(session, 408, "the request took too long to arrive");
    }
    return Close(session);
  }
  if (session.phase == Phase::kStreaming && session.unsent() == 0 &&
      now_ns - session.last_write_ns >= options.ping_ms * kNsPerMs) {
    AppendEvent(session, ":\n\n");
    Flush(session);
  }
}

bool HttpServer::State::BodyIsTooSlow(const Session& session, std::int64_t now_ns) const {
  if (!session.reads_body()) return false;
  const std::int64_t begun_ns = session.body_begin_ns;
  const std::int64_t idle_since_ns = std::max(session.last_read_ns, begun_ns);
  if (now_ns - idle_since_ns >= options.body_idle_ms * kNsPerMs) return true;
  const std::int64_t elapsed_ms = (now_ns - begun_ns) / kNsPerMs;
  if (elapsed_ms < options.body_grace_ms) return false;
  const auto wanted = static_cast<std::uint64_t>(elapsed_ms) * options.min_body_bytes_per_s / 1000;
  return session.num_body_bytes() < wanted;
}

Session* HttpServer::State::Find(ExchangeId exchange, Phase phase) {
  const auto found = exchanges.find(static_cast<std::uint64_t>(exchange));
  if (found == exchanges.end() || found->second->phase != phase) return nullptr;
  return found->second;
}

HttpServer::HttpServer(const HttpOptions& options, const Clock& clock, HttpCallbacks callbacks)
    : state_(std::make_unique<State>(options, clock, std::move(callbacks))) {}

HttpServer::~HttpServer() = default;

std::uint16_t HttpServer::Listen(const std::string& host, std::uint16_t port) {
  ErrorCodeOf error;
  const asio::ip::address address =
      asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, error);
  if (error) throw StartError("host must be an IP address or localhost: " + host);
  const tcp::endpoint endpoint(address, port);
  tcp::acceptor& acceptor = state_->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error && address.is_v6()) acceptor.set_option(asio::ip::v6_only(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(kBacklog, error);
  if (error) {
    throw StartError("cannot listen on " + host + " port " + std::to_string(port) + ": " +
                     error.message());
  }
  return acceptor.local_endpoint().port();
}

void HttpServer::Run() {
  state_->StartAccept();
  state_->ArmTick();
  state_->ArmWake();
  // Handlers stop their own exceptions; this second net is for what a completion itself throws.
  while (!state_->io.stopped()) {
    state_->Protect("run", [this] { state_->io.run(); });
  }
}

void HttpServer::Wake() noexcept {
  const std::uint64_t one = 1;
  // A full counter already means "wake up", so a failed write loses nothing.
  [[maybe_unused]] const ssize_t written = ::write(state_->wake.native_handle(), &one, sizeof one);
}

void HttpServer::Stop() noexcept {
  state_->io.stop();
}

void HttpServer::BeginDrain() noexcept {
  asio::post(state_->io, [this] {
    State& state = *state_;
    state.draining = true;
    ErrorCodeOf ignored;
    state.acceptor.close(ignored);
    for (const auto& entry : state.sessions) {
      Session& session = *entry.second;
      if (session.phase == Phase::kHandshake ||
          (session.phase == Phase::kReading && !session.parser.begun())) {
        state.Close(session);
      }
    }
  });
}

bool HttpServer::Respond(ExchangeId exchange, HttpResponse response) {
  Session* session = state_->Find(exchange, Phase::kWaiting);
  if (session == nullptr) return false;
  state_->SendResponse(*session, response);
  return true;
}

bool HttpServer::StartStream(ExchangeId exchange,
                             const std::vector<std::pair<std::string, std::string>>& headers) {
  Session* session = state_->Find(exchange, Phase::kWaiting);
  if (session == nullptr) return false;
  if (session->old_version || state_->draining) session->close_after = true;
  session->chunked = !session->old_version;
  session->phase = Phase::kStreaming;
  state_->ReleaseBody(*session);
  session->last_write_ns = state_->clock.NowNs();
  std::string head = state_->Head(*session, 200, "text/event-stream");
  head += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
  if (session->chunked) head += "Transfer-Encoding: chunked\r\n";
  state_->FinishHead(head, *session, headers);
  state_->Flush(*session);
  return true;
}

bool HttpServer::Write(ExchangeId exchange, std::string_view bytes) {
  Session* session = state_->Find(exchange, Phase::kStreaming);
  if (session == nullptr) return false;
  state_->AppendEvent(*session, bytes);
  state_->Flush(*session);
  if (session->unsent() > state_->options.max_output_bytes) {
    ++state_->stats.num_overflowed;
    state_->Close(*session);
  }
  return session->phase != Phase::kClosed;
}

bool HttpServer::Finish(ExchangeId exchange) {
  Session* session = state_->Find(exchange, Phase::kStreaming);
  if (session == nullptr) return false;
  if (session->chunked && !session->head_only) state_->Append(*session, "0\r\n\r\n");
  state_->exchanges.erase(session->exchange);
  session->exchange = 0;
  session->phase = Phase::kSending;
  state_->Flush(*session);
  return true;
}

std::size_t HttpServer::num_connections() const {
  return state_->sessions.size();
}

const HttpStats& HttpServer::stats() const {
  return state_->stats;
}

}  // namespace kvrm
