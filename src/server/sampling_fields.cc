// SPDX-License-Identifier: Apache-2.0
#include "server/sampling_fields.h"

#include <algorithm>
#include <bit>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <limits>
#include <utility>

namespace kvrm {
namespace {

constexpr std::int64_t kMaxTokenId = std::numeric_limits<std::int32_t>::max();
constexpr std::size_t kMaxBiasTextBytes = 128;
constexpr std::size_t kMaxBadWordBytes = 128;
constexpr std::size_t kMaxChoices = 256;
constexpr const char* kBiasShape =
    "logit_bias must be an object of token ids and numbers from -100 to 100, or an array of pairs";

// Two spellings of one number; the second counts where both are given.
double Either(JsonFields& fields, const char* first, const char* second, double low) {
  const std::optional<double> a = fields.Number(first, low, static_cast<double>(kMaxPenalty));
  const std::optional<double> b = fields.Number(second, low, static_cast<double>(kMaxPenalty));
  return b.value_or(a.value_or(1.0));
}

void ReadPenalties(JsonFields& fields, SamplingFields& sampling) {
  sampling.repetition_penalty = Either(fields, "repeat_penalty", "repetition_penalty",
                                       static_cast<double>(kMinRepetitionPenalty));
  sampling.presence_penalty = fields.Number("presence_penalty", -2, 2).value_or(0.0);
  sampling.frequency_penalty = fields.Number("frequency_penalty", -2, 2).value_or(0.0);
  if (const auto window = fields.Integer("repeat_last_n", -1, kMaxTokenId))
    sampling.penalty_window = static_cast<std::int32_t>(*window);
}

void ReadSeed(JsonFields& fields, SamplingFields& sampling) {
  const json::value* seed = fields.Get("seed");
  if (seed == nullptr) return;
  if (const std::uint64_t* large = seed->if_uint64()) {
    sampling.seed = *large;
  } else if (const std::optional<std::int64_t> exact = ExactInteger(*seed)) {
    // -1 asks for a random seed, in the spelling of llama-server.
    if (*exact != -1) sampling.seed = std::bit_cast<std::uint64_t>(*exact);
  } else {
    fields.Fail("seed", "seed must be a 64-bit integer");
  }
}

// A number, or false for "never".
std::optional<float> BiasOf(const json::value& value) {
  if (value.is_bool() && !value.get_bool()) return -std::numeric_limits<float>::infinity();
  if (!value.is_number()) return std::nullopt;
  const double bias = value.to_number<double>();
  const double most = static_cast<double>(kMaxLogitBias);
  if (!(bias >= -most && bias <= most)) return std::nullopt;
  return static_cast<float>(bias);
}

std::optional<std::int32_t> IdIn(std::string_view text) {
  std::int32_t id = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, id);
  if (text.empty() || error != std::errc() || stop != end || id < 0) return std::nullopt;
  return id;
}

// {"id": bias} as OpenAI has it; llama-server also takes [[id or text, bias or false], ...].
void ReadBias(JsonFields& fields, SamplingFields& sampling) {
  const json::value* given = fields.Get("logit_bias");
  if (given == nullptr) return;
  const auto add = [&](std::optional<std::variant<std::int32_t, std::string>> token,
                       std::optional<float> bias) {
    const auto* text = token ? std::get_if<std::string>(&*token) : nullptr;
    const bool too_long = text != nullptr && text->size() > kMaxBiasTextBytes;
    if (!token || !bias || too_long) return fields.Fail("logit_bias", kBiasShape);
    sampling.bias.push_back({.token = *std::move(token), .bias = *bias});
  };
  const std::size_t count = given->is_object()  ? given->get_object().size()
                            : given->is_array() ? given->get_array().size()
                                                : 0;
  if (count > kMaxLogitBiases) {
    return fields.Fail("logit_bias",
                       "logit_bias has more than " + std::to_string(kMaxLogitBiases) + " entries");
  }
  if (const json::object* object = given->if_object()) {
    for (const auto& member : *object) {
      const std::optional<std::int32_t> id = IdIn(member.key());
      if (id)
        add(*id, BiasOf(member.value()));
      else
        add(std::string(member.key()), BiasOf(member.value()));
    }
  } else if (const json::array* pairs = given->if_array()) {
    for (const json::value& item : *pairs) {
      const json::array* pair = item.if_array();
      if (pair == nullptr || pair->size() != 2) return fields.Fail("logit_bias", kBiasShape);
      const json::value& token = pair->front();
      const std::optional<std::int64_t> id = ExactInteger(token);
      if (id && *id >= 0 && *id <= kMaxTokenId)
        add(static_cast<std::int32_t>(*id), BiasOf(pair->back()));
      else if (token.is_string())
        add(std::string(token.get_string()), BiasOf(pair->back()));
      else
        return fields.Fail("logit_bias", kBiasShape);
    }
  } else {
    fields.Fail("logit_bias", kBiasShape);
  }
}

void ReadBadWords(JsonFields& fields, SamplingFields& sampling) {
  const json::array* words = fields.Array("bad_words", kMaxBadWords / 2);
  if (words == nullptr) return;
  for (const json::value& word : *words) {
    if (!word.is_string() || word.get_string().empty() ||
        word.get_string().size() > kMaxBadWordBytes) {
      return fields.Fail("bad_words", "bad_words must be an array of strings of 1 to " +
                                          std::to_string(kMaxBadWordBytes) + " bytes");
    }
    sampling.bad_words.emplace_back(word.get_string());
  }
}

// The field's text: a JSON value written out, or a string that holds one.
GrammarSpec SchemaSpec(const json::value& schema) {
  return {.kind = GrammarKind::kJsonSchema,
          .text = schema.is_string() ? std::string(schema.get_string()) : json::serialize(schema)};
}

std::optional<GrammarSpec> ChoiceSpec(const json::value& value) {
  const json::array* items = value.if_array();
  if (items == nullptr || items->empty() || items->size() > kMaxChoices) return std::nullopt;
  std::vector<std::string> choices;
  for (const json::value& item : *items) {
    if (!item.is_string()) return std::nullopt;
    choices.emplace_back(item.get_string());
  }
  return GrammarSpec{.kind = GrammarKind::kGbnf, .text = ChoiceGrammar(choices)};
}

// One way of asking for a form. nullopt: not of the right type.
std::optional<GrammarSpec> SpecOf(std::string_view what, const json::value& value) {
  if (what == "choice") return ChoiceSpec(value);
  if (what == "json_object") {
    if (!value.is_bool()) return std::nullopt;
    return GrammarSpec{.kind = value.get_bool() ? GrammarKind::kJsonObject : GrammarKind::kNone};
  }
  if (what == "json") {
    if (!value.is_object() && !value.is_string() && !value.is_bool()) return std::nullopt;
    return SchemaSpec(value);
  }
  if (!value.is_string()) return std::nullopt;
  return GrammarSpec{.kind = what == "regex" ? GrammarKind::kRegex : GrammarKind::kGbnf,
                     .text = std::string(value.get_string())};
}

// OpenAI's {"type", "json_schema": {"schema"}} and llama-server's {"type", "schema"}.
GrammarSpec FormatSpec(JsonFields& fields) {
  static constexpr const char* kShape =
      "response_format must have a type of text, json_object or json_schema, and a schema with the "
      "last";
  const json::object* format = fields.Object("response_format");
  if (format == nullptr) return {};
  const json::value* type = format->if_contains("type");
  const json::value* schema = format->if_contains("schema");
  if (const json::value* nested = format->if_contains("json_schema");
      nested != nullptr && nested->is_object()) {
    schema = nested->get_object().if_contains("schema");
  }
  if (type != nullptr && type->is_string()) {
    if (type->get_string() == "text") return {};
    if (schema != nullptr && (type->get_string() == "json_schema" ||
                              (type->get_string() == "json_object" && schema->is_object()))) {
      if (schema->is_object() || schema->is_bool()) return SchemaSpec(*schema);
    } else if (type->get_string() == "json_object") {
      return {.kind = GrammarKind::kJsonObject};
    }
  }
  fields.Fail("response_format", kShape);
  return {};
}

}  // namespace

