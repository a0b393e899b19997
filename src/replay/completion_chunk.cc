// SPDX-License-Identifier: Apache-2.0
#include "replay/completion_chunk.h"

#include <algorithm>

#include "base/json.h"
#include "replay/http_reply.h"

namespace kvrm {
namespace {

const json::value* Member(const json::value* value, std::string_view name) {
  const json::object* object = value == nullptr ? nullptr : value->if_object();
  return object == nullptr ? nullptr : object->if_contains(name);
}

std::string TextOf(const json::value* value) {
  return value == nullptr || !value->is_string() ? std::string() : std::string(value->get_string());
}

std::uint32_t CountOf(const json::value* value) {
  if (value == nullptr || !value->is_int64()) return 0;
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(value->get_int64(), 0, ~std::uint32_t{0}));
}

bool HasText(const json::value* value) {
  return value != nullptr && value->is_string() && !value->get_string().empty();
}

// A chunk without text still brings a token when bytes of a character are missing; not so the role
// that a chat begins with, nor the reason at the end.
bool BringsOutput(const json::value& choice, bool finished) {
  const json::value* delta = Member(&choice, "delta");
  if (delta == nullptr) return HasText(Member(&choice, "text")) || !finished;
  if (HasText(Member(delta, "content")) || HasText(Member(delta, "reasoning_content")) ||
      HasText(Member(delta, "reasoning")) || Member(delta, "tool_calls") != nullptr) {
    return true;
  }
  return !finished && Member(delta, "role") == nullptr;
}

void TakeChoice(const json::value& choice, CompletionChunk* chunk) {
  if (CountOf(Member(&choice, "index")) != 0) return;
  chunk->finish = TextOf(Member(&choice, "finish_reason"));
  chunk->has_output = BringsOutput(choice, !chunk->finish.empty());
}

void TakeUsage(const json::value& usage, CompletionChunk* chunk) {
  if (!usage.is_object()) return;
  chunk->has_usage = true;
  chunk->prompt_tokens = CountOf(Member(&usage, "prompt_tokens"));
  chunk->output_tokens = CountOf(Member(&usage, "completion_tokens"));
  chunk->cached_tokens = CountOf(Member(Member(&usage, "prompt_tokens_details"), "cached_tokens"));
}

}  // namespace

CompletionChunk ParseCompletionChunk(std::string_view data) {
  CompletionChunk chunk;
  if (data == "[DONE]") {
    chunk.done = true;
    return chunk;
  }
  const Result<json::value> value = ParseJson(data, {.max_bytes = kMaxSseEventBytes});
  if (!value || !value->is_object()) {
    chunk.error = value ? "an event is no JSON object" : value.error().message;
    return chunk;
  }
  if (const json::value* error = Member(&*value, "error"); error != nullptr && !error->is_null()) {
    chunk.error = TextOf(Member(error, "message"));
    if (chunk.error.empty()) chunk.error = "an error without a message";
    return chunk;
  }
  const json::value* choices = Member(&*value, "choices");
  if (choices != nullptr && choices->is_array()) {
    for (const json::value& choice : choices->get_array())
      TakeChoice(choice, &chunk);
  }
  if (const json::value* usage = Member(&*value, "usage"); usage != nullptr)
    TakeUsage(*usage, &chunk);
  return chunk;
}

}  // namespace kvrm
