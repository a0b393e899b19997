// SPDX-License-Identifier: Apache-2.0
#include "server/prepare.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <functional>
#include <span>
#include <utility>

#include "base/log.h"
#include "base/utf8.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;
using Outcome = std::variant<GenerationPlan, std::string, ApiError>;

// Through the stream, whose text is whole UTF-8 whatever the ids.
std::string TextOf(std::span<const std::int32_t> ids, const ModelPort& model) {
  const TextStream stream = model.open_stream(StreamDecoder::Start::kMessage);
  std::string text;
  for (const std::int32_t id : ids)
    text += stream(id);
  return text + stream(std::nullopt);
}

// A token's bytes: a string where they are text on their own, else an array of numbers.
json::value PieceValue(std::string_view bytes) {
  if (IsValidUtf8(bytes)) return json::string(bytes);
  json::array numbers;
  for (const char c : bytes)
    numbers.push_back(static_cast<unsigned char>(c));
  return numbers;
}

ApiResult<Ids> EncodeChat(json::array messages, json::object kwargs, bool add_generation_prompt,
                          std::int64_t now_unix, const ModelPort& model) {
  ChatInputs inputs;
  inputs.messages = std::move(messages);
  inputs.kwargs = std::move(kwargs);
  inputs.add_generation_prompt = add_generation_prompt;
  inputs.bos_token = model.bos_text;
  inputs.eos_token = model.eos_text;
  inputs.now_unix = now_unix;
  const Result<std::vector<RenderedPiece>> rendered = model.render(inputs);
  if (!rendered) {
    const bool unsupported = rendered.error().code == ErrorCode::kUnsupported;
    return ApiError{.status = unsupported ? 501 : 400,
                    .message = rendered.error().message,
                    .param = "messages"};
  }
  std::vector<TextPiece> pieces;
  for (const RenderedPiece& piece : *rendered)
    pieces.push_back({piece.text, piece.trusted});
  // Templates write out the beginning-of-sequence token where the model wants one.
  return model.encode_pieces(pieces, false);
}

ApiResult<Ids> EncodePrompt(const Prompt& prompt, const ModelPort& model) {
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    // The whole text of a completion is the client's own, control tokens included.
    return model.encode(*text, {.add_special = true, .parse_special = true});
  }
  const Ids& ids = std::get<Ids>(prompt);
  for (const std::int32_t id : ids) {
    if (static_cast<std::uint32_t>(id) >= model.vocab_size) {
      return ApiError{.status = 400,
                      .message = "token id " + std::to_string(id) + " is not in the vocabulary",
                      .param = "prompt"};
    }
  }
  return ids;
}

SamplingParams Sampling(const SamplingFields& fields, const GenerationDefaults& defaults,
                        std::uint64_t seed) {
  SamplingParams sampling;
  sampling.temperature = defaults.temperature.value_or(1.0f);
  if (fields.temperature) sampling.temperature = static_cast<float>(*fields.temperature);
  sampling.top_p = defaults.top_p.value_or(1.0f);
  if (fields.top_p) sampling.top_p = static_cast<float>(*fields.top_p);
  sampling.top_k = fields.top_k.value_or(defaults.top_k.value_or(0));
  sampling.min_p = static_cast<float>(fields.min_p.value_or(0.0));
  sampling.seed = fields.seed.value_or(seed);
  return sampling;
}

// Fills in what one prompt asks of the engine, or says why it cannot be run.
ApiResult<PromptPlan> PlanPrompt(Ids prompt, const GenerationFields& fields, const Job& job,
                                 const ModelPort& model, const PrepareLimits& limits) {
  const char* const param = job.kind == JobKind::kChat ? "messages" : "prompt";
  if (prompt.empty()) {
    return ApiError{.status = 400, .message = "the prompt has no tokens", .param = param};
  }
  if (prompt.size() >= limits.max_context) {
    return ApiError{.status = 400,
                    .message = "the prompt has " + std::to_string(prompt.size()) +
                               " tokens; the context holds " + std::to_string(limits.max_context) +
                               " with at least one for the output",
                    .param = param,
                    .excess = ContextExcess{prompt.size(), limits.max_context}};
  }
  const auto rest = static_cast<std::uint32_t>(limits.max_context - prompt.size());
  PromptPlan plan;
  plan.request.max_tokens = std::min(rest, fields.max_tokens.value_or(limits.default_max_tokens));
  plan.request.sampling = Sampling(fields.sampling, model.defaults, job.seed);
  if (!fields.ignore_eos) plan.request.stop_ids = model.stop_ids;
  for (const std::int32_t id : fields.stop_ids)
    plan.request.stop_ids.push_back(id);
  plan.request.num_samples = fields.num_samples;
  plan.request.cache_salt = fields.cache_salt;
  plan.request.priority = fields.priority;
  plan.request.timeout_ms = fields.timeout_ms;
  plan.request.max_predict_ms = fields.max_predict_ms;
  plan.request.tenant = std::hash<std::string>{}(fields.cache_salt);
  plan.request.prompt = std::move(prompt);
  return plan;
}

