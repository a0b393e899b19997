// SPDX-License-Identifier: Apache-2.0
// kvrm_load: clients of many kinds on one epoll loop, against kvrm_mock_server on this machine
// (docs/load.md). Prints `name value` lines.
//
//   kvrm_load PORT SECONDS KIND=COUNT...
//
//   idle        a request, then a connection that says nothing
//   active      one-token requests, one after the other
//   streams     event streams of 200 tokens, one after the other; their delivery is timed
//   slow_heads  a byte of a head a second
//   zero_window streams that are never read, with the smallest window
//   churn       connections a second that are opened and closed
//   big         requests a second with a prompt of 1 MiB
//   leavers     streams that are closed after a random number of tokens
//   probe       1: /health and /metrics in turn, ten times a second
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"

namespace kvrm {
namespace {

constexpr std::int64_t kNsPerSecond = 1000000000;
constexpr std::int64_t kTimeMask = (std::int64_t{1} << 30) - 1;

enum class Kind { kIdle, kActive, kStream, kSlowHead, kZeroWindow, kChurn, kBig, kLeaver, kProbe };

struct Conn {
  Kind kind{};
  int fd = -1;
  std::string out;
  std::string in;
  std::int64_t sent_ns = 0;
  bool counted = false;  // the answer's head is through
  std::uint64_t body_left = 0;
  std::uint64_t leave_after = 0;  // tokens; 0: never
  std::uint64_t num_tokens = 0;
  bool done_once = false;
};

struct Samples {
  std::vector<double> ms;
  void Add(std::int64_t ns) { ms.push_back(static_cast<double>(ns) * 1e-6); }
  void Print(const char* name) {
    if (ms.empty()) return;
    std::sort(ms.begin(), ms.end());
    const auto at = [&](double share) {
      return ms[static_cast<std::size_t>(share * static_cast<double>(ms.size() - 1))];
    };
    std::printf("%s_count %zu\n%s_p50_ms %.3f\n%s_p99_ms %.3f\n%s_p999_ms %.3f\n%s_max_ms %.3f\n",
                name, ms.size(), name, at(0.5), name, at(0.99), name, at(0.999), name, ms.back());
  }
};

std::string Post(const std::string& body) {
  return "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

class Load {
 public:
  Load(std::uint16_t port, std::map<std::string, std::uint64_t> counts)
      : port_(port), counts_(std::move(counts)), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    one_token_ = Post(R"({"prompt":"Once upon a time","max_tokens":1})");
    stream_ = Post(R"({"prompt":"Once upon a time","max_tokens":200,"stream":true})");
    std::string text;
    while (text.size() < 1u << 20)
      text += "Once upon a time there was a little dog. ";
    big_ = Post(R"({"prompt":")" + text + R"(","max_tokens":1})");
  }

  int Run(std::int64_t seconds) {
    // Connections come up at a rate that no backlog overflows.
    std::deque<Kind> wanted;
    Want(wanted, Kind::kIdle, "idle");
    Want(wanted, Kind::kStream, "streams");
    Want(wanted, Kind::kLeaver, "leavers");
    Want(wanted, Kind::kActive, "active");
    Want(wanted, Kind::kSlowHead, "slow_heads");
    Want(wanted, Kind::kZeroWindow, "zero_window");
    if (counts_["probe"] != 0) wanted.push_back(Kind::kProbe);
    while (!wanted.empty()) {
      for (int i = 0; i < 50 && !wanted.empty(); ++i) {
        Open(wanted.front());
        wanted.pop_front();
      }
      Poll(5);
    }
    for (std::int64_t until = Now() + kNsPerSecond; Now() < until;)
      Poll(5);
    measuring_ = true;
    begin_ns_ = Now();
    const std::int64_t end_ns = begin_ns_ + seconds * kNsPerSecond;
    while (Now() < end_ns) {
      Timed();
      Poll(2);
    }
    Print(static_cast<double>(Now() - begin_ns_) * 1e-9);
    return 0;
  }

 private:
  std::int64_t Now() const { return clock_.NowNs(); }
  void Want(std::deque<Kind>& wanted, Kind kind, const char* name) {
    wanted.insert(wanted.end(), counts_[name], kind);
  }

  Conn* Open(Kind kind) {
    const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
      ++num_errors_;
      return nullptr;
    }
    const int one = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (kind == Kind::kZeroWindow) {
      const int bytes = 1024;
      ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port_);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
        errno != EINPROGRESS) {
      ++num_errors_;
      ::close(fd);
      return nullptr;
    }
    auto conn = std::make_unique<Conn>();
    conn->kind = kind;
    conn->fd = fd;
    Conn* raw = conn.get();
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLET;
    event.data.fd = fd;
    ::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
    if (conns_.size() <= static_cast<std::size_t>(fd))
      conns_.resize(static_cast<std::size_t>(fd) + 1);
    conns_[static_cast<std::size_t>(fd)] = std::move(conn);
    Begin(*raw);
    return raw;
  }

