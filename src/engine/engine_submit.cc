// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "engine/engine_state.h"
#include "engine/request_checks.h"

namespace kvrm {
namespace {

// What a descriptor log has for a salt: equal for equal salts, and not the salt itself.
std::uint64_t LogSalt(const std::string& cache_salt) {
  const PrefixKey key = PrefixRoot("", {}, cache_salt);
  std::uint64_t salt = 0;
  std::memcpy(&salt, key.bytes.data(), sizeof(salt));
  return salt;
}

Error Invalid(std::string message) {
  return {ErrorCode::kInvalidArgument, std::move(message)};
}

}  // namespace

void Engine::State::SetTurn(const Request& request, Sequence& sequence) const noexcept {
  const std::int64_t submitted_ns = clock.NowNs();
  const auto after = [submitted_ns](std::uint32_t ms) {
    return ms == 0 ? 0 : submitted_ns + std::int64_t{ms} * 1'000'000;
  };
  sequence.submitted_ns = submitted_ns;
  sequence.deadline_ns = after(request.timeout_ms);
  sequence.wait_deadline_ns =
      after(request.max_wait_ms != 0 ? request.max_wait_ms : options.max_wait_ms);
  sequence.max_predict_ms = request.max_predict_ms;
  sequence.priority = request.priority;
  sequence.tenant = request.tenant;
  sequence.tenant_weight = request.tenant_weight;
}

std::optional<Error> Engine::State::PrepareGrammar(Request& request) const {
  if (request.grammar.kind == GrammarKind::kNone && request.compiled_grammar == nullptr)
    return std::nullopt;
  if (!guide.available())
    return Error{ErrorCode::kUnsupported, "this engine has no vocabulary for grammars"};
  if (request.stop_ids.empty()) return Invalid("a grammar needs stop ids to end the output");
  if (request.pooling != Pooling::kNone) return Invalid("an embedding has no grammar");
  if (request.compiled_grammar != nullptr) return std::nullopt;
  Result<SharedGrammar> compiled = Grammar::Compile(request.grammar);
  if (!compiled) return compiled.error();
  request.compiled_grammar = *std::move(compiled);
  return std::nullopt;
}

std::unique_ptr<Sequence> Engine::State::MakeSequences(Request request) const {
  const auto num_prompt_tokens = static_cast<std::uint32_t>(request.prompt.size());
  const std::uint32_t max_output = options.max_context - num_prompt_tokens;
  std::unique_ptr<Sequence> first;
  for (std::uint32_t i = request.num_samples; i-- > 0;) {
    auto sequence = std::make_unique<Sequence>();
    sequence->sampling = request.sampling;
    sequence->sampling.seed += i;
    sequence->rules = request.rules;
    if (request.compiled_grammar != nullptr)
      sequence->matcher = std::make_unique<GrammarMatcher>(request.compiled_grammar);
    sequence->num_top_logprobs = request.num_top_logprobs;
    if (i == 0) sequence->num_prompt_logprobs = request.num_prompt_logprobs;
    sequence->pooling = request.pooling;
    if (request.pooling != Pooling::kNone) {
      sequence->pooled.resize(hidden_dim);
      sequence->embedding.values.reserve(hidden_dim);
    }
    sequence->stop_ids = request.stop_ids;
    SetTurn(request, *sequence);
    sequence->num_prompt_tokens = num_prompt_tokens;
    sequence->max_length = num_prompt_tokens + std::min(request.max_tokens, max_output);
    sequence->tokens.reserve(sequence->max_length);
    sequence->tokens = request.prompt;  // The capacity stays.
    if (!options.descriptor_log.empty()) sequence->log_salt = LogSalt(request.cache_salt);
    if (options.prefix_cache) {
      sequence->root = PrefixRoot(model_digest, layout, request.cache_salt);
      sequence->keys.reserve(sequence->max_length / options.block_tokens);
      ExtendKeys(*sequence, num_prompt_tokens);
    }
    sequence->next_sample = std::move(first);
    first = std::move(sequence);
  }
  first->num_queued_tokens = num_prompt_tokens;  // Its samples share the prompt.
  return first;
}

std::string Engine::State::RejectForRequests() {
  metrics.num_rejected_requests.fetch_add(1, std::memory_order_relaxed);
  return "the queue is full: " + std::to_string(options.max_queued + options.max_rows) +
         " requests run or wait";
}

std::string Engine::State::RejectForTokens(std::uint64_t num_waiting) {
  metrics.num_rejected_tokens.fetch_add(1, std::memory_order_relaxed);
  return "the queue is full: prompts of " + std::to_string(num_waiting) + " tokens wait, and " +
         std::to_string(options.max_queued_tokens) + " may";
}

bool Engine::State::Accept(std::uint32_t num_requests, std::uint32_t num_tokens, std::string* why) {
  const std::uint32_t limit = options.max_queued + options.max_rows;
  if (num_accepted.fetch_add(num_requests) + num_requests > limit) {
    num_accepted.fetch_sub(num_requests);
    *why = RejectForRequests();
    return false;
  }
  // One prompt of any length may wait: the context bounds it.
  const std::uint64_t before = num_queued_tokens.fetch_add(num_tokens);
  if (before > 0 && before + num_tokens > options.max_queued_tokens) {
    num_queued_tokens.fetch_sub(num_tokens);
    num_accepted.fetch_sub(num_requests);
    *why = RejectForTokens(before);
    return false;
  }
  return true;
}

void Engine::State::Number(Sequence& first, RequestId id) noexcept {
  std::uint64_t next = static_cast<std::uint64_t>(id);
  for (Sequence* sequence = &first; sequence != nullptr; sequence = sequence->next_sample.get()) {
    sequence->id = RequestId{next++};
    if (sequence != &first) sequence->sample_of = id;
  }
}

// What State::Accept counted, until it is kept: memory for a request may run out in between.
class Engine::Accepted {
 public:
  Accepted(State& state, std::uint32_t num_requests, std::uint32_t num_tokens)
      : state_(&state), num_requests_(num_requests), num_tokens_(num_tokens) {}
  ~Accepted() {
    if (state_ == nullptr) return;
    state_->num_queued_tokens.fetch_sub(num_tokens_);
    state_->num_accepted.fetch_sub(num_requests_);
  }
  Accepted(const Accepted&) = delete;
  Accepted& operator=(const Accepted&) = delete;
  void Keep() { state_ = nullptr; }

