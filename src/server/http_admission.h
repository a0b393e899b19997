// SPDX-License-Identifier: Apache-2.0
// HttpAdmission: how many connections there may be, in all and from one address, and what happens
// when the process runs out of file descriptors.
//
// Addresses are counted by their IPv4 address or IPv6 /64. Loopback is not counted unless asked
// for: a proxy on this machine brings everybody's requests from there.
//
// Threading: the I/O thread. Memory: one entry an address that has connections.
#pragma once

#include <boost/asio/ip/address.hpp>
#include <cstdint>
#include <unordered_map>

namespace kvrm {

class HttpAdmission {
 public:
  // Raises the soft limit on descriptors to the hard one and, where that is still too low for
  // `max_connections`, takes less. `max_per_address` 0: no limit.
  HttpAdmission(std::uint32_t max_connections, std::uint32_t max_per_address, bool count_loopback);
  ~HttpAdmission();
  HttpAdmission(const HttpAdmission&) = delete;
  HttpAdmission& operator=(const HttpAdmission&) = delete;

  std::uint32_t max_connections() const { return max_connections_; }

  // The key under which the address is counted; 0: it is not.
  std::uint64_t KeyOf(const boost::asio::ip::address& address) const;
  // False: that address has as many as it may.
  bool MayEnter(std::uint64_t key) const;
  void Enter(std::uint64_t key);
  void Leave(std::uint64_t key);

  // Accepts whoever waits at `listener` and closes at once, with the descriptor that is kept for
  // this. Without it they would wait for an answer that cannot come, and the listener would stay
  // readable. Ends at a connection beside which that descriptor could be had again: there is room,
  // and the caller, who now owns it, should serve it.
  struct TurnedAway {
    std::uint32_t count = 0;
    int with_room = -1;
  };
  TurnedAway TurnAway(int listener);

 private:
  std::uint32_t max_connections_;
  const std::uint32_t max_per_address_;
  const bool count_loopback_;
  int spare_fd_ = -1;
  std::unordered_map<std::uint64_t, std::uint32_t> counts_;
};

}  // namespace kvrm
