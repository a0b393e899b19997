// SPDX-License-Identifier: Apache-2.0
#include "server/http.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
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
#include <chrono>
#include <cstring>
#include <memory>

#include "base/check.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "base/thread_cpu.h"
#include "server/http_state.h"

namespace kvrm {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCodeOf = boost::system::error_code;

constexpr std::int64_t kNsPerMs = 1000000;
constexpr std::size_t kMaxLingerBytes = 64 << 10;
constexpr int kBacklog = 1024;
constexpr int kAcceptBatch = 16;
// Answers to as many take about 1 ms.
constexpr std::size_t kDueBatch = 32;
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
  const std::int64_t cpu_ns = ThreadCpuNs();
  stats.longest_cpu_ns = std::max(stats.longest_cpu_ns, cpu_ns - cpu_mark_ns);
  cpu_mark_ns = cpu_ns;
  if (taken_ns > options.stall_ms * kNsPerMs) ++stats.num_stalls;
}

// Requires: the session's num_pending was raised when the handler was given to the io_context.
template <typename Body>
void HttpServer::State::RunHandler(Session& session, Body body) {
  --session.num_pending;
  const std::uint64_t id = session.id;
  const std::uint64_t before = stats.num_exceptions;
  if (session.phase != Phase::kClosed) Protect("session", body);
  if (stats.num_exceptions != before) Close(session);
  FinishClosed();
  Reap(id);
  if (accept_wanted) StartAccept();
}

// A handler that belongs to no session.
template <typename Body>
void HttpServer::State::RunOwn(const char* where, Body body) {
  Protect(where, body);
  FinishClosed();
  if (accept_wanted) StartAccept();
}

void HttpServer::State::StartAccept() {
  accept_wanted = false;
  if (accept_armed || draining || !acceptor.is_open()) return;
  // At the limit nobody is accepted: they wait in the backlog until somebody leaves.
  if (sessions.size() >= admission.max_connections()) return;
  acceptor.async_wait(tcp::acceptor::wait_read, [this](const ErrorCodeOf& error) {
    accept_armed = false;
    if (error) return;
    RunOwn("accept", [this] { OnAcceptable(); });
  });
  accept_armed = true;  // Now, not before: giving the handler to the io_context needs memory.
}

// accept4 and not async_accept: that one needs memory between accepting and telling, and when there
// is none its handler is never called.
void HttpServer::State::OnAcceptable() {
  for (int i = 0; i < kAcceptBatch && sessions.size() < admission.max_connections(); ++i) {
    const int fd =
        ::accept4(acceptor.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      Welcome(fd);
      continue;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) break;
    if (errno == ECONNABORTED || errno == EINTR) continue;
    const int reason = errno;
    Log(LogLevel::kWarning, "accept_failed", {{"error", std::strerror(reason)}});
    if (reason == EMFILE || reason == ENFILE) {
      const auto [turned_away, with_room] = admission.TurnAway(acceptor.native_handle());
      stats.num_turned_away += turned_away;
      if (with_room >= 0) Welcome(with_room);
    }
    // Trying again at once would burn a core. The next tick tries.
    return;
  }
  accept_wanted = true;
}

void HttpServer::State::Welcome(int fd) {
  ++stats.num_accepted;
  tcp::socket socket(io);
  ErrorCodeOf error;
  try {
    socket.assign(protocol, fd, error);
  } catch (...) {
    ::close(fd);
    throw;
  }
  if (error) {
    ::close(fd);
    return;
  }
  const std::uint64_t address = admission.KeyOf(socket.remote_endpoint(error).address());
  if (error) return;
  // Counted at the end, when nothing can fail any more; here only looked at.
  if (!admission.MayEnter(address)) {
    ++stats.num_turned_away;
    return;
  }
  socket.non_blocking(true, error);
  socket.set_option(tcp::no_delay(true), error);
  if (options.send_buffer_bytes > 0) {
    socket.set_option(asio::socket_base::send_buffer_size(options.send_buffer_bytes), error);
  }
  const std::uint64_t id = next_session++;
  auto owned = std::make_unique<Session>(id, std::move(socket), options.parser);
  Session& session = *owned;
  session.accepted_ns = clock.NowNs();
  session.deadline_ns = After(options.head_ms);
  if (tls) {
    session.tls.emplace(*tls, session.socket.native_handle());
    session.phase = Phase::kHandshake;
  }
  // So that closing and timing out need no memory.
  if (closed.capacity() <= sessions.size()) closed.reserve(2 * sessions.size() + 1);
  if (due.capacity() <= sessions.size()) due.reserve(2 * sessions.size() + 1);
  sessions.emplace(id, std::move(owned));
  try {
    admission.Enter(address);
    session.address = address;
    ArmRead(session);
  } catch (...) {
    Close(session);
    throw;
  }
}

