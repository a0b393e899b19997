// SPDX-License-Identifier: Apache-2.0
// Generations: from an accepted plan to the last byte of its answer.
//
// A generation is one exchange, one submit per prompt and one engine request per choice: choice
// p * n + i is output i of prompt p, n of them each. Tokens come in as engine events,
// text goes out through the decoder and the stop matcher into SSE chunks or one body.
//
//   G1  Every generation ends exactly once: complete, failed, or its client gone (R1); after that
//       none of its engine requests is still wanted.
//   G2  An event of a request nobody wants any more is counted and dropped (R3).
//   G3  A stream's status 200 is sent with its first token, so an early failure has a real status.
//
// Threading: the I/O thread. Memory: a non-streamed answer is held as text until it is complete.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "server/api_format.h"
#include "server/http.h"
#include "server/ports.h"
#include "server/prepare.h"
#include "server/stop_matcher.h"

namespace kvrm {

struct GenerationStats {
  std::uint64_t num_started = 0;
  std::uint64_t num_completed = 0;
  std::uint64_t num_failed = 0;
  std::uint64_t num_abandoned = 0;  // by their clients
  std::uint64_t num_cancels = 0;    // sent to the engine
  std::uint64_t num_late_events = 0;
};

// What the I/O thread's owner of connections offers, so that this is testable without sockets.
struct ReplyPort {
  std::function<bool(ExchangeId, HttpResponse)> respond;
  std::function<bool(ExchangeId, const std::vector<std::pair<std::string, std::string>>&)>
      start_stream;
  std::function<bool(ExchangeId, std::string_view)> write;
  std::function<bool(ExchangeId)> finish;
  // What a generation used, before its last byte is written or when it is given up.
  std::function<void(ExchangeId, const ReplyUsage&)> account = [](ExchangeId, const ReplyUsage&) {};
};

// The answer to a refused request, with the headers its status calls for.
HttpResponse ErrorResponse(const ApiError& error, const std::string& request_id);

class Generations {
 public:
  // The ports and the clock outlive this.
  Generations(const EnginePort& engine, const ModelPort& model, ReplyPort reply, const Clock& clock,
              std::uint64_t seed);
  ~Generations();

  void Start(ExchangeId exchange, const std::string& request_id, GenerationPlan plan);
  void OnEvent(const TokenEvent& event);
  // What belongs to an event is given before it.
  void OnLogprobs(const TopLogprobs& logprobs);
  void OnEmbedding(Embedding embedding);
  void OnGone(ExchangeId exchange);
  // Cancels everything and answers with 503.
  void AbortAll();

  std::size_t num_active() const { return generations_.size(); }
  const GenerationStats& stats() const { return stats_; }

 private:
  struct Choice;
  struct Generation;
  struct Place {
    Generation* generation = nullptr;
    std::size_t choice_idx = 0;
  };

  std::unique_ptr<Generation> MakeGeneration(ExchangeId exchange, const std::string& request_id,
                                             const GenerationPlan& plan);
  bool AddChoices(Generation& generation, PromptPlan& prompt);
  void BeginPrompt(Generation& generation, Choice& choice);
  void Advance(Generation& generation, std::size_t choice_idx, const TokenEvent& event);
  void Score(const Generation& generation, Choice& choice, const TokenEvent& event) const;
  std::vector<ToolCallPart> CallsOf(const Generation& generation,
                                    std::vector<ToolCallDelta> deltas);
  ChoicePart PartOf(Generation& generation, Choice& choice, TextPart text);
  json::value TakeLogprobs(const Generation& generation, Choice& choice) const;
  // `each_token`: a chunk goes out even when all text is held back.
  void Emit(Generation& generation, std::size_t choice_idx, TextPart text, bool each_token);
  void EndChoice(Generation& generation, std::size_t choice_idx, const TokenEvent& event);
  PromptFacts FactsOf(const Generation& generation, const Choice& choice) const;
  ReplyTimings TimingsOf(const Generation& generation) const;
  std::string Body(Generation& generation) const;
  void Complete(Generation& generation);
  void Fail(Generation& generation, const ApiError& error);
  // Cancels what still runs and forgets the generation; the reference is dead afterwards.
  void Release(Generation& generation);
  void Cancel(RequestId request);
  std::uint32_t RetryAfter() const;

  const EnginePort& engine_;
  const ModelPort& model_;
  const ReplyPort reply_;
  const Clock& clock_;
  Rng rng_;                                                                     // of reply ids
  std::unordered_map<std::uint64_t, std::unique_ptr<Generation>> generations_;  // by exchange
  std::unordered_map<std::uint64_t, Place> wanted_;                             // by engine request
  GenerationStats stats_;
};

}  // namespace kvrm
