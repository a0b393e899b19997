// SPDX-License-Identifier: Apache-2.0
#include "trace/generate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "trace/distributions.h"

namespace kvrm {
namespace {

constexpr const char* kFamilyNames[] = {"uniform", "mixed",         "long-tail",  "eos-heavy",
                                        "bursty",  "shared-prefix", "multi-turn", "long-context",
                                        "fork",    "fragmentation", "chat"};
constexpr const char* kProcessNames[] = {"poisson", "gamma", "on-off", "steady", "closed"};
constexpr std::uint32_t kNumSystemPrompts = 15;
constexpr std::uint32_t kHashBlockTokens = 16;
constexpr std::uint32_t kVictimPrompt = 64;
constexpr double kThinkS = 5.0;  // of a multi-turn conversation when nothing is said

template <typename Kind, std::size_t kCount>
std::optional<Kind> FindName(const char* const (&names)[kCount], std::string_view name) {
  for (std::size_t i = 0; i < kCount; ++i)
    if (name == names[i]) return static_cast<Kind>(i);
  return std::nullopt;
}

std::int64_t Ns(double seconds) {
  return static_cast<std::int64_t>(
      std::llround(std::min(seconds * 1e9, static_cast<double>(kMaxTraceNs))));
}

struct LogNormal {
  double median = 0.0;
  double sigma = 0.0;
  double low = 1.0;
  double high = 0.0;
};

// When the next timed request arrives.
class ArrivalClock {
 public:
  explicit ArrivalClock(const GenerateOptions& options)
      : options_(options), rng_(options.seed, "arrivals") {}

  std::int64_t Next() {
    now_s_ += Gap();
    return Ns(now_s_);
  }

 private:
  static constexpr double kBurstFactor = 10.0;
  static constexpr double kCalmMeanS = 30.0;

  double Gap() {
    const double mean = 1.0 / options_.rate_rps;
    if (options_.arrivals == ArrivalProcess::kSteady) return mean;
    if (options_.arrivals == ArrivalProcess::kPoisson) return DrawExponential(rng_, mean);
    if (options_.arrivals == ArrivalProcess::kGamma) {
      const double shape = 1.0 / (options_.cv * options_.cv);
      return DrawGamma(rng_, shape, mean / shape);
    }
    return OnOffGap();
  }

  // The calm rate is such that the mean over both states is rate_rps.
  double OnOffGap() {
    constexpr double kBurstMeanS = 3.5;
    constexpr double kMeanFactor =
        (kCalmMeanS + kBurstFactor * kBurstMeanS) / (kCalmMeanS + kBurstMeanS);
    const double calm_rate = options_.rate_rps / kMeanFactor;
    double gap = 0.0;
    while (true) {
      const double rate = in_burst_ ? calm_rate * kBurstFactor : calm_rate;
      const double draw = DrawExponential(rng_, 1.0 / rate);
      if (draw < state_left_s_) {
        state_left_s_ -= draw;
        return gap + draw;
      }
      gap += state_left_s_;
      in_burst_ = !in_burst_;
      state_left_s_ = in_burst_ ? 2.0 + 3.0 * rng_.Uniform() : DrawExponential(rng_, kCalmMeanS);
    }
  }

  const GenerateOptions& options_;
  Rng rng_;
  double now_s_ = 0.0;
  bool in_burst_ = true;  // The first draw of a state is then that of a calm one.
  double state_left_s_ = 0.0;
};

class Generator {
 public:
  explicit Generator(const GenerateOptions& options)
      : options_(options),
        rng_(options.seed, "lengths"),
        clock_(options),
        zipf_(kNumSystemPrompts, 1.0) {
    workload_.name = WorkloadFamilyName(options.family);
    workload_.seed = options.seed;
    workload_.hash_block_tokens = kHashBlockTokens;
    if (options.arrivals == ArrivalProcess::kClosed) workload_.num_clients = options.num_clients;
    Rng rng(options.seed, "system prompts");
    for (std::uint32_t& length : system_tokens_)
      length = Scale(static_cast<double>(rng.Between(512, 2048)));
  }

  Workload Make() {
    while (workload_.requests.size() < options_.num_requests) {
      if (options_.family == WorkloadFamily::kMultiTurn) {
        AddConversation();
      } else {
        TraceRequest request = Lengths();
        Arrive(&request);
        workload_.requests.push_back(request);
      }
    }
    return std::move(workload_);
  }

