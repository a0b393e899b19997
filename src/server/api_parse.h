// SPDX-License-Identifier: Apache-2.0
// Request bodies to values. Pure functions: no clock, no model, any thread.
//
// Every field is checked for type and range before it is narrowed, and the error names it. Integers
// are read exactly, never through a double. Fields that would change the answer in a way this
// server cannot yet give are refused by name; other unknown fields are listed in `ignored`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/json.h"
#include "server/api_error.h"
#include "server/sampling_fields.h"
#include "server/tool_fields.h"

namespace kvrm {

inline constexpr std::size_t kMaxClientSaltBytes = 256;

struct ApiLimits {
  std::size_t max_prompts = 32;
  std::size_t max_prompt_bytes = 4u << 20;  // text of one request
  std::size_t max_prompt_ids = 16u << 20;   // the largest context there is
  std::size_t max_messages = 2048;
  std::size_t max_stops = 8;
  std::size_t max_stop_bytes = 128;
  std::size_t max_stop_ids = 64;
  std::size_t max_template_kwargs = 32;
  std::uint32_t max_samples = 16;  // of one prompt; at most kMaxSamples
};

using Prompt = std::variant<std::string, std::vector<std::int32_t>>;

struct GenerationFields {
  SamplingFields sampling;
  std::optional<std::uint32_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_ids;
  LogprobFields logprobs;
  GrammarField grammar;
  std::uint32_t num_samples = 1;  // "n": choices for each prompt
  std::string cache_salt;         // at most kMaxClientSaltBytes
  std::int32_t priority = 0;      // lower first
  std::uint32_t timeout_ms = 0;   // 0: none
  std::uint32_t max_predict_ms = 0;
  bool ignore_eos = false;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  bool only_echo = false;  // with echo, max_tokens of 0: nothing of the output is wanted
  bool skip_special_tokens = true;
  bool include_stop = false;  // the stop string is part of the answer
  bool return_token_ids = false;
  bool timings_per_token = false;
  std::optional<std::uint32_t> truncate_prompt;  // only so many last tokens of the prompt

  std::vector<Prompt> prompts;  // completions

  json::array messages;  // chat; content is always a string or null here
  json::object template_kwargs;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool split_reasoning = true;
  ToolFields tools;

  std::vector<std::string> ignored;  // names, shortened, at most 8
};

ApiResult<GenerationFields> ParseCompletion(std::string_view body, const ApiLimits& limits);
ApiResult<GenerationFields> ParseChat(std::string_view body, const ApiLimits& limits);

struct EmbeddingFields {
  std::vector<Prompt> inputs;
  std::optional<std::uint32_t> dimensions;
  std::optional<std::uint32_t> truncate_prompt;
  bool base64 = false;
  Pooling pooling = Pooling::kLast;
  std::vector<std::string> ignored;  // as above
};
ApiResult<EmbeddingFields> ParseEmbeddings(std::string_view body, const ApiLimits& limits);

struct TokenizeFields {
  std::variant<std::string, json::array> input;  // text, or chat messages
  bool add_special = true;
  bool parse_special = false;
  bool with_pieces = false;
  bool with_strings = false;  // vLLM's return_token_strs
  bool add_generation_prompt = true;
  ToolFields tools;  // with messages
  json::object template_kwargs;
};
ApiResult<TokenizeFields> ParseTokenize(std::string_view body, const ApiLimits& limits);

ApiResult<std::vector<std::int32_t>> ParseDetokenize(std::string_view body,
                                                     const ApiLimits& limits);

}  // namespace kvrm
