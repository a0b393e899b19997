// SPDX-License-Identifier: Apache-2.0
// What CpuExecutor does with a single step: what it writes, what it computes over, and which
// descriptors it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "exec/program.h"
#include "exec/small_decoder_for_test.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kNumBlocks = 8;  // of 16 tokens, the sentinel among them
constexpr std::array<std::int32_t, 20> kTokens = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3,
                                                  5, 8, 9, 7, 9, 3, 2, 3, 8, 4};

// A decoder over a few blocks, and one step of it.
class Rig {
 public:
  struct Options {
    ModelConfig config = SmallDecoderConfig();
    const CpuKernels& kernels;
    bool layer_buffers = false;
    std::uint32_t num_workers = 1;
  };

  explicit Rig(const CpuKernels& kernels, bool layer_buffers = false)
      : Rig({.kernels = kernels, .layer_buffers = layer_buffers}) {}
  explicit Rig(const Options& options)
      : decoder_(options.config),
        layout_(decoder_.layout(16, DType::kF16)),
        builder_(kLimits, 2),
        memory_(device_.Reserve(kNumBlocks * layout_.block_bytes(), "kv")) {
    std::span<std::byte> buffers;
    if (options.layer_buffers)
      buffers = device_.Reserve(2 * 6 * layout_.layer_bytes(), "layer buffers");
    executor_ = std::make_unique<CpuExecutor>(decoder_.graph(),
                                              CpuExecutorOptions{.limits = kLimits,
                                                                 .layout = layout_,
                                                                 .num_workers = options.num_workers,
                                                                 .kernels = &options.kernels,
                                                                 .layer_buffers = buffers},
                                              device_, memory_);
    CHECK(builder_.Begin());
  }

  StepBuilder& builder() { return builder_; }
  const CpuExecutor& executor() const { return *executor_; }
  std::span<std::byte> Block(std::uint32_t block) {
    return memory_.subspan(block * layout_.block_bytes(), layout_.block_bytes());
  }

  // The first tokens of a sequence.
  void AddRow(const std::vector<Extent>& runs, const std::vector<Extent>& home = {},
              bool mirror = false) {
    builder_.AddRow({.seq = SeqId{0},
                     .tokens = kTokens,
                     .runs = runs,
                     .home = home,
                     .mirror = mirror,
                     .num_samples = 1});
  }

  std::vector<float> Run() {
    const auto bucket = static_cast<std::uint32_t>(executor_->buckets().size() - 1);
    builder_.Commit(bucket, kLimits.max_rows);
    executor_->Run(builder_.Latch());
    executor_->Wait();
    const std::span<const float> logits = executor_->Logits(0);
    return {logits.begin(), logits.end()};
  }

 private:
  static constexpr StepLimits kLimits = {.max_rows = 2,
                                         .max_tokens = 32,
                                         .max_runs = 4,
                                         .max_groups = 4,
                                         .max_samples = 2,
                                         .block_tokens = 16,
                                         .mirrored = true};
  const SmallDecoder decoder_;
  const KvLayout layout_;
  HostDevice device_;
  StepBuilder builder_;
  const std::span<std::byte> memory_;
  std::unique_ptr<CpuExecutor> executor_;
};

const CpuKernels& Scalar() {
  return *FindCpuKernels("scalar");
}

TEST(CpuExecutor, MirrorsWriteHomeAndWindowAlike) {
  Rig rig(Scalar());
  for (const std::uint32_t block : {1u, 3u, 5u, 6u})
    std::memset(rig.Block(block).data(), 0xff, rig.Block(block).size());
  const std::vector<std::byte> before(rig.Block(3).begin(), rig.Block(3).end());
  rig.AddRow({{BlockId{5}, 2}}, {{BlockId{3}, 1}, {BlockId{1}, 1}}, true);
  rig.Run();
  EXPECT_FALSE(std::ranges::equal(rig.Block(3), before));
  EXPECT_TRUE(std::ranges::equal(rig.Block(3), rig.Block(5)));
  EXPECT_TRUE(std::ranges::equal(rig.Block(1), rig.Block(6)));
  EXPECT_FALSE(std::ranges::equal(rig.Block(5), rig.Block(6)));
}

