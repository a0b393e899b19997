// SPDX-License-Identifier: Apache-2.0
#include "trace/workload.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "base/check.h"
#include "base/rng.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kLeftOut = ~std::uint32_t{0};

std::int64_t Scaled(std::int64_t ns, double factor) {
  const double scaled = static_cast<double>(ns) * factor;
  return static_cast<std::int64_t>(
      std::llround(std::min(scaled, static_cast<double>(kMaxTraceNs))));
}

bool InWindow(const ShapeOptions& options, const TraceRequest& request) {
  if (request.arrival != Arrival::kTimed) return true;
  const double at_s = static_cast<double>(request.arrival_ns) * 1e-9;
  return at_s >= options.begin_s &&
         (options.duration_s <= 0.0 || at_s < options.begin_s + options.duration_s);
}

// Keeps a part of the requests, and the links between those that stay.
void Select(const ShapeOptions& options, Workload* workload) {
  std::vector<TraceRequest>& requests = workload->requests;
  std::vector<std::uint32_t> new_idx(requests.size(), kLeftOut);
  std::vector<std::int64_t> began(requests.size(), 0);
  const std::uint64_t limit = options.max_requests == 0 ? requests.size() : options.max_requests;
  std::uint32_t num_kept = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    TraceRequest request = requests[i];
    const bool linked = request.arrival == Arrival::kAfter;
    const bool orphan = linked && new_idx[request.after] == kLeftOut;
    began[i] = linked ? began[request.after] : request.arrival_ns;
    if (i < options.skip || num_kept == limit || !InWindow(options, request)) continue;
    if (orphan) {
      request.arrival = Arrival::kTimed;
      request.arrival_ns = began[i];
      if (!InWindow(options, request)) continue;
    } else if (linked) {
      request.after = new_idx[request.after];
    }
    new_idx[i] = num_kept;
    requests[num_kept++] = request;
  }
  requests.resize(num_kept);
}

// Up to one mean gap behind the last request: so the seam of a turned copy is like any other place.
std::int64_t SpanOf(std::span<const TraceRequest> requests) {
  std::int64_t last_ns = 0;
  for (const TraceRequest& request : requests)
    last_ns = std::max(last_ns, request.arrival_ns);
  const auto count = static_cast<std::int64_t>(std::max<std::size_t>(requests.size(), 1));
  return last_ns + std::max<std::int64_t>(last_ns / count, 1);
}

Error TooMany(std::size_t count, const char* what, std::size_t limit, std::uint32_t num_copies) {
  return {ErrorCode::kTooLarge, std::to_string(num_copies) + " copies of " + std::to_string(count) +
                                    " " + what + " are more than " + std::to_string(limit)};
}

}  // namespace

double OfferedRate(const Workload& workload) {
  std::int64_t first_ns = kMaxTraceNs;
  std::int64_t last_ns = 0;
  std::uint64_t num_timed = 0;
  for (const TraceRequest& request : workload.requests) {
    if (request.arrival != Arrival::kTimed) continue;
    ++num_timed;
    first_ns = std::min(first_ns, request.arrival_ns);
    last_ns = std::max(last_ns, request.arrival_ns);
  }
  if (num_timed < 2 || last_ns <= first_ns) return 0.0;
  return static_cast<double>(num_timed - 1) / (static_cast<double>(last_ns - first_ns) * 1e-9);
}

Status Overlay(std::uint32_t num_copies, Workload* workload) {
  CHECK(num_copies >= 1);
  const std::vector<TraceRequest> requests = workload->requests;
  const std::vector<std::uint64_t> ids = workload->hash_ids;
  if (requests.size() > kMaxTraceRequests / num_copies)
    return TooMany(requests.size(), "requests", kMaxTraceRequests, num_copies);
  if (ids.size() > kMaxTraceHashIds / num_copies)
    return TooMany(ids.size(), "hash ids", kMaxTraceHashIds, num_copies);
  const std::int64_t span_ns = SpanOf(requests);
  for (std::uint32_t copy = 1; copy < num_copies; ++copy) {
    const std::int64_t turn_ns = span_ns / num_copies * copy;
    for (TraceRequest request : requests) {
      CHECK(request.arrival == Arrival::kTimed);
      request.arrival_ns = (request.arrival_ns + turn_ns) % span_ns;
      request.first_hash += static_cast<std::uint32_t>(ids.size() * copy);
      workload->requests.push_back(request);
    }
    for (const std::uint64_t id : ids)
      workload->hash_ids.push_back(Mix64(id ^ Mix64(copy)));
  }
  std::ranges::stable_sort(workload->requests, {}, &TraceRequest::arrival_ns);
  return Done{};
}

void Shape(const ShapeOptions& options, Workload* workload) {
  CHECK(workload->requests.size() <= kMaxTraceRequests);
  Select(options, workload);
  std::int64_t first_ns = kMaxTraceNs;
  for (const TraceRequest& request : workload->requests) {
    if (request.arrival == Arrival::kTimed) first_ns = std::min(first_ns, request.arrival_ns);
  }
  double factor = options.time_scale;
  const double offered = OfferedRate(*workload);
  if (options.rate_rps > 0.0 && offered > 0.0) factor = offered / options.rate_rps;
  for (TraceRequest& request : workload->requests) {
    if (request.arrival == Arrival::kTimed) request.arrival_ns -= first_ns;
    request.arrival_ns = Scaled(request.arrival_ns, factor);
    if (options.max_prompt > 0)
      request.prompt_tokens = std::min(request.prompt_tokens, options.max_prompt);
    if (options.max_output > 0)
      request.output_tokens = std::min(request.output_tokens, options.max_output);
  }
}

}  // namespace kvrm
