// SPDX-License-Identifier: Apache-2.0
#include "server/generations.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace kvrm {

struct Generations::Choice {
  Choice(TextStream opened, const std::vector<std::string>& stops, const std::string& echo)
      : stream(std::move(opened)), matcher(stops), pending_echo(echo) {}

  RequestId request{};
  TextStream stream;
  StopMatcher matcher;
  std::string pending_echo;  // goes out before the first text
  std::string text;          // of an answer that is not streamed
  const char* finish_reason = nullptr;
  bool begun = false;  // its first chunk is out
  bool has_token = false;
  bool counts_cached = false;  // its next event says what was cached of its prompt
};

struct Generations::Generation {
  ExchangeId exchange{};
  ReplyHead head;
  std::string request_id;
  bool stream = false;
  bool stream_started = false;
  std::vector<Choice> choices;
  std::size_t num_done = 0;
  ReplyUsage usage;
  std::int64_t started_ns = 0;
};

namespace {

std::string ReplyId(bool chat, Rng& rng) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string id = chat ? "chatcmpl-" : "cmpl-";
  for (int i = 0; i < 24; ++i)
    id += kHex[rng.Below(16)];
  return id;
}

ApiError SubmitError(const Error& error, std::size_t num_prompt_tokens, std::uint32_t max_context) {
  ApiError api{.status = 500, .message = error.message};
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
      api.status = 400;
      break;
    case ErrorCode::kTooLarge:
      api.status = 400;
      api.excess = ContextExcess{num_prompt_tokens, max_context};
      break;
    case ErrorCode::kOverloaded:
      api.status = 429;
      break;
    default:
      break;
  }
  return api;
}

}  // namespace

HttpResponse ErrorResponse(const ApiError& error, const std::string& request_id) {
  HttpResponse response;
  response.status = error.status;
  response.body = ErrorBody(error);
  if (error.status == 429 || error.status == 503) {
    response.headers.emplace_back("Retry-After", std::to_string(error.retry_after_s));
  }
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (!request_id.empty()) response.headers.emplace_back("X-Request-Id", request_id);
  return response;
}

Generations::Generations(const EnginePort& engine, const ModelPort& model, ReplyPort reply,
                         const Clock& clock, std::uint64_t seed)
    : engine_(engine),
      model_(model),
      reply_(std::move(reply)),
      clock_(clock),
      rng_(seed, "reply-ids") {}

Generations::~Generations() = default;

void Generations::Start(ExchangeId exchange, const std::string& request_id, GenerationPlan plan) {
  auto owned = std::make_unique<Generation>();
  Generation& generation = *owned;
  generation.exchange = exchange;
  generation.request_id = request_id;
  generation.stream = plan.stream;
  generation.started_ns = clock_.NowNs();
  generation.head = {.id = ReplyId(plan.chat, rng_),
                     .model = model_.served_name,
                     .created_unix = clock_.UnixSeconds(),
                     .chat = plan.chat,
                     .include_usage = plan.include_usage};
  if (generation.request_id.empty()) generation.request_id = generation.head.id;
  generations_.emplace(static_cast<std::uint64_t>(exchange), std::move(owned));
  ++stats_.num_started;

  const auto start =
      plan.chat ? StreamDecoder::Start::kMessage : StreamDecoder::Start::kContinuation;
  for (PromptPlan& prompt : plan.prompts) {
    const std::size_t num_prompt_tokens = prompt.request.prompt.size();
    const std::uint32_t num_samples = prompt.request.num_samples;
    generation.usage.num_prompt_tokens += num_prompt_tokens;
    const Result<RequestId> submitted = engine_.submit(std::move(prompt.request));
    if (!submitted) {
      ApiError error = SubmitError(submitted.error(), num_prompt_tokens, engine_.max_context);
      error.retry_after_s = RetryAfter();
      return Fail(generation, error);
    }
    for (std::uint32_t i = 0; i < num_samples; ++i) {
      const std::uint64_t id = static_cast<std::uint64_t>(*submitted) + i;
      Choice& choice =
          generation.choices.emplace_back(model_.open_stream(start), plan.stop, prompt.echo);
      choice.request = RequestId{id};
      choice.counts_cached = i == 0;
      wanted_[id] = {&generation, generation.choices.size() - 1};
    }
  }
}

void Generations::OnEvent(const TokenEvent& event) {
  const auto found = wanted_.find(static_cast<std::uint64_t>(event.request));
  if (found == wanted_.end()) {
    ++stats_.num_late_events;  // G2
    return;
  }
  const Place place = found->second;
  Generation& generation = *place.generation;
  const ExchangeId exchange = generation.exchange;
  try {
    if (event.finish == FinishReason::kError) {
      Fail(generation, {.status = 500, .message = "the model gave a non-finite result"});
    } else if (event.finish == FinishReason::kAborted) {
      Fail(generation, {.status = 503, .message = "the server is shutting down"});
    } else if (event.finish == FinishReason::kWaited) {
      Fail(generation,
           {.status = 503, .message = "the request waited too long", .retry_after_s = RetryAfter()});
    } else if (event.finish == FinishReason::kTimeout &&
               !generation.choices[place.choice_idx].has_token) {
      // An answer that has begun is cut, as by max_tokens.
      Fail(generation, {.status = 503, .message = "the request's time is over"});
    } else {
      Advance(generation, place.choice_idx, event);
    }
  } catch (const std::exception& error) {  // Memory, above all: one request's failure (R7).
    Log(LogLevel::kError, "generation_exception", {{"what", error.what()}});
    const auto left = generations_.find(static_cast<std::uint64_t>(exchange));
    if (left == generations_.end()) return;
    Fail(*left->second, {.status = 500, .message = "the answer could not be built"});
  }
}

