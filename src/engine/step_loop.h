// SPDX-License-Identifier: Apache-2.0
// StepLoop: the pool, the descriptors and the executor of one model, and the order of one step.
//
// What the engine and the scorer have in common: everything is reserved here, and Commit runs one
// built step through launch, run, land, wait and retire.
// Threading: engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "engine/parts.h"
#include "kv/kv_cache.h"
#include "step/step_builder.h"
#include "step/step_log.h"

namespace kvrm {

struct StepLoopOptions {
  // max_runs is cut to what the longest context can need; then the view raises what it needs more.
  StepLimits limits;
  std::uint32_t max_seqs = 0;
  std::uint32_t max_context = 0;
  // Pool size, rounded up to blocks. A static view takes exactly what it needs, and 0 will do.
  std::uint64_t kv_tokens = 0;
  std::uint32_t host_blocks = 0;  // of the host tier
  std::uint32_t max_parked = 0;   // histories there; 0: max_seqs
  std::uint64_t max_move_bytes_per_step = 0;
  std::uint64_t layered_move_bytes = KvCacheOptions{}.layered_move_bytes;
  KvView view = KvView::kExtents;
  PlacementPolicy placement = KvCacheOptions{}.placement;
  std::uint64_t placement_seed = 0;  // not 0: kScattered, whatever `placement` is (tests)
  KvElastic elastic = KvElastic::kOff;
  std::uint32_t max_cached_blocks = ~std::uint32_t{0};
  bool prefix_cache = false;
  std::string descriptor_log = {};  // a file to write a StepLog to; "": none
  bool only_reserve = false;        // that file is not made
};

// Throws StartError unless this many tokens can be a block.
void CheckBlockTokens(std::uint32_t block_tokens);
// Whether every sequence owns room for the longest context in this view.
bool IsStaticView(KvView view);

class StepLoop {
 public:
  // Throws StartError with exact numbers.
  StepLoop(const EngineParts& parts, const StepLoopOptions& options);
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  KvCache& cache() { return *cache_; }
  StepBuilder& builder() { return builder_; }
  const Executor& executor() const { return *executor_; }
  const StepLimits& limits() const { return limits_; }
  StepId next_step() const { return next_; }
  // Of a descriptor log; 0: none.
  std::uint64_t log_bytes() const { return log_bytes_; }
  // Null without a log.
  StepLog* log() { return log_.get(); }
  std::uint64_t descriptor_bytes() const { return builder_.reserved_bytes(); }

  // Opens the next descriptor and plans the step's moves into it. The rows' slots have been made by
  // now (KvCache::Extend); their runs and AddRow follow.
  void Begin() noexcept;
  // Commits what was built and runs it to the end; logits are in executor() until the next one.
  // Abandons it when it has neither rows nor moves. Returns whether it ran.
  bool Commit() noexcept;

 private:
  KvCacheOptions cache_options_;
  StepLimits limits_;
  StepBuilder builder_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Executor> executor_;
  std::uint64_t log_bytes_ = 0;
  std::unique_ptr<StepLog> log_;
  StepId next_{1};
};

}  // namespace kvrm