TEST(CpuExecutor, LayerBuffersAddNoBarrierToStepsThatReadTheHome) {
  Rig with(Scalar(), true);
  Rig without(Scalar());
  EXPECT_EQ(with.executor().num_barriers(), without.executor().num_barriers());
  for (Rig* rig : {&with, &without})
    rig->AddRow({{BlockId{1}, 2}});
  EXPECT_EQ(with.Run(), without.Run());
}

// Decoders whose logits are less than a chunk, a few of them, and more than there are workers.
TEST(CpuExecutor, LogitStatsAreThoseOfTheLogitsWithAnyNumberOfWorkers) {
  for (const std::uint32_t vocab_size : {32u, 160u, 700u}) {
    for (const std::uint32_t num_workers : {1u, 2u, 3u, 7u}) {
      ModelConfig config = SmallDecoderConfig();
      config.vocab_size = vocab_size;
      Rig rig({.config = config, .kernels = Scalar(), .num_workers = num_workers});
      rig.AddRow({{BlockId{1}, 2}});
      const std::vector<float> logits = rig.Run();
      PlainLogitStats plain(1, vocab_size);
      const LogitStats expected = plain.Compute(0, logits);
      const LogitStats actual = rig.executor().Stats(0);
      EXPECT_TRUE(std::ranges::equal(actual.maxima, expected.maxima)) << vocab_size;
      EXPECT_TRUE(std::ranges::equal(actual.sums, expected.sums)) << vocab_size;
    }
  }
}

TEST(Program, LogitStatsNeedNoBarrier) {
  const SmallDecoder decoder(SmallDecoderConfig());
  HostDevice device;
  WorkerTeam team(2);
  for (const CpuKernels* kernels : {&Scalar(), &SelectCpuKernels()}) {
    const Program program = CompileProgram(
        decoder.graph(), {.kernels = kernels, .max_tokens = 4, .max_samples = 4}, device, team);
    EXPECT_EQ(program.code.back().code, Code::kLogitStats);
    EXPECT_FALSE(program.code.back().barrier);
  }
}

// Each worker goes on with the columns that it has just written, up to the next product.
TEST(Program, WhatTwoProductsGiveIsGoneOnWithWithoutABarrier) {
  const SmallDecoder decoder(SmallDecoderConfig());
  HostDevice device;
  WorkerTeam team(2);
  for (const CpuKernels* kernels : {&Scalar(), &SelectCpuKernels()}) {
    const Program program = CompileProgram(
        decoder.graph(), {.kernels = kernels, .max_tokens = 4, .max_samples = 4}, device, team);
    std::size_t num_checked = 0;
    for (std::size_t i = 1; i + 1 < program.code.size(); ++i) {
      if (program.code[i].code != Code::kSwiGlu) continue;
      ++num_checked;
      EXPECT_EQ(program.code[i - 1].code, Code::kMatMul);
      EXPECT_FALSE(program.code[i].barrier);
      std::size_t product = i + 1;
      if (program.code[product].code == Code::kPrepare) {
        EXPECT_EQ(program.code[product].split, Split::kColumn);
        EXPECT_FALSE(program.code[product++].barrier);
      }
      EXPECT_EQ(program.code[product].code, Code::kMatMul);
      EXPECT_TRUE(program.code[product].barrier);
    }
    EXPECT_GT(num_checked, 0u);
  }
}

// How many tiles the calls of the kernel went over. The executor has one worker here.
std::uint64_t num_tiles = 0;

void CountedAttention(const AttentionArgs& args) {
  num_tiles += (args.end + kTileTokens - 1) / kTileTokens - args.begin / kTileTokens;
  Scalar().attention(args);
}