  // The next request of a connection.
  void Begin(Conn& conn) {
    conn.sent_ns = Now();
    conn.counted = false;
    conn.num_tokens = 0;
    switch (conn.kind) {
      case Kind::kIdle:
        conn.out = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
        break;
      case Kind::kProbe:
        conn.out = probe_metrics_ ? "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
                                  : "GET /health HTTP/1.1\r\nHost: a\r\n\r\n";
        probe_metrics_ = !probe_metrics_;
        break;
      case Kind::kActive:
        conn.out = one_token_;
        break;
      case Kind::kLeaver:
        conn.leave_after = 1 + rng_.Below(60);
        conn.out = stream_;
        break;
      case Kind::kStream:
      case Kind::kZeroWindow:
        conn.out = stream_;
        break;
      case Kind::kBig:
        conn.out = big_;
        break;
      case Kind::kSlowHead:
        conn.out = "GET /health HTTP/1.1\r\n";
        break;
      case Kind::kChurn:
        break;
    }
    Write(conn);
  }

  void Write(Conn& conn) {
    while (!conn.out.empty()) {
      const ssize_t sent = ::send(conn.fd, conn.out.data(), conn.out.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      conn.out.erase(0, static_cast<std::size_t>(sent));
    }
  }

  void Poll(int wait_ms) {
    epoll_event events[256];
    const int count = ::epoll_wait(epoll_, events, 256, wait_ms);
    for (int i = 0; i < count; ++i) {
      const auto fd = static_cast<std::size_t>(events[i].data.fd);
      Conn* conn = conns_[fd].get();
      if (conn == nullptr) continue;
      if ((events[i].events & EPOLLOUT) != 0) Write(*conn);
      if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) Read(fd);
    }
  }

  void Read(std::size_t fd) {
    Conn& conn = *conns_[fd];
    if (conn.kind == Kind::kZeroWindow) return;  // It never reads.
    char bytes[65536];
    for (;;) {
      const ssize_t count = ::recv(conn.fd, bytes, sizeof bytes, 0);
      if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
      if (count <= 0) return Ended(fd);
      conn.in.append(bytes, static_cast<std::size_t>(count));
      if (!Take(conn)) return Drop(fd, true);
      if (conns_[fd] == nullptr) return;
    }
  }

  void Ended(std::size_t fd) {
    const Kind kind = conns_[fd]->kind;
    if (measuring_ && kind == Kind::kSlowHead) ++num_slow_heads_cut_;
    // An old connection's last answer may end it; anything else is an error.
    if (kind != Kind::kSlowHead && kind != Kind::kChurn && !conns_[fd]->done_once) ++num_errors_;
    const bool again = kind != Kind::kBig && kind != Kind::kChurn && kind != Kind::kIdle;
    if (kind == Kind::kIdle) ++num_idle_closed_;
    Drop(fd, again);
  }

  void Drop(std::size_t fd, bool again) {
    const Kind kind = conns_[fd]->kind;
    ::close(conns_[fd]->fd);
    conns_[fd].reset();
    if (again) Open(kind);
  }

  // False: the connection is to be dropped (and, if it is wanted, opened anew).
  bool Take(Conn& conn) {
    if (conn.kind == Kind::kStream || conn.kind == Kind::kLeaver) return TakeStream(conn);
    const std::size_t head = conn.in.find("\r\n\r\n");
    if (head == std::string::npos) return true;
    const std::size_t at = conn.in.find("Content-Length: ");
    std::size_t length = 0;
    if (at != std::string::npos) std::from_chars(&conn.in[at + 16], &conn.in[head], length);
    if (conn.in.size() < head + 4 + length) return true;
    if (!conn.in.starts_with("HTTP/1.1 200") && conn.kind != Kind::kSlowHead) ++num_refused_;
    conn.in.clear();
    conn.done_once = true;
    if (measuring_) {
      const std::int64_t taken = Now() - conn.sent_ns;
      if (conn.kind == Kind::kActive) answers_.Add(taken);
      if (conn.kind == Kind::kProbe) probes_.Add(taken);
      if (conn.kind == Kind::kBig) bigs_.Add(taken);
    }
    if (conn.kind == Kind::kActive) Begin(conn);
    return conn.kind != Kind::kBig;
  }

