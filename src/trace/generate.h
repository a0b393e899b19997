// SPDX-License-Identifier: Apache-2.0
// Workload generators: the families that a study of KV movement needs, from a seed.
//
// Lengths and sharing are the family's; when requests arrive is chosen beside it. The same options
// give the same workload on every machine with the same libm. Threading: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "trace/workload.h"

namespace kvrm {

enum class WorkloadFamily : std::uint8_t {
  kUniform,        // prompt 512, output 256
  kMixed,          // log-normal: prompt median 512, sigma 0.9, <= 8,192; output 256, 1.0, <= 4,096
  kLongTail,       // prompt log-normal 256; output Pareto from 32 with alpha 1.2, <= 8,192
  kEosHeavy,       // prompt log-normal 256; output geometric with mean 24
  kBursty,         // as mixed with a quarter of its lengths; arrivals on-off unless told otherwise
  kSharedPrefix,   // 15 system prompts of 512 to 2,048 tokens, Zipf 1.0, and 16 to 256 of one's own
  kMultiTurn,      // conversations of 3 to 8 turns, think time, every prompt begins with the last
  kLongContext,    // as mixed; one in twenty has a prompt of 32,768 to 131,072 tokens
  kFork,           // prompt log-normal 512, 4 samples of it
  kFragmentation,  // a long output beside a short one, in turns, so that every second block frees
  kChat,           // log-normal: prompt median 128, 16-1,024; output median 96, 16-256
};
inline constexpr int kNumWorkloadFamilies = 11;
// "uniform", "mixed", "long-tail", "eos-heavy", "bursty", "shared-prefix", "multi-turn",
// "long-context", "fork", "fragmentation", "chat".
const char* WorkloadFamilyName(WorkloadFamily family);
std::optional<WorkloadFamily> FindWorkloadFamily(std::string_view name);

enum class ArrivalProcess : std::uint8_t {
  kPoisson,
  kGamma,   // gaps with a coefficient of variation of `cv`
  kOnOff,   // Markov-modulated: calm, and bursts of 10 times its rate for 2 to 5 s
  kSteady,  // equal gaps
  kClosed,  // num_clients, each with one request at a time
};
inline constexpr int kNumArrivalProcesses = 5;
// "poisson", "gamma", "on-off", "steady", "closed".
const char* ArrivalProcessName(ArrivalProcess process);
std::optional<ArrivalProcess> FindArrivalProcess(std::string_view name);

struct GenerateOptions {
  WorkloadFamily family = WorkloadFamily::kMixed;
  ArrivalProcess arrivals = ArrivalProcess::kPoisson;
  std::uint64_t seed = 1;
  std::uint32_t num_requests = 200;  // 1 .. kMaxTraceRequests
  double rate_rps = 4.0;             // of open arrivals: the mean
  double cv = 3.0;                   // of kGamma
  std::uint32_t num_clients = 8;     // of kClosed
  double think_s = 0.0;              // mean of an exponential, kClosed and kMultiTurn
  double length_scale = 1.0;         // of prompts and outputs, for small models
};
Workload Generate(const GenerateOptions& options);

// What disturbs streams that decode steadily, each in a phase of its own: nothing, one long prompt,
// many requests at once, and more than the pool holds.
struct VictimOptions {
  std::uint64_t seed = 1;
  std::uint32_t num_victims = 4;  // closed loop, prompts of 64 tokens
  // 0: the rest of the context, or a share of half the pool where that is less: a victim that
  // begins anew disturbs the others.
  std::uint32_t victim_output = 0;
  double phase_s = 10.0;
  std::uint32_t long_prompt = 16384;
  std::uint32_t num_burst = 30;      // prompts of 256 tokens, outputs of 64
  std::uint64_t pool_tokens = 0;     // the last phase asks for twice as many
  std::uint32_t max_context = 4096;  // a request of the last phase has a quarter of it
};
Workload GenerateVictim(const VictimOptions& options);

}  // namespace kvrm
