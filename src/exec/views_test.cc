// SPDX-License-Identifier: Apache-2.0
// One decoder over descriptors made by hand for every view of the KV cache: the logits have the
// same bits as over histories that lie in one piece. All memory is NaN until it is written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "device/host_device.h"
#include "exec/cpu_executor.h"
#include "exec/small_decoder_for_test.h"
#include "step/step_builder.h"

namespace kvrm {
namespace {

constexpr std::uint32_t kNumSeqs = 3;
constexpr std::uint32_t kContext = 192;  // longest, in tokens
constexpr std::uint32_t kMaxTokens = 96;

enum class Show { kHome, kBlocks, kWindows, kLayers, kMapped };

// Positions [begin, end) of sequence 0, dropped after the prompts.
struct Hole {
  std::uint32_t begin;
  std::uint32_t end;
};

struct Setting {
  std::string name;
  Show show = Show::kHome;
  std::uint32_t num_pieces = 1;  // of a home: 1, 2, or more than that: every block elsewhere
  std::uint32_t padded_tokens = 0;
  std::uint32_t block_tokens = 16;
  std::uint32_t num_workers = 1;
  std::vector<Hole> holes = {};
  bool holes_by_block = false;  // A hole is told as one run for each block.
};

void Poison(std::span<std::byte> memory) {
  std::memset(memory.data(), 0xff, memory.size());
}

class World {
 public:
  World(const SmallDecoder& decoder, const CpuKernels& kernels, DType dtype, const Setting& setting)
      : setting_(setting),
        layout_(decoder.layout(setting.block_tokens, dtype)),
        lane_blocks_(kContext / setting.block_tokens),
        num_pool_blocks_(1 + kNumSeqs * lane_blocks_),
        limits_({.max_rows = kNumSeqs,
                 .max_tokens = kMaxTokens,
                 .max_runs = lane_blocks_,
                 .max_groups = kNumSeqs * lane_blocks_,
                 .max_samples = kMaxTokens,
                 .block_tokens = setting.block_tokens,
                 .mirrored = setting.show == Show::kWindows}),
        builder_(limits_, 2),
        pool_(
            device_.ReservePool(num_pool_blocks_ * layout_.block_bytes(),
                                HasWindows() ? kNumSeqs * lane_blocks_ * layout_.block_bytes() : 0,
                                setting.show == Show::kMapped, layout_.block_bytes())) {
    Poison(pool_.pool);
    if (setting.show != Show::kMapped && HasWindows()) Poison(pool_.windows);
    if (setting.show == Show::kLayers) {
      layer_buffers_ =
          device_.Reserve(2 * num_pool_blocks_ * layout_.layer_bytes(), "layer buffers");
    }
    PlaceHomes();
    executor_ = std::make_unique<CpuExecutor>(
        decoder.graph(),
        CpuExecutorOptions{.limits = limits_,
                           .layout = layout_,
                           .num_workers = setting.num_workers,
                           .kernels = &kernels,
                           .layer_buffers = layer_buffers_},
        device_, std::span<std::byte>(pool_.pool.data(), pool_.pool.size() + pool_.windows.size()));
  }

  // Prompts in chunks beside rows that decode, then decoding. The logits of every token.
  std::vector<float> Run() {
    Step({45, 3, 0});
    Step({75, 1, 20});
    for (const Hole& hole : setting_.holes)
      Drop(hole);
    // Sequence 0 goes from its second unit of positions, and its eighth block, to the next.
    for (int i = 0; i < 10; ++i)
      Step({1, 1, 1});
    return logits_;
  }

 private:
  bool HasWindows() const {
    return setting_.show == Show::kWindows || setting_.show == Show::kMapped;
  }