  bool TakeStream(Conn& conn) {
    static constexpr std::string_view kText = "\"text\":\"";
    const std::int64_t now_us = Now() / 1000;
    std::size_t from = 0;
    for (;;) {
      const std::size_t end = conn.in.find("\n\n", from);
      if (end == std::string::npos) break;
      const std::string_view event = std::string_view(conn.in).substr(from, end - from);
      from = end + 2;
      const std::size_t text = event.find(kText);
      std::int64_t given = 0;
      if (text != std::string::npos && event.size() > text + kText.size() &&
          std::from_chars(event.data() + text + kText.size(), event.data() + event.size(), given)
                  .ec == std::errc()) {
        ++conn.num_tokens;
        ++num_tokens_;
        if (measuring_) delivery_.Add(((now_us - given) & kTimeMask) * 1000);
      } else if (event.find("[DONE]") != std::string::npos) {
        conn.done_once = true;
      }
    }
    if (conn.in.compare(0, 9, "HTTP/1.1 ") == 0 && conn.in.compare(9, 3, "200") != 0)
      ++num_refused_;
    conn.in.erase(0, from);
    if (conn.kind == Kind::kLeaver && conn.num_tokens >= conn.leave_after) {
      ++num_left_;
      return false;
    }
    if (conn.num_tokens >= 200 && conn.in.find("0\r\n\r\n") != std::string::npos) {
      conn.in.clear();
      ++num_streams_;
      Begin(conn);
    }
    return true;
  }

  void Timed() {
    const std::int64_t now = Now();
    const std::int64_t elapsed = now - begin_ns_;
    const auto due = [&](const char* name, std::uint64_t done) {
      return static_cast<std::uint64_t>(elapsed / 1000000) * counts_[name] / 1000 > done;
    };
    while (due("churn", num_churned_)) {
      ++num_churned_;
      if (Conn* conn = Open(Kind::kChurn)) Drop(static_cast<std::size_t>(conn->fd), false);
    }
    while (due("big", num_big_)) {
      ++num_big_;
      Open(Kind::kBig);
    }
    if (now - last_probe_ns_ >= kNsPerSecond / 10) {
      last_probe_ns_ = now;
      for (const auto& conn : conns_) {
        if (conn && conn->kind == Kind::kProbe && conn->done_once) {
          conn->done_once = false;
          Begin(*conn);
        }
      }
    }
    // One after the other: two thousand in one go keep this loop from reading what it times.
    while (due("slow_heads", num_slow_bytes_)) {
      ++num_slow_bytes_;
      SendSlowByte();
    }
  }

  void SendSlowByte() {
    for (std::size_t looked = 0; looked < conns_.size(); ++looked) {
      next_slow_ = (next_slow_ + 1) % conns_.size();
      const Conn* conn = conns_[next_slow_].get();
      if (conn == nullptr || conn->kind != Kind::kSlowHead) continue;
      ::send(conn->fd, "X", 1, MSG_NOSIGNAL);
      return;
    }
  }

  void Print(double seconds) {
    std::printf("seconds %.2f\n", seconds);
    answers_.Print("answer");
    if (!answers_.ms.empty()) {
      std::printf("answers_per_s %.0f\n", static_cast<double>(answers_.ms.size()) / seconds);
    }
    delivery_.Print("delivery");
    probes_.Print("probe");
    bigs_.Print("big");
    std::printf("tokens %llu\nstreams_done %llu\nleft %llu\nrefused %llu\nerrors %llu\n",
                num_tokens_, num_streams_, num_left_, num_refused_, num_errors_);
    std::printf("slow_heads_cut %llu\nidle_closed %llu\nchurned %llu\n", num_slow_heads_cut_,
                num_idle_closed_, num_churned_);
    std::fflush(stdout);
  }

  const std::uint16_t port_;
  std::map<std::string, std::uint64_t> counts_;
  const int epoll_;
  const SystemClock clock_;
  Rng rng_{1};
  std::vector<std::unique_ptr<Conn>> conns_;  // by descriptor
  std::string one_token_;
  std::string stream_;
  std::string big_;
  bool measuring_ = false;
  bool probe_metrics_ = false;
  std::int64_t begin_ns_ = 0;
  std::int64_t last_probe_ns_ = 0;
  std::size_t next_slow_ = 0;
  Samples answers_, delivery_, probes_, bigs_;
  unsigned long long num_tokens_ = 0, num_streams_ = 0, num_left_ = 0, num_refused_ = 0,
                     num_errors_ = 0, num_slow_heads_cut_ = 0, num_idle_closed_ = 0,
                     num_churned_ = 0, num_big_ = 0, num_slow_bytes_ = 0;
};

template <typename Number>
Number NumberOf(std::string_view text) {
  Number number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

}  // namespace
}  // namespace kvrm

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  std::map<std::string, std::uint64_t> counts;
  for (int i = 3; i < argc; ++i) {
    const std::string_view word = argv[i];
    const std::size_t equals = word.find('=');
    if (equals == std::string_view::npos) return 2;
    counts[std::string(word.substr(0, equals))] =
        kvrm::NumberOf<std::uint64_t>(word.substr(equals + 1));
  }
  kvrm::Load load(kvrm::NumberOf<std::uint16_t>(argv[1]), counts);
  return load.Run(kvrm::NumberOf<std::int64_t>(argv[2]));
}
