// SPDX-License-Identifier: Apache-2.0
// Program: a graph compiled for the CPU: weights packed, buffers placed, barriers decided.
//
// Only exec/cpu_executor.cc and the tests look at this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "device/device.h"
#include "exec/worker_team.h"
#include "kernels/cpu_kernels.h"
#include "model/graph.h"
#include "step/step.h"

namespace kvrm {

// How an instruction is divided among the workers. Two instructions divided by token (or both by
// sample, or by chunk of the logits) touch the same memory from the same worker, so no barrier is
// needed between them. So do two by column, of the same columns: the outputs of a product are
// written that way, and what goes on element by element from there stays with the worker, whose
// caches hold it. kOutput is a share of a product's outputs, for which all of its input is read.
enum class Split : std::uint8_t { kToken, kSample, kColumn, kOutput, kItem, kBlock, kChunk };

enum class Code : std::uint8_t {
  kEmbed,
  kAngles,
  kRmsNorm,
  kPrepare,
  kMatMul,
  kHeadNorm,
  kRope,
  kStoreKv,
  kStage,
  kAttention,
  kSwiGlu,
  kGather,
  kLogitStats,
};

struct Instruction {
  Code code{};
  Split split{};
  bool barrier = false;  // All workers meet before this instruction.
  bool accumulate = false;
  bool per_sample = false;   // Rows are samples, else tokens.
  bool optional = false;     // kStage: steps without layer windows pass it by. It has no barrier.
  bool needs_layer = false;  // it may be the first to touch `layer` of the cache
  std::uint32_t layer = 0;
  std::uint32_t num_heads = 0;
  std::uint32_t share_outputs = kOutTile;  // shares of outputs or columns are multiples of this
  std::uint32_t width = 0;                 // floats per row
  float* out = nullptr;                    // row 0; rows are out_stride floats apart
  const float* in = nullptr;
  const float* in2 = nullptr;
  std::size_t out_stride = 0;
  std::size_t in_stride = 0;
  std::size_t in2_stride = 0;
  const float* vector = nullptr;  // norm weights, or the bias of a product
  PackedMatrix matrix{};
  const MatKernel* kernel = nullptr;
  const ActKernel* act = nullptr;   // kPrepare
  std::byte* prepared = nullptr;    // kPrepare writes, kMatMul reads; null: `in` itself
  std::size_t prepared_stride = 0;  // bytes
};

struct Program {
  std::vector<Instruction> code;
  float* hidden = nullptr;        // [max_samples][hidden_stride]
  std::size_t hidden_stride = 0;  // floats
  float* logits = nullptr;        // [max_samples][logits_stride]
  std::size_t logits_stride = 0;  // floats
  float* stats = nullptr;         // [max_samples][maxima, sums][stats_stride]
  std::size_t stats_stride = 0;   // floats, at least the number of chunks
  std::uint32_t num_barriers = 0;
};

// The least odd number of cache lines that holds so many bytes: the distance between rows of
// activations. Products read one column of many rows, and rows a power of two apart would share a
// few places of the caches (docs/decisions/0020).
std::size_t OddLines(std::size_t bytes);

// Called while weights are packed, with bytes done and in all.
using LoadProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

struct ProgramOptions {
  const CpuKernels* kernels = nullptr;
  std::uint32_t max_tokens = 0;
  std::uint32_t max_samples = 0;
  bool layer_windows = false;  // There may be steps with kStepLayerWindows.
  LoadProgress progress = {};
  // Everything is reserved and no weight is packed: for who only asks how much it takes.
  bool only_reserve = false;
};

// Packs with all workers of `team`, reserves from `device`. Throws StartError.
Program CompileProgram(const Graph& graph, const ProgramOptions& options, Device& device,
                       WorkerTeam& team);

}  // namespace kvrm