  void PlaceHomes() {
    std::vector<std::uint32_t> blocks(kNumSeqs * lane_blocks_);
    std::iota(blocks.begin(), blocks.end(), 1u);
    const auto lane = [&](std::uint32_t seq) {
      return blocks.begin() + static_cast<std::ptrdiff_t>(seq * lane_blocks_);
    };
    if (setting_.num_pieces == 2) {
      for (std::uint32_t seq = 0; seq < kNumSeqs; ++seq)
        std::rotate(lane(seq), lane(seq) + 3, lane(seq + 1));
    } else if (setting_.num_pieces > 2) {
      Rng rng(setting_.num_pieces, "homes");
      for (std::size_t i = blocks.size(); i > 1; --i)
        std::swap(blocks[i - 1], blocks[rng.Below(i)]);
    }
    for (std::uint32_t seq = 0; seq < kNumSeqs; ++seq)
      homes_[seq].assign(lane(seq), lane(seq + 1));
  }

  void Drop(const Hole& hole) {
    for (std::uint32_t b = hole.begin / setting_.block_tokens; b < hole.end / setting_.block_tokens;
         ++b) {
      Poison(pool_.pool.subspan(homes_[0][b] * layout_.block_bytes(), layout_.block_bytes()));
      if (setting_.show == Show::kWindows)
        Poison(pool_.windows.subspan(b * layout_.block_bytes(), layout_.block_bytes()));
      homes_[0][b] = Index(kSentinelBlock);
    }
  }

  // `blocks` as runs; 0 is a hole.
  std::vector<Extent> RunsOf(const std::vector<std::uint32_t>& blocks, bool merge) const {
    std::vector<Extent> runs;
    for (const std::uint32_t block : blocks) {
      const Extent* last = runs.empty() ? nullptr : &runs.back();
      const bool in_hole = last != nullptr && last->start == kSentinelBlock;
      if (block == 0 && in_hole && !setting_.holes_by_block) {
        ++runs.back().num_blocks;
      } else if (merge && block != 0 && last != nullptr && !in_hole &&
                 Index(last->start) + last->num_blocks == block) {
        ++runs.back().num_blocks;
      } else {
        runs.push_back({BlockId{block}, 1});
      }
    }
    return runs;
  }

  // The first blocks of a window that begins at `first`, with the home's holes.
  std::vector<Extent> WindowRuns(std::uint32_t seq, std::uint32_t first,
                                 std::uint32_t num_blocks) const {
    std::vector<std::uint32_t> blocks;
    for (std::uint32_t b = 0; b < num_blocks; ++b)
      blocks.push_back(homes_[seq][b] == 0 ? 0 : first + seq * lane_blocks_ + b);
    return RunsOf(blocks, true);
  }

  void AddRow(std::uint32_t seq, std::uint32_t num_tokens) {
    const std::uint32_t first = lengths_[seq];
    lengths_[seq] += num_tokens;
    std::vector<std::int32_t> tokens;
    for (std::uint32_t p = first; p < lengths_[seq]; ++p)
      tokens.push_back(static_cast<std::int32_t>((seq * 11 + p * 7 + p / 5) % 32));
    std::uint32_t num_blocks = (lengths_[seq] + setting_.block_tokens - 1) / setting_.block_tokens;
    if (setting_.padded_tokens > 0) num_blocks = lane_blocks_;
    const std::vector<std::uint32_t> blocks(homes_[seq].begin(), homes_[seq].begin() + num_blocks);
    const std::vector<Extent> home = RunsOf(blocks, setting_.show != Show::kBlocks);
    std::vector<Extent> runs = home;
    StepRow row = {.seq = SeqId{seq}, .first_position = first, .tokens = tokens};
    if (HasWindows()) runs = WindowRuns(seq, num_pool_blocks_, num_blocks);
    if (setting_.show == Show::kMapped) {
      for (std::uint32_t b = 0; b < num_blocks; ++b) {
        ASSERT_TRUE(device_.Map((seq * lane_blocks_ + b) * layout_.block_bytes(),
                                blocks[b] * layout_.block_bytes(), layout_.block_bytes()));
      }
    }
    if (setting_.show == Show::kLayers) {
      runs = WindowRuns(seq, 1, num_blocks);
      builder_.SetLayerWindows();
      std::uint32_t number = 0;
      for (const Extent& piece : home) {
        if (piece.start != kSentinelBlock)
          builder_.AddGroup({.source = piece.start,
                             .target = BlockId{1 + seq * lane_blocks_ + number},
                             .num_blocks = piece.num_blocks,
                             .kind = GroupKind::kLayerSlices});
        number += piece.num_blocks;
      }
    }
    row.runs = runs;
    row.home = home;
    row.mirror = setting_.show == Show::kWindows;
    row.num_samples = num_tokens;
    builder_.AddRow(row);
  }