Outcome PrepareGeneration(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  const bool chat = job.kind == JobKind::kChat;
  ApiResult<GenerationFields> parsed =
      chat ? ParseChat(job.body, limits.api) : ParseCompletion(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  GenerationFields& fields = std::get<GenerationFields>(parsed);
  if (!fields.ignored.empty()) {
    std::string names;
    for (const std::string& name : fields.ignored)
      names += (names.empty() ? "" : ",") + name;
    Log(LogLevel::kInfo, "fields_ignored", {{"names", names}});
  }

  GenerationPlan plan;
  plan.chat = chat;
  plan.stream = fields.stream;
  plan.include_usage = fields.include_usage;
  plan.stop = fields.stop;
  const std::size_t num_prompts = chat ? 1 : fields.prompts.size();
  if (num_prompts * fields.num_samples > limits.max_requests) {
    // A full queue would say the same of it for ever.
    return ApiError{.status = 400,
                    .message = "the request asks for " +
                               std::to_string(num_prompts * fields.num_samples) +
                               " choices; at most " + std::to_string(limits.max_requests) +
                               " run or wait at once",
                    .param = fields.num_samples > 1 ? "n" : "prompt"};
  }
  for (std::size_t i = 0; i < num_prompts; ++i) {
    ApiResult<Ids> ids =
        chat ? EncodeChat(std::move(fields.messages), std::move(fields.template_kwargs),
                          fields.add_generation_prompt, job.now_unix, model)
             : EncodePrompt(fields.prompts[i], model);
    if (const ApiError* error = ErrorOf(ids)) return *error;
    ApiResult<PromptPlan> prompt =
        PlanPrompt(std::move(std::get<Ids>(ids)), fields, job, model, limits);
    if (const ApiError* error = ErrorOf(prompt)) return *error;
    plan.prompts.push_back(std::move(std::get<PromptPlan>(prompt)));
    if (fields.echo) {
      const auto* text = std::get_if<std::string>(&fields.prompts[i]);
      plan.prompts.back().echo =
          text != nullptr ? *text : TextOf(plan.prompts.back().request.prompt, model);
    }
  }
  return plan;
}

Outcome PrepareTokenize(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  ApiResult<TokenizeFields> parsed = ParseTokenize(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  TokenizeFields& fields = std::get<TokenizeFields>(parsed);
  ApiResult<Ids> encoded;
  if (const auto* text = std::get_if<std::string>(&fields.input)) {
    encoded = model.encode(
        *text, {.add_special = fields.add_special, .parse_special = fields.parse_special});
  } else {
    encoded = EncodeChat(std::move(std::get<json::array>(fields.input)), {},
                         fields.add_generation_prompt, job.now_unix, model);
  }
  if (const ApiError* error = ErrorOf(encoded)) return *error;
  const Ids& ids = std::get<Ids>(encoded);
  json::array tokens;
  for (const std::int32_t id : ids) {
    if (fields.with_pieces) {
      tokens.push_back(json::object{{"id", id}, {"piece", PieceValue(model.token_bytes(id))}});
    } else {
      tokens.push_back(id);
    }
  }
  const json::object body = {
      {"tokens", std::move(tokens)}, {"count", ids.size()}, {"max_model_len", limits.max_context}};
  return json::serialize(body);
}

Outcome PrepareDetokenize(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  const ApiResult<Ids> parsed = ParseDetokenize(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  for (const std::int32_t id : std::get<Ids>(parsed)) {
    if (static_cast<std::uint32_t>(id) >= model.vocab_size) {
      return ApiError{.status = 400,
                      .message = "token id " + std::to_string(id) + " is not in the vocabulary",
                      .param = "tokens"};
    }
  }
  const std::string text = TextOf(std::get<Ids>(parsed), model);
  const json::object body = {{"content", text}, {"prompt", text}};
  return json::serialize(body);
}

}  // namespace

Prepared Prepare(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  Prepared prepared{.exchange = job.exchange, .request_id = job.request_id, .outcome = {}};
  switch (job.kind) {
    case JobKind::kChat:
    case JobKind::kCompletion:
      prepared.outcome = PrepareGeneration(job, model, limits);
      break;
    case JobKind::kTokenize:
      prepared.outcome = PrepareTokenize(job, model, limits);
      break;
    case JobKind::kDetokenize:
      prepared.outcome = PrepareDetokenize(job, model, limits);
      break;
  }
  return prepared;
}

}  // namespace kvrm
