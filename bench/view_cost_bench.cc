// SPDX-License-Identifier: Apache-2.0
// What does each view of the KV cache cost a decode step beneath the same kernels?
//
// One step of 8 rows with a context of 2,048 tokens over a decoder that is nearly all attention (8
// layers, 16 query heads over 8 kv heads of 64, F16: 256 MiB of keys and values a step), one
// worker, the best table. Compare medians of processor time of one run, in random order:
//
//   view_cost_bench --benchmark_repetitions=5 --benchmark_enable_random_interleaving=true
//
// Expected, in times of one run a row (extents_1): runs, pages, windows and mappings within a few
// percent, and layer buffers that are not used as well; layer windows twice, for their data are
// read, written and read again; padding to twice the context twice.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/rng.h"
#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "exec/small_decoder_for_test.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kRows = 8;
constexpr std::uint32_t kContext = 2048;
constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kRowBlocks = kContext / kBlockTokens;

enum View {
  kExtents,
  kPaged,
  kWindows,
  kLayers,
  kLayersUnused,  // layer buffers there, steps that do not use them
  kMapped,
  kPadded,
};

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
  // Homes of `num_pieces` runs a row, in scrambled order; lanes have room for twice the context.
  Step(View view, std::uint32_t num_pieces)
      : view_(view),
        decoder_(AttentionConfig()),
        layout_(decoder_.layout(kBlockTokens, DType::kF16)),
        lane_blocks_(view == kPadded ? 2 * kRowBlocks : kRowBlocks),
        num_pool_blocks_(1 + kRows * lane_blocks_),
        limits_({.max_rows = kRows,
                 .max_tokens = kRows,
                 .max_runs = kRowBlocks,
                 .max_groups = kRows * kRowBlocks,
                 .max_samples = kRows,
                 .block_tokens = kBlockTokens,
                 .mirrored = view == kWindows}),
        builder_(limits_, 1),
        pool_(device_.ReservePool(num_pool_blocks_ * layout_.block_bytes(),
                                  HasWindows() ? kRows * kRowBlocks * layout_.block_bytes() : 0,
                                  view == kMapped, layout_.block_bytes())) {
    Fill(pool_.pool);
    if (view == kWindows) Fill(pool_.windows);
    std::span<std::byte> layer_buffers;
    if (view == kLayers || view == kLayersUnused)
      layer_buffers =
          device_.Reserve(2 * num_pool_blocks_ * layout_.layer_bytes(), "layer buffers");
    executor_ = std::make_unique<CpuExecutor>(
        decoder_.graph(),
        CpuExecutorOptions{.limits = limits_,
                           .layout = layout_,
                           .kernels = &SelectCpuKernels(),
                           .layer_buffers = layer_buffers},
        device_, std::span<std::byte>(pool_.pool.data(), pool_.pool.size() + pool_.windows.size()));
    Build(num_pieces);
  }

  void Run() {
    executor_->Run(step_);
    executor_->Wait();
  }
  std::size_t bytes() const { return kRows * kRowBlocks * layout_.block_bytes(); }

 private:
  bool HasWindows() const { return view_ == kWindows || view_ == kMapped; }

  // Numbers near one in F16. Memory that was never written would be one page of zeros.
  static void Fill(std::span<std::byte> memory) { std::memset(memory.data(), 0x3b, memory.size()); }

  void Build(std::uint32_t num_pieces) {
    std::vector<std::uint32_t> pieces(kRows * num_pieces);
    std::iota(pieces.begin(), pieces.end(), 0u);
    Rng rng(num_pieces);
    for (std::size_t i = pieces.size(); num_pieces > 1 && i > 1; --i)
      std::swap(pieces[i - 1], pieces[rng.Below(i)]);
    CHECK(builder_.Begin());
    for (std::uint32_t row = 0; row < kRows; ++row) {
      std::vector<Extent> home;
      for (std::uint32_t i = 0; i < num_pieces; ++i) {
        const std::uint32_t length = lane_blocks_ / num_pieces;
        home.push_back({BlockId{1 + pieces[row * num_pieces + i] * length}, length});
      }
      AddRow(row, home);
    }
    if (view_ == kPadded) builder_.Pad(2 * kContext);
    builder_.Commit(static_cast<std::uint32_t>(executor_->buckets().size() - 1), kRows);
    step_ = builder_.Latch();
  }

  void AddRow(std::uint32_t row, const std::vector<Extent>& home) {
    std::vector<Extent> runs = home;
    if (view_ == kPaged) {
      runs.clear();
      for (const Extent& run : home) {
        for (std::uint32_t b = 0; b < run.num_blocks; ++b)
          runs.push_back({BlockId{Index(run.start) + b}, 1});
      }
    }
    if (HasWindows()) runs = {{BlockId{num_pool_blocks_ + row * kRowBlocks}, kRowBlocks}};
    if (view_ == kLayers) runs = {{BlockId{1 + row * kRowBlocks}, kRowBlocks}};
    if (view_ == kLayers) builder_.SetLayerWindows();
    std::uint32_t number = row * kRowBlocks;
    for (const Extent& run : home) {
      const std::uint64_t bytes = layout_.block_bytes();
      if (view_ == kMapped)
        CHECK(device_.Map(number * bytes, Index(run.start) * bytes, run.num_blocks * bytes));
      if (view_ == kLayers)
        builder_.AddGroup({.source = run.start,
                           .target = BlockId{1 + number},
                           .num_blocks = run.num_blocks,
                           .kind = GroupKind::kLayerSlices});
      number += run.num_blocks;
    }
    const std::int32_t token = static_cast<std::int32_t>(row);
    builder_.AddRow({.seq = SeqId{row},
                     .first_position = kContext - 1,
                     .tokens = std::span(&token, 1),
                     .runs = runs,
                     .home = home,
                     .mirror = view_ == kWindows,
                     .num_samples = 1});
  }

  const View view_;
  const SmallDecoder decoder_;
  const KvLayout layout_;
  const std::uint32_t lane_blocks_;
  const std::uint32_t num_pool_blocks_;
  const StepLimits limits_;
  HostDevice device_;
  StepBuilder builder_;
  const PoolMemory pool_;
  std::unique_ptr<CpuExecutor> executor_;
  StepView step_;
};

void ViewCost(benchmark::State& state, View view, std::uint32_t num_pieces) {
  Step step(view, num_pieces);
  step.Run();
  for (auto _ : state)
    step.Run();
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(step.bytes()));
}

#define VIEW_COST(name, view, num_pieces) \
  BENCHMARK_CAPTURE(ViewCost, name, view, num_pieces)->Iterations(8)->Unit(benchmark::kMillisecond)
VIEW_COST(extents_1, kExtents, 1);
VIEW_COST(extents_1_again, kExtents, 1);  // The noise.
VIEW_COST(extents_4, kExtents, 4);
VIEW_COST(extents_32, kExtents, 32);
VIEW_COST(paged_in_order, kPaged, 1);
VIEW_COST(paged_scattered, kPaged, 128);
VIEW_COST(windows, kWindows, 32);
VIEW_COST(layers_1, kLayers, 1);
VIEW_COST(layers_128, kLayers, 128);
VIEW_COST(layers_unused, kLayersUnused, 1);
VIEW_COST(mapped_1, kMapped, 1);
VIEW_COST(mapped_128, kMapped, 128);
VIEW_COST(padded_twice, kPadded, 1);

}  // namespace
}  // namespace kvrm

BENCHMARK_MAIN();
