// SPDX-License-Identifier: Apache-2.0
// The fields of a request that say how tokens are chosen, which numbers about them are wanted and
// what form the output must have, in the spellings of OpenAI, vLLM and llama-server. Pure
// functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "server/json_fields.h"

namespace kvrm {

struct BiasField {
  std::variant<std::int32_t, std::string> token;  // id, or text whose every token is meant
  float bias = 0.0f;                              // -Inf: never
};

struct SamplingFields {
  std::optional<double> temperature;  // 0..2
  std::optional<double> top_p;        // (0, 1]
  std::optional<double> min_p;        // [0, 1]
  std::optional<std::int32_t> top_k;  // 0: all
  std::optional<std::uint64_t> seed;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::int32_t penalty_window = -1;
  std::vector<BiasField> bias;
  std::vector<std::int32_t> allowed_ids;
  std::vector<std::string> bad_words;
  std::uint32_t min_tokens = 0;
};
void ReadSampling(JsonFields& fields, SamplingFields& sampling);

// How many of the likeliest tokens; nullopt: no log-probabilities.
struct LogprobFields {
  std::optional<std::uint32_t> output;
  std::optional<std::uint32_t> prompt;
};
LogprobFields ReadLogprobs(JsonFields& fields, bool chat);

// `param`: the field it came from.
struct GrammarField {
  GrammarSpec spec;
  std::string param;
};
GrammarField ReadGrammar(JsonFields& fields);
// A grammar of exactly these texts.
std::string ChoiceGrammar(const std::vector<std::string>& choices);

// Token ids, each within 31 bits; the error names the field.
std::vector<std::int32_t> ReadTokenIds(JsonFields& fields, std::string_view name,
                                       std::size_t max_ids);

}  // namespace kvrm
