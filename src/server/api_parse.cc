// SPDX-License-Identifier: Apache-2.0
#include "server/api_parse.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "engine/request.h"
#include "server/json_fields.h"
#include "server/request_json.h"

namespace kvrm {
namespace {

constexpr std::size_t kMaxIgnoredNames = 8;
constexpr std::int64_t kMaxTokenId = std::numeric_limits<std::int32_t>::max();

// Fields that change the answer in a way this server cannot give yet. `neutral` is the value, in
// JSON, that asks for nothing; null, false, and empty strings, arrays and objects always do.
struct Refused {
  std::string_view name;
  std::optional<std::int64_t> neutral;
};
constexpr std::array kRefused = {
    Refused{"best_of", 1},         Refused{"dry_multiplier", 0},
    Refused{"xtc_probability", 0}, Refused{"typical_p", 1},
    Refused{"mirostat", 0},        Refused{"post_sampling_probs", {}},
    Refused{"functions", {}},      Refused{"suffix", {}},
    Refused{"chat_template", {}},  Refused{"documents", {}},
    Refused{"lora", {}},           Refused{"prompt_embeds", {}},
    Refused{"audio", {}},          Refused{"use_beam_search", {}},
    Refused{"samplers", {}},       Refused{"thinking_token_budget", {}},
};

// Names that clients send and that change no answer of this server.
constexpr std::array<std::string_view, 20> kNoEffect = {
    "user",          "metadata",          "store",        "service_tier",
    "request_id",    "session_id",        "id_slot",      "cache_prompt",
    "n_keep",        "sse_ping_interval", "verbosity",    "safety_identifier",
    "function_call", "prompt_cache_key",  "modalities",   "include_reasoning",
    "prediction",    "return_progress",   "mirostat_tau", "mirostat_eta"};

bool AsksForNothing(const json::value& value, const std::optional<std::int64_t>& neutral) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    default:
      return neutral && value.to_number<double>() == static_cast<double>(*neutral);
  }
}

void RefuseUnsupported(JsonFields& fields) {
  for (const Refused& refused : kRefused) {
    const json::value* value = fields.Get(refused.name);
    if (value == nullptr || AsksForNothing(*value, refused.neutral)) continue;
    fields.Fail(refused.name, std::string(refused.name) + " is not supported yet");
  }
  for (const std::string_view name : kNoEffect)
    fields.Get(name);
  fields.Bool("spaces_between_special_tokens");
}

void ReadMaxTokens(JsonFields& fields, GenerationFields& request) {
  constexpr std::int64_t kMax = std::numeric_limits<std::uint32_t>::max();
  const auto keep = [&request](std::int64_t value) {
    request.max_tokens = static_cast<std::uint32_t>(value);
  };
  // -1 is llama-server's "as many as fit".
  if (const auto n_predict = fields.Integer("n_predict", -1, kMax)) {
    if (*n_predict == 0) fields.Fail("n_predict", "n_predict must be at least 1");
    if (*n_predict > 0) keep(*n_predict);
  }
  // A text is scored by asking for its echo and no output.
  const bool may_be_none = fields.Bool("echo").value_or(false);
  if (const auto max_tokens = fields.Integer("max_tokens", may_be_none ? 0 : 1, kMax)) {
    request.only_echo = *max_tokens == 0;
    keep(std::max<std::int64_t>(*max_tokens, 1));
  }
  if (const auto max_tokens = fields.Integer("max_completion_tokens", 1, kMax)) keep(*max_tokens);
}

void AddStop(JsonFields& fields, const json::value& stop, const ApiLimits& limits,
             std::vector<std::string>& stops) {
  if (!stop.is_string()) {
    return fields.Fail("stop", "stop must be a string or an array of strings");
  }
  const std::string_view text = stop.get_string();
  if (text.size() > limits.max_stop_bytes) {
    return fields.Fail(
        "stop", "a stop string is longer than " + std::to_string(limits.max_stop_bytes) + " bytes");
  }
  if (!text.empty()) stops.emplace_back(text);
}