  void Step(const std::vector<std::uint32_t>& num_tokens) {
    if (!layer_buffers_.empty()) Poison(layer_buffers_);
    ASSERT_TRUE(builder_.Begin());
    for (std::uint32_t seq = 0; seq < kNumSeqs; ++seq) {
      if (num_tokens[seq] > 0) AddRow(seq, num_tokens[seq]);
    }
    if (setting_.padded_tokens > 0) builder_.Pad(setting_.padded_tokens);
    const auto bucket = static_cast<std::uint32_t>(executor_->buckets().size() - 1);
    builder_.Commit(bucket, kNumSeqs);
    const StepView step = builder_.Latch();
    executor_->Run(step);
    executor_->Wait();
    for (std::uint32_t i = 0; i < step.header->num_samples; ++i) {
      const std::span<const float> logits = executor_->Logits(i);
      logits_.insert(logits_.end(), logits.begin(), logits.end());
    }
    builder_.Retire();
  }

  const Setting setting_;
  const KvLayout layout_;
  const std::uint32_t lane_blocks_;
  const std::uint32_t num_pool_blocks_;
  const StepLimits limits_;
  HostDevice device_;
  StepBuilder builder_;
  const PoolMemory pool_;
  std::span<std::byte> layer_buffers_;
  std::unique_ptr<CpuExecutor> executor_;
  std::vector<std::uint32_t> homes_[kNumSeqs];
  std::uint32_t lengths_[kNumSeqs] = {};
  std::vector<float> logits_;
};

std::vector<const CpuKernels*> AllTables() {
  std::vector<const CpuKernels*> tables;
  for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16"}) {
    if (const CpuKernels* table = FindCpuKernels(name)) tables.push_back(table);
  }
  return tables;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// All that a view may differ in without an influence.
std::vector<Setting> Settings() {
  return {
      {.name = "one run, three workers", .num_workers = 3},
      {.name = "one run, blocks of 32", .block_tokens = 32},
      {.name = "two runs", .num_pieces = 2, .num_workers = 2},
      {.name = "two runs, blocks of 32", .num_pieces = 2, .block_tokens = 32},
      {.name = "many runs", .num_pieces = 9, .num_workers = 3},
      {.name = "many runs, blocks of 32", .num_pieces = 9, .block_tokens = 32},
      {.name = "paged, in order", .show = Show::kBlocks, .num_workers = 2},
      {.name = "paged", .show = Show::kBlocks, .num_pieces = 8},
      {.name = "paged, blocks of 32", .show = Show::kBlocks, .num_pieces = 8, .block_tokens = 32},
      {.name = "windows", .show = Show::kWindows, .num_pieces = 7, .num_workers = 2},
      {.name = "windows, blocks of 32",
       .show = Show::kWindows,
       .num_pieces = 7,
       .block_tokens = 32},
      {.name = "layer windows", .show = Show::kLayers, .num_pieces = 6},
      {.name = "layer windows, four workers",
       .show = Show::kLayers,
       .num_pieces = 6,
       .num_workers = 4},
      {.name = "layer windows, blocks of 32",
       .show = Show::kLayers,
       .num_pieces = 2,
       .block_tokens = 32,
       .num_workers = 2},
      {.name = "mapped", .show = Show::kMapped, .num_pieces = 5, .num_workers = 2},
      {.name = "mapped, blocks of 32", .show = Show::kMapped, .num_pieces = 5, .block_tokens = 32},
  };
}

// Without holes only: a static cache drops nothing.
std::vector<Setting> PaddedSettings() {
  return {
      {.name = "padded", .padded_tokens = kContext},
      {.name = "padded, two workers", .padded_tokens = kContext, .num_workers = 2},
      {.name = "padded to less than a unit more", .padded_tokens = 140},
      {.name = "padded to less than the context", .padded_tokens = 64},
      {.name = "padded, blocks of 32", .padded_tokens = kContext, .block_tokens = 32},
      {.name = "padded over runs", .num_pieces = 2, .padded_tokens = kContext},
  };
}

void ExpectSameBits(const ModelConfig& config, DType dtype, const std::vector<Hole>& holes,
                    bool padded) {
  const SmallDecoder decoder(config);
  for (const CpuKernels* kernels : AllTables()) {
    const Setting plain = {.name = "one run", .holes = holes};
    const std::vector<float> expected = World(decoder, *kernels, dtype, plain).Run();
    ASSERT_TRUE(std::all_of(expected.begin(), expected.end(), [](float logit) {
      return std::isfinite(logit);
    })) << kernels->name;
    bool by_block = true;  // every other one
    for (Setting setting : padded ? PaddedSettings() : Settings()) {
      setting.holes = holes;
      setting.holes_by_block = by_block;
      by_block = !by_block;
      EXPECT_TRUE(SameBits(World(decoder, *kernels, dtype, setting).Run(), expected))
          << kernels->name << ", " << setting.name;
    }
  }
}

TEST(Views, HaveTheBitsOfOneRun) {
  for (const DType dtype : {DType::kF16, DType::kBf16, DType::kF32})
    ExpectSameBits(SmallDecoderConfig(), dtype, {}, false);
}

// Q8_0 needs heads of 32 dimensions, and the mapped settings blocks of whole pages.
TEST(Views, HaveTheBitsOfOneRunInBytes) {
  ModelConfig config = SmallDecoderConfig();
  config.head_dim = 32;
  config.rope_dim = 32;
  config.num_heads = 8;
  config.num_kv_heads = 8;
  ExpectSameBits(config, DType::kQ8_0, {{32, 96}}, false);
  ExpectSameBits(config, DType::kQ8_0, {}, true);
}

TEST(Views, HaveTheBitsOfOneRunInASlidingWindow) {
  ModelConfig config = SmallDecoderConfig();
  config.sliding_window = 70;
  ExpectSameBits(config, DType::kF16, {}, false);
}

TEST(Views, PaddingChangesNoBit) {
  ExpectSameBits(SmallDecoderConfig(), DType::kF16, {}, true);
  ModelConfig config = SmallDecoderConfig();
  config.sliding_window = 40;
  ExpectSameBits(config, DType::kF32, {}, true);
}

// A part of two units; the first unit and more; two holes, with one block between them.
TEST(Views, HolesHaveTheSameBitsHoweverTheyAreTold) {
  for (const std::vector<Hole>& holes :
       {std::vector<Hole>{{32, 96}}, {{0, 96}}, {{0, 32}, {64, 96}}})
    ExpectSameBits(SmallDecoderConfig(), DType::kF16, holes, false);
  ModelConfig config = SmallDecoderConfig();
  config.sliding_window = 70;
  ExpectSameBits(config, DType::kF16, {{0, 64}}, false);
}

TEST(Views, AHoleIsNotAttended) {
  const SmallDecoder decoder(SmallDecoderConfig());
  for (const CpuKernels* kernels : AllTables()) {
    const std::vector<float> whole = World(decoder, *kernels, DType::kF16, {.name = ""}).Run();
    const std::vector<float> without =
        World(decoder, *kernels, DType::kF16, {.name = "", .holes = {{32, 96}}}).Run();
    ASSERT_EQ(whole.size(), without.size());
    // The prompts are the same: 48 tokens and 96, of 32 logits each. Then sequence 0 differs, and
    // the others do not.
    constexpr std::size_t kPrompts = (48 + 96) * 32;
    EXPECT_TRUE(std::equal(whole.begin(), whole.begin() + kPrompts, without.begin()));
    for (std::size_t i = kPrompts; i < whole.size(); i += 3 * 32) {
      const auto at = [i](const std::vector<float>& logits, std::size_t row) {
        return std::vector<float>(&logits[i + row * 32], &logits[i + row * 32] + 32);
      };
      EXPECT_FALSE(SameBits(at(whole, 0), at(without, 0)));
      EXPECT_TRUE(SameBits(at(whole, 1), at(without, 1)));
      EXPECT_TRUE(SameBits(at(whole, 2), at(without, 2)));
    }
  }
}

}  // namespace
}  // namespace kvrm
