// SPDX-License-Identifier: Apache-2.0
// HttpServer::State: the members of an HttpServer, shared by http.cc (connections, requests,
// deadlines) and http_answers.cc (answers and streams). Nobody else includes this.
#pragma once

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "server/http.h"
#include "server/http_admission.h"
#include "server/http_session.h"
#include "server/tls.h"

namespace kvrm {

// One read takes at most this much, so that one fast sender does not starve the others.
inline constexpr std::size_t kHttpReadBytes = 64 << 10;

struct HttpServer::State {
  State(const HttpOptions& options_in, const Clock& clock_in, HttpCallbacks callbacks_in);

  void StartAccept();
  void OnAcceptable();
  void Welcome(int fd);
  void ArmRead(HttpSession& session);
  void ArmWrite(HttpSession& session);
  void ArmTick();
  void ArmWake();
  void ArmAll();
  template <typename Body>
  void RunHandler(HttpSession& session, Body body);
  template <typename Body>
  void RunOwn(const char* where, Body body);
  // A verb that could not be carried out leaves no half an answer: the connection ends.
  template <typename Body>
  void OrClose(HttpSession& session, Body body) {
    try {
      body();
    } catch (...) {
      Close(session);
      throw;
    }
  }
  template <typename Body>
  void Protect(const char* where, Body body);

  void OnReadable(HttpSession& session);
  bool ContinueHandshake(HttpSession& session);
  void OnPeerEnd(HttpSession& session, bool properly);
  void Consume(HttpSession& session, std::string_view bytes);
  void Advance(HttpSession& session, std::size_t num_following);
  void OnHead(HttpSession& session, std::size_t num_following);
  void Linger(HttpSession& session);
  void OnComplete(HttpSession& session);
  void Refuse(HttpSession& session, int status, std::string_view message);
  bool ReserveBody(HttpSession& session, std::uint64_t bytes);
  void ReleaseBody(HttpSession& session);

  void SendResponse(HttpSession& session, const HttpResponse& response);
  std::string Head(HttpSession& session, int status, std::string_view content_type);
  void FinishHead(std::string& head, HttpSession& session,
                  const std::vector<std::pair<std::string, std::string>>& headers);
  void Append(HttpSession& session, std::string_view bytes);
  void Flush(HttpSession& session);
  void OnSent(HttpSession& session);
  void AppendEvent(HttpSession& session, std::string_view bytes);

  void BeginRecord(HttpSession& session);
  void EndRecord(HttpSession& session, bool complete);
  bool MayRead(std::string_view origin) const;

  void Close(HttpSession& session);
  void FinishClosed();
  void Reap(std::uint64_t id);
  void Tick();
  void ServeDue();
  std::int64_t DueNs(const HttpSession& session, std::int64_t now_ns) const;
  void CheckDeadlines(HttpSession& session, std::int64_t now_ns);
  bool BodyIsTooSlow(const HttpSession& session, std::int64_t now_ns) const;
  HttpSession* Find(ExchangeId exchange, HttpPhase phase);
  std::int64_t After(std::int64_t ms) const { return clock.NowNs() + ms * 1000000; }

  const HttpOptions options;
  const Clock& clock;
  const HttpCallbacks callbacks;
  std::unique_ptr<TlsContext> tls;  // null: plain
  HttpAdmission admission;
  boost::asio::io_context io{1};
  boost::asio::ip::tcp::acceptor acceptor{io};
  boost::asio::ip::tcp protocol = boost::asio::ip::tcp::v4();
  boost::asio::steady_timer tick{io};
  boost::asio::posix::stream_descriptor wake{io};
  bool accept_armed = false;
  bool accept_wanted = false;  // somebody has left, or may come in
  bool tick_armed = false;
  bool wake_armed = false;
  bool draining = false;
  std::uint64_t next_session = 1;
  std::uint64_t next_exchange = 1;
  std::uint64_t next_request = 0;
  std::uint64_t bodies_bytes = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<HttpSession>> sessions;
  std::unordered_map<std::uint64_t, HttpSession*> exchanges;
  std::vector<HttpSession*> closed;  // in this handler; room for every session
  std::vector<std::uint64_t> due;    // sessions whose deadline has passed; room for every session
  std::int64_t next_scan_ns = 0;     // no deadline lies before it
  std::int64_t cpu_mark_ns = 0;      // used by this thread when the last handler was through
  std::array<char, kHttpReadBytes> scratch{};
  std::int64_t date_second = 0;
  std::string date;
  HttpStats stats;
};

}  // namespace kvrm
