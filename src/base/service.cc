// SPDX-License-Identifier: Apache-2.0
#include "base/service.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace kvrm {
namespace {

// The number in a variable of the environment, 0 when there is none.
std::int64_t NumberOf(const char* name) {
  const char* text = std::getenv(name);
  std::int64_t number = 0;
  if (text == nullptr) return 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  return error == std::errc() && stop == end && number > 0 ? number : 0;
}

}  // namespace

ServiceManager::ServiceManager() {
  const char* socket_name = std::getenv("NOTIFY_SOCKET");
  if (socket_name == nullptr || (socket_name[0] != '/' && socket_name[0] != '@')) return;
  address_ = socket_name;
  if (address_.size() >= sizeof(sockaddr_un::sun_path)) return;
  fd_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const std::int64_t watched_process = NumberOf("WATCHDOG_PID");
  if (watched_process == 0 || watched_process == ::getpid()) {
    watchdog_ns_ = NumberOf("WATCHDOG_USEC") * 1000;
  }
}

ServiceManager::~ServiceManager() {
  if (fd_ >= 0) ::close(fd_);
}

void ServiceManager::Send(std::string_view message) const {
  if (fd_ < 0) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, address_.data(), address_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  // A manager that does not listen is no reason to stop serving.
  [[maybe_unused]] const ssize_t sent = ::sendto(fd_, message.data(), message.size(), MSG_NOSIGNAL,
                                                 reinterpret_cast<const sockaddr*>(&address), size);
}

}  // namespace kvrm
