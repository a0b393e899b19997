// SPDX-License-Identifier: Apache-2.0
// Router: which of several engines a request goes to, from what a router in front of them knows:
// what it has sent to each and what of it has ended.
//
//   least-outstanding  the fewest requests that have not ended, of these the fewest tokens of their
//                      prompts, of these who was chosen longest ago
//   round-robin        in turns
//   prefix             who was last sent the longest beginning of the prompt, by its hash ids, as
//                      long as it has at most a quarter more than its share of what is outstanding,
//                      and one request; else, and without hash ids, least-outstanding
//
// Threading: one thread. Memory: of prefix, an entry for every hash id seen.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "trace/workload.h"

namespace kvrm {

enum class RoutePolicy : std::uint8_t { kLeastOutstanding, kRoundRobin, kPrefix };
inline constexpr int kNumRoutePolicies = 3;
// "least-outstanding", "round-robin", "prefix".
const char* RoutePolicyName(RoutePolicy policy);
std::optional<RoutePolicy> FindRoutePolicy(std::string_view name);

class Router {
 public:
  // Requires: num_replicas >= 1. The workload outlives the router.
  Router(RoutePolicy policy, std::uint32_t num_replicas, const Workload& workload);

  // The replica for this request, which is outstanding from now on.
  std::uint32_t Route(std::size_t request);
  void Ended(std::uint32_t replica, std::size_t request);

 private:
  struct Load {
    std::uint64_t num_requests = 0;
    std::uint64_t prompt_tokens = 0;
    std::uint64_t chosen = 0;  // which choice it last was
  };

  std::uint32_t Least() const;
  std::uint32_t ByPrefix(const TraceRequest& request) const;

  const RoutePolicy policy_;
  const Workload& workload_;
  std::vector<Load> loads_;
  std::uint64_t num_chosen_ = 0;
  std::uint64_t num_outstanding_ = 0;
  std::unordered_map<std::uint64_t, std::uint32_t> replica_of_hash_;
};

}  // namespace kvrm