 private:
  State* state_;
  const std::uint32_t num_requests_;
  const std::uint32_t num_tokens_;
};

Result<RequestId> Engine::Submit(Request request) {
  State& s = *state_;
  if (request.prompt.empty()) return Invalid("prompt must have at least 1 token");
  if (request.prompt.size() >= s.options.max_context) {
    return Error{ErrorCode::kTooLarge, "prompt has " + std::to_string(request.prompt.size()) +
                                           " tokens; the context holds " +
                                           std::to_string(s.options.max_context) +
                                           ", the output included"};
  }
  for (const std::int32_t id : request.prompt) {
    if (id < 0 || static_cast<std::uint32_t>(id) >= s.vocab_size) {
      return Invalid("prompt has token id " + std::to_string(id) + "; ids are below " +
                     std::to_string(s.vocab_size));
    }
  }
  if (request.max_tokens == 0) return Invalid("max_tokens must be at least 1");
  if (std::optional<Error> error = ErrorIn(request.sampling)) return *std::move(error);
  if (std::optional<Error> error = ErrorIn(request.rules, s.vocab_size)) return *std::move(error);
  if (std::optional<Error> error = ErrorInResults(request)) return *std::move(error);
  if (request.pooling != Pooling::kNone && s.hidden_dim == 0)
    return Error{ErrorCode::kUnsupported, "this executor has no hidden states to pool"};
  if (std::optional<Error> error = s.PrepareGrammar(request)) return *std::move(error);
  if (!(request.tenant_weight >= 1.0f / 1024 && request.tenant_weight <= 1024.0f)) {
    return Invalid("tenant_weight must be 1/1024 to 1024");
  }
  if (request.num_samples == 0 || request.num_samples > kMaxSamples) {
    return Invalid("samples must be 1 to " + std::to_string(kMaxSamples) + ", not " +
                   std::to_string(request.num_samples));
  }
  if (request.cache_salt.size() > kMaxSaltBytes) {
    return Invalid("cache_salt must have at most " + std::to_string(kMaxSaltBytes) +
                   " bytes, not " + std::to_string(request.cache_salt.size()));
  }

  const std::uint32_t num_samples = request.num_samples;
  const auto num_tokens = static_cast<std::uint32_t>(request.prompt.size());
  // Counted first and then looked at stop: either Run sees the count and waits for the command, or
  // this sees stop. Both need the one order of sequentially consistent operations.
  std::string why;
  if (!s.Accept(num_samples, num_tokens, &why)) return Error{ErrorCode::kOverloaded, why};
  Accepted accepted(s, num_samples, num_tokens);
  if (s.stop.load()) return Error{ErrorCode::kOverloaded, "draining"};
  std::unique_ptr<Sequence> first = s.MakeSequences(std::move(request));
  const RequestId id{s.next_id.fetch_add(num_samples, std::memory_order_relaxed)};
  s.Number(*first, id);
  State::Command command;
  command.add = std::move(first);
  if (!s.commands.TryPush(std::move(command))) {
    return Error{ErrorCode::kOverloaded, "too many requests and cancellations at once"};
  }
  accepted.Keep();
  s.Wake();
  return id;
}

std::optional<Error> Engine::RefuseIfFull(std::uint32_t num_ahead) {
  State& s = *state_;
  if (s.stop.load()) return Error{ErrorCode::kOverloaded, "draining"};
  const std::uint64_t limit = std::uint64_t{s.options.max_queued} + s.options.max_rows;
  if (std::uint64_t{s.num_accepted.load()} + num_ahead >= limit)
    return Error{ErrorCode::kOverloaded, s.RejectForRequests()};
  // A prompt has a token at least, and none waits alone any more.
  const std::uint64_t num_waiting = s.num_queued_tokens.load();
  if (num_waiting > 0 && num_waiting >= s.options.max_queued_tokens)
    return Error{ErrorCode::kOverloaded, s.RejectForTokens(num_waiting)};
  return std::nullopt;
}

void Engine::Cancel(RequestId request) {
  State& s = *state_;
  // The queue is emptied once per step, so a full one has room again within a step.
  for (;;) {
    State::Command command;
    command.cancel = request;
    if (s.commands.TryPush(std::move(command))) break;
    if (s.stop.load(std::memory_order_acquire)) return;
    s.Wake();
    std::this_thread::yield();
  }
  s.Wake();
}

}  // namespace kvrm
