// SPDX-License-Identifier: Apache-2.0
// Prepare: the part of a request that costs time before the engine sees it: JSON, chat template,
// tokenisation. Runs on the worker thread, so that the I/O thread never stalls behind one client's
// four-megabyte prompt. A pure function of its arguments.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "server/api_error.h"
#include "server/api_parse.h"
#include "server/http.h"
#include "server/ports.h"

namespace kvrm {

enum class JobKind { kChat, kCompletion, kTokenize, kDetokenize };

struct Job {
  ExchangeId exchange{};
  JobKind kind = JobKind::kChat;
  std::string body;
  std::string request_id;  // the client's own, echoed; may be empty
  std::uint64_t seed = 0;  // where the request names none
  std::int64_t now_unix = 0;
};

// One prompt: a choice for each of the request's samples.
struct PromptPlan {
  Request request;
  std::string echo;  // text put before each output
};

struct GenerationPlan {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  std::vector<std::string> stop;
  std::vector<PromptPlan> prompts;
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

Prepared Prepare(const Job& job, const ModelPort& model, const PrepareLimits& limits);

}  // namespace kvrm