void ReadStop(JsonFields& fields, const ApiLimits& limits, GenerationFields& request) {
  if (const json::value* stop = fields.Get("stop")) {
    if (!stop->is_array()) {
      AddStop(fields, *stop, limits, request.stop);
    } else if (const json::array* stops = fields.Array("stop", limits.max_stops)) {
      for (const json::value& item : *stops)
        AddStop(fields, item, limits, request.stop);
    }
  }
  request.stop_ids = ReadTokenIds(fields, "stop_token_ids", limits.max_stop_ids);
}

void ReadSamples(JsonFields& fields, const ApiLimits& limits, GenerationFields& request) {
  const std::uint32_t most = std::min(limits.max_samples, kMaxSamples);
  if (const auto n = fields.Integer("n", 1, most)) {
    request.num_samples = static_cast<std::uint32_t>(*n);
  }
}

void ReadCacheSalt(JsonFields& fields, std::string& cache_salt) {
  const std::optional<std::string_view> salt = fields.String("cache_salt");
  if (!salt) return;
  if (salt->size() > kMaxClientSaltBytes) {
    return fields.Fail("cache_salt", "cache_salt is longer than " +
                                         std::to_string(kMaxClientSaltBytes) + " bytes");
  }
  cache_salt = *salt;
}

// When it is its turn, and how long it may take: seconds in all, milliseconds from the first token.
void ReadTurn(JsonFields& fields, GenerationFields& request) {
  constexpr std::int64_t kMaxPriority = std::numeric_limits<std::int32_t>::max();
  constexpr std::int64_t kDayMs = 86'400'000;
  const auto priority = fields.Integer("priority", -kMaxPriority, kMaxPriority);
  request.priority = static_cast<std::int32_t>(priority.value_or(0));
  const double timeout_s = fields.Number("timeout", 0, kDayMs / 1000).value_or(0);
  request.timeout_ms = static_cast<std::uint32_t>(std::ceil(timeout_s * 1000));
  // Negative: none, as in llama-server.
  const std::int64_t predict_ms = fields.Integer("t_max_predict_ms", -1, kDayMs).value_or(0);
  request.max_predict_ms = static_cast<std::uint32_t>(std::max<std::int64_t>(predict_ms, 0));
}

void ReadStreaming(JsonFields& fields, GenerationFields& request) {
  request.stream = fields.Bool("stream").value_or(false);
  request.timings_per_token = fields.Bool("timings_per_token").value_or(false);
  const json::object* options = fields.Object("stream_options");
  if (options == nullptr) return;
  JsonFields nested(*options);
  request.continuous_usage = nested.Bool("continuous_usage_stats").value_or(false);
  request.include_usage = nested.Bool("include_usage").value_or(false);
  if (nested.error()) fields.Fail("stream_options", "stream_options: " + nested.error()->message);
}

std::optional<std::uint32_t> ReadTruncation(JsonFields& fields) {
  constexpr std::int64_t kMax = std::numeric_limits<std::uint32_t>::max();
  const auto most = fields.Integer("truncate_prompt_tokens", 1, kMax);
  if (!most) return std::nullopt;
  return static_cast<std::uint32_t>(*most);
}

// What chat and completions have in common.
void ReadShared(JsonFields& fields, const ApiLimits& limits, GenerationFields& request) {
  fields.String("model");
  ReadSampling(fields, request.sampling);
  ReadMaxTokens(fields, request);
  ReadStop(fields, limits, request);
  ReadSamples(fields, limits, request);
  ReadCacheSalt(fields, request.cache_salt);
  ReadTurn(fields, request);
  ReadStreaming(fields, request);
  request.grammar = ReadGrammar(fields);
  request.truncate_prompt = ReadTruncation(fields);
  request.ignore_eos = fields.Bool("ignore_eos").value_or(false);
  request.echo = fields.Bool("echo").value_or(false);
  request.skip_special_tokens = fields.Bool("skip_special_tokens").value_or(true);
  request.include_stop = fields.Bool("include_stop_str_in_output").value_or(false);
  request.return_token_ids = fields.Bool("return_token_ids").value_or(false);
  request.return_token_ids |= fields.Bool("return_tokens").value_or(false);
  RefuseUnsupported(fields);
}

