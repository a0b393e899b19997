// SPDX-License-Identifier: Apache-2.0
// CpuExecutor: replays the decoder over persistent workers.
//
// At construction every weight is packed once for the chosen kernel table, and the graph is
// compiled into one list of instructions per bucket, with fixed addresses. An instruction is
// divided among the workers by token, by output feature, or by (token, kv head); a barrier stands
// before it only where it touches what another worker may have written since the last one.
//
// Which view of the KV cache a step reads is the descriptor's business (step/step.h): runs of the
// pool or of windows behind it, holes, mirrors, layer buffers and padding are all taken as they
// come, and a row's result is the same to the bit.
//
// Copies of later layers may be on their way while a step runs: before a worker stores or gathers a
// layer it waits for what lands by that layer's deadline (Device::WaitLayer).
//
// Padding: with StepHeader::padded_tokens attention is computed over every whole unit of that many
// positions, and what lies outside the row's context is thrown away: the cost of a graph of that
// length, for live rows. (Of the unit in which a context ends the keys are read and multiplied as a
// whole and the values to the end of the context only, which favours the padded graph.)
//
// Memory: activations, packed weights and scratch are reserved from the device, nothing later.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/clock.h"
#include "device/device.h"
#include "exec/executor.h"
#include "exec/program.h"
#include "exec/worker_team.h"
#include "kernels/cpu_kernels.h"
#include "model/graph.h"
#include "step/layout.h"
#include "step/step.h"

namespace kvrm {

// Where the time of a step goes, as its first worker sees it: an instruction takes until the next
// one may begin, waiting for the other workers included.
struct StepProfile {
  enum class Kind : std::uint8_t { kMatMul, kAttention, kOther };  // preparing operands: kMatMul
  struct Instruction {
    Kind kind = Kind::kOther;
    std::int64_t least_ns = 0;  // of the steps since `steps` was set to 0
  };
  const Clock* clock = nullptr;
  std::vector<Instruction> instructions = {};  // sized by the executor's constructor
  std::uint64_t steps = 0;
};

struct CpuExecutorOptions {
  StepLimits limits;
  KvLayout layout;
  std::uint32_t num_workers = 1;
  const CpuKernels* kernels = nullptr;
  // Two buffers of equal size, whole blocks of layout.layer_bytes(), one behind the other; empty
  // when no step has kStepLayerWindows. Layer l + 1 is gathered into one while layer l attends the
  // other; that takes no barrier, and other steps pass it by.
  std::span<std::byte> layer_buffers = {};
  LoadProgress progress = {};
  bool only_reserve = false;  // as ProgramOptions; such an executor must not run
  // For benchmarks: outlives the executor, and costs a look at the clock an instruction. Null: one
  // branch a step.
  StepProfile* profile = nullptr;
};

class CpuExecutor final : public Executor {
 public:
  // `graph`'s weights, `device`, `kv_memory` (the pool's blocks and the windows' behind them) and
  // the layer buffers outlive the executor. Throws StartError when the device cannot give the
  // memory.
  CpuExecutor(Graph graph, const CpuExecutorOptions& options, Device& device,
              std::span<std::byte> kv_memory);
  ~CpuExecutor() override;

  std::span<const Bucket> buckets() const noexcept override;
  bool waits_for_layers() const noexcept override { return true; }
  void Run(const StepView& step) noexcept override;
  void Wait() noexcept override;
  std::span<const float> Logits(std::uint32_t sample) const noexcept override;
  LogitStats Stats(std::uint32_t sample) const noexcept override;
  std::span<const float> Hidden(std::uint32_t sample) const noexcept override;
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
