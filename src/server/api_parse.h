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

namespace kvrm {

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

struct SamplingFields {
  std::optional<double> temperature;  // 0..2
  std::optional<double> top_p;        // (0, 1]
  std::optional<double> min_p;        // [0, 1]
  std::optional<std::int32_t> top_k;  // 0: all
  std::optional<std::uint64_t> seed;
};

using Prompt = std::variant<std::string, std::vector<std::int32_t>>;

struct GenerationFields {
  SamplingFields sampling;
  std::optional<std::uint32_t> max_tokens;
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_ids;
  std::uint32_t num_samples = 1;  // "n": choices for each prompt
  std::string cache_salt;         // at most kMaxSaltBytes
  std::int32_t priority = 0;      // lower first
  std::uint32_t timeout_ms = 0;   // 0: none
  std::uint32_t max_predict_ms = 0;
  bool ignore_eos = false;
  bool stream = false;
  bool include_usage = false;
  bool echo = false;

  std::vector<Prompt> prompts;  // completions

  json::array messages;  // chat; content is always a string or null here
  json::object template_kwargs;
  bool add_generation_prompt = true;

  std::vector<std::string> ignored;  // names, shortened, at most 8
};

ApiResult<GenerationFields> ParseCompletion(std::string_view body, const ApiLimits& limits);
ApiResult<GenerationFields> ParseChat(std::string_view body, const ApiLimits& limits);

struct TokenizeFields {
  std::variant<std::string, json::array> input;  // text, or chat messages
  bool add_special = true;
  bool parse_special = false;
  bool with_pieces = false;
  bool add_generation_prompt = true;
};
ApiResult<TokenizeFields> ParseTokenize(std::string_view body, const ApiLimits& limits);

ApiResult<std::vector<std::int32_t>> ParseDetokenize(std::string_view body,
                                                     const ApiLimits& limits);

}  // namespace kvrm
