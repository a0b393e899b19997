// SPDX-License-Identifier: Apache-2.0
// StepLoop: the pool, the descriptors and the executor of one model, and the order of one step.
//
// What the engine and the scorer have in common: everything is reserved here, and Commit runs one
// built step through launch, land, run, wait and retire.
// Threading: engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "kv/kv_cache.h"
#include "model/weights.h"
#include "step/step_builder.h"

namespace kvrm {

struct StepLoopOptions {
  StepLimits limits;  // max_runs is cut to what the longest context can need
  std::uint32_t max_seqs = 0;
  std::uint32_t max_context = 0;
  std::uint64_t kv_tokens = 0;  // pool size, rounded up to blocks
  std::uint64_t max_move_bytes_per_step = 0;
  std::uint64_t placement_seed = 0;  // not 0: scatter blocks (tests)
  std::uint32_t num_threads = 0;     // 0: all cores
  std::string kernels = {};          // "": the best; as KVRM_ISA
  DType kv_dtype = DType::kF16;
  LoadProgress progress = {};
};

// Throws StartError unless this many tokens can be a block.
void CheckBlockTokens(std::uint32_t block_tokens);

class StepLoop {
 public:
  // Throws StartError with exact numbers.
  StepLoop(const Model& model, const StepLoopOptions& options);
  StepLoop(const StepLoop&) = delete;
  StepLoop& operator=(const StepLoop&) = delete;

  KvCache& cache() { return *cache_; }
  StepBuilder& builder() { return builder_; }
  const Executor& executor() const { return *executor_; }
  const StepLimits& limits() const { return limits_; }
  const HostDevice& device() const { return device_; }
  StepId next_step() const { return next_; }
  const char* kernels_name() const { return kernels_->name; }
  std::uint64_t descriptor_bytes() const { return builder_.reserved_bytes(); }

  // Opens the next descriptor and plans the step's moves into it. The rows' slots have been made by
  // now (KvCache::Extend); their runs and AddRow follow.
  void Begin() noexcept;
  // Commits what was built and runs it to the end; logits are in executor() until the next one.
  // Abandons it when it has neither rows nor moves. Returns whether it ran.
  bool Commit() noexcept;

 private:
  StepLimits limits_;
  HostDevice device_;
  StepBuilder builder_;
  const CpuKernels* kernels_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<CpuExecutor> executor_;
  StepId next_{1};
};

}  // namespace kvrm