void HttpServer::State::ArmRead(Session& session) {
  if (session.read_armed || session.peer_ended || session.phase == Phase::kClosed) return;
  session.socket.async_wait(tcp::socket::wait_read, [this, &session](const ErrorCodeOf& error) {
    session.read_armed = false;
    RunHandler(session, [&] {
      if (error) return Close(session);
      OnReadable(session);
      if (session.tls && session.unsent() > 0) Flush(session);
      ArmRead(session);
    });
  });
  session.read_armed = true;
  ++session.num_pending;
}

void HttpServer::State::ArmWrite(Session& session) {
  if (session.write_armed || session.phase == Phase::kClosed) return;
  session.socket.async_wait(tcp::socket::wait_write, [this, &session](const ErrorCodeOf& error) {
    session.write_armed = false;
    RunHandler(session, [&] {
      if (error) return Close(session);
      if (std::exchange(session.read_wants_write, false)) OnReadable(session);
      Flush(session);
    });
  });
  session.write_armed = true;
  ++session.num_pending;
}

void HttpServer::State::ArmTick() {
  if (tick_armed) return;
  tick.expires_after(std::chrono::milliseconds(options.tick_ms));
  tick.async_wait([this](const ErrorCodeOf& error) {
    tick_armed = false;
    if (error) return;
    RunOwn("tick", [this] { Tick(); });
    RunOwn("tick", [this] { callbacks.on_tick(); });
    ArmTick();
  });
  tick_armed = true;
}

void HttpServer::State::ArmWake() {
  if (wake_armed) return;
  wake.async_wait(asio::posix::stream_descriptor::wait_read, [this](const ErrorCodeOf& error) {
    wake_armed = false;
    if (error) return;
    std::uint64_t count = 0;
    // Clears the counter; a Wake after this line makes the descriptor readable again.
    if (::read(wake.native_handle(), &count, sizeof count) > 0) {
      RunOwn("wake", [this] { callbacks.on_wake(); });
    }
    ArmWake();
  });
  wake_armed = true;
}

// What an exception has torn off the io_context is given to it again.
void HttpServer::State::ArmAll() {
  StartAccept();
  ArmTick();
  ArmWake();
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
  session.Skip(&bytes);
  if (bytes.empty()) return;
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
    Advance(session, bytes.size());
    session.Skip(&bytes);
  }
}

// Acts on the parser's state. `num_following`: bytes that the client has sent beyond what the
// parser took.
void HttpServer::State::Advance(Session& session, std::size_t num_following) {
  RequestParser& parser = session.parser;
  if (parser.state() == RequestParser::State::kHeadDone) OnHead(session, num_following);
  if (session.phase != Phase::kReading) return;
  const bool has_room = ReserveBody(session, parser.request().body.size());
  if (parser.state() == RequestParser::State::kFailed) {
    Refuse(session, parser.error_status(), parser.error_message());
  } else if (!has_room) {
    Refuse(session, 503, "too many request bodies are in flight, try again later");
  } else if (parser.state() == RequestParser::State::kDone) {
    if (num_following > 0) session.close_after = true;
    OnComplete(session);
  }
}

