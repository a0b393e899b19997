// SPDX-License-Identifier: Apache-2.0
#include "engine/request_checks.h"

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <utility>

namespace kvrm {
namespace {

Error Invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

Error TooMany(const char* field, std::size_t count, std::size_t most) {
  return Invalid(std::string(field) + " has " + std::to_string(count) + " items; at most " +
                 std::to_string(most) + " are taken");
}

// False for NaN.
bool IsWithin(float value, float low, float high) {
  return value >= low && value <= high;
}

std::optional<Error> ErrorInIds(const char* field, std::span<const std::int32_t> ids,
                                std::uint32_t vocab_size) {
  for (const std::int32_t id : ids) {
    if (id < 0 || static_cast<std::uint32_t>(id) >= vocab_size) {
      return Invalid(std::string(field) + " has token id " + std::to_string(id) +
                     "; ids are below " + std::to_string(vocab_size));
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<Error> ErrorIn(const SamplingParams& sampling) {
  if (!IsWithin(sampling.temperature, 0.0f, std::numeric_limits<float>::max()))
    return Invalid("temperature must be finite and at least 0");
  if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f)) return Invalid("top_p must be in (0, 1]");
  if (!IsWithin(sampling.min_p, 0.0f, 1.0f)) return Invalid("min_p must be in [0, 1]");
  if (sampling.top_k < 0) return Invalid("top_k must be at least 0");
  if (!IsWithin(sampling.repetition_penalty, kMinRepetitionPenalty, kMaxRepetitionPenalty))
    return Invalid("repetition_penalty must be in [0.01, 100]");
  if (!IsWithin(sampling.presence_penalty, -kMaxPenalty, kMaxPenalty))
    return Invalid("presence_penalty must be in [-100, 100]");
  if (!IsWithin(sampling.frequency_penalty, -kMaxPenalty, kMaxPenalty))
    return Invalid("frequency_penalty must be in [-100, 100]");
  if (sampling.penalty_window < -1) return Invalid("penalty_window must be at least -1");
  return std::nullopt;
}

std::optional<Error> ErrorIn(const LogitRules& rules, std::uint32_t vocab_size) {
  if (rules.bias.size() > kMaxLogitBiases)
    return TooMany("logit_bias", rules.bias.size(), kMaxLogitBiases);
  for (const LogitBias& bias : rules.bias) {
    const bool bans = std::isinf(bias.bias) && bias.bias < 0.0f;
    if (!bans && !IsWithin(bias.bias, -kMaxLogitBias, kMaxLogitBias))
      return Invalid("logit_bias must be in [-100, 100]");
    if (std::optional<Error> error = ErrorInIds("logit_bias", {&bias.token, 1}, vocab_size))
      return error;
  }
  if (rules.allowed_ids.size() > kMaxAllowedIds)
    return TooMany("allowed_token_ids", rules.allowed_ids.size(), kMaxAllowedIds);
  if (std::optional<Error> error = ErrorInIds("allowed_token_ids", rules.allowed_ids, vocab_size))
    return error;
  if (rules.bad_words.size() > kMaxBadWords)
    return TooMany("bad_words", rules.bad_words.size(), kMaxBadWords);
  for (const std::vector<std::int32_t>& word : rules.bad_words) {
    if (word.empty() || word.size() > kMaxBadWordTokens) {
      return Invalid("a bad word must have 1 to " + std::to_string(kMaxBadWordTokens) +
                     " tokens, not " + std::to_string(word.size()));
    }
    if (std::optional<Error> error = ErrorInIds("bad_words", word, vocab_size)) return error;
  }
  return std::nullopt;
}

std::optional<Error> ErrorInResults(const Request& request) {
  const std::string most = std::to_string(kMaxTopLogprobs);
  if (request.num_top_logprobs > kMaxTopLogprobs)
    return Invalid("top_logprobs must be at most " + most);
  if (request.num_prompt_logprobs.value_or(0) > kMaxTopLogprobs)
    return Invalid("prompt_logprobs must be at most " + most);
  if (request.pooling != Pooling::kNone &&
      (request.num_samples > 1 || request.num_top_logprobs > 0 || request.num_prompt_logprobs)) {
    return Invalid("an embedding has neither samples nor log-probabilities");
  }
  return std::nullopt;
}

}  // namespace kvrm
