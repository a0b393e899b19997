// SPDX-License-Identifier: Apache-2.0
// Log-probabilities in the shapes of the two completion routes and of vLLM. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"

namespace kvrm {

// A token's bytes, as they are.
using TokenBytes = std::function<std::string(std::int32_t)>;

struct ScoredToken {
  std::int32_t token = -1;
  bool is_first = false;  // of a prompt: it has no probability
  float logprob = 0.0f;
  std::vector<TokenLogprob> likeliest = {};
};

// "logprobs" of a chat choice: {"content": [{"token", "logprob", "bytes", "top_logprobs"}]}.
json::object ChatLogprobs(std::span<const ScoredToken> tokens, const TokenBytes& bytes);
// Of a completion's: {"tokens", "token_logprobs", "top_logprobs", "text_offset"}. `text_offset` is
// where the next token begins, in characters, and is moved on.
json::object CompletionLogprobs(std::span<const ScoredToken> tokens, const TokenBytes& bytes,
                                std::size_t* text_offset);
// vLLM's "prompt_logprobs": null for the first token, then {"id": {"logprob", "rank",
// "decoded_token"}} with the token itself and the likeliest.
json::array PromptLogprobs(std::span<const TopLogprobs> prompt, const TokenBytes& bytes);

}  // namespace kvrm
