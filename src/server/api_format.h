// SPDX-License-Identifier: Apache-2.0
// Response bodies and server-sent events, in the shapes clients of OpenAI's API rely on
// (docs/http_api.md). Pure functions. Text given here is whole UTF-8.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
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

// llama-server's object; milliseconds.
struct ReplyTimings {
  std::uint64_t num_cached = 0;
  std::uint64_t num_prompt = 0;  // computed
  double prompt_ms = 0;
  std::uint64_t num_predicted = 0;
  double predicted_ms = 0;
};

struct ToolCallPart {
  std::size_t call_idx = 0;
  bool begins = false;
  std::string id = {};  // where it begins
  std::string name = {};
  std::string arguments = {};
};

// What one chunk adds to a choice, or the whole choice.
struct ChoicePart {
  std::string content = {};
  std::string reasoning = {};
  std::vector<ToolCallPart> calls = {};  // of a whole choice: one for each call
  json::value logprobs = nullptr;
  json::value token_ids = nullptr;  // null: not asked for
};

struct ChoiceEnd {
  std::string_view reason;            // "stop", "length" or "tool_calls"
  json::value stop_reason = nullptr;  // the stop string or the client's own stop id
};

// What vLLM's clients may ask for about the prompt; null: not asked for.
struct PromptFacts {
  json::value token_ids = nullptr;
  json::value logprobs = nullptr;
};

struct FinishedChoice {
  ChoicePart part;
  ChoiceEnd end;
  PromptFacts prompt;
};

// Beside a chunk's choice. Null: left out.
struct ChunkExtras {
  const ReplyUsage* usage = nullptr;
  const ReplyTimings* timings = nullptr;
  const PromptFacts* prompt = nullptr;
};

std::string ReplyBody(const ReplyHead& head, std::vector<FinishedChoice> choices,
                      const ReplyUsage& usage, const ReplyTimings& timings);

// Each returns one complete event. RoleEvent is for chat only.
std::string RoleEvent(const ReplyHead& head, std::size_t choice_idx, const ChunkExtras& extras);
std::string PartEvent(const ReplyHead& head, std::size_t choice_idx, ChoicePart part,
                      const ChunkExtras& extras);
// With what is left of the choice's log-probabilities and ids.
std::string FinishEvent(const ReplyHead& head, std::size_t choice_idx, ChoicePart rest,
                        ChoiceEnd end, const ChunkExtras& extras);
std::string UsageEvent(const ReplyHead& head, const ReplyUsage& usage);
std::string ErrorEvent(const ApiError& error);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

// One row of values for each input, in order.
struct EmbeddingReply {
  std::string_view model;
  std::vector<std::vector<float>> rows;
  bool base64 = false;  // of little-endian float32
  std::uint64_t num_prompt_tokens = 0;
};
std::string EmbeddingBody(const EmbeddingReply& reply);
// Cut to the first `dimensions` values, then to length 1; a row of zeros stays.
void Normalise(std::uint32_t dimensions, std::vector<float>* row);

std::string PropsBody(const ModelPort& model, const EnginePort& engine);
// `num_running` of the slots are busy; which ones is not for them to know.
std::string SlotsBody(const EnginePort& engine, std::uint32_t num_running);
std::string ModelBody(const ModelPort& model, std::uint32_t max_context);
std::string ModelListBody(const ModelPort& model, std::uint32_t max_context);

}  // namespace kvrm
