// SPDX-License-Identifier: Apache-2.0
#include "server/api_format.h"

#include <algorithm>
#include <bit>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <type_traits>
#include <utility>

#include "base/json.h"
#include "server/version.h"

namespace kvrm {
namespace {

const char* ErrorType(const ApiError& error) {
  if (error.excess) return "exceed_context_size_error";
  switch (error.status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 500:
      return "server_error";
    case 501:
      return "not_supported_error";
    case 503:
      return "unavailable_error";
    default:
      return "invalid_request_error";
  }
}

json::object Envelope(const ReplyHead& head, std::string_view object) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created_unix},
          {"model", head.model},
          {"system_fingerprint", kFingerprint}};
}

json::object UsageObject(const ReplyUsage& usage) {
  return {{"prompt_tokens", usage.num_prompt_tokens},
          {"completion_tokens", usage.num_output_tokens},
          {"total_tokens", usage.num_prompt_tokens + usage.num_output_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.num_cached_tokens}}}};
}

std::string Event(const json::object& data) {
  return "data: " + json::serialize(data) + "\n\n";
}

json::object TimingsObject(const ReplyTimings& timings) {
  const auto each = [](double ms, std::uint64_t count) {
    return count > 0 ? ms / static_cast<double>(count) : 0.0;
  };
  const auto per_second = [](double ms, std::uint64_t count) {
    return ms > 0 ? 1000.0 * static_cast<double>(count) / ms : 0.0;
  };
  return {{"cache_n", timings.num_cached},
          {"prompt_n", timings.num_prompt},
          {"prompt_ms", timings.prompt_ms},
          {"prompt_per_token_ms", each(timings.prompt_ms, timings.num_prompt)},
          {"prompt_per_second", per_second(timings.prompt_ms, timings.num_prompt)},
          {"predicted_n", timings.num_predicted},
          {"predicted_ms", timings.predicted_ms},
          {"predicted_per_token_ms", each(timings.predicted_ms, timings.num_predicted)},
          {"predicted_per_second", per_second(timings.predicted_ms, timings.num_predicted)}};
}

json::array CallList(std::vector<ToolCallPart> calls, bool with_index) {
  json::array list;
  for (ToolCallPart& call : calls) {
    json::object item;
    if (with_index) item["index"] = call.call_idx;
    json::object function;
    if (call.begins) {
      item["id"] = std::move(call.id);
      item["type"] = "function";
      function["name"] = std::move(call.name);
    }
    function["arguments"] = std::move(call.arguments);
    item["function"] = std::move(function);
    list.push_back(std::move(item));
  }
  return list;
}

// llama-server's name for it, and vLLM's.
void AddReasoning(std::string reasoning, json::object& target) {
  if (reasoning.empty()) return;
  target["reasoning_content"] = reasoning;
  target["reasoning"] = std::move(reasoning);
}

// A chunk's "delta" (chat) or "text". Where all text is held back a delta is empty, as the last is:
// clients take any content, "" too, for the end of reasoning or the beginning of an answer.
json::value Payload(const ReplyHead& head, ChoicePart& part) {
  if (!head.chat) return json::string(part.content);
  json::object delta;
  if (!part.content.empty()) delta["content"] = std::move(part.content);
  AddReasoning(std::move(part.reasoning), delta);
  if (!part.calls.empty()) delta["tool_calls"] = CallList(std::move(part.calls), true);
  return delta;
}

// vLLM has them in the choice of a completion and beside the choices of a chat.
void AddPrompt(const ReplyHead& head, PromptFacts prompt, json::object& body,
               json::object& choice) {
  json::object& target = head.chat ? body : choice;
  if (!prompt.token_ids.is_null()) target["prompt_token_ids"] = std::move(prompt.token_ids);
  if (!prompt.logprobs.is_null()) target["prompt_logprobs"] = std::move(prompt.logprobs);
}

struct Chunk {
  json::value payload;
  json::value logprobs = nullptr;
  json::value token_ids = nullptr;
  const ChoiceEnd* end = nullptr;
};

