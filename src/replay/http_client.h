// SPDX-License-Identifier: Apache-2.0
// HttpClient: many HTTP/1.1 exchanges at once on one thread, each on a connection of its own.
//
// Plain http only. A response's bytes are given out the moment they are read, which is when a
// replay looks at its clock. Threading: one thread. Memory: a response as far as its caller keeps
// it, and one buffer.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "replay/http_reply.h"

namespace kvrm {

// "http://127.0.0.1:8080/v1" in its parts; the path has no slash at its end.
struct HttpUrl {
  std::string host;
  std::string port = "80";
  std::string path;
};
// Throws StartError: for https too, which needs a proxy in front.
HttpUrl ParseUrl(const std::string& url);

class HttpClient {
 public:
  // Resolves the host. Throws StartError.
  explicit HttpClient(const HttpUrl& url);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  struct Handler {
    HttpReply::OnBody on_body;  // status() is known by then
    // Once, unless cancelled: "" when the response was whole, else what was wrong.
    std::function<void(const std::string& error)> on_end;
  };
  using ExchangeId = std::uint64_t;
  // Sends `method` `path` below the URL's; `headers` are lines with CRLF. Never calls back itself.
  ExchangeId Start(const std::string& method, const std::string& path, const std::string& headers,
                   const std::string& body, Handler handler);
  // Closes the connection; the handler is not called again.
  void Cancel(ExchangeId id);
  int status(ExchangeId id) const;
  std::size_t num_open() const { return open_.size(); }

  // Waits up to timeout_ns for something and calls the handlers of what happened.
  void Poll(std::int64_t timeout_ns);

 private:
  struct Exchange;
  void Write(Exchange& exchange);
  void Read(Exchange& exchange);
  void End(Exchange& exchange, const std::string& error);
  void Close(ExchangeId id);

  const HttpUrl url_;
  sockaddr_storage address_ = {};
  socklen_t address_bytes_ = 0;
  int family_ = 0;
  int epoll_fd_ = -1;
  ExchangeId last_id_ = 0;
  std::map<ExchangeId, std::unique_ptr<Exchange>> open_;
  std::vector<ExchangeId> failed_;  // before they were polled
  std::vector<char> buffer_;
};

}  // namespace kvrm
