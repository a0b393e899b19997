// SPDX-License-Identifier: Apache-2.0
// Long rows, whose attention several workers share: the logits have the bits of one worker.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "exec/small_decoder_for_test.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kLong = 2800;  // six units
constexpr std::uint32_t kBlocks = 1 + kLong / 16 + 8;
constexpr StepLimits kLimits = {.max_rows = 4,
                                .max_tokens = 16,
                                .max_runs = 4,
                                .max_groups = 4,
                                .max_samples = 16,
                                .block_tokens = 16};

ModelConfig LongConfig(std::uint32_t window) {
  ModelConfig config = SmallDecoderConfig();
  config.head_dim = 32;
  config.rope_dim = 32;
  config.num_kv_heads = 1;
  config.num_heads = 2;
  config.num_layers = 2;
  config.sliding_window = window;
  return config;
}

// Random keys and values in every slot, as the kernels store them.
void Fill(const KvLayout& layout, const CpuKernels& kernels, std::span<std::byte> memory) {
  Rng rng(layout.head_dim, "long rows");
  std::vector<float> values(std::size_t{2} * layout.head_dim);
  for (std::uint32_t slot = 0; slot < kBlocks * layout.block_tokens; ++slot) {
    auto* block = reinterpret_cast<std::uint8_t*>(memory.data()) +
                  slot / layout.block_tokens * layout.block_bytes();
    for (std::uint32_t layer = 0; layer < layout.num_layers; ++layer) {
      for (float& value : values)
        value = static_cast<float>(4 * rng.Uniform() - 2);
      kernels.store_kv({.k = values.data(),
                        .v = values.data() + layout.head_dim,
                        .k_tile = block + layout.k_offset(layer, 0),
                        .v_tile = block + layout.v_offset(layer, 0),
                        .head_bytes = layout.head_bytes(),
                        .lane = slot % kTileTokens,
                        .num_kv_heads = 1,
                        .head_dim = layout.head_dim,
                        .dtype = layout.dtype});
    }
  }
}

// Logits of a step with a chunk of a long row, or one token of it, beside short rows or alone.
std::vector<float> RunStep(const CpuKernels& kernels, DType dtype, std::uint32_t num_workers,
                           std::uint32_t window, bool alone) {
  const SmallDecoder decoder(LongConfig(window));
  const KvLayout layout = decoder.layout(16, dtype);
  HostDevice device;
  const std::span<std::byte> memory = device.Reserve(kBlocks * layout.block_bytes(), "kv");
  Fill(layout, kernels, memory);
  CpuExecutor executor(
      decoder.graph(),
      CpuExecutorOptions{
          .limits = kLimits, .layout = layout, .num_workers = num_workers, .kernels = &kernels},
      device, memory);
  StepBuilder builder(kLimits, 2);
  CHECK(builder.Begin());
  const std::vector<std::int32_t> tokens = {3, 1, 4, 1, 5};
  const std::vector<Extent> few = {{BlockId{kBlocks - 2}, 2}};
  const std::vector<Extent> others = {{BlockId{kBlocks - 5}, 3}};
  // In two pieces, the second of which lies first.
  const std::vector<Extent> many = {{BlockId{100}, kLong / 16 - 99}, {BlockId{1}, 99}};
  const std::span<const std::int32_t> chunk = alone ? std::span(tokens).first(1) : tokens;
  if (!alone)
    builder.AddRow(
        {.seq = SeqId{0}, .first_position = 20, .tokens = chunk, .runs = few, .num_samples = 1});
  builder.AddRow({.seq = SeqId{1},
                  .first_position = kLong - 5,
                  .tokens = chunk,
                  .runs = many,
                  .num_samples = static_cast<std::uint32_t>(chunk.size())});
  if (!alone)
    builder.AddRow(
        {.seq = SeqId{2}, .first_position = 0, .tokens = chunk, .runs = others, .num_samples = 1});
  builder.Commit(static_cast<std::uint32_t>(executor.buckets().size() - 1), kLimits.max_rows);
  executor.Run(builder.Latch());
  executor.Wait();
  std::vector<float> logits;
  for (std::uint32_t i = 0; i < (alone ? 1 : chunk.size() + 2); ++i)
    logits.insert(logits.end(), executor.Logits(i).begin(), executor.Logits(i).end());
  builder.Retire();
  return logits;
}

TEST(LongRows, HaveTheBitsOfOneWorker) {
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16", "reference"}) {
    const CpuKernels* kernels = FindCpuKernels(name);
    if (kernels == nullptr) continue;
    for (const DType dtype : {DType::kF16, DType::kQ8_0}) {
      for (const std::uint32_t window : {0u, 1500u}) {
        const std::vector<float> one = RunStep(*kernels, dtype, 1, window, false);
        ASSERT_TRUE(std::all_of(one.begin(), one.end(), [](float x) { return std::isfinite(x); }));
        for (const std::uint32_t workers : {2u, 3u, 5u, 8u})
          EXPECT_EQ(RunStep(*kernels, dtype, workers, window, false), one)
              << name << ' ' << DTypeName(dtype) << ' ' << workers << " workers";
        // The first token of the chunk, in a step of its own.
        const std::vector<float> alone = RunStep(*kernels, dtype, 4, window, true);
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), one.begin() + 32))
            << name << ' ' << DTypeName(dtype);
      }
    }
  }
}

}  // namespace
}  // namespace kvrm
