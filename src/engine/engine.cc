// SPDX-License-Identifier: Apache-2.0
#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/mutant.h"
#include "base/snapshot.h"
#include "engine/grammar_guide.h"
#include "engine/outbox.h"
#include "engine/request_checks.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_loop.h"

namespace kvrm {
namespace {

// The longest context served unless asked for more: 32,768 tokens of a model made for 128k would
// otherwise reserve sixteen times the memory of a chat.
constexpr std::uint32_t kDefaultContextMax = 32768;
// A row that needs more runs than a descriptor holds waits this long for compaction: with the
// default budget of 16 MiB a step that is 1 GiB moved, beyond any one sequence.
constexpr std::uint32_t kMaxCrowdedSteps = 64;
constexpr std::uint32_t kMaxEdits = 65536;
// Prompt positions whose logits one step computes, beside those of its rows: each costs a pass over
// the output matrix's activations, and room for a vocabulary of logits.
constexpr std::uint32_t kPromptSamples = 16;

// What other threads ask of the engine thread.
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

// Ends are counted over so long before they are a rate.
constexpr std::int64_t kRateNs = 2'000'000'000;

double Seconds(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-9;
}

std::uint64_t PhysicalMemoryBytes() {
  return static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

// Checks what moves, and how much of it.
void CheckMovement(const EngineOptions& options, const KvLayout& layout) {
  if (options.max_edits_per_step == 0 || options.max_edits_per_step > kMaxEdits) {
    throw StartError("edits per step must be 1 to " + std::to_string(kMaxEdits) + ", not " +
                     std::to_string(options.max_edits_per_step));
  }
  if (options.max_move_bytes_per_step < layout.block_bytes()) {
    throw StartError(
        "the movement budget of a step, " + std::to_string(options.max_move_bytes_per_step) +
        " bytes, is less than one block of " + std::to_string(layout.block_bytes()) + " bytes");
  }
}

std::uint64_t DefaultKvTokens(const EngineOptions& options, const KvLayout& layout) {
  const std::uint64_t most = std::uint64_t{options.max_rows} * options.max_context;
  if (IsStaticView(options.view)) return 0;  // Exactly what it needs.
  const std::uint64_t fits = PhysicalMemoryBytes() / 4 / layout.token_bytes();
  return std::max<std::uint64_t>(options.max_context, std::min(most, fits));
}

void CheckPace(const StepPaceOptions& pace) {
  const bool has_factor = pace.itl_factor >= 1 && pace.itl_factor <= 1000;
  if (!has_factor && pace.itl_factor != 0) {  // A NaN is neither.
    throw StartError("the factor of inter-token latency must be 0 (no limit) or 1 to 1000");
  }
  if (!(pace.max_step_seconds >= 0 && pace.max_step_seconds <= 3600)) {
    throw StartError("the longest step must be 0 (no limit) to 3600 seconds");
  }
  if (pace.min_prompt_tokens == 0) throw StartError("a step takes at least 1 prompt token");
}

std::uint64_t DefaultHostKvBytes(const EngineOptions& options, const KvLayout& layout) {
  if (options.memory_budget != 0) return 0;
  const std::uint64_t most = std::uint64_t{options.max_rows} * options.max_context;
  const std::uint64_t lacking = most > options.kv_tokens ? most - options.kv_tokens : 0;
  return std::min(lacking, options.kv_tokens) * layout.token_bytes();
}

// In whole blocks.
std::uint64_t ResolvedHostKvBytes(const EngineOptions& options, const KvLayout& layout) {
  if (IsStaticView(options.view)) return 0;
  const std::uint64_t bytes = options.host_kv_bytes == kHostKvAuto
                                  ? DefaultHostKvBytes(options, layout)
                                  : options.host_kv_bytes;
  const std::uint64_t num_blocks = bytes / layout.block_bytes();
  if (num_blocks > 0xfffffff0u) {
    throw StartError("the host tier of " + std::to_string(bytes) + " bytes has " +
                     std::to_string(num_blocks) + " blocks, more than 32 bits can number");
  }
  return num_blocks * layout.block_bytes();
}

EngineOptions Resolved(EngineOptions options, const EngineParts& parts) {
  CheckBlockTokens(options.block_tokens);
  if (options.max_rows == 0 || options.max_rows > 1024) {
    throw StartError("parallel sequences must be 1 to 1024, not " +
                     std::to_string(options.max_rows));
  }
  if (options.max_context == 0) {
    options.max_context = std::min(parts.max_context, kDefaultContextMax);
  }
  if (options.max_context > parts.max_context) {
    throw StartError("context size " + std::to_string(options.max_context) +
                     " exceeds what the model was trained for, " +
                     std::to_string(parts.max_context));
  }
  options.max_step_tokens = std::max(options.max_step_tokens, options.max_rows);
  if (options.max_step_tokens > 65536) {
    throw StartError("step tokens must be at most 65536, not " +
                     std::to_string(options.max_step_tokens));
  }
  CheckPace(options.pace);
  if (options.prompt_chunk == 0) options.prompt_chunk = options.max_step_tokens;
  KvLayout layout = parts.layout;
  layout.block_tokens = options.block_tokens;
  CheckMovement(options, layout);
  if (options.kv_tokens == 0) options.kv_tokens = DefaultKvTokens(options, layout);
  if (options.kv_tokens / options.block_tokens > 0xfffffff0u) {
    throw StartError("the KV pool has more blocks than 32 bits can number");
  }
  options.host_kv_bytes = ResolvedHostKvBytes(options, layout);
  return options;
}

// 5 % of the pool: with it the median run stays at 16 blocks and more in a pool that is 90 % full,
// without it at 8 (docs/decisions/0013-allocation-policy.md). A static view has a place for
// everyone.
std::uint32_t HeadroomTokens(const EngineOptions& options) {
  if (IsStaticView(options.view)) return 0;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(options.kv_tokens / 20, std::numeric_limits<std::uint32_t>::max()));
}

std::uint32_t MaxCachedBlocks(const EngineOptions& options) {
  if (options.prefix_cache_tokens == kCacheAuto) return kCachedAsHeld;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      options.prefix_cache_tokens / options.block_tokens, kCachedAsHeld - 1));
}