std::string ChoiceGrammar(const std::vector<std::string>& choices) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text = "root ::= ";
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += " | ";
    text += '"';
    for (const char c : choices[i]) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        text += '\\';
        text += c;
      } else if (byte < 0x20) {
        text += "\\x";
        text += kHex[byte >> 4];
        text += kHex[byte & 15];
      } else {
        text += c;
      }
    }
    text += '"';
  }
  return text + "\n";
}

std::vector<std::int32_t> ReadTokenIds(JsonFields& fields, std::string_view name,
                                       std::size_t max_ids) {
  std::vector<std::int32_t> ids;
  const json::array* items = fields.Array(name, max_ids);
  if (items == nullptr) return ids;
  for (const json::value& item : *items) {
    const std::optional<std::int64_t> id = ExactInteger(item);
    if (!id || *id < 0 || *id > kMaxTokenId) {
      fields.Fail(name, std::string(name) + " must be an array of token ids");
      return {};
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

void ReadSampling(JsonFields& fields, SamplingFields& sampling) {
  sampling.temperature = fields.Number("temperature", 0, 2);
  sampling.top_p = fields.Number("top_p", 0, 1);
  if (sampling.top_p == 0.0) fields.Fail("top_p", "top_p must be greater than 0");
  sampling.min_p = fields.Number("min_p", 0, 1);
  // -1 means "all" in one family of clients, 0 in the other.
  if (const auto top_k = fields.Integer("top_k", -1, kMaxTokenId)) {
    sampling.top_k = static_cast<std::int32_t>(std::max<std::int64_t>(*top_k, 0));
  }
  ReadSeed(fields, sampling);
  ReadPenalties(fields, sampling);
  ReadBias(fields, sampling);
  sampling.allowed_ids = ReadTokenIds(fields, "allowed_token_ids", kMaxAllowedIds);
  ReadBadWords(fields, sampling);
  if (const auto min_tokens = fields.Integer("min_tokens", 0, kMaxTokenId))
    sampling.min_tokens = static_cast<std::uint32_t>(*min_tokens);
}

LogprobFields ReadLogprobs(JsonFields& fields, bool chat) {
  LogprobFields logprobs;
  const auto keep = [](std::int64_t count) { return static_cast<std::uint32_t>(count); };
  if (chat) {
    const bool wanted = fields.Bool("logprobs").value_or(false);
    const auto top = fields.Integer("top_logprobs", 0, kMaxTopLogprobs);
    if (wanted) logprobs.output = keep(top.value_or(0));
    if (!wanted && top.value_or(0) > 0)
      fields.Fail("top_logprobs", "top_logprobs needs logprobs to be true");
  } else if (const json::value* given = fields.Get("logprobs"); given && given->is_bool()) {
    if (given->get_bool()) fields.Fail("logprobs", "logprobs must be an integer");
  } else if (const auto count = fields.Integer("logprobs", 0, kMaxTopLogprobs)) {
    logprobs.output = keep(*count);
  }
  // llama-server's spelling, where 0 is none.
  if (const auto count = fields.Integer("n_probs", 0, kMaxTopLogprobs); count.value_or(0) > 0)
    logprobs.output = keep(*count);
  if (const auto count = fields.Integer("prompt_logprobs", 0, kMaxTopLogprobs))
    logprobs.prompt = keep(*count);
  return logprobs;
}

GrammarField ReadGrammar(JsonFields& fields) {
  static constexpr std::pair<const char*, const char*> kNames[] = {
      {"grammar", "grammar"},
      {"json_schema", "json"},
      {"guided_json", "json"},
      {"guided_regex", "regex"},
      {"guided_choice", "choice"},
      {"guided_grammar", "grammar"},
      {"guided_json_object", "json_object"}};
  GrammarField field;
  const auto keep = [&](std::string param, std::optional<GrammarSpec> spec) {
    if (!spec) return fields.Fail(param, param + " is not of the type it must be");
    if (spec->kind == GrammarKind::kNone) return;
    if (field.spec.kind != GrammarKind::kNone)
      return fields.Fail(param, param + " and " + field.param + " exclude each other");
    field = {.spec = *std::move(spec), .param = std::move(param)};
  };
  keep("response_format", FormatSpec(fields));
  for (const auto& [name, what] : kNames) {
    const json::value* value = fields.Get(name);
    if (value == nullptr || (value->is_string() && value->get_string().empty())) continue;
    keep(name, SpecOf(what, *value));
  }
  if (const json::object* outputs = fields.Object("structured_outputs")) {
    for (const char* what : {"json", "regex", "choice", "grammar", "json_object"}) {
      const json::value* value = outputs->if_contains(what);
      if (value == nullptr || value->is_null()) continue;
      keep("structured_outputs", SpecOf(what, *value));
    }
    if (outputs->contains("structural_tag") && !outputs->at("structural_tag").is_null())
      fields.Fail("structured_outputs", "structured_outputs: structural_tag is not supported");
  }
  return field;
}

}  // namespace kvrm
