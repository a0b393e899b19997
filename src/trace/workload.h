// SPDX-License-Identifier: Apache-2.0
// Workload: requests as a trace file or a generator gives them: when, how long, what they share.
//
// A request has no text. Its prompt is `prompt_tokens` long; where it names hash ids, hash i stands
// for tokens [i * hash_block_tokens, ..) of the prompt, and equal ids stand for equal tokens
// (trace/prompt.h makes them). A prompt may be longer or shorter than its ids reach.
//
// Three kinds of arrival:
//   kTimed   at arrival_ns, whatever else runs (open loop)
//   kClosed  taken in order by the next client that is free, arrival_ns after it became free
//   kAfter   arrival_ns after request `after` has ended (the next turn of a conversation)
//
// Threading: plain data.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace kvrm {

enum class Arrival : std::uint8_t { kTimed, kClosed, kAfter };

struct TraceRequest {
  std::int64_t arrival_ns = 0;  // kTimed: since the workload's begin; else a delay (think time)
  std::uint32_t prompt_tokens = 0;
  std::uint32_t output_tokens = 0;
  Arrival arrival = Arrival::kTimed;
  std::uint8_t group = 0;  // index into Workload::groups
  std::uint8_t num_samples = 1;
  std::uint32_t after = 0;       // kAfter: an earlier request, which no other one is after
  std::uint32_t first_hash = 0;  // [first_hash, first_hash + num_hashes) of Workload::hash_ids
  std::uint32_t num_hashes = 0;
};

// A stretch of time with a name, whose tokens are also counted apart.
struct Phase {
  std::string name;
  std::int64_t begin_ns = 0;
};

inline constexpr std::uint32_t kMaxTraceTokens = 16u << 20;         // of one prompt or output
inline constexpr std::size_t kMaxTraceRequests = 4u << 20;          // of one workload
inline constexpr std::size_t kMaxTraceHashIds = 64u << 20;          // the same
inline constexpr std::int64_t kMaxTraceNs = std::int64_t{1} << 60;  // 36 years

struct Workload {
  std::string name;
  std::uint64_t seed = 0;                 // of what is not in the trace: prompts without hash ids
  std::uint32_t hash_block_tokens = 512;  // as Mooncake's
  std::vector<TraceRequest> requests = {};
  std::vector<std::uint64_t> hash_ids = {};
  std::vector<std::string> groups = {"all"};  // at most 256
  std::vector<Phase> phases = {};             // ascending
  std::uint32_t num_clients = 0;              // of the closed requests
  // No closed request begins at or after it; 0: no limit. What then still runs of a closed loop is
  // cancelled.
  std::int64_t closed_until_ns = 0;

  std::span<const std::uint64_t> HashIds(const TraceRequest& request) const {
    return std::span(hash_ids).subspan(request.first_hash, request.num_hashes);
  }
};

// What becomes of a workload before it is run, in this order.
struct ShapeOptions {
  std::uint64_t skip = 0;          // requests left out at the front
  std::uint64_t max_requests = 0;  // 0: all
  double begin_s = 0.0;            // a window of the trace's own time
  double duration_s = 0.0;         // 0: to the end
  double time_scale = 1.0;         // times between arrivals are multiplied by it
  double rate_rps = 0.0;           // not 0: the times are scaled so that so many arrive a second
  std::uint32_t max_prompt = 0;    // longer ones are cut; 0: none is
  std::uint32_t max_output = 0;
};
// Keeps what the options ask for; the first timed request then arrives at 0. Of kAfter requests
// whose predecessor was left out the first becomes timed, at its predecessor's arrival.
void Shape(const ShapeOptions& options, Workload* workload);

// Lays so many of it over one another, copy c turned by c / num_copies of its time: what would
// arrive after its end arrives at its begin. Copies share no hash ids with one another. The error
// names the limit. Requires: timed requests only; num_copies >= 1.
Status Overlay(std::uint32_t num_copies, Workload* workload);

// Timed requests a second over the time that they take; 0 with fewer than two.
double OfferedRate(const Workload& workload);

}  // namespace kvrm