StepLoopOptions LoopOptions(const EngineOptions& options, KvLayout layout, bool only_reserve) {
  layout.block_tokens = options.block_tokens;
  return {.limits = {.max_rows = options.max_rows,
                     .max_tokens = options.max_step_tokens,
                     .max_runs = options.max_runs,
                     .max_groups = options.max_edits_per_step,
                     .max_samples = options.max_rows + kPromptSamples,
                     .block_tokens = options.block_tokens},
          .max_seqs = options.max_rows,
          .max_context = options.max_context,
          .kv_tokens = options.kv_tokens,
          .host_blocks = static_cast<std::uint32_t>(options.host_kv_bytes / layout.block_bytes()),
          .max_move_bytes_per_step = options.max_move_bytes_per_step,
          .layered_move_bytes = options.layered_move_bytes,
          .view = options.view,
          .placement = options.placement,
          .placement_seed = options.placement_seed,
          .elastic = options.elastic_kv,
          .max_cached_blocks = MaxCachedBlocks(options),
          .prefix_cache = options.prefix_cache,
          .descriptor_log = options.descriptor_log,
          .only_reserve = only_reserve};
}

// A step makes at most one event for each row, and one for each sample that is forked off; where
// rows end, more of these find room than there were rows left. Commands take what room is left, and
// Stop ends everything at once.
OutboxLimits LimitsOf(const EngineOptions& options) {
  const std::size_t step_events = 2 * std::size_t{options.max_rows};
  return {.step_events = step_events,
          .last_events = std::size_t{options.max_queued} + options.max_rows,
          .step_logprobs = step_events + kPromptSamples,
          .step_embeddings = options.max_rows};
}

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

struct Engine::State {
  State(const EngineParts& parts, const EngineOptions& options_in, const Clock& clock_in,
        bool only_reserve = false)
      : vocab_size(parts.vocab_size),
        attention_window(parts.attention_window),
        hidden_dim(parts.hidden_dim),
        model_digest(parts.model_digest),
        layout(parts.layout),
        clock(clock_in),
        options(Resolved(options_in, parts)),
        loop(parts, LoopOptions(options, layout, only_reserve)),
        scheduler({.max_rows = options.max_rows,
                   .max_step_tokens = options.max_step_tokens,
                   .prompt_chunk = options.prompt_chunk,
                   .max_waiting = options.max_queued,
                   .headroom_tokens = HeadroomTokens(options),
                   .preempt_seed = options.preempt_seed,
                   .prompt_samples = kPromptSamples,
                   .pace = options.pace,
                   .log = loop.log()},
                  loop.cache()),
        sampler(vocab_size, KernelsByName(options.kernels)),
        guide(vocab_size,
              options.mask_cache_bytes > 0 ? parts.token_bytes
                                           : std::function<std::string(std::int32_t)>(),
              options.mask_cache_bytes),
        commands(2 * (std::size_t{options.max_queued} + options.max_rows)),
        outbox(LimitsOf(options)),
        finished(std::size_t{options.max_queued} + options.max_rows) {
    layout.block_tokens = options.block_tokens;
    scheduled.reserve(options.max_rows);
    reserved.push_back({.owner = "step descriptors", .bytes = loop.descriptor_bytes()});
    reserved.push_back({.owner = "kv tables", .bytes = loop.cache().stats().table_bytes});
    reserved.push_back(
        {.owner = "queues",
         .bytes = commands.reserved_bytes() + outbox.reserved_bytes() + finished.reserved_bytes()});
    if (guide.available())
      reserved.push_back({.owner = "grammar masks", .bytes = guide.reserved_bytes()});
    if (loop.log_bytes() > 0) {
      sampled_tokens.reserve(loop.limits().max_samples);
      reserved.push_back({.owner = "descriptor log", .bytes = loop.log_bytes()});
    }
    PublishStats();
  }

