// SPDX-License-Identifier: Apache-2.0
#include "server/generations.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "server/logprob_format.h"

namespace kvrm {

struct Generations::Choice {
  Choice(TextStream opened, const ChoiceTextOptions& options, std::string echo)
      : text(std::move(opened), options), pending_echo(std::move(echo)) {}

  RequestId request{};
  ChoiceText text;
  std::string pending_echo;  // goes out before the first text
  ChoicePart whole;          // of an answer that is not streamed
  ChoiceEnd end = {};        // reason empty: it runs
  bool has_events = false;
  bool begun = false;  // its first chunk is out
  // The first of its prompt: its first event says what was cached, and what is wanted of the prompt
  // comes with it.
  bool is_first = false;
  std::size_t first_idx = 0;  // that choice, of the same prompt

  std::size_t num_prompt_tokens = 0;
  std::vector<std::int32_t> prompt;          // kept where its ids or logprobs are wanted
  std::vector<TopLogprobs> prompt_logprobs;  // of the first choice of a prompt
  std::deque<TopLogprobs> tops;              // of tokens whose event comes next
  std::vector<ScoredToken> scored;           // not yet sent
  std::vector<std::int32_t> token_ids;       // not yet sent
  std::size_t text_offset = 0;               // of CompletionLogprobs
  std::vector<float> embedding;
};

struct Generations::Generation {
  ExchangeId exchange{};
  ReplyHead head;
  std::string request_id;
  GenerationPlan plan;  // without its prompts
  bool stream_started = false;
  std::vector<Choice> choices;
  std::size_t num_done = 0;
  ReplyUsage usage;
  std::int64_t started_ns = 0;
  std::int64_t first_token_ns = 0;  // 0: none yet
};

namespace {

std::string ReplyId(bool chat, Rng& rng) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string id = chat ? "chatcmpl-" : "cmpl-";
  for (int i = 0; i < 24; ++i)
    id += kHex[rng.Below(16)];
  return id;
}

// Templates of one family take nine letters and digits and nothing else.
std::string CallId(bool is_mistral, Rng& rng) {
  static constexpr char kDigits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
  std::string id = is_mistral ? "" : "call_";
  for (int i = is_mistral ? 9 : 24; i > 0; --i)
    id += kDigits[rng.Below(36)];
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

std::unique_ptr<Generations::Generation> Generations::MakeGeneration(ExchangeId exchange,
                                                                     const std::string& request_id,
                                                                     const GenerationPlan& plan) {
  auto owned = std::make_unique<Generation>();
  Generation& generation = *owned;
  generation.exchange = exchange;
  generation.request_id = request_id;
  generation.started_ns = clock_.NowNs();
  generation.head = {.id = ReplyId(plan.chat, rng_),
                     .model = model_.served_name,
                     .created_unix = clock_.UnixSeconds(),
                     .chat = plan.chat,
                     .include_usage = plan.include_usage};
  if (generation.request_id.empty()) generation.request_id = generation.head.id;
  return owned;
}

void Generations::Start(ExchangeId exchange, const std::string& request_id, GenerationPlan plan) {
  std::unique_ptr<Generation> owned = MakeGeneration(exchange, request_id, plan);
  Generation& generation = *owned;
  std::vector<PromptPlan> prompts = std::move(plan.prompts);
  generation.plan = std::move(plan);
  generations_.emplace(static_cast<std::uint64_t>(exchange), std::move(owned));
  ++stats_.num_started;
  for (PromptPlan& prompt : prompts) {
    if (!AddChoices(generation, prompt)) return;
  }
}

// Submits one prompt. False: the generation has failed and is gone.
bool Generations::AddChoices(Generation& generation, PromptPlan& prompt) {
  const GenerationPlan& plan = generation.plan;
  const auto start =
      plan.chat ? StreamDecoder::Start::kMessage : StreamDecoder::Start::kContinuation;
  const std::size_t num_prompt_tokens = prompt.request.prompt.size();
  const std::uint32_t num_samples = prompt.request.num_samples;
  const std::size_t first_idx = generation.choices.size();
  std::vector<std::int32_t> kept;
  if (plan.return_token_ids || plan.echo_logprobs) kept = prompt.request.prompt;
  generation.usage.num_prompt_tokens += num_prompt_tokens;
  const Result<RequestId> submitted = engine_.submit(std::move(prompt.request));
  if (!submitted) {
    ApiError error = SubmitError(submitted.error(), num_prompt_tokens, engine_.max_context);
    error.retry_after_s = RetryAfter();
    Fail(generation, error);
    return false;
  }
  for (std::uint32_t i = 0; i < num_samples; ++i) {
    const std::uint64_t id = static_cast<std::uint64_t>(*submitted) + i;
    Choice& choice = generation.choices.emplace_back(model_.open_stream(start, plan.text.special),
                                                     plan.text, prompt.echo);
    choice.request = RequestId{id};
    choice.is_first = i == 0;
    choice.first_idx = first_idx;
    choice.num_prompt_tokens = num_prompt_tokens;
    choice.prompt = kept;
    wanted_[id] = {&generation, generation.choices.size() - 1};
  }
  return true;
}

void Generations::OnLogprobs(const TopLogprobs& logprobs) {
  const auto found = wanted_.find(static_cast<std::uint64_t>(logprobs.request));
  if (found == wanted_.end()) return;  // G2
  Generation& generation = *found->second.generation;
  Choice& choice = generation.choices[found->second.choice_idx];
  // The prompt's come first, and its first token has none.
  const bool wants_prompt = generation.plan.echo_logprobs || generation.plan.prompt_logprobs;
  if (wants_prompt && logprobs.position < choice.num_prompt_tokens)
    choice.prompt_logprobs.push_back(logprobs);
  else
    choice.tops.push_back(logprobs);
}

void Generations::OnEmbedding(Embedding embedding) {
  const auto found = wanted_.find(static_cast<std::uint64_t>(embedding.request));
  if (found == wanted_.end()) return;  // G2
  found->second.generation->choices[found->second.choice_idx].embedding =
      std::move(embedding.values);
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
    } else if (event.finish == FinishReason::kNothingAllowed) {
      Fail(generation,
           {.status = 400, .message = "what the request bans and demands leaves no token"});
    } else if (event.finish == FinishReason::kAborted) {
      Fail(generation, {.status = 503, .message = "the server is shutting down"});
    } else if (event.finish == FinishReason::kWaited) {
      Fail(
          generation,
          {.status = 503, .message = "the request waited too long", .retry_after_s = RetryAfter()});
    } else if (event.finish == FinishReason::kTimeout &&
               !generation.choices[place.choice_idx].has_events) {
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
  if (generation.first_token_ns == 0) generation.first_token_ns = clock_.NowNs();
  if (event.token >= 0) ++generation.usage.num_output_tokens;
  if (!std::exchange(choice.has_events, true)) {
    if (choice.is_first) generation.usage.num_cached_tokens += event.num_cached_tokens;
    BeginPrompt(generation, choice);
  }
  TextPart text;
  const bool engine_ended = event.finish != FinishReason::kNone;
  if (event.token >= 0 && !generation.plan.only_echo) {
    if (generation.plan.return_token_ids) choice.token_ids.push_back(event.token);
    // A stop token ends the output and is not part of its text.
    if (event.finish != FinishReason::kStop) {
      Score(generation, choice, event);
      text = choice.text.Push(event.token);
    }
  }
  if (engine_ended && !choice.text.stopped()) {
    TextPart rest = choice.text.Finish();
    text.content += rest.content;
    text.reasoning += rest.reasoning;
    std::move(rest.calls.begin(), rest.calls.end(), std::back_inserter(text.calls));
  }
  // What ends a choice has a chunk of its own.
  const bool goes_on = event.token >= 0 && !engine_ended && !choice.text.stopped();
  Emit(generation, choice_idx, std::move(text), goes_on && !generation.plan.only_echo);
  if (choice.text.stopped() && !engine_ended) Cancel(choice.request);
  if (choice.text.stopped() || engine_ended) EndChoice(generation, choice_idx, event);
}

// The log-probabilities of an echoed prompt stand in front of the output's.
void Generations::BeginPrompt(Generation& generation, Choice& choice) {
  if (!generation.plan.echo_logprobs) return;
  const Choice& first = generation.choices[choice.first_idx];
  for (std::size_t i = 0; i < choice.prompt.size(); ++i) {
    ScoredToken scored = {.token = choice.prompt[i], .is_first = i == 0};
    if (i > 0 && i <= first.prompt_logprobs.size()) {
      const TopLogprobs& own = first.prompt_logprobs[i - 1];
      scored.logprob = own.token.logprob;
      scored.likeliest.assign(own.likeliest.begin(), own.likeliest.begin() + own.num_top);
    }
    choice.scored.push_back(std::move(scored));
  }
}

void Generations::Score(const Generation& generation, Choice& choice,
                        const TokenEvent& event) const {
  if (!generation.plan.logprobs) return;
  ScoredToken scored = {.token = event.token, .logprob = event.logprob};
  if (!choice.tops.empty()) {
    const TopLogprobs& top = choice.tops.front();
    scored.likeliest.assign(top.likeliest.begin(), top.likeliest.begin() + top.num_top);
    choice.tops.pop_front();
  }
  choice.scored.push_back(std::move(scored));
}

json::value Generations::TakeLogprobs(const Generation& generation, Choice& choice) const {
  if (!generation.plan.logprobs || choice.scored.empty()) return nullptr;
  const std::vector<ScoredToken> scored = std::exchange(choice.scored, {});
  if (generation.plan.chat) return ChatLogprobs(scored, model_.token_bytes);
  return CompletionLogprobs(scored, model_.token_bytes, &choice.text_offset);
}

std::vector<ToolCallPart> Generations::CallsOf(const Generation& generation,
                                               std::vector<ToolCallDelta> deltas) {
  std::vector<ToolCallPart> calls;
  for (ToolCallDelta& delta : deltas) {
    const bool is_mistral = generation.plan.text.tools->format == ToolFormat::kMistral;
    calls.push_back({.call_idx = delta.call_idx,
                     .begins = delta.begins,
                     .id = delta.begins ? CallId(is_mistral, rng_) : "",
                     .name = std::move(delta.name),
                     .arguments = std::move(delta.arguments)});
  }
  return calls;
}

// The choice's next part, with the numbers and ids that have come since the last.
ChoicePart Generations::PartOf(Generation& generation, Choice& choice, TextPart text) {
  ChoicePart part = {.content = std::exchange(choice.pending_echo, {}) + text.content,
                     .reasoning = std::move(text.reasoning),
                     .calls = CallsOf(generation, std::move(text.calls))};
  part.logprobs = TakeLogprobs(generation, choice);
  if (generation.plan.return_token_ids) {
    part.token_ids = json::array(choice.token_ids.begin(), choice.token_ids.end());
    choice.token_ids.clear();
  }
  return part;
}

void Generations::Emit(Generation& generation, std::size_t choice_idx, TextPart text,
                       bool each_token) {
  Choice& choice = generation.choices[choice_idx];
  if (!generation.plan.stream) {
    choice.begun = true;
    choice.whole.content += std::exchange(choice.pending_echo, {}) + text.content;
    choice.whole.reasoning += text.reasoning;
    for (ToolCallPart& call : CallsOf(generation, std::move(text.calls))) {
      if (call.begins)
        choice.whole.calls.push_back(std::move(call));
      else
        choice.whole.calls.at(call.call_idx).arguments += call.arguments;
    }
    return;
  }
  std::string events;
  if (!generation.stream_started) {
    reply_.start_stream(generation.exchange, {{"X-Request-Id", generation.request_id}});  // G3
    generation.stream_started = true;
  }
  const ReplyTimings timings = TimingsOf(generation);
  const PromptFacts facts = FactsOf(generation, choice);
  ChunkExtras extras = {.usage = generation.plan.continuous_usage ? &generation.usage : nullptr,
                        .timings = generation.plan.timings_per_token ? &timings : nullptr,
                        .prompt = choice.begun ? nullptr : &facts};
  if (!choice.begun && generation.head.chat) {
    events += RoleEvent(generation.head, choice_idx, extras);
    extras.prompt = nullptr;
  }
  const bool has_part = each_token || !text.content.empty() || !text.reasoning.empty() ||
                        !text.calls.empty() || !choice.pending_echo.empty();
  if (has_part) {
    ChoicePart part = PartOf(generation, choice, std::move(text));
    events += PartEvent(generation.head, choice_idx, std::move(part), extras);
  }
  choice.begun |= has_part || generation.head.chat;
  if (!events.empty()) reply_.write(generation.exchange, events);
}

// What is wanted of the prompt. Everything null: nothing is.
PromptFacts Generations::FactsOf(const Generation& generation, const Choice& choice) const {
  PromptFacts facts;
  if (generation.plan.return_token_ids)
    facts.token_ids = json::array(choice.prompt.begin(), choice.prompt.end());
  if (generation.plan.prompt_logprobs) {
    facts.logprobs =
        PromptLogprobs(generation.choices[choice.first_idx].prompt_logprobs, model_.token_bytes);
  }
  return facts;
}

ReplyTimings Generations::TimingsOf(const Generation& generation) const {
  const auto ms = [](std::int64_t ns) { return static_cast<double>(ns) / 1e6; };
  const ReplyUsage& usage = generation.usage;
  const std::int64_t first_ns =
      generation.first_token_ns == 0 ? clock_.NowNs() : generation.first_token_ns;
  return {.num_cached = usage.num_cached_tokens,
          .num_prompt = usage.num_prompt_tokens - usage.num_cached_tokens,
          .prompt_ms = ms(first_ns - generation.started_ns),
          .num_predicted = usage.num_output_tokens,
          .predicted_ms = ms(clock_.NowNs() - first_ns)};
}

void Generations::EndChoice(Generation& generation, std::size_t choice_idx,
                            const TokenEvent& event) {
  Choice& choice = generation.choices[choice_idx];
  CHECK(choice.end.reason.empty());  // G1
  const bool is_stop = choice.text.stopped() || event.finish == FinishReason::kStop;
  choice.end.reason = !is_stop ? "length" : choice.text.has_calls() ? "tool_calls" : "stop";
  const std::vector<std::int32_t>& ids = generation.plan.client_stop_ids;
  if (choice.text.stopped())
    choice.end.stop_reason = json::string(choice.text.stop());
  else if (is_stop && std::find(ids.begin(), ids.end(), event.token) != ids.end())
    choice.end.stop_reason = event.token;
  wanted_.erase(static_cast<std::uint64_t>(choice.request));
  ++generation.num_done;
  ChoicePart rest = PartOf(generation, choice, {});
  if (generation.plan.stream) {
    const ReplyTimings timings = TimingsOf(generation);
    const PromptFacts facts = FactsOf(generation, choice);
    const ChunkExtras extras = {
        .usage = generation.plan.continuous_usage ? &generation.usage : nullptr,
        .timings = &timings,
        .prompt = choice.begun ? nullptr : &facts};
    reply_.write(generation.exchange,
                 FinishEvent(generation.head, choice_idx, std::move(rest), choice.end, extras));
  } else {
    choice.whole.logprobs = std::move(rest.logprobs);
    choice.whole.token_ids = std::move(rest.token_ids);
  }
  if (generation.num_done == generation.choices.size()) Complete(generation);
}

std::string Generations::Body(Generation& generation) const {
  if (generation.plan.embedding) {
    EmbeddingReply reply = {.model = generation.head.model,
                            .rows = {},
                            .base64 = generation.plan.embedding->base64,
                            .num_prompt_tokens = generation.usage.num_prompt_tokens};
    for (Choice& choice : generation.choices) {
      Normalise(generation.plan.embedding->dimensions, &choice.embedding);
      reply.rows.push_back(std::move(choice.embedding));
    }
    return EmbeddingBody(reply);
  }
  std::vector<FinishedChoice> choices;
  for (Choice& choice : generation.choices) {
    choices.push_back({.part = std::move(choice.whole),
                       .end = choice.end,
                       .prompt = FactsOf(generation, choice)});
  }
  return ReplyBody(generation.head, std::move(choices), generation.usage, TimingsOf(generation));
}

void Generations::Complete(Generation& generation) {
  reply_.account(generation.exchange, generation.usage);
  if (generation.plan.stream) {
    std::string events;
    if (generation.head.include_usage) events = UsageEvent(generation.head, generation.usage);
    events += kDoneEvent;
    reply_.write(generation.exchange, events);
    reply_.finish(generation.exchange);
  } else {
    HttpResponse response;
    response.body = Body(generation);
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

void Generations::AbortAll() {
  while (!generations_.empty()) {
    Fail(*generations_.begin()->second, {.status = 503, .message = "the server is shutting down"});
  }
}

void Generations::Release(Generation& generation) {
  for (const Choice& choice : generation.choices) {
    if (!choice.end.reason.empty()) continue;
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
