// SPDX-License-Identifier: Apache-2.0
#include "server/prepare.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include "base/log.h"
#include "base/utf8.h"
#include "engine/request_checks.h"
#include "server/reasoning.h"

namespace kvrm {
namespace {

using Ids = std::vector<std::int32_t>;
using Outcome = std::variant<GenerationPlan, std::string, ApiError>;

// Through the stream, whose text is whole UTF-8 whatever the ids.
std::string TextOf(std::span<const std::int32_t> ids, const ModelPort& model, bool special) {
  const TextStream stream = model.open_stream(StreamDecoder::Start::kMessage, special);
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

struct Chat {
  json::array messages;
  json::array tools = {};  // empty: none
  json::object kwargs = {};
  bool add_generation_prompt = true;
  bool continue_final_message = false;
};

// Into the system message, for a template that would not show them.
void TellOfTools(const json::array& tools, json::array& messages) {
  const std::string text = ToolInstructions(tools);
  if (!messages.empty()) {
    json::object& first = messages.front().get_object();
    if (first.at("role").get_string() == "system" && first.at("content").is_string()) {
      first["content"] = std::string(first.at("content").get_string()) + "\n\n" + text;
      return;
    }
  }
  messages.insert(messages.begin(), json::object{{"role", "system"}, {"content", text}});
}

// Drops what the template puts behind the text of the final message. False: it is not there.
bool CutBehind(std::string_view content, std::vector<RenderedPiece>& pieces) {
  while (!content.empty() && (content.back() == ' ' || content.back() == '\n'))
    content.remove_suffix(1);  // Templates trim.
  for (std::size_t i = pieces.size(); i-- > 0;) {
    const std::size_t at = pieces[i].text.rfind(content);
    if (at == std::string::npos || pieces[i].trusted || content.empty()) continue;
    pieces[i].text.resize(at + content.size());
    pieces.resize(i + 1);
    return true;
  }
  return false;
}

ApiResult<std::vector<RenderedPiece>> RenderChat(Chat chat, std::int64_t now_unix,
                                                 const ModelPort& model) {
  std::string final_content;
  if (chat.continue_final_message) {
    const json::object& final_message = chat.messages.back().get_object();
    if (final_message.at("content").is_string())
      final_content = final_message.at("content").get_string();
  }
  ChatInputs inputs;
  if (!chat.tools.empty() && !model.takes_tools) TellOfTools(chat.tools, chat.messages);
  if (!chat.tools.empty() && model.takes_tools) inputs.tools = std::move(chat.tools);
  inputs.messages = std::move(chat.messages);
  inputs.kwargs = std::move(chat.kwargs);
  inputs.add_generation_prompt = chat.add_generation_prompt;
  inputs.bos_token = model.bos_text;
  inputs.eos_token = model.eos_text;
  inputs.now_unix = now_unix;
  Result<std::vector<RenderedPiece>> rendered = model.render(inputs);
  if (!rendered) {
    const bool unsupported = rendered.error().code == ErrorCode::kUnsupported;
    return ApiError{.status = unsupported ? 501 : 400,
                    .message = rendered.error().message,
                    .param = "messages"};
  }
  if (chat.continue_final_message && !CutBehind(final_content, *rendered)) {
    return ApiError{.status = 400,
                    .message =
                        "continue_final_message needs a final message whose text the "
                        "template writes out",
                    .param = "continue_final_message"};
  }
  return *std::move(rendered);
}

Ids EncodePieces(std::span<const RenderedPiece> rendered, const ModelPort& model) {
  std::vector<TextPiece> pieces;
  for (const RenderedPiece& piece : rendered)
    pieces.push_back({piece.text, piece.trusted});
  // Templates write out the beginning-of-sequence token where the model wants one.
  return model.encode_pieces(pieces, false);
}

ApiResult<Ids> EncodeChat(Chat chat, std::int64_t now_unix, const ModelPort& model) {
  const ApiResult<std::vector<RenderedPiece>> rendered =
      RenderChat(std::move(chat), now_unix, model);
  if (const ApiError* error = ErrorOf(rendered)) return *error;
  return EncodePieces(std::get<std::vector<RenderedPiece>>(rendered), model);
}

Chat ChatOf(GenerationFields& fields) {
  Chat chat = {.messages = std::move(fields.messages),
               .kwargs = std::move(fields.template_kwargs),
               .add_generation_prompt = fields.add_generation_prompt,
               .continue_final_message = fields.continue_final_message};
  if (fields.tools.choice != ToolFields::Choice::kNone) chat.tools = fields.tools.tools;
  return chat;
}

// The whole text of a completion is the client's own, control tokens included.
ApiResult<Ids> EncodePrompt(const Prompt& prompt, const char* param, bool parse_special,
                            const ModelPort& model) {
  if (const auto* text = std::get_if<std::string>(&prompt))
    return model.encode(*text, {.add_special = true, .parse_special = parse_special});
  const Ids& ids = std::get<Ids>(prompt);
  for (const std::int32_t id : ids) {
    if (static_cast<std::uint32_t>(id) >= model.vocab_size) {
      return ApiError{.status = 400,
                      .message = "token id " + std::to_string(id) + " is not in the vocabulary",
                      .param = param};
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
  sampling.repetition_penalty = static_cast<float>(fields.repetition_penalty);
  sampling.presence_penalty = static_cast<float>(fields.presence_penalty);
  sampling.frequency_penalty = static_cast<float>(fields.frequency_penalty);
  sampling.penalty_window = fields.penalty_window;
  return sampling;
}

// Texts among the fields become tokens here; ids are checked against the vocabulary.
ApiResult<LogitRules> Rules(const SamplingFields& fields, const ModelPort& model) {
  static constexpr EncodeOptions kPlain = {.add_special = false, .parse_special = false};
  LogitRules rules;
  for (const BiasField& bias : fields.bias) {
    if (const auto* id = std::get_if<std::int32_t>(&bias.token)) {
      rules.bias.push_back({.token = *id, .bias = bias.bias});
      continue;
    }
    for (const std::int32_t id : model.encode(std::get<std::string>(bias.token), kPlain))
      rules.bias.push_back({.token = id, .bias = bias.bias});
  }
  for (const std::string& word : fields.bad_words) {
    // At the beginning of a text, and behind another word.
    for (const std::string& text : {word, " " + word}) {
      Ids ids = model.encode(text, kPlain);
      if (ids.empty() || ids.size() > kMaxBadWordTokens) continue;
      if (std::find(rules.bad_words.begin(), rules.bad_words.end(), ids) == rules.bad_words.end())
        rules.bad_words.push_back(std::move(ids));
    }
  }
  rules.allowed_ids = fields.allowed_ids;
  rules.min_tokens = fields.min_tokens;
  if (std::optional<Error> error = ErrorIn(rules, model.vocab_size)) {
    std::string param = error->message.substr(0, error->message.find(' '));
    return ApiError{.status = 400, .message = error->message, .param = std::move(param)};
  }
  return rules;
}

// Fills in what one prompt asks of the engine, or says why it cannot be run.
ApiResult<PromptPlan> PlanPrompt(Ids prompt, const GenerationFields& fields, const Job& job,
                                 const ModelPort& model, const PrepareLimits& limits) {
  const char* const param = job.kind == JobKind::kChat         ? "messages"
                            : job.kind == JobKind::kEmbeddings ? "input"
                                                               : "prompt";
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
  // Holders of different keys share no prefix: what one has cached must not show in another's
  // times.
  if (job.key_idx) plan.request.cache_salt = "key " + std::to_string(*job.key_idx) + ' ';
  plan.request.cache_salt += fields.cache_salt;
  plan.request.priority = fields.priority;
  plan.request.timeout_ms = fields.timeout_ms;
  plan.request.max_predict_ms = fields.max_predict_ms;
  plan.request.tenant = std::hash<std::string>{}(plan.request.cache_salt);
  plan.request.num_top_logprobs = fields.logprobs.output.value_or(0);
  plan.request.num_prompt_logprobs = fields.logprobs.prompt;
  if (fields.echo && fields.logprobs.output) {
    plan.request.num_prompt_logprobs =
        std::max(*fields.logprobs.output, fields.logprobs.prompt.value_or(0));
  }
  plan.request.prompt = std::move(prompt);
  return plan;
}

void LogIgnored(const std::vector<std::string>& ignored) {
  if (ignored.empty()) return;
  std::string names;
  for (const std::string& name : ignored)
    names += (names.empty() ? "" : ",") + name;
  Log(LogLevel::kInfo, "fields_ignored", {{"names", names}});
}

std::optional<ApiError> TooManyChoices(std::size_t num_choices, const PrepareLimits& limits,
                                       std::string param) {
  if (num_choices <= limits.max_requests) return std::nullopt;
  // A full queue would say the same of it for ever.
  return ApiError{.status = 400,
                  .message = "the request asks for " + std::to_string(num_choices) +
                             " choices; at most " + std::to_string(limits.max_requests) +
                             " run or wait at once",
                  .param = std::move(param)};
}

bool IsForced(const ToolFields& tools) {
  return tools.choice == ToolFields::Choice::kRequired ||
         tools.choice == ToolFields::Choice::kNamed;
}

// The form that the output must have: the request's own, or that of a call that must come. Null:
// none.
ApiResult<SharedGrammar> GrammarOf(const GenerationFields& fields, GrammarCache* grammars) {
  const bool is_forced = IsForced(fields.tools);
  const std::string param = is_forced ? "tool_choice" : fields.grammar.param;
  if (is_forced && fields.grammar.spec.kind != GrammarKind::kNone) {
    return ApiError{.status = 400,
                    .message = "tool_choice and " + fields.grammar.param + " exclude each other",
                    .param = "tool_choice"};
  }
  const GrammarSpec spec = is_forced ? ForcedCallGrammar(fields.tools) : fields.grammar.spec;
  if (spec.kind == GrammarKind::kNone) return SharedGrammar();
  if (grammars == nullptr) {
    return ApiError{.status = 400,
                    .message = param + ": forms of the output are not supported here",
                    .param = param};
  }
  Result<SharedGrammar> compiled = grammars->Get(spec);
  if (compiled) return *std::move(compiled);
  return ApiError{
      .status = 400, .message = param + ": " + compiled.error().message, .param = param};
}

bool MakesJson(const GenerationFields& fields) {
  const GrammarKind kind = fields.grammar.spec.kind;
  return IsForced(fields.tools) || kind == GrammarKind::kJsonSchema ||
         kind == GrammarKind::kJsonObject;
}

ChoiceTextOptions TextOptions(const GenerationFields& fields, bool chat, const ModelPort& model) {
  ChoiceTextOptions options = {.stop = fields.stop,
                               .include_stop = fields.include_stop,
                               .special = !fields.skip_special_tokens};
  if (!chat) return options;
  options.split_reasoning = fields.split_reasoning && model.may_reason;
  const ToolFields& tools = fields.tools;
  const bool has_channels = model.tool_format == ToolFormat::kHarmony;
  const bool is_without = tools.choice == ToolFields::Choice::kNone;
  if (is_without && !has_channels) return options;
  options.tools = ToolParserOptions{
      .format = model.takes_tools || has_channels ? model.tool_format : ToolFormat::kJson,
      .names = tools.names,
      .tools = tools.tools,
      .max_calls = is_without       ? 0
                   : tools.parallel ? kMaxToolCalls
                                    : 1};
  if (tools.choice == ToolFields::Choice::kRequired) options.tools->format = ToolFormat::kJson;
  if (tools.choice == ToolFields::Choice::kNamed) {
    options.tools->format = ToolFormat::kNamed;
    options.tools->names = {tools.named};
  }
  options.special = true;  // The marks of calls are control tokens in some families.
  return options;
}

GenerationPlan PlanOf(const GenerationFields& fields, bool chat, const ModelPort& model) {
  return {.chat = chat,
          .stream = fields.stream,
          .include_usage = fields.include_usage,
          .continuous_usage = fields.continuous_usage,
          .timings_per_token = fields.timings_per_token,
          .logprobs = fields.logprobs.output.has_value(),
          .echo_logprobs = fields.echo && fields.logprobs.output.has_value(),
          .prompt_logprobs = fields.logprobs.prompt.has_value(),
          .only_echo = fields.only_echo,
          .return_token_ids = fields.return_token_ids,
          .text = TextOptions(fields, chat, model),
          .client_stop_ids = fields.stop_ids,
          .prompts = {},
          .embedding = {}};
}

void KeepLast(const std::optional<std::uint32_t>& count, Ids& ids) {
  if (count && ids.size() > *count) ids.erase(ids.begin(), ids.end() - std::ptrdiff_t(*count));
}

// The prompt's tokens, and whether it ends by letting the model think.
ApiResult<Ids> ChatPrompt(GenerationFields& fields, const Job& job, const ModelPort& model,
                          bool* starts_in_reasoning) {
  ApiResult<std::vector<RenderedPiece>> rendered = RenderChat(ChatOf(fields), job.now_unix, model);
  if (const ApiError* error = ErrorOf(rendered)) return *error;
  const auto& pieces = std::get<std::vector<RenderedPiece>>(rendered);
  *starts_in_reasoning =
      !pieces.empty() && pieces.back().trusted && EndsInReasoning(pieces.back().text);
  return EncodePieces(pieces, model);
}

Outcome PrepareGeneration(const Job& job, const ModelPort& model, const PrepareLimits& limits,
                          GrammarCache* grammars) {
  const bool chat = job.kind == JobKind::kChat;
  ApiResult<GenerationFields> parsed =
      chat ? ParseChat(job.body, limits.api) : ParseCompletion(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  GenerationFields& fields = std::get<GenerationFields>(parsed);
  LogIgnored(fields.ignored);
  const std::size_t num_prompts = chat ? 1 : fields.prompts.size();
  if (const auto error = TooManyChoices(num_prompts * fields.num_samples, limits,
                                        fields.num_samples > 1 ? "n" : "prompt")) {
    return *error;
  }
  const ApiResult<SharedGrammar> grammar = GrammarOf(fields, grammars);
  if (const ApiError* error = ErrorOf(grammar)) return *error;
  const ApiResult<LogitRules> rules = Rules(fields.sampling, model);
  if (const ApiError* error = ErrorOf(rules)) return *error;

  GenerationPlan plan = PlanOf(fields, chat, model);
  for (std::size_t i = 0; i < num_prompts; ++i) {
    ApiResult<Ids> ids = chat ? ChatPrompt(fields, job, model, &plan.text.starts_in_reasoning)
                              : EncodePrompt(fields.prompts[i], "prompt", true, model);
    if (const ApiError* error = ErrorOf(ids)) return *error;
    // A form holds from the first token: what is JSON thinks nothing before it.
    if (MakesJson(fields)) plan.text.starts_in_reasoning = false;
    KeepLast(fields.truncate_prompt, std::get<Ids>(ids));
    ApiResult<PromptPlan> prompt =
        PlanPrompt(std::move(std::get<Ids>(ids)), fields, job, model, limits);
    if (const ApiError* error = ErrorOf(prompt)) return *error;
    plan.prompts.push_back(std::move(std::get<PromptPlan>(prompt)));
    Request& request = plan.prompts.back().request;
    request.rules = std::get<LogitRules>(rules);
    request.compiled_grammar = std::get<SharedGrammar>(grammar);
    if (fields.echo) {
      const auto* text = std::get_if<std::string>(&fields.prompts[i]);
      plan.prompts.back().echo = text != nullptr && !fields.truncate_prompt
                                     ? *text
                                     : TextOf(request.prompt, model, plan.text.special);
    }
  }
  return plan;
}

Outcome PrepareEmbeddings(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  ApiResult<EmbeddingFields> parsed = ParseEmbeddings(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  const EmbeddingFields& fields = std::get<EmbeddingFields>(parsed);
  LogIgnored(fields.ignored);
  if (fields.dimensions.value_or(1) > model.hidden_dim) {
    return ApiError{.status = 400,
                    .message = "dimensions must be at most " + std::to_string(model.hidden_dim),
                    .param = "dimensions"};
  }
  if (const auto error = TooManyChoices(fields.inputs.size(), limits, "input")) return *error;
  GenerationPlan plan;
  plan.embedding = EmbeddingPlan{.base64 = fields.base64,
                                 .dimensions = fields.dimensions.value_or(model.hidden_dim)};
  for (const Prompt& input : fields.inputs) {
    ApiResult<Ids> ids = EncodePrompt(input, "input", false, model);
    if (const ApiError* error = ErrorOf(ids)) return *error;
    KeepLast(fields.truncate_prompt, std::get<Ids>(ids));
    ApiResult<PromptPlan> prompt =
        PlanPrompt(std::move(std::get<Ids>(ids)), {}, job, model, limits);
    if (const ApiError* error = ErrorOf(prompt)) return *error;
    plan.prompts.push_back(std::move(std::get<PromptPlan>(prompt)));
    plan.prompts.back().request.max_tokens = 1;
    plan.prompts.back().request.pooling = fields.pooling;
  }
  return plan;
}

Outcome PrepareApplyTemplate(const Job& job, const ModelPort& model, const PrepareLimits& limits) {
  ApiResult<GenerationFields> parsed = ParseChat(job.body, limits.api);
  if (const ApiError* error = ErrorOf(parsed)) return *error;
  const ApiResult<std::vector<RenderedPiece>> rendered =
      RenderChat(ChatOf(std::get<GenerationFields>(parsed)), job.now_unix, model);
  if (const ApiError* error = ErrorOf(rendered)) return *error;
  const auto& pieces = std::get<std::vector<RenderedPiece>>(rendered);
  if (job.kind == JobKind::kCountTokens) {
    const std::size_t count = EncodePieces(pieces, model).size();
    return json::serialize(
        json::object{{"object", "response.input_tokens"}, {"input_tokens", count}});
  }
  std::string prompt;
  for (const RenderedPiece& piece : pieces)
    prompt += piece.text;
  return json::serialize(json::object{{"prompt", prompt}});
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
    encoded = EncodeChat({.messages = std::move(std::get<json::array>(fields.input)),
                          .tools = std::move(fields.tools.tools),
                          .kwargs = std::move(fields.template_kwargs),
                          .add_generation_prompt = fields.add_generation_prompt},
                         job.now_unix, model);
  }
  if (const ApiError* error = ErrorOf(encoded)) return *error;
  const Ids& ids = std::get<Ids>(encoded);
  json::array tokens;
  json::array strings;
  for (const std::int32_t id : ids) {
    if (fields.with_strings) {
      std::string text;
      AppendValidUtf8(text, model.token_bytes(id));
      strings.push_back(json::string(text));
    }
    if (fields.with_pieces) {
      tokens.push_back(json::object{{"id", id}, {"piece", PieceValue(model.token_bytes(id))}});
    } else {
      tokens.push_back(id);
    }
  }
  json::object body = {
      {"tokens", std::move(tokens)}, {"count", ids.size()}, {"max_model_len", limits.max_context}};
  if (fields.with_strings) body["token_strs"] = std::move(strings);
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
  const std::string text = TextOf(std::get<Ids>(parsed), model, true);
  const json::object body = {{"content", text}, {"prompt", text}};
  return json::serialize(body);
}

}  // namespace

Prepared Prepare(const Job& job, const ModelPort& model, const PrepareLimits& limits,
                 GrammarCache* grammars) {
  Prepared prepared{.exchange = job.exchange, .request_id = job.request_id, .outcome = {}};
  switch (job.kind) {
    case JobKind::kChat:
    case JobKind::kCompletion:
      prepared.outcome = PrepareGeneration(job, model, limits, grammars);
      break;
    case JobKind::kEmbeddings:
      prepared.outcome = PrepareEmbeddings(job, model, limits);
      break;
    case JobKind::kApplyTemplate:
    case JobKind::kCountTokens:
      prepared.outcome = PrepareApplyTemplate(job, model, limits);
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
