// SPDX-License-Identifier: Apache-2.0
// CpuExecutor: replays the decoder over persistent workers.
//
// At construction every weight is packed once for the chosen kernel table, and the graph is
// compiled into one list of instructions per bucket, with fixed addresses. An instruction is
// divided among the workers by token, by output feature, or by (token, kv head); a barrier stands
// before it only where it touches what another worker may have written since the last one.
//
// Memory: activations, packed weights and scratch are reserved from the device, nothing later.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device.h"
#include "exec/executor.h"
#include "exec/program.h"
#include "exec/worker_team.h"
#include "kernels/cpu_kernels.h"
#include "model/graph.h"
#include "step/layout.h"
#include "step/step.h"

namespace kvrm {

struct CpuExecutorOptions {
  StepLimits limits;
  KvLayout layout;
  std::uint32_t num_workers = 1;
  const CpuKernels* kernels = nullptr;
  LoadProgress progress = {};
};

class CpuExecutor final : public Executor {
 public:
  // `graph`'s weights, `device` and `pool` (the KV blocks) outlive the executor. Throws StartError
  // when the device cannot give the memory.
  CpuExecutor(Graph graph, const CpuExecutorOptions& options, Device& device,
              std::span<std::byte> pool);
  ~CpuExecutor() override;

  std::span<const Bucket> buckets() const noexcept override;
  void Run(const StepView& step) noexcept override;
  void Wait() noexcept override;
  std::span<const float> Logits(std::uint32_t sample) const noexcept override;
  std::span<const std::uint64_t> replays() const noexcept override;

  // Barriers of one step, the final one included.
  std::uint32_t num_barriers() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The family of graphs for the given limits: decode buckets by rows, then mixed ones by tokens.
// Ascending in both, at most kMaxBuckets, the last holds `limits`.
std::vector<Bucket> PlanBuckets(const StepLimits& limits);

}  // namespace kvrm
