// SPDX-License-Identifier: Apache-2.0
// Answers and streams of HttpServer; connections and requests are in http.cc.
#include <charconv>

#include "server/http.h"
#include "server/http_state.h"
#include "server/http_text.h"

namespace kvrm {
namespace {

using Phase = HttpPhase;
using Session = HttpSession;
constexpr std::int64_t kNever = kHttpNever;

}  // namespace

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
  Linger(session);
}

// Closing with unread input would send RST, which can destroy the answer before it is read.
void HttpServer::State::Linger(Session& session) {
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

bool HttpServer::Respond(ExchangeId exchange, HttpResponse response) {
  Session* session = state_->Find(exchange, Phase::kWaiting);
  if (session == nullptr) return false;
  state_->OrClose(*session, [&] { state_->SendResponse(*session, response); });
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
  state_->OrClose(*session, [&] {
    std::string head = state_->Head(*session, 200, "text/event-stream");
    head += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
    if (session->chunked) head += "Transfer-Encoding: chunked\r\n";
    state_->FinishHead(head, *session, headers);
    state_->Flush(*session);
  });
  return true;
}

bool HttpServer::Write(ExchangeId exchange, std::string_view bytes) {
  Session* session = state_->Find(exchange, Phase::kStreaming);
  if (session == nullptr) return false;
  state_->OrClose(*session, [&] {
    state_->AppendEvent(*session, bytes);
    state_->Flush(*session);
  });
  if (session->unsent() > state_->options.max_output_bytes) {
    ++state_->stats.num_overflowed;
    state_->Close(*session);
  }
  return session->phase != Phase::kClosed;
}

bool HttpServer::Finish(ExchangeId exchange) {
  Session* session = state_->Find(exchange, Phase::kStreaming);
  if (session == nullptr) return false;
  state_->OrClose(*session, [&] {
    if (session->chunked && !session->head_only) state_->Append(*session, "0\r\n\r\n");
    state_->exchanges.erase(session->exchange);
    session->exchange = 0;
    session->phase = Phase::kSending;
    state_->Flush(*session);
  });
  return true;
}

}  // namespace kvrm
