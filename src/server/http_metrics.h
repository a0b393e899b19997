// SPDX-License-Identifier: Apache-2.0
// HttpMetrics: requests by route, method and status, their durations, and the state of the I/O
// loop, as Prometheus text.
//
// Labels come from sets of our own: the table of routes, six methods, the statuses this server
// gives. What a client makes up is counted as "other", so the number of series is bounded.
// Threading: the I/O thread.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "server/http.h"

namespace kvrm {

class HttpMetrics {
 public:
  // `handler`: the path of the route, which outlives this; "" for none.
  void Count(std::string_view handler, const AccessRecord& record);
  // Text exposition format 0.0.4.
  std::string Text(const HttpStats& stats, std::size_t num_connections) const;

 private:
  static constexpr std::array kBoundsMs = {1,   5,    10,   25,   50,    100,   250,
                                           500, 1000, 2500, 5000, 10000, 30000, 60000};
  struct Durations {
    std::array<std::uint64_t, kBoundsMs.size() + 1> buckets{};
    std::uint64_t count = 0;
    std::int64_t sum_ns = 0;
  };
  std::map<std::tuple<std::string_view, std::string_view, int>, std::uint64_t> counts_;
  std::map<std::string_view, Durations> durations_;
};

}  // namespace kvrm