  void Emit(const TokenEvent& event) noexcept { outbox.Push(event); }

  void Finish(RequestId id, FinishReason reason) noexcept {
    std::unique_ptr<Sequence> sequence = scheduler.Remove(id);
    CHECK(sequence != nullptr);
    num_accepted.fetch_sub(1);
    CountEnd(*sequence, reason);
    // Memory goes back on the consumer's thread, not on the step path; there is room for all.
    finished.TryPush(std::move(sequence));
  }

  // Ends without a token.
  void Fail(RequestId id, FinishReason reason) noexcept {
    Emit({.request = id, .finish = reason});
    Finish(id, reason);
  }

  void CountEnd(const Sequence& sequence, FinishReason reason) noexcept {
    std::atomic<std::uint64_t>& count = metrics.num_ended[static_cast<std::size_t>(reason)];
    count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    ++num_ended;
    if (reason != FinishReason::kStop && reason != FinishReason::kLength) return;
    metrics.e2e_seconds.Observe(Seconds(now_ns - sequence.submitted_ns));
    metrics.prompt_tokens.Observe(sequence.num_prompt_tokens);
    metrics.output_tokens.Observe(sequence.num_output_tokens());
  }

  // Requests whose time is over, in the queue or while they run.
  void EndExpired() noexcept {
    FinishReason reason = FinishReason::kNone;
    while (outbox.EventsFit(1)) {
      const Sequence* sequence = scheduler.Expired(now_ns, &reason);
      if (sequence == nullptr) return;
      Fail(sequence->id, reason);
    }
  }

  // Takes what other threads asked for, as long as there is room for what it may answer; the rest
  // waits for the consumer. Unknown or finished requests are a no-op (R3).
  void DrainCommands() noexcept {
    while (outbox.EventsFit(1)) {
      std::optional<Command> command = commands.TryPop();
      if (!command) return;
      if (command->add != nullptr) {
        AddAll(std::move(command->add));
      } else if (scheduler.Has(command->cancel)) {
        Fail(command->cancel, FinishReason::kAborted);
      }
    }
  }

  // A sequence and the other samples of its prompt.
  void AddAll(std::unique_ptr<Sequence> sequence) noexcept {
    while (sequence != nullptr) {
      std::unique_ptr<Sequence> next = std::move(sequence->next_sample);
      scheduler.Add(std::move(sequence));
      sequence = std::move(next);
    }
  }

  // What still runs or waits ends; everything accepted so far is here or in the queue of commands.
  void AbortAll() noexcept {
    while (num_accepted.load() > 0) {
      while (std::optional<Command> command = commands.TryPop()) {
        if (command->add != nullptr) AddAll(std::move(command->add));
      }
      while (const Sequence* sequence = scheduler.Any()) {
        Fail(sequence->id, FinishReason::kAborted);
      }
    }
  }

  // Rows whose history needs more runs than a descriptor holds wait for compaction, others for a
  // block of their own or for their window.
  void BuildRows(std::span<const PlannedRow> rows) noexcept {
    scheduled.clear();
    bool crowded = false;
    for (const PlannedRow& row : rows) {
      const Sequence& sequence = *row.sequence;
      if (loop.cache().AddRow(
              loop.builder(),
              {.seq = sequence.seq,
               .first_position = sequence.num_computed,
               .tokens = std::span(sequence.tokens).subspan(sequence.num_computed, row.num_tokens),
               .num_samples = sequence.NumSamples(row.num_tokens)})) {
        scheduled.push_back(row);
      } else {
        crowded = true;
      }
    }
    if (!crowded) {
      num_crowded_steps = 0;
      return;
    }
    // Windows are filled as the budget goes: as long as that goes on, the wait has an end. Layer
    // buffers are gathered by every step of the others, which is nobody's progress.
    const KvStats stats = loop.cache().stats();
    const std::uint64_t staged =
        options.view == KvView::kStagedWindows ? stats.num_staged_bytes : 0;
    const std::uint64_t filled = staged + stats.num_maps + stats.num_cow_blocks;
    const bool goes_on = std::exchange(num_filled, filled) != filled;
    num_crowded_steps = goes_on ? 1 : num_crowded_steps + 1;
  }

  // How many sequences may be taken in. After StartOverAlone one, until it has got further than
  // before: then there is progress whatever happens next.
  std::uint32_t MaxNewcomers() noexcept {
    if (num_crowded_steps > 0) return 0;
    if (!is_alone) return options.max_rows;
    // What was parked has left its blocks there.
    if (scheduler.num_running() == 0) loop.cache().DropCached();
    if (counts[kOutputTokens] == num_tokens_before_alone)
      return scheduler.num_running() == 0 ? 1 : 0;
    is_alone = false;
    loop.cache().PlaceTogether(false);
    return options.max_rows;
  }