 private:
  std::uint32_t Scale(double tokens) const {
    const double scaled = std::round(tokens * options_.length_scale);
    return static_cast<std::uint32_t>(std::clamp(scaled, 1.0, double{kMaxTraceTokens}));
  }
  std::uint32_t Draw(const LogNormal& lengths) {
    const double draw = DrawLogNormal(rng_, lengths.median, lengths.sigma);
    return Scale(std::clamp(draw, lengths.low, lengths.high));
  }

  void Arrive(TraceRequest* request) {
    if (options_.arrivals == ArrivalProcess::kClosed) {
      request->arrival = Arrival::kClosed;
      request->arrival_ns =
          options_.think_s > 0.0 ? Ns(DrawExponential(rng_, options_.think_s)) : 0;
      return;
    }
    request->arrival_ns = clock_.Next();
  }

  TraceRequest Mixed(double share) {
    TraceRequest request;
    request.prompt_tokens = Draw({512 * share, 0.9, 1, 8192});
    request.output_tokens = Draw({256 * share, 1.0, 1, 4096});
    return request;
  }

  TraceRequest Lengths() {
    TraceRequest request;
    switch (options_.family) {
      case WorkloadFamily::kUniform:
        request.prompt_tokens = Scale(512);
        request.output_tokens = Scale(256);
        return request;
      case WorkloadFamily::kLongTail:
        request.prompt_tokens = Draw({256, 0.9, 1, 8192});
        request.output_tokens = Scale(std::min(DrawPareto(rng_, 32, 1.2), 8192.0));
        return request;
      case WorkloadFamily::kEosHeavy:
        request.prompt_tokens = Draw({256, 0.9, 1, 4096});
        request.output_tokens = Scale(static_cast<double>(DrawGeometric(rng_, 24)));
        return request;
      case WorkloadFamily::kBursty:
        return Mixed(0.25);
      case WorkloadFamily::kSharedPrefix:
        return SharedPrefix();
      case WorkloadFamily::kLongContext:
        request = Mixed(1.0);
        if (rng_.Below(20) == 0)
          request.prompt_tokens = Scale(static_cast<double>(rng_.Between(32768, 131072)));
        return request;
      case WorkloadFamily::kFork:
        request = Mixed(1.0);
        request.num_samples = 4;
        return request;
      case WorkloadFamily::kFragmentation:
        request.prompt_tokens = Scale(64);
        request.output_tokens = Scale(workload_.requests.size() % 2 == 0 ? 1024 : 32);
        return request;
      case WorkloadFamily::kChat:
        request.prompt_tokens = Draw({128, 1.0, 16, 1024});
        request.output_tokens = Draw({96, 0.7, 16, 256});
        return request;
      case WorkloadFamily::kMixed:
      case WorkloadFamily::kMultiTurn:
        break;
    }
    return Mixed(1.0);
  }

  // Hash ids of the first `num_tokens` of history number `owner`, whole blocks only.
  void Share(std::uint64_t owner, std::uint32_t num_tokens, TraceRequest* request) {
    request->first_hash = static_cast<std::uint32_t>(workload_.hash_ids.size());
    request->num_hashes = num_tokens / kHashBlockTokens;
    for (std::uint32_t i = 0; i < request->num_hashes; ++i)
      workload_.hash_ids.push_back(Mix64(Mix64(owner + 1) ^ options_.seed) + i);
  }

  TraceRequest SharedPrefix() {
    TraceRequest request;
    const std::uint32_t which = zipf_.Draw(rng_);
    Share(which, system_tokens_[which], &request);
    request.prompt_tokens =
        system_tokens_[which] + Scale(static_cast<double>(rng_.Between(16, 256)));
    request.output_tokens = Draw({128, 0.8, 1, 1024});
    return request;
  }

