// SPDX-License-Identifier: Apache-2.0
#include "engine/step_loop.h"

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "base/result.h"

namespace kvrm {
namespace {

// One step is built while one runs; a third entry lets the previous one retire late.
constexpr std::uint32_t kRingEntries = 3;
constexpr std::uint32_t kMaxThreads = 1024;

std::uint32_t BlocksOf(std::uint64_t tokens, std::uint32_t block_tokens) {
  return static_cast<std::uint32_t>((tokens + block_tokens - 1) / block_tokens);
}

void CheckOptions(const StepLoopOptions& options) {
  CheckBlockTokens(options.limits.block_tokens);
  if (options.num_threads > kMaxThreads) {
    throw StartError("threads must be at most " + std::to_string(kMaxThreads) + ", not " +
                     std::to_string(options.num_threads));
  }
  if (options.limits.max_tokens < options.limits.max_rows) {
    throw StartError("step tokens (" + std::to_string(options.limits.max_tokens) +
                     ") must be at least the number of rows (" +
                     std::to_string(options.limits.max_rows) + ")");
  }
  if (options.kv_tokens < options.max_context) {
    throw StartError("the KV pool holds " + std::to_string(options.kv_tokens) +
                     " tokens; one sequence of the longest context needs " +
                     std::to_string(options.max_context));
  }
}

// The limits that are used: no row needs more runs than it can have blocks.
StepLimits Checked(const StepLoopOptions& options) {
  CheckOptions(options);
  StepLimits limits = options.limits;
  limits.max_runs =
      std::max(2u, std::min(limits.max_runs, BlocksOf(options.max_context, limits.block_tokens)));
  return limits;
}

const CpuKernels* KernelsByName(const std::string& name) {
  if (name.empty()) return &SelectCpuKernels();
  const CpuKernels* kernels = FindCpuKernels(name.c_str());
  if (kernels == nullptr) {
    throw StartError("kernels '" + name + "' are unknown or not supported by this processor");
  }
  return kernels;
}

}  // namespace

void CheckBlockTokens(std::uint32_t block_tokens) {
  if (block_tokens == 0 || block_tokens % kTileTokens != 0 || block_tokens > 1024) {
    throw StartError("block size must be a multiple of 16 from 16 to 1024 tokens, not " +
                     std::to_string(block_tokens));
  }
}

StepLoop::StepLoop(const Model& model, const StepLoopOptions& options)
    : limits_(Checked(options)),
      builder_(limits_, kRingEntries),
      kernels_(KernelsByName(options.kernels)) {
  const ModelConfig& config = model.config();
  const KvLayout layout = {.num_layers = config.num_layers,
                           .num_kv_heads = config.num_kv_heads,
                           .head_dim = config.head_dim,
                           .block_tokens = limits_.block_tokens,
                           .dtype = options.kv_dtype};
  cache_ = std::make_unique<KvCache>(
      KvCacheOptions{.layout = layout,
                     .num_blocks = BlocksOf(options.kv_tokens, limits_.block_tokens) + 1,
                     .max_seqs = options.max_seqs,
                     .max_blocks_per_seq = BlocksOf(options.max_context, limits_.block_tokens),
                     .max_runs = limits_.max_runs,
                     .max_groups = limits_.max_groups,
                     .max_move_bytes_per_step = options.max_move_bytes_per_step,
                     .placement = options.placement_seed != 0 ? PlacementPolicy::kScattered
                                                              : KvCacheOptions{}.placement,
                     .placement_seed = options.placement_seed},
      device_);
  const std::uint32_t num_workers = options.num_threads != 0
                                        ? options.num_threads
                                        : std::max(1u, std::thread::hardware_concurrency());
  executor_ = std::make_unique<CpuExecutor>(BuildDecoder(config, model.weights()),
                                            CpuExecutorOptions{.limits = limits_,
                                                               .layout = layout,
                                                               .num_workers = num_workers,
                                                               .kernels = kernels_,
                                                               .progress = options.progress},
                                            device_, cache_->memory());
}

void StepLoop::Begin() noexcept {
  CHECK(builder_.Begin());
  cache_->Plan(builder_, next_);
}

bool StepLoop::Commit() noexcept {
  if (builder_.num_rows() == 0 && builder_.num_groups() == 0) {
    builder_.Abandon();
    cache_->Abandon();
    return false;
  }
  const std::span<const Bucket> buckets = executor_->buckets();
  std::uint32_t bucket = 0;
  while (buckets[bucket].max_rows < builder_.num_rows() ||
         buckets[bucket].max_tokens < builder_.num_tokens()) {
    CHECK(++bucket < buckets.size());
  }
  const StepView step = builder_.Commit(bucket, buckets[bucket].max_rows);
  CHECK(step.header->step == next_);
  next_ = StepId{Index(next_) + 1};
  cache_->Launch(step);
  cache_->Land();
  executor_->Run(builder_.Latch());
  executor_->Wait();
  cache_->Retire(builder_.Retire());
  return true;
}

}  // namespace kvrm
