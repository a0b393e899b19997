// SPDX-License-Identifier: Apache-2.0
// What an engine is made of, and what its thread does with it. Of the engine's own files alone:
//   engine.cc          it is made, started and asked
//   engine_submit.cc   a request becomes sequences (any thread)
//   engine_step.cc     commands, then one step
//   engine_results.cc  what a step computed, and what ends
//   engine_observe.cc  counters and metrics
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bounded_queue.h"
#include "base/snapshot.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "engine/grammar_guide.h"
#include "engine/outbox.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_loop.h"

namespace kvrm {

// Fields without a word are the engine thread's.
struct Engine::State {
  // What other threads ask of its thread.
  struct Command {
    std::unique_ptr<Sequence> add;  // Null: cancel `cancel`.
    RequestId cancel{};
  };

  enum Counter {
    kRunning,
    kWaiting,
    kSteps,
    kPromptTokens,
    kOutputTokens,
    kPreemptions,
    kRecomputed,
    kCachedTokens,
    kMovedBlocks,
    kRunOverflows,
    kBlocks,
    kFreeBlocks,
    kStepNs,
    kNumCounters
  };
  // Results of a step, of one row.
  struct Samples {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
  };

  State(const EngineParts& parts, const EngineOptions& options_in, const Clock& clock_in,
        bool only_reserve = false);

  // ---- engine_submit.cc
  // Any thread. When it is its turn, and how long it may take.
  void SetTurn(const Request& request, Sequence& sequence) const noexcept;
  // Any thread. Leaves the request with a compiled grammar if it has one.
  std::optional<Error> PrepareGrammar(Request& request) const;
  // Any thread. One sequence for each sample, the first at the front.
  std::unique_ptr<Sequence> MakeSequences(Request request) const;
  // Any thread. Whether the queue takes so many more; then they count as accepted.
  bool Accept(std::uint32_t num_requests, std::uint32_t num_tokens, std::string* why);
  // Any thread. Count a rejection and say why.
  std::string RejectForRequests();
  std::string RejectForTokens(std::uint64_t num_waiting);
  // Consecutive ids; all but the first wait for its prompt.
  static void Number(Sequence& first, RequestId id) noexcept;

  // ---- engine_step.cc
  // Requests whose time is over, in the queue or while they run.
  void EndExpired() noexcept;
  // Takes what other threads asked for, as long as there is room for what it may answer; the rest
  // waits for the consumer. Unknown or finished requests are a no-op (R3).
  void DrainCommands() noexcept;
  // A sequence and the other samples of its prompt.
  void AddAll(std::unique_ptr<Sequence> sequence) noexcept;
  // What still runs or waits ends; everything accepted so far is here or in the queue of commands.
  void AbortAll() noexcept;
  // Rows whose history needs more runs than a descriptor holds wait for compaction, others for a
  // block of their own or for their window.
  void BuildRows(std::span<const PlannedRow> rows) noexcept;
  // How many sequences may be taken in. After StartOverAlone one, until it has got further than
  // before: then there is progress whatever happens next.
  std::uint32_t MaxNewcomers() noexcept;
  // The last one could not go on even alone: its blocks lie in too many runs, and so would those it
  // finds again in the cache. It starts over in an empty pool, where it has one run.
  void StartOverAlone() noexcept;
  bool RunStep() noexcept;

  // ---- engine_results.cc
  void Emit(const TokenEvent& event) noexcept;
  void Finish(RequestId id, FinishReason reason) noexcept;
  // Ends without a token.
  void Fail(RequestId id, FinishReason reason) noexcept;
  void TakeResults() noexcept;
  std::size_t NumScheduledSamples() const noexcept;
  // The positions [end - count, end) of its prompt. False: a result is not finite.
  bool TakePrompt(Sequence& sequence, std::uint32_t end, Samples samples) noexcept;
  // Of the token at `position`, which `sample` gave. False: not all of it is finite.
  bool PushLogprobs(const Sequence& sequence, std::uint32_t sample, std::uint32_t position,
                    std::uint32_t num_top) noexcept;
  // The prompt is computed, and that was all that was wanted.
  void EndEmbedding(Sequence& sequence, std::uint32_t sample) noexcept;
  void CountTokens(Sequence& sequence, std::uint32_t begin) noexcept;
  // The result was good, and with it all that was computed for it (K13): its blocks may be found by
  // others from now on. What no position to come attends is dropped.
  void Publish(Sequence& sequence) noexcept;
  void ExtendKeys(Sequence& sequence, std::uint32_t num_tokens) const noexcept;
  static bool IsStop(const Sequence& sequence, std::int32_t token) noexcept;
  // The next token, which the output's grammar has taken.
  Sampled Sample(Sequence& sequence, std::uint32_t sample) noexcept;
  void TakeToken(Sequence& sequence, std::uint32_t sample) noexcept;

  // ---- engine_observe.cc
  void CountEnd(const Sequence& sequence, FinishReason reason) noexcept;
  void ObserveStep(const StepLoad& load, std::int64_t step_ns) noexcept;
  void ObserveMoves(const KvStats& kv) noexcept;
  // How many requests end a second, over the last two seconds and, less and less, before.
  void ObserveRate() noexcept;
  void ObserveToken(Sequence& sequence) noexcept;
  void PublishStats() noexcept;

  void Wake() noexcept {
    signal.fetch_add(1, std::memory_order_release);
    signal.notify_one();
  }

  const std::uint32_t vocab_size;
  const std::uint32_t attention_window;
  const std::uint32_t hidden_dim;
  const std::string model_digest;
  KvLayout layout;
  const Clock& clock;
  const EngineOptions options;
  StepLoop loop;
  Scheduler scheduler;
  Sampler sampler;
  GrammarGuide guide;
  BoundedQueue<Command> commands;                    // any thread -> engine
  Outbox outbox;                                     // engine -> consumer
  BoundedQueue<std::unique_ptr<Sequence>> finished;  // engine -> consumer, to be freed
  std::vector<PlannedRow> scheduled;                 // rows of the step being run
  std::vector<std::int32_t> sampled_tokens;          // of that step, for the descriptor log
  std::vector<ReservedBytes> reserved;
  std::function<void()> wake;
  std::array<std::uint64_t, kNumCounters> counts = {};  // engine thread
  std::array<std::atomic<std::uint64_t>, kNumCounters> published = {};
  EngineMetrics metrics;
  std::int64_t now_ns = 0;  // of the step: its begin, then when its results were there
  std::uint64_t num_observed_steps = 0;
  std::uint64_t num_moved_bytes = 0;
  std::uint64_t num_groups = 0;
  std::uint64_t num_dequeued_tokens = 0;
  std::uint64_t num_ended = 0;  // since rate_begin_ns
  std::int64_t rate_begin_ns = 0;
  std::atomic<double> ends_per_second{0};
  std::uint32_t num_crowded_steps = 0;  // in a row, with a row that had to wait
  std::uint64_t num_filled = 0;         // as of the last of them
  bool is_alone = false;
  std::uint64_t num_tokens_before_alone = 0;
  Snapshot<KvStats> kv_stats;
  std::atomic<std::uint64_t> next_id{1};
  std::atomic<std::uint32_t> num_accepted{0};       // accepted and not ended
  std::atomic<std::uint64_t> num_queued_tokens{0};  // of prompts that no step has begun
  std::atomic<std::uint32_t> signal{0};             // counts reasons to look again
  std::atomic<std::uint64_t> num_rounds{0};
  std::atomic<bool> stop{false};
};

}  // namespace kvrm