  // The last one could not go on even alone: its blocks lie in too many runs, and so would those it
  // finds again in the cache. It starts over in an empty pool, where it has one run.
  void StartOverAlone() noexcept {
    loop.cache().DropCached();
    loop.cache().PlaceTogether(true);
    is_alone = true;
    num_tokens_before_alone = counts[kOutputTokens];
  }

  bool RunStep() noexcept {
    // While a row waits to be moved together, free blocks are for that and not for newcomers.
    const std::span<const PlannedRow> rows = scheduler.Pass(MaxNewcomers(), now_ns);
    loop.Begin();
    BuildRows(rows);
    const bool worked = loop.Commit();
    if (worked) {
      ++counts[kSteps];
      const StepLoad load = Scheduler::LoadOf(scheduled);
      const std::int64_t begin_ns = std::exchange(now_ns, clock.NowNs());
      TakeResults();
      ObserveStep(load, clock.NowNs() - begin_ns);
    }
    // Nothing can be moved, or not soon enough: the youngest starts over elsewhere.
    if (!worked || num_crowded_steps >= kMaxCrowdedSteps) {
      const bool preempted = scheduler.PreemptYoungest();
      // It was alone: what it finds again in the cache lies where it could not go on.
      if (preempted && scheduler.num_running() == 0) StartOverAlone();
      // The others are crowded still: taken in again at once, it would take the room it just left.
      num_crowded_steps = scheduler.num_running() > 0 ? 1 : 0;
      return preempted || worked;
    }
    return worked;
  }

  void ObserveStep(const StepLoad& load, std::int64_t step_ns) noexcept {
    if (scheduled.empty()) return;
    scheduler.Observe(load, step_ns, now_ns);
    metrics.step_seconds.Observe(Seconds(step_ns));
    metrics.step_tokens.Observe(load.rows + load.prompt_tokens);
  }

  void ObserveMoves(const KvStats& kv) noexcept {
    const std::uint64_t blocks = kv.num_moved_blocks + kv.num_cow_blocks;
    const std::uint64_t bytes = blocks * layout.block_bytes() + kv.num_staged_bytes;
    if (counts[kSteps] != std::exchange(num_observed_steps, counts[kSteps])) {
      metrics.moved_bytes.Observe(static_cast<double>(bytes - num_moved_bytes));
      metrics.step_groups.Observe(static_cast<double>(kv.num_groups - num_groups));
    }
    num_moved_bytes = bytes;
    num_groups = kv.num_groups;
  }

  // How many requests end a second, over the last kRateNs and, less and less, before.
  void ObserveRate() noexcept {
    if (now_ns - rate_begin_ns < kRateNs) return;
    const double late = static_cast<double>(num_ended) / Seconds(now_ns - rate_begin_ns);
    const double before = ends_per_second.load(std::memory_order_relaxed);
    ends_per_second.store((late + before) / 2, std::memory_order_relaxed);
    rate_begin_ns = now_ns;
    num_ended = 0;
  }

  void ObserveToken(Sequence& sequence) noexcept {
    if (sequence.first_token_ns == 0) {
      sequence.first_token_ns = now_ns;
      metrics.ttft_seconds.Observe(Seconds(now_ns - sequence.submitted_ns));
      metrics.queue_seconds.Observe(Seconds(sequence.admitted_ns - sequence.submitted_ns));
      if (sequence.max_predict_ms > 0) {
        const std::int64_t end_ns = now_ns + std::int64_t{sequence.max_predict_ms} * 1'000'000;
        if (sequence.deadline_ns == 0 || end_ns < sequence.deadline_ns)
          sequence.deadline_ns = end_ns;
        scheduler.NoteDeadline(sequence.deadline_ns);
      }
    } else {
      metrics.itl_seconds.Observe(Seconds(now_ns - sequence.last_token_ns));
    }
    sequence.last_token_ns = now_ns;
  }

  void TakeResults() noexcept {
    std::uint32_t sample = 0;
    if (loop.log() != nullptr) sampled_tokens.assign(NumScheduledSamples(), -1);
    for (const PlannedRow& row : scheduled) {
      Sequence& sequence = *row.sequence;
      const std::uint32_t begin = sequence.num_computed;
      const std::uint32_t num_samples = sequence.NumSamples(row.num_tokens);
      const bool is_good = !sequence.wants_prompt() ||
                           TakePrompt(sequence, begin + row.num_tokens, {sample, num_samples});
      sequence.num_computed += row.num_tokens;
      CountTokens(sequence, begin);
      sample += num_samples;
      scheduler.Charge(sequence, row.num_tokens);
      metrics.runs_per_row.Observe(static_cast<double>(loop.cache().home(sequence.seq).size()));
      if (!is_good) {
        Fail(sequence.id, FinishReason::kError);
      } else if (sequence.num_to_compute() == 0) {
        TakeToken(sequence, sample - 1);
      } else if (IsMutant(Mutant::kSampleOfAnother)) {
        ++sample;
      }
    }
    if (loop.log() == nullptr) return;
    loop.log()->Sampled(StepId{Index(loop.next_step()) - 1}, sampled_tokens);
  }

