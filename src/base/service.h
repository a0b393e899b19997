// SPDX-License-Identifier: Apache-2.0
// ServiceManager: what this process tells systemd, or whoever reads NOTIFY_SOCKET: one datagram a
// message (sd_notify(3)), without a library. Without that variable every verb does nothing.
//
// Threading: any thread. Memory: one descriptor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm {

class ServiceManager {
 public:
  // From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; both variables are left as they are.
  ServiceManager();
  ~ServiceManager();
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  bool present() const { return fd_ >= 0; }
  // Within which Alive has to be called; 0: nobody watches.
  std::int64_t watchdog_ns() const { return watchdog_ns_; }

  void Ready() const { Send("READY=1"); }
  void Alive() const { Send("WATCHDOG=1"); }
  void Stopping() const { Send("STOPPING=1"); }

 private:
  void Send(std::string_view message) const;

  int fd_ = -1;
  std::string address_;  // "@name": of the abstract name space
  std::int64_t watchdog_ns_ = 0;
};

}  // namespace kvrm
