// SPDX-License-Identifier: Apache-2.0
// SimExecutor: an executor whose token is a hash of what the descriptor lets it see.
//
// It writes and reads stamps (sim/history.h) through the slots, mirrors, runs, windows and layer
// buffers that a descriptor names, and knows nothing else: a block that is wrong, stale, reused or
// not yet landed gives another digest, and so another token, at once.
//
// A layer is touched when the copies with its deadline have landed, and not before: what lands too
// late is not seen, or lands on what was written.
//
// A step can be run layer by layer (Start, RunLayer), so that the world goes on in between, or as a
// whole (Run, Wait). Threading: one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/parts.h"
#include "exec/executor.h"
#include "sim/sim_device.h"

namespace kvrm {

class SimExecutor final : public Executor {
 public:
  // `device` owns the memory of `needs` and outlives the executor.
  SimExecutor(const ExecutorNeeds& needs, SimDevice& device, std::uint32_t vocab_size);

  std::span<const Bucket> buckets() const noexcept override { return buckets_; }
  bool waits_for_layers() const noexcept override { return true; }
  void Run(const StepView& step) noexcept override;
  void Wait() noexcept override;
  std::span<const float> Logits(std::uint32_t sample) const noexcept override;
  LogitStats Stats(std::uint32_t sample) const noexcept override { return stats_.Of(sample); }
  std::span<const std::uint64_t> replays() const noexcept override { return replays_; }

  void Start(const StepView& step);
  // In order, 0 .. kSimLayers - 1.
  void RunLayer(std::uint32_t layer);
  // Of the row's last token, after the last layer.
  std::uint64_t digest(std::uint32_t row) const { return seen_[step_.row_start[row + 1] - 1]; }

  // Where the layer's stamps of `block` lie, as the step sees it. Null: a window shows nothing.
  std::uint64_t* Stamps(const StepView& step, std::uint32_t layer, BlockId block) const;
  // The same of a block of the pool or of a window, whatever the step.
  std::uint64_t* Home(std::uint32_t layer, BlockId block) const;

 private:
  void Write(std::uint32_t layer);
  void Gather(std::uint32_t layer) const;
  void ReadRow(std::uint32_t layer, std::uint32_t row);

  const ExecutorNeeds needs_;
  SimDevice& device_;
  const std::uint64_t num_pool_blocks_;  // of the memory: pool and windows
  std::vector<Bucket> buckets_;
  std::vector<std::uint64_t> replays_;
  std::vector<std::uint64_t> seen_;  // [max_tokens] by the last layer that has run
  std::vector<float> logits_;        // [max_samples, vocab]
  PlainLogitStats stats_;
  std::uint32_t vocab_size_;
  StepView step_;
};

}  // namespace kvrm