std::string ChunkEvent(const ReplyHead& head, std::size_t choice_idx, Chunk chunk,
                       const ChunkExtras& extras) {
  json::object body = Envelope(head, head.chat ? "chat.completion.chunk" : "text_completion");
  json::object choice = {{"index", choice_idx},
                         {head.chat ? "delta" : "text", std::move(chunk.payload)},
                         {"logprobs", std::move(chunk.logprobs)},
                         {"finish_reason", nullptr}};
  if (chunk.end != nullptr) {
    choice["finish_reason"] = chunk.end->reason;
    choice["stop_reason"] = chunk.end->stop_reason;
  }
  if (!chunk.token_ids.is_null()) choice["token_ids"] = std::move(chunk.token_ids);
  if (extras.prompt != nullptr) AddPrompt(head, *extras.prompt, body, choice);
  body["choices"] = json::array{std::move(choice)};
  if (extras.usage != nullptr)
    body["usage"] = UsageObject(*extras.usage);
  else if (head.include_usage)
    body["usage"] = nullptr;
  if (extras.timings != nullptr) body["timings"] = TimingsObject(*extras.timings);
  return Event(body);
}

// Of the values' bytes, little-endian.
std::string Base64OfFloats(std::span<const float> values) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  for (const float value : values) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8)
      bytes += static_cast<char>(bits >> shift & 0xffu);
  }
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k)
      group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (std::size_t k = 0; k < 4; ++k)
      text += k <= count ? kDigits[group >> (18 - 6 * k) & 63u] : '=';
  }
  return text;
}

json::object ErrorObject(const ApiError& error) {
  json::object inner = {{"message", error.message},
                        {"type", ErrorType(error)},
                        {"param", nullptr},
                        {"code", error.status}};
  if (!error.param.empty()) inner["param"] = error.param;
  if (error.excess) {
    inner["n_prompt_tokens"] = error.excess->num_prompt_tokens;
    inner["n_ctx"] = error.excess->max_context;
  }
  return {{"error", std::move(inner)}};
}

json::object ModelObject(const ModelPort& model, std::uint32_t max_context) {
  return {{"id", model.served_name},
          {"object", "model"},
          {"created", model.created_unix},
          {"owned_by", "kvrm"},
          {"max_model_len", max_context},
          {"meta",
           {{"n_ctx_train", model.trained_context},
            {"n_vocab", model.vocab_size},
            {"n_embd", model.hidden_dim},
            {"n_params", model.num_parameters},
            {"size", model.weight_bytes}}}};
}

}  // namespace

std::string ErrorBody(const ApiError& error) {
  return json::serialize(ErrorObject(error));
}

std::string ReplyBody(const ReplyHead& head, std::vector<FinishedChoice> choices,
                      const ReplyUsage& usage, const ReplyTimings& timings) {
  json::object body = Envelope(head, head.chat ? "chat.completion" : "text_completion");
  json::array list;
  for (FinishedChoice& choice : choices) {
    json::object item = {{"index", list.size()}};
    if (head.chat) {
      json::object message = {{"role", "assistant"}, {"content", nullptr}};
      const bool only_calls = choice.part.content.empty() && !choice.part.calls.empty();
      if (!only_calls) message["content"] = std::move(choice.part.content);
      AddReasoning(std::move(choice.part.reasoning), message);
      if (!choice.part.calls.empty())
        message["tool_calls"] = CallList(std::move(choice.part.calls), false);
      item["message"] = std::move(message);
    } else {
      item["text"] = std::move(choice.part.content);
    }
    item["logprobs"] = std::move(choice.part.logprobs);
    item["finish_reason"] = choice.end.reason;
    item["stop_reason"] = std::move(choice.end.stop_reason);
    if (!choice.part.token_ids.is_null()) item["token_ids"] = std::move(choice.part.token_ids);
    AddPrompt(head, std::move(choice.prompt), body, item);
    list.push_back(std::move(item));
  }
  body["choices"] = std::move(list);
  body["usage"] = UsageObject(usage);
  body["timings"] = TimingsObject(timings);
  return json::serialize(body);
}

std::string RoleEvent(const ReplyHead& head, std::size_t choice_idx, const ChunkExtras& extras) {
  return ChunkEvent(head, choice_idx,
                    {.payload = json::object{{"role", "assistant"}, {"content", ""}}}, extras);
}

