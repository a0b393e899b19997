// SPDX-License-Identifier: Apache-2.0
// What a request asks of the engine, and what comes back.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "grammar/grammar.h"

namespace kvrm {

enum class RequestId : std::uint64_t {};

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy; ties go to the lowest id
  float top_p = 1.0f;        // (0, 1]
  std::int32_t top_k = 0;    // 0: all
  float min_p = 0.0f;        // [0, 1]
  std::uint64_t seed = 0;    // The draw at output token n is a function of (seed, n) alone.
  // Penalties (engine/logit_edits.h says on what, and how).
  float repetition_penalty = 1.0f;   // [kMinRepetitionPenalty, kMaxRepetitionPenalty]
  float presence_penalty = 0.0f;     // at most kMaxPenalty, either sign
  float frequency_penalty = 0.0f;    // the same
  std::int32_t penalty_window = -1;  // last tokens of prompt and output; -1: all
};
inline constexpr float kMinRepetitionPenalty = 0.01f;
inline constexpr float kMaxRepetitionPenalty = 100.0f;
inline constexpr float kMaxPenalty = 100.0f;

struct LogitBias {
  std::int32_t token = 0;
  float bias = 0.0f;  // at most kMaxLogitBias, either sign; -Inf: the token is never drawn
};

// Which tokens may come. All ids < vocab.
struct LogitRules {
  std::vector<LogitBias> bias = {};                       // at most kMaxLogitBiases
  std::vector<std::int32_t> allowed_ids = {};             // at most kMaxAllowedIds; none: all may
  std::vector<std::vector<std::int32_t>> bad_words = {};  // token sequences that never come whole
  std::uint32_t min_tokens = 0;                           // before these no stop id comes
};
inline constexpr float kMaxLogitBias = 100.0f;
inline constexpr std::size_t kMaxLogitBiases = 300;
inline constexpr std::size_t kMaxAllowedIds = 1024;
inline constexpr std::size_t kMaxBadWords = 64;
inline constexpr std::size_t kMaxBadWordTokens = 32;

inline constexpr std::uint32_t kMaxSamples = 128;
inline constexpr std::size_t kMaxSaltBytes = 320;  // of a client 256, and who the client is

// What becomes of the hidden states of the prompt, behind the last norm. A request with pooling has
// no output tokens: it ends with kStop, and its Embedding waits by then.
enum class Pooling : std::uint8_t { kNone, kLast, kMean };

inline constexpr std::uint32_t kMaxTopLogprobs = 20;

struct Request {
  std::vector<std::int32_t> prompt = {};  // 1 .. max_context - 1 tokens, ids < vocab
  std::uint32_t max_tokens = 16;          // at least 1; cut to the rest of the context
  SamplingParams sampling = {};
  LogitRules rules = {};
  // What the output as a whole must be. It can end only by a stop id, so there must be one.
  GrammarSpec grammar = {};
  // The same, compiled on a thread that has the time (GrammarCache); else Submit compiles it.
  SharedGrammar compiled_grammar = {};
  std::vector<std::int32_t> stop_ids = {};  // These end the output and are not part of its text.
  // Outputs of the same prompt, 1 to kMaxSamples. The prompt is computed once and shared. They are
  // requests of their own, whose ids follow one another; the seed of output i is seed + i.
  std::uint32_t num_samples = 1;
  // Log-probabilities of the likeliest tokens at each output token, at most kMaxTopLogprobs.
  std::uint32_t num_top_logprobs = 0;
  // Those of the prompt's tokens, from the second one on, with so many of the likeliest. Given
  // once, whatever num_samples is. The logits of every prompt token are computed for it, so that
  // nothing is taken from the prefix cache.
  std::optional<std::uint32_t> num_prompt_logprobs = {};
  Pooling pooling = Pooling::kNone;  // without samples and logprobs of any kind
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
  // What the request bans and demands leaves no token. It ends like kError.
  kNothingAllowed,
  kTimeout,  // timeout_ms or max_predict_ms has passed.
  kWaited,   // max_wait_ms has passed and nothing was computed.
};
inline constexpr int kNumFinishReasons = 8;

// One output token. The last event of a request, and only it, has finish != kNone; only kStop
// and kLength carry a token, all others -1.
struct TokenEvent {
  RequestId request{};
  std::int32_t token = -1;
  // ln p(token) under the model's distribution, before all edits, temperature and truncation.
  float logprob = 0.0f;
  FinishReason finish = FinishReason::kNone;
  // Prompt tokens whose KV was there already when the request was first admitted.
  std::uint32_t num_cached_tokens = 0;
};

struct TokenLogprob {
  std::int32_t token = -1;
  float logprob = 0.0f;
};

// The likeliest tokens at one position, and the one that is there. They wait before the event that
// they belong to: those of the prompt before its first output token.
struct TopLogprobs {
  RequestId request{};
  std::uint32_t position = 0;  // in prompt and output, of `token`
  TokenLogprob token = {};
  std::uint32_t rank = 0;                                 // of `token`; 1: the likeliest
  std::uint32_t num_top = 0;                              // as asked for, or the vocabulary
  std::array<TokenLogprob, kMaxTopLogprobs> likeliest{};  // [num_top] descending, ties by lower id
};

struct Embedding {
  RequestId request{};
  std::vector<float> values;  // [hidden_dim] pooled, not normalised
};

}  // namespace kvrm
