// SPDX-License-Identifier: Apache-2.0
// Prepare: the part of a request that costs time before the engine sees it: JSON, chat template,
// tokenisation, grammars. Runs on the worker thread, so that the I/O thread never stalls behind one
// client's four-megabyte prompt. A pure function of its arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "grammar/grammar_cache.h"
#include "server/api_error.h"
#include "server/api_parse.h"
#include "server/choice_text.h"
#include "server/http.h"
#include "server/ports.h"

namespace kvrm {

enum class JobKind {
  kChat,
  kCompletion,
  kEmbeddings,
  kTokenize,
  kDetokenize,
  kApplyTemplate,
  kCountTokens,
};
inline constexpr int kNumJobKinds = 7;

struct Job {
  ExchangeId exchange{};
  JobKind kind = JobKind::kChat;
  std::string body;
  std::string request_id;  // the client's own, echoed; may be empty
  std::uint64_t seed = 0;  // where the request names none
  std::int64_t now_unix = 0;
  std::optional<std::uint32_t> key_idx = {};  // of the API key it came with; none: nobody asks
};

// One prompt: a choice for each of the request's samples.
struct PromptPlan {
  Request request;
  std::string echo;  // text put before each output
};

struct EmbeddingPlan {
  bool base64 = false;
  std::uint32_t dimensions = 0;
};

struct GenerationPlan {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;   // in every chunk
  bool timings_per_token = false;  // in every chunk
  bool logprobs = false;           // of the output
  bool echo_logprobs = false;      // of the prompt, in front of them
  bool prompt_logprobs = false;    // of the prompt, on their own
  bool only_echo = false;          // nothing of the output
  bool return_token_ids = false;
  ChoiceTextOptions text;
  std::vector<std::int32_t> client_stop_ids;  // named as the reason where they stop it
  std::vector<PromptPlan> prompts;
  std::optional<EmbeddingPlan> embedding;  // then nothing else matters
};

struct PrepareLimits {
  ApiLimits api;
  std::uint32_t max_context = 0;
  std::uint32_t max_requests = 0;  // choices of one answer: all of them run or wait at once
  std::uint32_t default_max_tokens = 4096;  // cut to the rest of the context
};

struct Prepared {
  ExchangeId exchange{};
  std::string request_id;
  // A plan for the engine, the body of a 200, or a refusal.
  std::variant<GenerationPlan, std::string, ApiError> outcome;
};

// Forms of the output are compiled through `grammars`; without it they are refused by name.
Prepared Prepare(const Job& job, const ModelPort& model, const PrepareLimits& limits,
                 GrammarCache* grammars = nullptr);

}  // namespace kvrm