void Generations::Advance(Generation& generation, std::size_t choice_idx, const TokenEvent& event) {
  Choice& choice = generation.choices[choice_idx];
  if (event.token >= 0) ++generation.usage.num_output_tokens;
  choice.has_token = choice.has_token || event.token >= 0;
  if (std::exchange(choice.counts_cached, false)) {
    generation.usage.num_cached_tokens += event.num_cached_tokens;
  }
  std::string text;
  // A stop token ends the output and is not part of its text.
  if (event.token >= 0 && event.finish != FinishReason::kStop) {
    text = choice.matcher.Push(choice.stream(event.token));
  }
  const bool engine_ended = event.finish != FinishReason::kNone;
  if (engine_ended && !choice.matcher.matched()) {
    text += choice.matcher.Push(choice.stream(std::nullopt));
    text += choice.matcher.Finish();
  }
  Emit(generation, choice_idx, text);
  if (choice.matcher.matched()) {
    if (!engine_ended) Cancel(choice.request);
    EndChoice(generation, choice_idx, "stop");
  } else if (engine_ended) {
    EndChoice(generation, choice_idx, event.finish == FinishReason::kStop ? "stop" : "length");
  }
}

void Generations::Emit(Generation& generation, std::size_t choice_idx, const std::string& text) {
  Choice& choice = generation.choices[choice_idx];
  std::string out = std::exchange(choice.pending_echo, {}) + text;
  if (!generation.stream) {
    choice.text += out;
    return;
  }
  std::string events;
  if (!generation.stream_started) {
    reply_.start_stream(generation.exchange, {{"X-Request-Id", generation.request_id}});  // G3
    generation.stream_started = true;
  }
  if (!choice.begun && generation.head.chat) events += RoleEvent(generation.head, choice_idx);
  choice.begun = true;
  if (!out.empty()) events += TextEvent(generation.head, choice_idx, out);
  if (!events.empty()) reply_.write(generation.exchange, events);
}

void Generations::EndChoice(Generation& generation, std::size_t choice_idx, const char* reason) {
  Choice& choice = generation.choices[choice_idx];
  CHECK(choice.finish_reason == nullptr);  // G1
  choice.finish_reason = reason;
  wanted_.erase(static_cast<std::uint64_t>(choice.request));
  ++generation.num_done;
  if (generation.stream) {
    reply_.write(generation.exchange, FinishEvent(generation.head, choice_idx, reason));
  }
  if (generation.num_done == generation.choices.size()) Complete(generation);
}

void Generations::Complete(Generation& generation) {
  reply_.account(generation.exchange, generation.usage);
  if (generation.stream) {
    std::string events;
    if (generation.head.include_usage) events = UsageEvent(generation.head, generation.usage);
    events += kDoneEvent;
    reply_.write(generation.exchange, events);
    reply_.finish(generation.exchange);
  } else {
    std::vector<FinishedChoice> choices;
    for (const Choice& choice : generation.choices)
      choices.push_back({choice.text, choice.finish_reason});
    HttpResponse response;
    response.body = ReplyBody(generation.head, choices, generation.usage);
    response.headers.emplace_back("X-Request-Id", generation.request_id);
    reply_.respond(generation.exchange, std::move(response));
  }
  ++stats_.num_completed;
  Release(generation);
}

void Generations::Fail(Generation& generation, const ApiError& error) {
  reply_.account(generation.exchange, generation.usage);
  if (generation.stream_started) {
    reply_.write(generation.exchange, ErrorEvent(error) + std::string(kDoneEvent));
    reply_.finish(generation.exchange);
  } else {
    reply_.respond(generation.exchange, ErrorResponse(error, generation.request_id));
  }
  ++stats_.num_failed;
  Log(LogLevel::kWarning, "generation_failed",
      {{"id", generation.request_id}, {"status", error.status}, {"error", error.message}});
  Release(generation);
}

void Generations::OnGone(ExchangeId exchange) {
  const auto found = generations_.find(static_cast<std::uint64_t>(exchange));
  if (found == generations_.end()) return;
  ++stats_.num_abandoned;
  reply_.account(exchange, found->second->usage);
  Release(*found->second);
}

void Generations::AbortWaiting() {
  std::vector<Generation*> waiting;
  for (const auto& entry : generations_) {
    if (entry.second->usage.num_output_tokens == 0) waiting.push_back(entry.second.get());
  }
  for (Generation* generation : waiting)
    Fail(*generation, {.status = 503, .message = "the server is shutting down"});
}

void Generations::AbortAll() {
  while (!generations_.empty()) {
    Fail(*generations_.begin()->second, {.status = 503, .message = "the server is shutting down"});
  }
}

void Generations::Release(Generation& generation) {
  for (const Choice& choice : generation.choices) {
    if (choice.finish_reason != nullptr) continue;
    if (wanted_.erase(static_cast<std::uint64_t>(choice.request)) > 0) Cancel(choice.request);
  }
  generations_.erase(static_cast<std::uint64_t>(generation.exchange));
}

std::uint32_t Generations::RetryAfter() const {
  return engine_.retry_after_s ? engine_.retry_after_s() : 1;
}

void Generations::Cancel(RequestId request) {
  ++stats_.num_cancels;
  engine_.cancel(request);
}

}  // namespace kvrm
