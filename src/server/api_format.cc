// SPDX-License-Identifier: Apache-2.0
#include "server/api_format.h"

#include <boost/json/serialize.hpp>
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

// One chunk with one choice: `payload` is its "delta" (chat) or "text".
std::string ChunkEvent(const ReplyHead& head, std::size_t choice_idx, json::value payload,
                       json::value finish_reason) {
  json::object chunk = Envelope(head, head.chat ? "chat.completion.chunk" : "text_completion");
  json::object choice = {{"index", choice_idx},
                         {head.chat ? "delta" : "text", std::move(payload)},
                         {"logprobs", nullptr},
                         {"finish_reason", std::move(finish_reason)}};
  chunk["choices"] = json::array{std::move(choice)};
  if (head.include_usage) chunk["usage"] = nullptr;
  return Event(chunk);
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

std::string ReplyBody(const ReplyHead& head, std::span<const FinishedChoice> choices,
                      const ReplyUsage& usage) {
  json::object body = Envelope(head, head.chat ? "chat.completion" : "text_completion");
  json::array list;
  for (const FinishedChoice& choice : choices) {
    json::object item = {{"index", list.size()}};
    if (head.chat) {
      item["message"] = {{"role", "assistant"}, {"content", choice.text}};
    } else {
      item["text"] = choice.text;
    }
    item["logprobs"] = nullptr;
    item["finish_reason"] = choice.finish_reason;
    list.push_back(std::move(item));
  }
  body["choices"] = std::move(list);
  body["usage"] = UsageObject(usage);
  return json::serialize(body);
}

std::string RoleEvent(const ReplyHead& head, std::size_t choice_idx) {
  return ChunkEvent(head, choice_idx, json::object{{"role", "assistant"}, {"content", ""}},
                    nullptr);
}

std::string TextEvent(const ReplyHead& head, std::size_t choice_idx, std::string_view text) {
  if (!head.chat) return ChunkEvent(head, choice_idx, json::string(text), nullptr);
  return ChunkEvent(head, choice_idx, json::object{{"content", text}}, nullptr);
}

std::string FinishEvent(const ReplyHead& head, std::size_t choice_idx, std::string_view reason) {
  if (!head.chat) return ChunkEvent(head, choice_idx, json::string(""), json::string(reason));
  return ChunkEvent(head, choice_idx, json::object(), json::string(reason));
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

std::string ModelBody(const ModelPort& model, std::uint32_t max_context) {
  return json::serialize(ModelObject(model, max_context));
}

std::string ModelListBody(const ModelPort& model, std::uint32_t max_context) {
  json::object body = {{"object", "list"}, {"data", json::array{ModelObject(model, max_context)}}};
  return json::serialize(body);
}

}  // namespace kvrm