  std::size_t NumScheduledSamples() const noexcept {
    std::size_t count = 0;
    for (const PlannedRow& row : scheduled)
      count += row.sequence->NumSamples(row.num_tokens);
    return count;
  }

  struct Samples {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
  };
  // The positions [end - count, end) of its prompt. False: a result is not finite.
  bool TakePrompt(Sequence& sequence, std::uint32_t end, Samples samples) noexcept {
    if (samples.count == 0) return true;  // Computed once more: they were taken before.
    for (std::uint32_t i = 0; i < samples.count; ++i) {
      const std::uint32_t next = end - samples.count + i + 1;
      const std::uint32_t sample = samples.first + i;
      if (sequence.pooling == Pooling::kMean) {
        const std::span<const float> hidden = loop.executor().Hidden(sample);
        for (std::size_t k = 0; k < hidden.size(); ++k)
          sequence.pooled[k] += static_cast<double>(hidden[k]);
      } else if (next < sequence.num_prompt_tokens) {
        if (!PushLogprobs(sequence, sample, next, *sequence.num_prompt_logprobs)) return false;
      }
    }
    sequence.num_seen = end;
    return true;
  }

  // Of the token at `position`, which `sample` gave. False: not all of it is finite.
  bool PushLogprobs(const Sequence& sequence, std::uint32_t sample, std::uint32_t position,
                    std::uint32_t num_top) noexcept {
    TopLogprobs logprobs;
    logprobs.request = sequence.id;
    logprobs.position = position;
    logprobs.token.token = sequence.tokens[position];
    if (!sampler.Rank(loop.executor().Logits(sample), loop.executor().Stats(sample), num_top,
                      &logprobs)) {
      return false;
    }
    outbox.Push(logprobs);
    return true;
  }

  // The prompt is computed, and that was all that was wanted.
  void EndEmbedding(Sequence& sequence, std::uint32_t sample) noexcept {
    std::vector<float>& values = sequence.embedding.values;
    CHECK(values.capacity() >= hidden_dim);
    const std::span<const float> last = loop.executor().Hidden(sample);
    const double num_tokens = static_cast<double>(sequence.num_prompt_tokens);
    bool is_finite = true;
    for (std::size_t k = 0; k < hidden_dim; ++k) {
      values.push_back(sequence.pooling == Pooling::kMean
                           ? static_cast<float>(sequence.pooled[k] / num_tokens)
                           : last[k]);
      is_finite &= std::isfinite(values[k]);
    }
    if (is_finite) {
      Publish(sequence);
      counts[kCachedTokens] += sequence.num_cached_tokens;
      sequence.embedding.request = sequence.id;
      outbox.Push(std::move(sequence.embedding));
    }
    const FinishReason finish = is_finite ? FinishReason::kStop : FinishReason::kError;
    Emit({.request = sequence.id,
          .finish = finish,
          .num_cached_tokens = sequence.num_cached_tokens});
    Finish(sequence.id, finish);
  }

  void CountTokens(Sequence& sequence, std::uint32_t begin) noexcept {
    const std::uint32_t end = sequence.num_computed;
    const std::uint32_t seen = std::min(std::max(sequence.num_ever_computed, begin), end);
    counts[kRecomputed] += seen - begin;
    const std::uint32_t prompt_end = std::min(sequence.num_prompt_tokens, end);
    if (prompt_end > seen) counts[kPromptTokens] += prompt_end - seen;
    sequence.num_ever_computed = std::max(sequence.num_ever_computed, end);
  }

  // The result was good, and with it all that was computed for it (K13): its blocks may be found by
  // others from now on. What no position to come attends is dropped.
  void Publish(Sequence& sequence) noexcept {
    const std::uint32_t num_full = sequence.num_computed / options.block_tokens;
    if (num_full == sequence.num_published_blocks) return;
    if (options.prefix_cache) {
      ExtendKeys(sequence, sequence.num_computed);
      loop.cache().Publish(sequence.seq, std::span(sequence.tokens).first(sequence.num_computed),
                           std::span(sequence.keys).first(num_full));
    }
    sequence.num_published_blocks = num_full;
    if (attention_window == 0 || sequence.num_computed + 1 <= attention_window) return;
    const std::uint32_t end = sequence.num_computed + 1 - attention_window;
    loop.cache().Trim(sequence.seq, 0, end);
    if (loop.log() != nullptr) loop.log()->Trimmed(sequence.seq, 0, end);
  }

