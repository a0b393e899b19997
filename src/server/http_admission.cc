// SPDX-License-Identifier: Apache-2.0
#include "server/http_admission.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"

namespace kvrm {
namespace {

// Descriptors that are no client's: the model, the logs, the loop's own, and a reserve.
constexpr rlim_t kReservedFds = 48;
constexpr std::uint32_t kMaxTurnedAway = 64;
constexpr std::uint64_t kIpv4Mark = std::uint64_t{0xffff} << 48;

std::uint32_t ConnectionsThatFit(std::uint32_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  if (limit.rlim_cur < std::min<rlim_t>(limit.rlim_max, wanted + kReservedFds)) {
    limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, wanted + kReservedFds);
    ::setrlimit(RLIMIT_NOFILE, &limit);
    ::getrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur >= wanted + kReservedFds) return wanted;
  const rlim_t fits = limit.rlim_cur > 2 * kReservedFds ? limit.rlim_cur - kReservedFds
                                                        : std::max<rlim_t>(limit.rlim_cur / 2, 1);
  Log(LogLevel::kWarning, "connections_limited",
      {{"wanted", wanted}, {"max_connections", fits}, {"open_files", limit.rlim_cur}});
  return static_cast<std::uint32_t>(fits);
}

int OpenSpare() {
  return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
}

}  // namespace

HttpAdmission::HttpAdmission(std::uint32_t max_connections, std::uint32_t max_per_address,
                             bool count_loopback)
    : max_connections_(ConnectionsThatFit(max_connections)),
      max_per_address_(max_per_address),
      count_loopback_(count_loopback),
      spare_fd_(OpenSpare()) {}

HttpAdmission::~HttpAdmission() {
  if (spare_fd_ >= 0) ::close(spare_fd_);
}

std::uint64_t HttpAdmission::KeyOf(const boost::asio::ip::address& address) const {
  if (max_per_address_ == 0 || (address.is_loopback() && !count_loopback_)) return 0;
  if (address.is_v4()) return kIpv4Mark | address.to_v4().to_uint();
  const auto bytes = address.to_v6().to_bytes();
  std::uint64_t prefix = 0;
  for (std::size_t i = 0; i < 8; ++i)
    prefix = prefix << 8 | bytes[i];
  return prefix == 0 ? 1 : prefix;
}

bool HttpAdmission::MayEnter(std::uint64_t key) const {
  const auto found = counts_.find(key);
  return key == 0 || found == counts_.end() || found->second < max_per_address_;
}

void HttpAdmission::Enter(std::uint64_t key) {
  if (key != 0) ++counts_[key];
}

void HttpAdmission::Leave(std::uint64_t key) {
  const auto found = counts_.find(key);
  if (found != counts_.end() && --found->second == 0) counts_.erase(found);
}

HttpAdmission::TurnedAway HttpAdmission::TurnAway(int listener) {
  TurnedAway result;
  while (spare_fd_ >= 0 && result.count < kMaxTurnedAway) {
    ::close(spare_fd_);
    const int accepted = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    spare_fd_ = OpenSpare();
    if (accepted < 0) break;
    if (spare_fd_ >= 0) {  // beside the connection: descriptors have come back since
      result.with_room = accepted;
      break;
    }
    ::close(accepted);
    ++result.count;
    spare_fd_ = OpenSpare();
  }
  if (spare_fd_ < 0) spare_fd_ = OpenSpare();
  return result;
}

}  // namespace kvrm
