// SPDX-License-Identifier: Apache-2.0
// Engine: the loop that admits, plans, commits, steps and retires.
//
// Threading: one engine thread calls Step or Run. Submit and Cancel may be called from any thread;
// Poll from one consumer thread. They meet the engine thread in bounded queues only.
// Memory: everything is reserved by the constructor; after it a step neither allocates nor throws.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "device/host_device.h"
#include "engine/block_map.h"
#include "engine/metrics.h"
#include "engine/parts.h"
#include "engine/request.h"
#include "engine/step_pace.h"
#include "kv/kv_cache.h"
#include "model/weights.h"

namespace kvrm {

inline constexpr std::uint64_t kHostKvAuto = ~std::uint64_t{0};

inline constexpr std::uint64_t kCacheAuto = ~std::uint64_t{0};

struct EngineOptions {
  std::uint32_t max_rows = 32;          // sequences decoding at once
  std::uint32_t max_context = 0;        // tokens per sequence; 0: the model's own, at most 32,768
  std::uint32_t max_step_tokens = 256;  // prompt chunk budget of one step, over all rows
  std::uint32_t block_tokens = 16;
  // Pool size in tokens; 0: max_rows x max_context or a quarter of memory, whichever is less. The
  // static views take exactly max_rows x max_context.
  std::uint64_t kv_tokens = 0;
  // Bytes of the host tier, where sequences are parked for want of blocks. kHostKvAuto: of a pool
  // of less than max_rows x max_context, all that may be parked, four histories of max_context a
  // row, or a quarter of memory, whichever is less; it takes memory as it is used. With a memory
  // budget, and in the static views, which preempt nobody, none.
  std::uint64_t host_kv_bytes = kHostKvAuto;
  std::uint32_t max_runs = 32;  // R
  // Movement of one step: transfer groups and mappings, and bytes, at least one block.
  std::uint32_t max_edits_per_step = 64;
  // 16 MiB is about 1 ms of copying at 16 GB/s and so stays below a step of the models this budget
  // matters for.
  std::uint64_t max_move_bytes_per_step = std::uint64_t{16} << 20;
  // Moves of more bytes land layer by layer, while the step runs (KvCacheOptions).
  std::uint64_t layered_move_bytes = KvCacheOptions{}.layered_move_bytes;
  KvView view = KvView::kExtents;
  PlacementPolicy placement = KvCacheOptions{}.placement;
  // Whether the pool's memory comes and goes with what is in it (KvCacheOptions).
  KvElastic elastic_kv = KvElastic::kOn;
  bool prefix_cache = true;
  // Tokens that the prefix cache keeps beyond those of requests that run. kCacheAuto: as many as
  // requests had at once so far, so that it costs at most what it serves.
  std::uint64_t prefix_cache_tokens = kCacheAuto;
  std::uint32_t max_queued = 256;               // requests waiting
  std::uint64_t max_queued_tokens = 1'000'000;  // of the prompts that wait; one always may
  std::uint32_t max_wait_ms = 60'000;  // in the queue, unless a request says so; 0: for ever
  StepPaceOptions pace = {};           // what a step may take in beside decoding rows
  std::uint32_t num_threads = 0;       // workers; 0: all cores
  std::uint32_t prompt_chunk = 0;      // tokens per row and step; 0: max_step_tokens
  std::string kernels = {};            // "": as KVRM_ISA or the best; else a table's name
  std::uint64_t placement_seed = 0;    // not 0: kScattered, whatever `placement` is (tests)
  std::uint64_t preempt_seed = 0;      // not 0: now and then somebody is preempted (tests)
  DType kv_dtype = DType::kF16;
  std::string descriptor_log = {};  // file that records every descriptor (step/step_log.h)
  // Most bytes that Engine::reserved may sum up to; 0: no limit. More is refused at start, with the
  // exact number, before any of it is touched. The model's own file, which is mapped, and the
  // program itself are not counted.
  std::uint64_t memory_budget = 0;
  // Masks of grammars that are kept (grammar/mask_builder.h). 0: no grammars, and no trie of the
  // vocabulary for them.
  std::uint64_t mask_cache_bytes = std::uint64_t{16} << 20;
  // Called while weights are packed, with bytes done and in all.
  std::function<void(std::uint64_t done, std::uint64_t total)> load_progress = {};
};

// One line of the start-up table: who reserved how many bytes.
struct ReservedBytes {
  std::string owner;
  std::uint64_t bytes = 0;
};

struct EngineStats {
  std::uint32_t num_running = 0;
  std::uint32_t num_waiting = 0;
  std::uint64_t num_steps = 0;
  std::uint64_t num_prompt_tokens = 0;
  std::uint64_t num_output_tokens = 0;
  std::uint64_t num_preemptions = 0;
  std::uint64_t num_recomputed_tokens = 0;
  std::uint64_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache or shared
  std::uint64_t num_moved_blocks = 0;
  std::uint64_t num_run_overflows = 0;
  std::uint32_t num_blocks = 0;         // of the pool, sentinel excluded
  std::uint32_t num_free_blocks = 0;    // cached ones included
  std::uint64_t step_ns = 0;            // time spent in steps
  std::uint64_t num_queued_tokens = 0;  // of the prompts that wait
};

class Engine {
 public:
  // What an engine with these options would reserve, exactly. Touches none of the large memories
  // and packs nothing. Throws StartError as the constructor.
  static std::vector<ReservedBytes> Measure(const Model& model, const EngineOptions& options,
                                            const Clock& clock);
  // `model` and `clock` outlive the engine. Throws StartError with exact numbers when it cannot.
  Engine(const Model& model, const EngineOptions& options, const Clock& clock);
  // On a device and an executor of the caller's; num_threads, kernels, kv_dtype and load_progress
  // of the options are not looked at. What `parts` points to and `clock` outlive the engine.
  Engine(const EngineParts& parts, const EngineOptions& options, const Clock& clock);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. Errors: kInvalidArgument (names the field and the limit), kTooLarge (prompt longer
  // than the context or the pool), kOverloaded (queue full, by requests or by prompt tokens, or
  // draining). Nothing is kept on error. What was accepted never fails for memory.
  // With several samples: the id of the first.
  Result<RequestId> Submit(Request request);
  // Any thread. What Submit would say to any request at all if `num_ahead` others were accepted
  // first: kOverloaded (queue full, by requests or by prompt tokens, or draining), counted as a
  // rejection; nothing when there may be room.
  std::optional<Error> RefuseIfFull(std::uint32_t num_ahead);

  // Any thread. The request ends with kAborted within one step; unknown or finished: no effect.
  void Cancel(RequestId request);

  // Consumer thread. Moves waiting events into `events`, returns how many. A consumer that does not
  // poll stops the engine: a step runs only when there is room for all its events.
  std::size_t Poll(std::span<TokenEvent> events);

  // Consumer thread, after Poll: whether there was one. What the events polled so far belong to is
  // here by then. As with events, a consumer that asked for them and does not take them stops the
  // engine.
  bool PollLogprobs(TopLogprobs* logprobs);
  bool PollEmbedding(Embedding* embedding);

  // Called on the engine thread whenever new events wait. Set before Run; must not block.
  void SetWake(std::function<void()> wake);

  // Engine thread. Runs one step if there is work; returns whether there was.
  bool Step() noexcept;
  // Engine thread. Steps until Stop, sleeping while idle.
  void Run();
  // Any thread. Run goes around once more, work or not.
  void Ping();
  // Any thread. How often Run has gone around: stands still when a step never ends.
  std::uint64_t num_rounds() const;
  // Any thread. Run returns after the current step; what still runs ends with kAborted.
  void Stop();

  // Any thread; a snapshot as of the last step.
  EngineStats stats() const;
  KvStats kv_stats() const;
  const EngineMetrics& metrics() const;
  // Seconds after which a refused request may find room, 1 to 60: what waits over what ended a
  // second of late.
  std::uint32_t RetryAfterSeconds() const;
  // Engine thread, between steps. Who has which blocks of the pool: ascending and disjoint runs;
  // what nobody has is in none. Shared blocks are those of who comes first in rank. Allocates.
  std::vector<BlockMapRun> BlockMap() const;
  // Engine thread, between steps. Recounts the cache's books and aborts on a violation; slow.
  void CheckInvariants() const;
  const std::vector<ReservedBytes>& reserved() const;
  std::uint32_t max_context() const;
  // As given, with what was left open filled in.
  const EngineOptions& options() const;
  // Requires: constructed from a model.
  const Model& model() const;

 private:
  struct State;
  class Accepted;
  std::unique_ptr<HostDevice> device_;  // null: of the caller's
  const Model* model_ = nullptr;        // null: as above
  std::unique_ptr<State> state_;
};

}  // namespace kvrm