  void ExtendKeys(Sequence& sequence, std::uint32_t num_tokens) const noexcept {
    const std::span<const std::int32_t> tokens(sequence.tokens);
    while (sequence.keys.size() < num_tokens / options.block_tokens) {
      const std::size_t first = sequence.keys.size() * options.block_tokens;
      const PrefixKey& parent = sequence.keys.empty() ? sequence.root : sequence.keys.back();
      sequence.keys.push_back(NextPrefixKey(parent, tokens.subspan(first, options.block_tokens)));
    }
  }

  static bool IsStop(const Sequence& sequence, std::int32_t token) noexcept {
    const std::vector<std::int32_t>& stops = sequence.stop_ids;
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  }

  // The next token, which the output's grammar has taken.
  Sampled Sample(Sequence& sequence, std::uint32_t sample) noexcept {
    const Sampled nothing = {.nothing_allowed = true};
    LogitEdits edits = {.rules = &sequence.rules,
                        .tokens = sequence.tokens,
                        .num_prompt_tokens = sequence.num_prompt_tokens,
                        .stop_ids = sequence.stop_ids};
    if (sequence.matcher != nullptr) {
      edits.allowed = guide.Allowed(*sequence.matcher, sequence.stop_ids);
      if (edits.allowed.empty()) return nothing;
    }
    const Sampled sampled = sampler.Sample(loop.executor().Logits(sample),
                                           loop.executor().Stats(sample), sequence.sampling, edits);
    if (sampled.token < 0 || sequence.matcher == nullptr || IsStop(sequence, sampled.token))
      return sampled;
    return guide.Accept(*sequence.matcher, sampled.token) ? sampled : nothing;
  }

  void TakeToken(Sequence& sequence, std::uint32_t sample) noexcept {
    if (sequence.pooling != Pooling::kNone) return EndEmbedding(sequence, sample);
    const Sampled sampled = Sample(sequence, sample);
    // Samples that were forked off share the logits of their parent's.
    if (loop.log() != nullptr && sampled_tokens[sample] < 0) sampled_tokens[sample] = sampled.token;
    if (sampled.token < 0) {
      return Fail(sequence.id,
                  sampled.nothing_allowed ? FinishReason::kNothingAllowed : FinishReason::kError);
    }
    Publish(sequence);
    if (sequence.num_output_tokens() == 0) {
      counts[kCachedTokens] += sequence.num_cached_tokens;
      while (Sequence* other = scheduler.Fork(sequence))
        TakeToken(*other, sample);
    }
    CHECK(sequence.tokens.size() < sequence.tokens.capacity());
    sequence.tokens.push_back(sampled.token);
    ObserveToken(sequence);
    ++counts[kOutputTokens];
    if (sequence.num_top_logprobs > 0)
      PushLogprobs(sequence, sample, sequence.length() - 1, sequence.num_top_logprobs);
    const bool stops_here = IsStop(sequence, sampled.token);
    const FinishReason finish = stops_here                                 ? FinishReason::kStop
                                : sequence.length() == sequence.max_length ? FinishReason::kLength
                                                                           : FinishReason::kNone;
    Emit({.request = sequence.id,
          .token = sampled.token,
          .logprob = sampled.logprob,
          .finish = finish,
          .num_cached_tokens = sequence.num_cached_tokens});
    if (finish != FinishReason::kNone) Finish(sequence.id, finish);
  }