TEST(CpuExecutor, PaddedAttentionIsOverEveryTileOnce) {
  CpuKernels kernels = Scalar();
  kernels.attention = CountedAttention;
  // Of the 20 tokens the last four are in the second tile. Two kv heads in each of four layers.
  for (const auto& [padded, tiles] :
       {std::pair{0u, 24u}, {16u, 24u}, {20u, 40u}, {64u, 80u}, {65u, 100u}, {96u, 120u}}) {
    Rig rig(kernels);
    rig.AddRow({{BlockId{1}, 6}});
    rig.builder().Pad(padded);
    num_tiles = 0;
    rig.Run();
    EXPECT_EQ(num_tiles, std::uint64_t{4} * 2 * tiles) << padded;
  }
}

void ExpectRefused(bool layer_buffers, const std::function<void(Rig&)>& fill) {
  Rig rig(Scalar(), layer_buffers);
  fill(rig);
  EXPECT_DEATH(rig.Run(), "check failed.*cpu_executor");
}

TEST(CpuExecutorDeathTest, RefusesBlocksOutsideItsMemory) {
  Rig last(Scalar());
  last.AddRow({{BlockId{6}, 2}});
  last.Run();
  ExpectRefused(false, [](Rig& rig) { rig.AddRow({{BlockId{7}, 2}}); });
  ExpectRefused(false, [](Rig& rig) { rig.AddRow({{BlockId{8}, 2}}); });
  ExpectRefused(false, [](Rig& rig) { rig.AddRow({{BlockId{0xfffffffe}, 2}}, {{BlockId{1}, 2}}); });
  // Runs within it, the home not, in its second block only.
  ExpectRefused(false, [](Rig& rig) {
    rig.AddRow({{BlockId{1}, 2}}, {{BlockId{3}, 1}, {BlockId{8}, 1}});
  });
  // The home within it, the mirror not.
  ExpectRefused(false, [](Rig& rig) { rig.AddRow({{BlockId{7}, 2}}, {{BlockId{1}, 2}}, true); });
}

void AddSlices(Rig& rig, std::uint32_t source, std::uint32_t target, std::uint32_t num_blocks) {
  rig.builder().AddGroup({.source = BlockId{source},
                          .target = BlockId{target},
                          .num_blocks = num_blocks,
                          .kind = GroupKind::kLayerSlices});
}

// Layer buffers have six blocks.
TEST(CpuExecutorDeathTest, RefusesSlicesOutsideMemoryAndLayerBuffers) {
  Rig last(Scalar(), true);
  last.AddRow({{BlockId{4}, 2}}, {{BlockId{6}, 2}});
  last.builder().SetLayerWindows();
  AddSlices(last, 6, 4, 2);
  last.Run();
  ExpectRefused(true, [](Rig& rig) {
    rig.AddRow({{BlockId{1}, 2}}, {{BlockId{6}, 2}});
    rig.builder().SetLayerWindows();
    AddSlices(rig, 7, 1, 2);
  });
  ExpectRefused(true, [](Rig& rig) {
    rig.AddRow({{BlockId{1}, 2}}, {{BlockId{6}, 2}});
    rig.builder().SetLayerWindows();
    AddSlices(rig, 6, 5, 2);
  });
  ExpectRefused(true, [](Rig& rig) {
    rig.AddRow({{BlockId{5}, 2}}, {{BlockId{6}, 2}});
    rig.builder().SetLayerWindows();
    AddSlices(rig, 6, 4, 2);
  });
}

TEST(CpuExecutorDeathTest, RefusesLayerWindowsWithoutBuffersAndSlicesWithoutTheFlag) {
  ExpectRefused(false, [](Rig& rig) {
    rig.AddRow({{BlockId{1}, 2}}, {{BlockId{6}, 2}});
    rig.builder().SetLayerWindows();
  });
  ExpectRefused(true, [](Rig& rig) {
    rig.AddRow({{BlockId{1}, 2}});
    AddSlices(rig, 6, 4, 2);
  });
}

}  // namespace
}  // namespace kvrm