  // Every turn's prompt is all that was said before and a little more. What the model answered is
  // synthetic there too: a server finds the prompts in its cache, not its own outputs.
  void AddConversation() {
    const std::uint64_t owner = kNumSystemPrompts + workload_.requests.size();
    const std::uint64_t num_turns = rng_.Between(3, 8);
    const double think_s = options_.think_s > 0.0 ? options_.think_s : kThinkS;
    std::uint32_t history = 0;
    for (std::uint64_t turn = 0; turn < num_turns; ++turn) {
      if (workload_.requests.size() == options_.num_requests) return;
      TraceRequest request;
      history += Draw({96, 0.9, 8, 2048});
      request.prompt_tokens = history;
      request.output_tokens = Draw({128, 0.8, 1, 1024});
      Share(owner, history, &request);
      if (turn == 0) {
        Arrive(&request);
      } else {
        request.arrival = Arrival::kAfter;
        request.after = static_cast<std::uint32_t>(workload_.requests.size()) - 1;
        request.arrival_ns = Ns(DrawExponential(rng_, think_s));
      }
      history += request.output_tokens;
      workload_.requests.push_back(request);
    }
  }

  const GenerateOptions& options_;
  Rng rng_;
  ArrivalClock clock_;
  Zipf zipf_;
  std::uint32_t system_tokens_[kNumSystemPrompts] = {};
  Workload workload_;
};

}  // namespace

const char* WorkloadFamilyName(WorkloadFamily family) {
  return kFamilyNames[static_cast<int>(family)];
}

std::optional<WorkloadFamily> FindWorkloadFamily(std::string_view name) {
  return FindName<WorkloadFamily>(kFamilyNames, name);
}

const char* ArrivalProcessName(ArrivalProcess process) {
  return kProcessNames[static_cast<int>(process)];
}

std::optional<ArrivalProcess> FindArrivalProcess(std::string_view name) {
  return FindName<ArrivalProcess>(kProcessNames, name);
}

Workload Generate(const GenerateOptions& options) {
  CHECK(options.num_requests >= 1 && options.num_requests <= kMaxTraceRequests);
  CHECK(options.rate_rps > 0.0 && options.cv > 0.0 && options.length_scale > 0.0);
  return Generator(options).Make();
}

namespace {

std::uint32_t VictimOutput(const VictimOptions& options) {
  if (options.victim_output > 0) return options.victim_output;
  const std::uint64_t share = options.pool_tokens / (2 * std::max(options.num_victims, 1u));
  const std::uint64_t room =
      std::min<std::uint64_t>(options.max_context, share == 0 ? options.max_context : share);
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(room, kVictimPrompt + 16) -
                                    kVictimPrompt);
}

}  // namespace

Workload GenerateVictim(const VictimOptions& options) {
  constexpr std::uint32_t kMaxVictimRequests = 100000;
  Workload workload;
  workload.name = "victim";
  workload.seed = options.seed;
  workload.groups = {"victim", "long prompt", "burst", "oversubscription"};
  const std::int64_t phase_ns = Ns(options.phase_s);
  workload.phases = {{"warm-up", 0},
                     {"quiet", phase_ns / 2},
                     {"long prompt", phase_ns / 2 + phase_ns},
                     {"burst", phase_ns / 2 + 2 * phase_ns},
                     {"oversubscription", phase_ns / 2 + 3 * phase_ns}};
  workload.num_clients = options.num_victims;
  workload.closed_until_ns = phase_ns / 2 + 4 * phase_ns;
  const auto add = [&workload](std::size_t phase, TraceRequest request) {
    request.group = static_cast<std::uint8_t>(phase - 1);
    request.arrival_ns = workload.phases[phase].begin_ns;
    workload.requests.push_back(request);
  };
  TraceRequest request;
  request.prompt_tokens = options.long_prompt;
  request.output_tokens = 16;
  add(2, request);
  request.prompt_tokens = 256;
  request.output_tokens = 64;
  for (std::uint32_t i = 0; i < options.num_burst; ++i)
    add(3, request);
  request.prompt_tokens = std::max(options.max_context / 8, 1u);
  request.output_tokens = std::max(options.max_context / 8, 1u);
  const std::uint64_t each = request.prompt_tokens + request.output_tokens;
  for (std::uint64_t asked = 0; asked < 2 * options.pool_tokens; asked += each)
    add(4, request);
  request = {.prompt_tokens = kVictimPrompt,
             .output_tokens = VictimOutput(options),
             .arrival = Arrival::kClosed};
  workload.requests.insert(workload.requests.end(), kMaxVictimRequests, request);
  return workload;
}

}  // namespace kvrm
