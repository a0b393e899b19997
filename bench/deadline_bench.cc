// SPDX-License-Identifier: Apache-2.0
// What does a step pay for 16 MiB of moves: landed before it starts, or layer by layer while it
// runs (a copy thread)?
//
// One decode step of 8 rows with a context of 1,024 tokens over a decoder that is nearly all
// attention (8 layers, 16 query heads over 8 kv heads of 64, F16: 128 MiB of keys and values a
// step); half of one row's blocks come from elsewhere. Compare minima of real time of one run:
//
//   deadline_bench --benchmark_repetitions=20 --benchmark_enable_random_interleaving=true
//
// Expected, with a core to spare for the copy thread: by_layers above no_moves by an eighth of what
// landed_before is. Without one the copies cost what they cost.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "base/check.h"
#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "exec/small_decoder_for_test.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kRows = 8;
constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kRowBlocks = 64;
constexpr std::uint32_t kNumMoved = 64;
constexpr StepLimits kLimits = {.max_rows = kRows,
                                .max_tokens = kRows,
                                .max_runs = 2,
                                .max_groups = 8,
                                .max_samples = kRows,
                                .block_tokens = kBlockTokens};

enum Mode { kNoMoves, kLandedBefore, kByLayers };

ModelConfig AttentionConfig() {
  ModelConfig config = SmallDecoderConfig();
  config.num_layers = 8;
  config.num_heads = 16;
  config.num_kv_heads = 8;
  config.head_dim = 64;
  config.rope_dim = 64;
  return config;
}

class Step {
 public:
  Step(Mode mode, std::uint32_t num_workers)
      : decoder_(AttentionConfig()),
        layout_(decoder_.layout(kBlockTokens, DType::kF16)),
        device_({.copy_thread = mode == kByLayers}),
        builder_(kLimits, 1),
        memory_(device_.Reserve((1 + kRows * kRowBlocks + kNumMoved) * layout_.block_bytes(), "")),
        executor_(decoder_.graph(),
                  {.limits = kLimits,
                   .layout = layout_,
                   .num_workers = num_workers,
                   .kernels = &SelectCpuKernels()},
                  device_, memory_) {
    // Numbers near one in F16. Memory that was never written would be one page of zeros.
    std::memset(memory_.data(), 0x3b, memory_.size());
    CHECK(builder_.Begin());
    if (mode == kLandedBefore) AddGroup(0, 0);
    if (mode == kByLayers) {
      for (const std::uint16_t first : std::array<std::uint16_t, 4>{0, 1, 2, 4})
        AddGroup(first, static_cast<std::uint16_t>(first == 0 ? 1 : first));
    }
    for (std::uint32_t row = 0; row < kRows; ++row) {
      const std::int32_t token = static_cast<std::int32_t>(row);
      const Extent run = {BlockId{1 + row * kRowBlocks}, kRowBlocks};
      builder_.AddRow({.seq = SeqId{row},
                       .first_position = kRowBlocks * kBlockTokens - 1,
                       .tokens = std::span(&token, 1),
                       .runs = std::span(&run, 1),
                       .num_samples = 1});
    }
    builder_.Commit(static_cast<std::uint32_t>(executor_.buckets().size() - 1), kRows);
    step_ = builder_.Latch();
  }

  void Run() {
    const FlightId flight = device_.Submit(copies_);
    executor_.Run(step_);
    executor_.Wait();
    device_.Wait(flight);
  }

 private:
  void AddGroup(std::uint16_t first, std::uint16_t num_layers) {
    const std::uint32_t source = 1 + kRows * kRowBlocks;
    builder_.AddGroup({.source = BlockId{source},
                       .target = BlockId{1},
                       .num_blocks = kNumMoved,
                       .before_layer = first,
                       .num_layers = num_layers});
    const std::size_t block_bytes = layout_.block_bytes();
    const std::size_t offset = first * layout_.layer_bytes();
    const bool is_whole = num_layers == 0;
    copies_.push_back(
        {.source = memory_.data() + source * block_bytes + offset,
         .target = memory_.data() + block_bytes + offset,
         .bytes = is_whole ? kNumMoved * block_bytes : num_layers * layout_.layer_bytes(),
         .num_pieces = is_whole ? 1 : kNumMoved,
         .before_layer = first,
         .source_stride = block_bytes,
         .target_stride = block_bytes});
  }

  const SmallDecoder decoder_;
  const KvLayout layout_;
  HostDevice device_;
  StepBuilder builder_;
  const std::span<std::byte> memory_;
  CpuExecutor executor_;
  std::vector<CopyOp> copies_;
  StepView step_;
};

void Deadlines(benchmark::State& state, Mode mode) {
  Step step(mode, static_cast<std::uint32_t>(state.range(0)));
  step.Run();
  for (auto _ : state)
    step.Run();
}

#define DEADLINES(name, mode)              \
  BENCHMARK_CAPTURE(Deadlines, name, mode) \
      ->Arg(1)                             \
      ->Arg(2)                             \
      ->Iterations(8)                      \
      ->UseRealTime()                      \
      ->Unit(benchmark::kMillisecond)
DEADLINES(no_moves, kNoMoves);
DEADLINES(landed_before, kLandedBefore);
DEADLINES(by_layers, kByLayers);

}  // namespace
}  // namespace kvrm

BENCHMARK_MAIN();
