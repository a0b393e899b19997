// SPDX-License-Identifier: Apache-2.0
// What a request asks of the engine, and what comes back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvrm {

enum class RequestId : std::uint64_t {};

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy; ties go to the lowest id
  float top_p = 1.0f;        // (0, 1]
  std::int32_t top_k = 0;    // 0: all
  float min_p = 0.0f;        // [0, 1]
  std::uint64_t seed = 0;    // The draw at output token n is a function of (seed, n) alone.
};

inline constexpr std::uint32_t kMaxSamples = 128;
inline constexpr std::size_t kMaxSaltBytes = 256;

struct Request {
  std::vector<std::int32_t> prompt = {};  // 1 .. max_context - 1 tokens, ids < vocab
  std::uint32_t max_tokens = 16;          // at least 1; cut to the rest of the context
  SamplingParams sampling = {};
  std::vector<std::int32_t> stop_ids = {};  // These end the output and are not part of its text.
  // Outputs of the same prompt, 1 to kMaxSamples. The prompt is computed once and shared. They are
  // requests of their own, whose ids follow one another; the seed of output i is seed + i.
  std::uint32_t num_samples = 1;
  // Cached prefixes are found only by requests with the same salt. At most kMaxSaltBytes.
  std::string cache_salt = {};

  // Its turn and its time (engine/scheduler.h). Lower priorities come first.
  std::int32_t priority = 0;
  std::uint64_t tenant = 0;          // who shares fairly with others: a key's or a salt's number
  float tenant_weight = 1.0f;        // [1 / 1024, 1024]; the tenant's last one counts
  std::uint32_t timeout_ms = 0;      // from Submit to the last event; 0: none
  std::uint32_t max_wait_ms = 0;     // from Submit to the first step; 0: the engine's own limit
  std::uint32_t max_predict_ms = 0;  // from the first token on; 0: none
};

enum class FinishReason : std::uint8_t {
  kNone,     // More tokens follow.
  kStop,     // A stop id was sampled.
  kLength,   // max_tokens or the context is used up.
  kAborted,  // Cancel was called, or the engine drains.
  kError,    // Non-finite logits; only this request is affected.
  kTimeout,  // timeout_ms or max_predict_ms has passed.
  kWaited,   // max_wait_ms has passed and nothing was computed.
};
inline constexpr int kNumFinishReasons = 7;

// One output token. The last event of a request, and only it, has finish != kNone; only kStop
// and kLength carry a token, all others -1.
struct TokenEvent {
  RequestId request{};
  std::int32_t token = -1;
  // ln p(token) under the model's distribution before temperature and truncation.
  float logprob = 0.0f;
  FinishReason finish = FinishReason::kNone;
  // Prompt tokens whose KV was there already when the request was first admitted.
  std::uint32_t num_cached_tokens = 0;
};

}  // namespace kvrm
