// SPDX-License-Identifier: Apache-2.0
// Response bodies and server-sent events, in the shapes clients of OpenAI's API rely on
// (docs/http_api.md). Pure functions. Text given here is whole UTF-8.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "server/api_error.h"
#include "server/ports.h"

namespace kvrm {

// What every body and chunk of one reply repeats.
struct ReplyHead {
  std::string id;
  std::string_view model;  // outlives the reply
  std::int64_t created_unix = 0;
  bool chat = false;
  bool include_usage = false;  // chunks then carry "usage": null
};

struct ReplyUsage {
  std::uint64_t num_prompt_tokens = 0;  // each prompt once
  std::uint64_t num_cached_tokens = 0;  // of those
  std::uint64_t num_output_tokens = 0;
};

struct FinishedChoice {
  std::string_view text;
  std::string_view finish_reason;  // "stop" or "length"
};

std::string ReplyBody(const ReplyHead& head, std::span<const FinishedChoice> choices,
                      const ReplyUsage& usage);

// Each returns one complete event. RoleEvent is for chat only.
std::string RoleEvent(const ReplyHead& head, std::size_t choice_idx);
std::string TextEvent(const ReplyHead& head, std::size_t choice_idx, std::string_view text);
std::string FinishEvent(const ReplyHead& head, std::size_t choice_idx, std::string_view reason);
std::string UsageEvent(const ReplyHead& head, const ReplyUsage& usage);
std::string ErrorEvent(const ApiError& error);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

std::string ModelBody(const ModelPort& model, std::uint32_t max_context);
std::string ModelListBody(const ModelPort& model, std::uint32_t max_context);

}  // namespace kvrm