ApiResult<json::object> ParseBody(std::string_view body) {
  Result<json::value> parsed = ParseRequestJson(body);
  if (!parsed) return ApiError{.status = 400, .message = parsed.error().message};
  if (!parsed->is_object()) {
    return ApiError{.status = 400, .message = "the request body must be a JSON object"};
  }
  return std::move(parsed->get_object());
}

std::vector<std::int32_t> ReadIds(JsonFields& fields, std::string_view name,
                                  const json::array& items, const ApiLimits& limits) {
  std::vector<std::int32_t> ids;
  if (items.size() > limits.max_prompt_ids) {
    fields.Fail(name, std::string(name) + " has more than " +
                          std::to_string(limits.max_prompt_ids) + " tokens");
    return ids;
  }
  ids.reserve(items.size());
  for (const json::value& item : items) {
    const std::optional<std::int64_t> id = ExactInteger(item);
    if (!id || *id < 0 || *id > kMaxTokenId) {
      fields.Fail(name, std::string(name) + " must hold token ids");
      return ids;
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

// string, array of strings, array of ids, array of arrays of ids.
void ReadPrompt(JsonFields& fields, const std::string& name, const ApiLimits& limits,
                std::vector<Prompt>& prompts) {
  const std::string shape =
      name + " must be a string, an array of strings, an array of token ids or an array of those";
  const json::value* prompt = fields.Get(name);
  if (prompt == nullptr) return fields.Fail(name, name + " is required");
  if (const json::string* text = prompt->if_string()) {
    prompts.emplace_back(std::string(*text));
  } else if (const json::array* items = prompt->if_array(); items != nullptr && !items->empty()) {
    if (items->front().is_number()) {
      prompts.emplace_back(ReadIds(fields, name, *items, limits));
    } else {
      if (items->size() > limits.max_prompts) {
        return fields.Fail(
            name, name + " has more than " + std::to_string(limits.max_prompts) + " items");
      }
      for (const json::value& item : *items) {
        if (item.kind() != items->front().kind()) return fields.Fail(name, shape);
        if (const json::string* item_text = item.if_string()) {
          prompts.emplace_back(std::string(*item_text));
        } else if (const json::array* ids = item.if_array()) {
          prompts.emplace_back(ReadIds(fields, name, *ids, limits));
        } else {
          return fields.Fail(name, shape);
        }
      }
    }
  } else {
    return fields.Fail(name, shape);
  }
  std::size_t total_bytes = 0;
  for (const Prompt& item : prompts) {
    if (const auto* item_text = std::get_if<std::string>(&item)) total_bytes += item_text->size();
  }
  if (total_bytes > limits.max_prompt_bytes) {
    fields.Fail(name,
                name + " is longer than " + std::to_string(limits.max_prompt_bytes) + " bytes");
  }
}

// Content parts become one string; parts other than text are refused.
std::optional<std::string> JoinParts(const json::array& parts) {
  std::string joined;
  for (const json::value& part : parts) {
    const json::object* object = part.if_object();
    if (object == nullptr) return std::nullopt;
    const json::value* type = object->if_contains("type");
    const json::value* text = object->if_contains("text");
    if (type == nullptr || !type->is_string() || type->get_string() != "text" || text == nullptr ||
        !text->is_string()) {
      return std::nullopt;
    }
    joined += text->get_string();
  }
  return joined;
}

// Checks one message and brings it to the shape templates expect. Returns its bytes of text.
std::size_t ReadMessage(JsonFields& fields, json::object& message) {
  static constexpr std::array<std::string_view, 5> kRoles = {"system", "developer", "user",
                                                             "assistant", "tool"};
  json::value* role = message.if_contains("role");
  if (role == nullptr || !role->is_string() ||
      std::find(kRoles.begin(), kRoles.end(), role->get_string()) == kRoles.end()) {
    fields.Fail("messages", "a message's role must be system, user, assistant or tool");
    return 0;
  }
  // Templates know the older name.
  if (role->get_string() == "developer") role->emplace_string() = "system";
  json::value* content = message.if_contains("content");
  if (content == nullptr) content = &message["content"];
  if (const json::array* parts = content->if_array()) {
    std::optional<std::string> joined = JoinParts(*parts);
    if (!joined) {
      fields.Fail("messages", "content parts other than text are not supported yet");
      return 0;
    }
    content->emplace_string() = *joined;
  } else if (!content->is_string() && !content->is_null()) {
    fields.Fail("messages", "a message's content must be a string or an array of parts");
    return 0;
  }
  std::size_t num_bytes = content->is_string() ? content->get_string().size() : 0;
  if (!ReadMessageCalls(message, &num_bytes))
    fields.Fail("messages", "a message's tool_calls must be an array of function calls");
  return num_bytes;
}

void ReadMessages(JsonFields& fields, const ApiLimits& limits, json::array& messages) {
  const json::array* given = fields.Array("messages", limits.max_messages);
  if (given == nullptr || given->empty()) {
    return fields.Fail("messages", "messages must be an array of at least one message");
  }
  std::size_t total_bytes = 0;
  for (const json::value& item : *given) {
    if (!item.is_object()) return fields.Fail("messages", "a message must be an object");
    json::object message = item.get_object();
    total_bytes += ReadMessage(fields, message);
    messages.push_back(std::move(message));
  }
  if (total_bytes > limits.max_prompt_bytes) {
    fields.Fail("messages", "messages hold more than " + std::to_string(limits.max_prompt_bytes) +
                                " bytes of text");
  }
}

void ReadTemplateKwargs(JsonFields& fields, const ApiLimits& limits, json::object& kwargs) {
  // Names the server itself gives to the template, and names of its functions.
  static constexpr std::array<std::string_view, 12> kReserved = {
      "messages",      "tools",           "documents", "add_generation_prompt",
      "bos_token",     "eos_token",       "unk_token", "pad_token",
      "chat_template", "raise_exception", "namespace", "strftime_now"};
  const json::object* given = fields.Object("chat_template_kwargs");
  if (given == nullptr) return;
  if (given->size() > limits.max_template_kwargs) {
    return fields.Fail("chat_template_kwargs", "chat_template_kwargs has more than " +
                                                   std::to_string(limits.max_template_kwargs) +
                                                   " keys");
  }
  for (const auto& member : *given) {
    const bool reserved =
        std::find(kReserved.begin(), kReserved.end(), member.key()) != kReserved.end();
    if (reserved || member.value().is_structured()) {
      return fields.Fail(
          "chat_template_kwargs",
          "chat_template_kwargs must hold scalars under names that are not reserved");
    }
    kwargs.emplace(member.key(), member.value());
  }
}

void ReadChatOnly(JsonFields& fields, GenerationFields& request) {
  request.continue_final_message = fields.Bool("continue_final_message").value_or(false);
  const std::optional<bool> adds = fields.Bool("add_generation_prompt");
  request.add_generation_prompt = adds.value_or(!request.continue_final_message);
  if (request.continue_final_message && request.add_generation_prompt) {
    fields.Fail("continue_final_message",
                "continue_final_message and add_generation_prompt exclude each other");
  }
  if (const auto effort = fields.String("reasoning_effort"))
    request.template_kwargs.emplace("reasoning_effort", *effort);
  if (const auto format = fields.String("reasoning_format")) {
    if (*format != "none" && *format != "auto" && *format != "deepseek")
      fields.Fail("reasoning_format", "reasoning_format must be none, auto or deepseek");
    request.split_reasoning = *format != "none";
  }
}

template <typename T>
ApiResult<T> Finish(const JsonFields& fields, T value) {
  if (fields.error()) return *fields.error();
  return value;
}

}  // namespace

ApiResult<GenerationFields> ParseCompletion(std::string_view body, const ApiLimits& limits) {
  const ApiResult<json::object> parsed = ParseBody(body);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  GenerationFields request;
  ReadPrompt(fields, "prompt", limits, request.prompts);
  ReadShared(fields, limits, request);
  request.logprobs = ReadLogprobs(fields, false);
  if (const json::value* tools = fields.Get("tools"); tools && !AsksForNothing(*tools, {}))
    fields.Fail("tools", "tools are for chat");
  request.ignored = fields.Unknown(kMaxIgnoredNames);
  return Finish(fields, std::move(request));
}

ApiResult<GenerationFields> ParseChat(std::string_view body, const ApiLimits& limits) {
  const ApiResult<json::object> parsed = ParseBody(body);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  GenerationFields request;
  ReadMessages(fields, limits, request.messages);
  ReadTemplateKwargs(fields, limits, request.template_kwargs);
  ReadChatOnly(fields, request);
  ReadShared(fields, limits, request);
  request.logprobs = ReadLogprobs(fields, true);
  request.tools = ReadTools(fields);
  if (request.echo) fields.Fail("echo", "echo is not supported for chat");
  request.ignored = fields.Unknown(kMaxIgnoredNames);
  return Finish(fields, std::move(request));
}

ApiResult<EmbeddingFields> ParseEmbeddings(std::string_view body, const ApiLimits& limits) {
  const ApiResult<json::object> parsed = ParseBody(body);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  EmbeddingFields request;
  fields.String("model");
  // llama-server's own route has "content".
  ReadPrompt(fields, fields.Get("input") == nullptr && fields.Get("content") ? "content" : "input",
             limits, request.inputs);
  if (const auto format = fields.String("encoding_format")) {
    if (*format != "float" && *format != "base64")
      fields.Fail("encoding_format", "encoding_format must be float or base64");
    request.base64 = *format == "base64";
  }
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  if (const auto dimensions = fields.Integer("dimensions", 1, kMax))
    request.dimensions = static_cast<std::uint32_t>(*dimensions);
  if (const auto pooling = fields.String("pooling")) {
    if (*pooling != "last" && *pooling != "mean")
      fields.Fail("pooling", "pooling must be last or mean");
    request.pooling = *pooling == "mean" ? Pooling::kMean : Pooling::kLast;
  }
  request.truncate_prompt = ReadTruncation(fields);
  fields.String("user");
  request.ignored = fields.Unknown(kMaxIgnoredNames);
  return Finish(fields, std::move(request));
}

ApiResult<TokenizeFields> ParseTokenize(std::string_view body, const ApiLimits& limits) {
  const ApiResult<json::object> parsed = ParseBody(body);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  TokenizeFields request;
  const std::optional<std::string_view> content = fields.String("content");
  const std::optional<std::string_view> prompt = fields.String("prompt");
  if (const std::optional<std::string_view> text = content ? content : prompt) {
    if (text->size() > limits.max_prompt_bytes) {
      fields.Fail(content ? "content" : "prompt",
                  "the text is longer than " + std::to_string(limits.max_prompt_bytes) + " bytes");
    }
    request.input = std::string(*text);
  } else if (fields.Get("messages") != nullptr) {
    json::array messages;
    ReadMessages(fields, limits, messages);
    request.input = std::move(messages);
  } else {
    fields.Fail("content", "content, prompt or messages is required");
  }
  // The two spellings differ in their default too: llama-server's adds nothing.
  request.add_special = !content;
  if (const auto add = fields.Bool("add_special")) request.add_special = *add;
  if (const auto add = fields.Bool("add_special_tokens")) request.add_special = *add;
  request.parse_special = fields.Bool("parse_special").value_or(false);
  request.with_strings = fields.Bool("return_token_strs").value_or(false);
  request.tools = ReadTools(fields);
  ReadTemplateKwargs(fields, limits, request.template_kwargs);
  request.with_pieces = fields.Bool("with_pieces").value_or(false);
  request.add_generation_prompt = fields.Bool("add_generation_prompt").value_or(true);
  return Finish(fields, std::move(request));
}

ApiResult<std::vector<std::int32_t>> ParseDetokenize(std::string_view body,
                                                     const ApiLimits& limits) {
  const ApiResult<json::object> parsed = ParseBody(body);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  JsonFields fields(std::get<json::object>(parsed));
  const json::array* tokens = fields.Array("tokens", limits.max_prompt_ids);
  std::vector<std::int32_t> ids;
  if (tokens != nullptr) {
    ids = ReadIds(fields, "tokens", *tokens, limits);
  } else {
    fields.Fail("tokens", "tokens must be an array of token ids");
  }
  return Finish(fields, std::move(ids));
}

}  // namespace kvrm