void HttpServer::State::OnHead(Session& session, std::size_t num_following) {
  HttpRequest& request = session.parser.request();
  AccessRecord& record = session.record;
  record.method = request.method;
  record.path = request.path;
  if (std::string id = ClientsId(request); !id.empty()) record.request_id = std::move(id);
  request.request_id = record.request_id;
  session.origin = MayRead(request.Field("origin")) ? request.Field("origin") : "";
  session.head_only = request.method == "HEAD";
  session.old_version = request.version_minor == 0;
  const bool pipelined = num_following > 0 && !session.parser.has_body();
  session.close_after = pipelined || !request.keep_alive || draining ||
                        ++session.num_requests >= options.max_requests_per_connection ||
                        record.begin_ns - session.accepted_ns >= options.connection_ms * kNsPerMs;
  session.deadline_ns = After(options.body_ms);
  session.body_begin_ns = clock.NowNs();
  if (const std::optional<HttpResponse> refusal = callbacks.on_head(request)) {
    if (session.parser.has_body()) {
      // A short body of known length is read past and the connection kept. Behind any other nothing
      // can be framed: nor where the client asked first, which may send it now or not.
      const std::uint64_t body_bytes = session.parser.declared_bytes();
      if (body_bytes == 0 || body_bytes > kMaxLingerBytes || num_following > body_bytes ||
          request.expects_continue) {
        session.close_after = true;
      }
      if (!session.close_after) session.skip_bytes = body_bytes;
    }
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

// Never calls back at once: verbs are called in the middle of the owner's own work. FinishClosed
// does, when the handler is through. Allocates nothing.
void HttpServer::State::Close(Session& session) {
  if (session.phase == Phase::kClosed) return;
  session.phase = Phase::kClosed;
  ErrorCodeOf ignored;
  session.socket.close(ignored);
  ReleaseBody(session);
  admission.Leave(session.address);
  exchanges.erase(session.exchange);
  closed.push_back(&session);
}

// Runs at the end of every handler: tells the owner who has gone.
void HttpServer::State::FinishClosed() {
  for (std::size_t i = 0; i < closed.size(); ++i) {  // The owner may close others meanwhile.
    Session& session = *closed[i];
    const ExchangeId exchange{session.exchange};
    if (session.exchange != 0) Protect("gone", [&] { callbacks.on_gone(exchange); });
    Protect("record", [&] { EndRecord(session, false); });
    session.told = true;
  }
  while (!closed.empty()) {
    const std::uint64_t id = closed.back()->id;
    closed.pop_back();
    Reap(id);
  }
}

void HttpServer::State::Reap(std::uint64_t id) {
  const auto found = sessions.find(id);
  if (found == sessions.end()) return;
  const Session& session = *found->second;
  if (session.phase != Phase::kClosed || !session.told || session.num_pending > 0) return;
  sessions.erase(found);
  accept_wanted = true;
}

// Looks at every session only when one may be due: thousands of idle ones cost next to nothing.
void HttpServer::State::Tick() {
  const std::int64_t now_ns = clock.NowNs();
  if (now_ns >= next_scan_ns) {
    // A deadline that is set after this scan is no nearer than the shortest limit there is.
    std::int64_t next_ns = After(
        std::min({options.head_ms, options.body_idle_ms, options.body_grace_ms, options.send_ms,
                  options.keep_alive_ms, options.linger_ms, options.ping_ms}));
    due.clear();
    for (const auto& entry : sessions) {
      const std::int64_t due_ns = DueNs(*entry.second, now_ns);
      if (due_ns <= now_ns) due.push_back(entry.first);
      next_ns = std::min(next_ns, due_ns);
    }
    next_scan_ns = next_ns;
  }
  ServeDue();
  StartAccept();
}

// Some at a time, so that a crowd that came together and times out together keeps nobody waiting.
void HttpServer::State::ServeDue() {
  const std::int64_t now_ns = clock.NowNs();
  for (std::size_t i = 0; i < kDueBatch && !due.empty(); ++i) {
    const auto found = sessions.find(due.back());
    due.pop_back();
    if (found == sessions.end() || found->second->phase == Phase::kClosed) continue;
    Session& session = *found->second;
    OrClose(session, [&] { CheckDeadlines(session, now_ns); });
  }
  if (due.empty()) return;
  asio::post(io, [this] { RunOwn("due", [this] { ServeDue(); }); });
}

// When CheckDeadlines has something to do; of a body that is being read, at once: its rate is
// looked at every tick.
std::int64_t HttpServer::State::DueNs(const Session& session, std::int64_t now_ns) const {
  if (session.phase == Phase::kClosed) return kNever;
  if (session.reads_body()) return now_ns;
  const std::int64_t due_ns = std::min(session.send_deadline_ns, session.deadline_ns);
  if (session.phase != Phase::kStreaming || session.unsent() > 0) return due_ns;
  return std::min(due_ns, session.last_write_ns + options.ping_ms * kNsPerMs);
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
  if (session.phase != Phase::kStreaming || DueNs(session, now_ns) > now_ns) return;
  AppendEvent(session, ":\n\n");
  Flush(session);
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
  if (!error) acceptor.non_blocking(true, error);
  state_->protocol = endpoint.protocol();
  if (error) {
    throw StartError("cannot listen on " + host + " port " + std::to_string(port) + ": " +
                     error.message());
  }
  return acceptor.local_endpoint().port();
}

void HttpServer::Run() {
  state_->cpu_mark_ns = ThreadCpuNs();
  // Handlers stop their own exceptions; this second net is for what giving handlers to the
  // io_context throws.
  while (!state_->io.stopped()) {
    state_->Protect("run", [this] {
      state_->ArmAll();
      state_->io.run();
    });
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
        // Closing while a refused body arrives could destroy the answer.
        if (session.skip_bytes > 0)
          state.Linger(session);
        else
          state.Close(session);
      }
    }
    state.FinishClosed();
  });
}

void HttpServer::Cut(ExchangeId exchange) noexcept {
  const auto found = state_->exchanges.find(static_cast<std::uint64_t>(exchange));
  if (found != state_->exchanges.end()) state_->Close(*found->second);
}

std::size_t HttpServer::num_connections() const {
  return state_->sessions.size();
}

const HttpStats& HttpServer::stats() const {
  return state_->stats;
}

}  // namespace kvrm