  // Any thread. When it is its turn, and how long it may take.
  void SetTurn(const Request& request, Sequence& sequence) const noexcept {
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

  // Any thread. Leaves the request with a compiled grammar if it has one.
  std::optional<Error> PrepareGrammar(Request& request) const {
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

  // Any thread. One sequence for each sample, the first at the front.
  std::unique_ptr<Sequence> MakeSequences(Request request) const {
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

  // Any thread. Whether the queue takes so many more; then they count as accepted.
  bool Accept(std::uint32_t num_requests, std::uint32_t num_tokens, std::string* why) noexcept {
    const std::uint32_t limit = options.max_queued + options.max_rows;
    if (num_accepted.fetch_add(num_requests) + num_requests > limit) {
      num_accepted.fetch_sub(num_requests);
      metrics.num_rejected_requests.fetch_add(1, std::memory_order_relaxed);
      *why = "the queue is full: " + std::to_string(limit) + " requests run or wait";
      return false;
    }
    // One prompt of any length may wait: the context bounds it.
    const std::uint64_t before = num_queued_tokens.fetch_add(num_tokens);
    if (before > 0 && before + num_tokens > options.max_queued_tokens) {
      num_queued_tokens.fetch_sub(num_tokens);
      num_accepted.fetch_sub(num_requests);
      metrics.num_rejected_tokens.fetch_add(1, std::memory_order_relaxed);
      *why = "the queue is full: prompts of " + std::to_string(before) + " tokens wait, and " +
             std::to_string(options.max_queued_tokens) + " may";
      return false;
    }
    return true;
  }
  // Consecutive ids; all but the first wait for its prompt.
  static void Number(Sequence& first, RequestId id) noexcept {
    std::uint64_t next = static_cast<std::uint64_t>(id);
    for (Sequence* sequence = &first; sequence != nullptr; sequence = sequence->next_sample.get()) {
      sequence->id = RequestId{next++};
      if (sequence != &first) sequence->sample_of = id;
    }
  }

  void PublishStats() noexcept {
    const KvStats kv = loop.cache().stats();
    kv_stats.Store(kv);
    ObserveMoves(kv);
    const std::uint64_t dequeued = scheduler.num_dequeued_tokens();
    num_queued_tokens.fetch_sub(dequeued - std::exchange(num_dequeued_tokens, dequeued));
    counts[kRunning] = scheduler.num_running();
    counts[kWaiting] = scheduler.num_waiting();
    counts[kPreemptions] = scheduler.num_preemptions();
    counts[kMovedBlocks] = kv.num_moved_blocks;
    counts[kRunOverflows] = kv.num_run_overflows;
    counts[kBlocks] = kv.num_blocks;
    counts[kFreeBlocks] = kv.num_free + kv.num_cached;
    for (std::size_t i = 0; i < kNumCounters; ++i) {
      published[i].store(counts[i], std::memory_order_relaxed);
    }
  }

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

namespace {

HostPartsOptions PartsOptions(const EngineOptions& options, bool only_reserve) {
  return {.num_threads = options.num_threads,
          .kernels = options.kernels,
          .kv_dtype = options.kv_dtype,
          .progress = options.load_progress,
          .only_reserve = only_reserve};
}

void AddDevice(const HostDevice& device, std::vector<ReservedBytes>* reserved) {
  std::vector<ReservedBytes> of_device;
  for (const Reservation& r : device.reservations())
    of_device.push_back({.owner = r.owner, .bytes = r.bytes});
  reserved->insert(reserved->begin(), of_device.begin(), of_device.end());
}

// Returns the options, or throws when they ask for more than they allow.
const EngineOptions& WithinBudget(const Model& model, const EngineOptions& options,
                                  const Clock& clock) {
  if (options.memory_budget == 0) return options;
  std::uint64_t need = 0;
  std::string parts;
  for (const ReservedBytes& reserved : Engine::Measure(model, options, clock)) {
    need += reserved.bytes;
    parts += (parts.empty() ? "" : ", ") + reserved.owner + " " + std::to_string(reserved.bytes);
  }
  if (need <= options.memory_budget) return options;
  throw StartError("the memory budget is " + std::to_string(options.memory_budget) + " bytes and " +
                   std::to_string(need) + " are needed: " + parts);
}

// A copy thread takes work off a step where a core has nothing else to do; where the workers have
// all of them it would only take a core from one that the others then wait for.
HostDeviceOptions DeviceOptions(const EngineOptions& options) {
  const std::uint32_t num_cores = std::thread::hardware_concurrency();
  return {.copy_thread = options.num_threads != 0 && options.num_threads < num_cores};
}

}  // namespace

std::vector<ReservedBytes> Engine::Measure(const Model& model, const EngineOptions& options,
                                           const Clock& clock) {
  HostDevice device;
  const State state(HostParts(model, device, PartsOptions(options, true)), options, clock,
                    /*only_reserve=*/true);
  std::vector<ReservedBytes> reserved = state.reserved;
  AddDevice(device, &reserved);
  return reserved;
}

Engine::Engine(const Model& model, const EngineOptions& options, const Clock& clock)
    : device_(std::make_unique<HostDevice>(DeviceOptions(options))),
      model_(&model),
      state_(std::make_unique<State>(
          HostParts(model, *device_, PartsOptions(WithinBudget(model, options, clock), false)),
          options, clock)) {
  AddDevice(*device_, &state_->reserved);
}

Engine::Engine(const EngineParts& parts, const EngineOptions& options, const Clock& clock)
    : state_(std::make_unique<State>(parts, options, clock)) {}

Engine::~Engine() = default;

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
  Command command;
  command.add = std::move(first);
  if (!s.commands.TryPush(std::move(command))) {
    return Error{ErrorCode::kOverloaded, "too many requests and cancellations at once"};
  }
  accepted.Keep();
  s.Wake();
  return id;
}

void Engine::Cancel(RequestId request) {
  State& s = *state_;
  // The queue is emptied once per step, so a full one has room again within a step.
  for (;;) {
    Command command;
    command.cancel = request;
    if (s.commands.TryPush(std::move(command))) break;
    if (s.stop.load(std::memory_order_acquire)) return;
    s.Wake();
    std::this_thread::yield();
  }
  s.Wake();
}

std::size_t Engine::Poll(std::span<TokenEvent> events) {
  State& s = *state_;
  while (s.finished.TryPop()) {
  }
  std::size_t count = 0;
  while (count < events.size()) {
    const std::optional<TokenEvent> event = s.outbox.events().TryPop();
    if (!event) break;
    events[count++] = *event;
  }
  if (count > 0) s.Wake();  // The engine may have waited for room.
  return count;
}

bool Engine::PollLogprobs(TopLogprobs* logprobs) {
  std::optional<TopLogprobs> next = state_->outbox.logprobs().TryPop();
  if (!next) return false;
  *logprobs = *next;
  state_->Wake();  // The engine may have waited for room.
  return true;
}

bool Engine::PollEmbedding(Embedding* embedding) {
  std::optional<Embedding> next = state_->outbox.embeddings().TryPop();
  if (!next) return false;
  *embedding = *std::move(next);
  state_->Wake();
  return true;
}

void Engine::SetWake(std::function<void()> wake) {
  state_->wake = std::move(wake);
}

bool Engine::Step() noexcept {
  State& s = *state_;
  const std::uint64_t emitted_before = s.outbox.num_events();
  s.now_ns = s.clock.NowNs();
  s.DrainCommands();
  s.EndExpired();
  s.ObserveRate();
  bool worked = false;
  if (s.scheduler.num_running() + s.scheduler.num_waiting() > 0 && s.outbox.StepFits()) {
    const std::int64_t begin_ns = s.now_ns;
    worked = s.RunStep();
    s.counts[kStepNs] += static_cast<std::uint64_t>(s.clock.NowNs() - begin_ns);
  }
  if (!worked && s.scheduler.num_running() == 0) s.loop.cache().Rest();
  s.PublishStats();
  if (s.outbox.num_events() != emitted_before && s.wake) s.wake();
  return worked;
}

void Engine::Run() {
  State& s = *state_;
  static_cast<void>(NextPrefixKey({}, {}));  // What this thread hashes with is made now.
  while (!s.stop.load()) {
    s.num_rounds.fetch_add(1, std::memory_order_relaxed);
    const std::uint32_t seen = s.signal.load(std::memory_order_acquire);
    if (!Step()) s.signal.wait(seen, std::memory_order_acquire);
  }
  s.AbortAll();
  s.PublishStats();
  if (s.wake) s.wake();
}

void Engine::Ping() {
  state_->Wake();
}

std::uint64_t Engine::num_rounds() const {
  return state_->num_rounds.load(std::memory_order_relaxed);
}

void Engine::Stop() {
  state_->stop.store(true);
  state_->Wake();
}

EngineStats Engine::stats() const {
  const auto get = [this](Counter counter) {
    return state_->published[counter].load(std::memory_order_relaxed);
  };
  return {.num_running = static_cast<std::uint32_t>(get(kRunning)),
          .num_waiting = static_cast<std::uint32_t>(get(kWaiting)),
          .num_steps = get(kSteps),
          .num_prompt_tokens = get(kPromptTokens),
          .num_output_tokens = get(kOutputTokens),
          .num_preemptions = get(kPreemptions),
          .num_recomputed_tokens = get(kRecomputed),
          .num_cached_tokens = get(kCachedTokens),
          .num_moved_blocks = get(kMovedBlocks),
          .num_run_overflows = get(kRunOverflows),
          .num_blocks = static_cast<std::uint32_t>(get(kBlocks)),
          .num_free_blocks = static_cast<std::uint32_t>(get(kFreeBlocks)),
          .step_ns = get(kStepNs),
          .num_queued_tokens = state_->num_queued_tokens.load(std::memory_order_relaxed)};
}

KvStats Engine::kv_stats() const {
  return state_->kv_stats.Load();
}

const EngineMetrics& Engine::metrics() const {
  return state_->metrics;
}

std::uint32_t Engine::RetryAfterSeconds() const {
  const double rate = state_->ends_per_second.load(std::memory_order_relaxed);
  const double waiting =
      static_cast<double>(state_->published[kWaiting].load(std::memory_order_relaxed));
  // Nothing has ended of late: no speed is known.
  if (!(rate > 0)) return 5;
  return static_cast<std::uint32_t>(std::clamp(std::ceil(waiting / rate), 1.0, 60.0));
}

void Engine::CheckInvariants() const {
  state_->loop.cache().CheckInvariants();
}

const std::vector<ReservedBytes>& Engine::reserved() const {
  return state_->reserved;
}
const EngineOptions& Engine::options() const {
  return state_->options;
}

std::uint32_t Engine::max_context() const {
  return state_->options.max_context;
}
const Model& Engine::model() const {
  CHECK(model_ != nullptr);
  return *model_;
}

}  // namespace kvrm
