// SPDX-License-Identifier: Apache-2.0
#include "replay/http_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace kvrm {
namespace {

constexpr std::size_t kBufferBytes = 256u << 10;
constexpr int kEventsAtOnce = 64;

std::string ErrnoText(const char* what, int code) {
  return std::string(what) + ": " + std::strerror(code);
}

}  // namespace

HttpUrl ParseUrl(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme))
    throw StartError("the URL '" + url + "' does not begin with http:// (TLS needs a proxy here)");
  HttpUrl parts;
  std::string_view rest = std::string_view(url).substr(kScheme.size());
  const std::size_t slash = rest.find('/');
  if (slash != rest.npos) parts.path = rest.substr(slash);
  rest = rest.substr(0, slash);
  while (parts.path.ends_with('/'))
    parts.path.pop_back();
  const std::size_t bracket = rest.find(']');
  const std::size_t colon = rest.find(':', bracket == rest.npos ? 0 : bracket);
  parts.host = rest.substr(0, colon);
  if (colon != rest.npos) parts.port = rest.substr(colon + 1);
  if (parts.host.starts_with('[') && parts.host.ends_with(']'))
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  if (parts.host.empty() || parts.port.empty() ||
      parts.port.find_first_not_of("0123456789") != std::string::npos) {
    throw StartError("the URL '" + url + "' has no host or a port that is no number");
  }
  return parts;
}

struct HttpClient::Exchange {
  ExchangeId id = 0;
  int fd = -1;
  std::string out;
  std::size_t sent = 0;
  HttpReply reply;
  Handler handler;
  std::string error;  // of its begin
};

HttpClient::HttpClient(const HttpUrl& url) : url_(url), buffer_(kBufferBytes) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found);
  if (code != 0) throw StartError("cannot find " + url.host + ": " + ::gai_strerror(code));
  std::memcpy(&address_, found->ai_addr, found->ai_addrlen);
  address_bytes_ = found->ai_addrlen;
  family_ = found->ai_family;
  ::freeaddrinfo(found);
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd_ < 0) throw StartError(ErrnoText("epoll", errno));
}

HttpClient::~HttpClient() {
  while (!open_.empty())
    Close(open_.begin()->first);
  ::close(epoll_fd_);
}

HttpClient::ExchangeId HttpClient::Start(const std::string& method, const std::string& path,
                                         const std::string& headers, const std::string& body,
                                         Handler handler) {
  auto exchange = std::make_unique<Exchange>();
  Exchange& e = *exchange;
  e.id = ++last_id_;
  e.handler = std::move(handler);
  const bool is_v6 = url_.host.find(':') != std::string::npos;
  const std::string host = is_v6 ? "[" + url_.host + "]" : url_.host;
  e.out = method + " " + url_.path + path + " HTTP/1.1\r\nHost: " + host + ":" + url_.port +
          "\r\nConnection: close\r\n" + headers;
  if (!body.empty())
    e.out +=
        "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) + "\r\n";
  e.out += "\r\n" + body;
  open_[e.id] = std::move(exchange);
  e.fd = ::socket(family_, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (e.fd >= 0) ::setsockopt(e.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLOUT;
  event.data.u64 = e.id;
  if (e.fd < 0 ||
      (::connect(e.fd, reinterpret_cast<const sockaddr*>(&address_), address_bytes_) != 0 &&
       errno != EINPROGRESS) ||
      ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, e.fd, &event) != 0) {
    e.error = ErrnoText("cannot connect", errno);
    failed_.push_back(e.id);
  }
  return e.id;
}

void HttpClient::Cancel(ExchangeId id) {
  Close(id);
}

int HttpClient::status(ExchangeId id) const {
  const auto found = open_.find(id);
  return found == open_.end() ? 0 : found->second->reply.status();
}

void HttpClient::Close(ExchangeId id) {
  const auto found = open_.find(id);
  if (found == open_.end()) return;
  if (found->second->fd >= 0) ::close(found->second->fd);
  open_.erase(found);
}

void HttpClient::End(Exchange& exchange, const std::string& error) {
  const ExchangeId id = exchange.id;
  const auto on_end = exchange.handler.on_end;
  on_end(error);
  Close(id);
}

void HttpClient::Write(Exchange& exchange) {
  while (exchange.sent < exchange.out.size()) {
    const ssize_t n = ::send(exchange.fd, exchange.out.data() + exchange.sent,
                             exchange.out.size() - exchange.sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    // A server may refuse, answer and close before it has read everything: Read will tell.
    if (n < 0) break;
    exchange.sent += static_cast<std::size_t>(n);
  }
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = exchange.id;
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, exchange.fd, &event);
}

void HttpClient::Read(Exchange& exchange) {
  const ssize_t n = ::recv(exchange.fd, buffer_.data(), buffer_.size(), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n < 0) return End(exchange, ErrnoText("the connection broke", errno));
  if (n == 0) {
    return End(exchange, exchange.reply.Close() ? "" : "the connection was closed too early");
  }
  const ExchangeId id = exchange.id;
  const Status fed =
      exchange.reply.Feed({buffer_.data(), static_cast<std::size_t>(n)}, exchange.handler.on_body);
  if (!open_.contains(id)) return;  // cancelled by its own handler
  if (!fed) return End(exchange, fed.error().message);
  if (exchange.reply.done()) End(exchange, "");
}

void HttpClient::Poll(std::int64_t timeout_ns) {
  for (const ExchangeId id : std::exchange(failed_, {})) {
    const auto found = open_.find(id);
    if (found != open_.end()) End(*found->second, found->second->error);
    timeout_ns = 0;
  }
  const timespec timeout{.tv_sec = timeout_ns / 1'000'000'000,
                         .tv_nsec = timeout_ns % 1'000'000'000};
  epoll_event events[kEventsAtOnce];
  const int count = ::epoll_pwait2(epoll_fd_, events, kEventsAtOnce, &timeout, nullptr);
  for (int i = 0; i < count; ++i) {
    const ExchangeId id = events[i].data.u64;
    const auto found = open_.find(id);
    if (found == open_.end()) continue;
    if ((events[i].events & EPOLLOUT) != 0) Write(*found->second);
    if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Read(*found->second);
  }
}

}  // namespace kvrm
