// SPDX-License-Identifier: Apache-2.0
#include "replay/router.h"

#include <algorithm>
#include <array>
#include <tuple>

#include "base/check.h"
#include "base/enum_names.h"

namespace kvrm {
namespace {

constexpr std::array<const char*, kNumRoutePolicies> kNames = {"least-outstanding", "round-robin",
                                                               "prefix"};

}  // namespace

const char* RoutePolicyName(RoutePolicy policy) {
  return kNames[static_cast<std::size_t>(policy)];
}

std::optional<RoutePolicy> FindRoutePolicy(std::string_view name) {
  return FindByName<RoutePolicy>(kNames, name);
}

Router::Router(RoutePolicy policy, std::uint32_t num_replicas, const Workload& workload)
    : policy_(policy), workload_(workload), loads_(num_replicas) {
  CHECK(num_replicas >= 1);
}

std::uint32_t Router::Least() const {
  const auto least =
      std::min_element(loads_.begin(), loads_.end(), [](const Load& a, const Load& b) {
        return std::tie(a.num_requests, a.prompt_tokens, a.chosen) <
               std::tie(b.num_requests, b.prompt_tokens, b.chosen);
      });
  return static_cast<std::uint32_t>(least - loads_.begin());
}

std::uint32_t Router::ByPrefix(const TraceRequest& request) const {
  const std::span<const std::uint64_t> ids = workload_.HashIds(request);
  for (std::size_t i = ids.size(); i-- > 0;) {
    const auto found = replica_of_hash_.find(ids[i]);
    if (found == replica_of_hash_.end()) continue;
    // At most 5/4 of the mean, and one: n <= 1 + 5 * outstanding / (4 * replicas).
    const std::uint64_t num_requests = loads_[found->second].num_requests;
    const bool is_crowded =
        num_requests > 0 && 4 * loads_.size() * (num_requests - 1) > 5 * num_outstanding_;
    return is_crowded ? Least() : found->second;
  }
  return Least();
}

std::uint32_t Router::Route(std::size_t request) {
  const TraceRequest& asked = workload_.requests[request];
  std::uint32_t replica = 0;
  switch (policy_) {
    case RoutePolicy::kLeastOutstanding:
      replica = Least();
      break;
    case RoutePolicy::kRoundRobin:
      replica = static_cast<std::uint32_t>(num_chosen_ % loads_.size());
      break;
    case RoutePolicy::kPrefix:
      replica = ByPrefix(asked);
      for (const std::uint64_t id : workload_.HashIds(asked))
        replica_of_hash_[id] = replica;
      break;
  }
  Load& load = loads_[replica];
  load.chosen = ++num_chosen_;
  ++load.num_requests;
  load.prompt_tokens += asked.prompt_tokens;
  ++num_outstanding_;
  return replica;
}

void Router::Ended(std::uint32_t replica, std::size_t request) {
  Load& load = loads_[replica];
  CHECK(load.num_requests > 0);
  --load.num_requests;
  load.prompt_tokens -= workload_.requests[request].prompt_tokens;
  --num_outstanding_;
}

}  // namespace kvrm