std::string PartEvent(const ReplyHead& head, std::size_t choice_idx, ChoicePart part,
                      const ChunkExtras& extras) {
  json::value payload = Payload(head, part);
  return ChunkEvent(head, choice_idx,
                    {.payload = std::move(payload),
                     .logprobs = std::move(part.logprobs),
                     .token_ids = std::move(part.token_ids)},
                    extras);
}

std::string FinishEvent(const ReplyHead& head, std::size_t choice_idx, ChoicePart rest,
                        ChoiceEnd end, const ChunkExtras& extras) {
  json::value payload = Payload(head, rest);
  return ChunkEvent(head, choice_idx,
                    {.payload = std::move(payload),
                     .logprobs = std::move(rest.logprobs),
                     .token_ids = std::move(rest.token_ids),
                     .end = &end},
                    extras);
}

std::string UsageEvent(const ReplyHead& head, const ReplyUsage& usage) {
  json::object chunk = Envelope(head, head.chat ? "chat.completion.chunk" : "text_completion");
  chunk["choices"] = json::array();
  chunk["usage"] = UsageObject(usage);
  return Event(chunk);
}

std::string ErrorEvent(const ApiError& error) {
  return Event(ErrorObject(error));
}

void Normalise(std::uint32_t dimensions, std::vector<float>* row) {
  row->resize(std::min<std::size_t>(row->size(), dimensions));
  double sum = 0;
  for (const float value : *row)
    sum += static_cast<double>(value) * static_cast<double>(value);
  if (sum <= 0) return;
  const double scale = 1.0 / std::sqrt(sum);
  for (float& value : *row)
    value = static_cast<float>(static_cast<double>(value) * scale);
}

std::string EmbeddingBody(const EmbeddingReply& reply) {
  json::array data;
  for (const std::vector<float>& row : reply.rows) {
    json::object item = {{"object", "embedding"}, {"index", data.size()}};
    if (reply.base64) {
      item["embedding"] = Base64OfFloats(row);
    } else {
      json::array values;
      values.reserve(row.size());
      for (const float value : row)
        values.push_back(static_cast<double>(value));
      item["embedding"] = std::move(values);
    }
    data.push_back(std::move(item));
  }
  const json::object body = {
      {"object", "list"},
      {"data", std::move(data)},
      {"model", reply.model},
      {"usage",
       {{"prompt_tokens", reply.num_prompt_tokens}, {"total_tokens", reply.num_prompt_tokens}}}};
  return json::serialize(body);
}

std::string PropsBody(const ModelPort& model, const EnginePort& engine) {
  const auto number = [](const auto& value) -> json::value {
    if (!value) return nullptr;
    if constexpr (std::is_floating_point_v<std::remove_cvref_t<decltype(*value)>>)
      return static_cast<double>(*value);
    else
      return *value;
  };
  const json::object params = {{"temperature", number(model.defaults.temperature)},
                               {"top_k", number(model.defaults.top_k)},
                               {"top_p", number(model.defaults.top_p)}};
  const json::object body = {
      {"default_generation_settings", {{"n_ctx", engine.max_context}, {"params", params}}},
      {"total_slots", engine.max_rows},
      {"model_alias", model.served_name},
      {"chat_template", model.chat_template},
      {"chat_template_tool_format", ToolFormatName(model.tool_format)},
      {"bos_token", model.bos_text},
      {"eos_token", model.eos_text},
      {"modalities", {{"vision", false}, {"audio", false}}},
      {"build_info", kFingerprint}};
  return json::serialize(body);
}

std::string SlotsBody(const EnginePort& engine, std::uint32_t num_running) {
  json::array slots;
  for (std::uint32_t i = 0; i < engine.max_rows; ++i) {
    slots.push_back(
        json::object{{"id", i}, {"n_ctx", engine.max_context}, {"is_processing", i < num_running}});
  }
  return json::serialize(slots);
}

std::string ModelBody(const ModelPort& model, std::uint32_t max_context) {
  return json::serialize(ModelObject(model, max_context));
}

std::string ModelListBody(const ModelPort& model, std::uint32_t max_context) {
  json::object body = {{"object", "list"}, {"data", json::array{ModelObject(model, max_context)}}};
  return json::serialize(body);
}

}  // namespace kvrm
