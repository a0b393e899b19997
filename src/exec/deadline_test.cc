// SPDX-License-Identifier: Apache-2.0
// Steps that run while the cache of their later layers arrives compute what they compute when all
// of it was there, to the bit: what is read waits for its copy, and so does what is written into a
// block that a copy fills.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
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

constexpr std::uint32_t kBlockTokens = 16;
constexpr std::uint32_t kHistoryBlocks = 48;
constexpr std::uint32_t kPosition = kHistoryBlocks * kBlockTokens - 6;  // inside a moved block
constexpr std::uint32_t kSource = 1;
constexpr std::uint32_t kTarget = 1 + kHistoryBlocks;
constexpr std::uint32_t kNumBlocks = 1 + 2 * kHistoryBlocks;
constexpr StepLimits kLimits = {.max_rows = 1,
                                .max_tokens = 4,
                                .max_runs = 2,
                                .max_groups = 8 + 1,
                                .max_samples = 1,
                                .block_tokens = kBlockTokens};

// Makes each copy at the last moment: when somebody waits for it.
class LastMomentDevice final : public Device {
 public:
  std::span<std::byte> Reserve(std::size_t bytes, const char* owner) override {
    return memory_.Reserve(bytes, owner);
  }
  PoolMemory ReservePool(std::size_t pool_bytes, std::size_t window_bytes, bool mapped,
                         std::size_t map_unit) override {
    return memory_.ReservePool(pool_bytes, window_bytes, mapped, map_unit);
  }
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return false; }
  FlightId Submit(std::span<const CopyOp> copies) noexcept override {
    pending_ = copies;
    WaitLayer(0);
    return FlightId{++num_flights_};
  }
  bool Landed(FlightId) noexcept override { return pending_.empty(); }
  void Wait(FlightId) noexcept override { WaitLayer(~std::uint32_t{0}); }
  bool has_deadlines() const noexcept override { return true; }
  void WaitLayer(std::uint32_t layer) noexcept override {
    while (busy_.test_and_set(std::memory_order_acquire))
      std::this_thread::yield();
    while (!pending_.empty() && pending_.front().before_layer <= layer) {
      memory_.Submit(pending_.first(1));
      pending_ = pending_.subspan(1);
    }
    busy_.clear(std::memory_order_release);
  }

 private:
  HostDevice memory_;
  std::atomic_flag busy_;  // of everything below, and of copying
  std::span<const CopyOp> pending_;
  std::uint64_t num_flights_ = 0;
};

// A row of four tokens whose whole history is moved by the step that computes it.
class Mover {
 public:
  Mover(std::unique_ptr<Device> device, bool gathered)
      : gathered_(gathered),
        decoder_(SmallDecoderConfig()),
        layout_(decoder_.layout(kBlockTokens, DType::kF16)),
        device_(std::move(device)),
        memory_(device_->Reserve(kNumBlocks * layout_.block_bytes(), "kv")),
        buffers_(device_->Reserve(2 * (1 + kHistoryBlocks) * layout_.layer_bytes(), "buffers")),
        builder_(kLimits, 1),
        executor_(decoder_.graph(),
                  {.limits = kLimits,
                   .layout = layout_,
                   .num_workers = 2,
                   .kernels = &SelectCpuKernels(),
                   .layer_buffers = buffers_},
                  *device_, memory_) {}

  // The target holds something else before. Logits, and behind them the moved blocks as they are
  // afterwards.
  std::vector<float> Run(std::uint64_t seed) {
    const bool layered = device_->has_deadlines();
    Rng rng(seed, "history");
    std::memset(memory_.data(), 0x44, memory_.size());
    auto* const halves =
        reinterpret_cast<std::uint16_t*>(memory_.data() + kSource * layout_.block_bytes());
    // F16 from 0.5 to 2, of either sign.
    for (std::size_t i = 0; i < kHistoryBlocks * layout_.block_bytes() / 2; ++i)
      halves[i] = static_cast<std::uint16_t>(0x3800 + rng.Below(0x800) + (rng.Below(2) << 15));
    CHECK(builder_.Begin());
    copies_.clear();
    if (!layered) AddMove(0, 0);
    for (std::uint16_t layer = 0; layered && layer < layout_.num_layers; ++layer)
      AddMove(layer, 1);
    AddRow();
    builder_.Commit(static_cast<std::uint32_t>(executor_.buckets().size() - 1), 1);
    const FlightId flight = device_->Submit(copies_);
    executor_.Run(builder_.Latch());
    executor_.Wait();
    device_->Wait(flight);
    builder_.Retire();
    const std::span<const float> logits = executor_.Logits(0);
    std::vector<float> seen(logits.begin(), logits.end());
    for (const std::byte b : memory_.subspan(kTarget * layout_.block_bytes()))
      seen.push_back(static_cast<float>(b));
    return seen;
  }

 private:
  void AddMove(std::uint16_t first, std::uint16_t num_layers) {
    builder_.AddGroup({.source = BlockId{kSource},
                       .target = BlockId{kTarget},
                       .num_blocks = kHistoryBlocks,
                       .before_layer = first,
                       .num_layers = num_layers});
    const std::size_t stride = layout_.block_bytes();
    const std::size_t offset = first * layout_.layer_bytes();
    copies_.push_back({.source = memory_.data() + kSource * stride + offset,
                       .target = memory_.data() + kTarget * stride + offset,
                       .bytes = num_layers == 0 ? stride : num_layers * layout_.layer_bytes(),
                       .num_pieces = kHistoryBlocks,
                       .before_layer = first,
                       .source_stride = stride,
                       .target_stride = stride});
  }

  void AddRow() {
    const std::array<std::int32_t, 4> tokens = {3, 1, 4, 1};
    const std::array<Extent, 1> home = {Extent{BlockId{kTarget}, kHistoryBlocks}};
    const std::array<Extent, 1> window = {Extent{BlockId{1}, kHistoryBlocks}};
    if (gathered_) {
      builder_.SetLayerWindows();
      builder_.AddGroup({.source = BlockId{kTarget},
                         .target = BlockId{1},
                         .num_blocks = kHistoryBlocks,
                         .kind = GroupKind::kLayerSlices});
    }
    builder_.AddRow({.seq = SeqId{0},
                     .first_position = kPosition,
                     .tokens = tokens,
                     .runs = gathered_ ? window : home,
                     .home = home,
                     .num_samples = 1});
  }

  const bool gathered_;
  const SmallDecoder decoder_;
  const KvLayout layout_;
  const std::unique_ptr<Device> device_;
  const std::span<std::byte> memory_;
  const std::span<std::byte> buffers_;
  StepBuilder builder_;
  CpuExecutor executor_;
  std::vector<CopyOp> copies_;
};

template <typename MakeDevice>
void ExpectSameToTheBit(MakeDevice make_device) {
  for (const bool gathered : {false, true}) {
    Mover before(std::make_unique<HostDevice>(), gathered);
    Mover meanwhile(make_device(), gathered);
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const std::vector<float> expected = before.Run(seed);
      ASSERT_TRUE(std::ranges::equal(meanwhile.Run(seed), expected)) << gathered << ' ' << seed;
    }
  }
}

TEST(Deadlines, CopiesThatLandAtTheLastMomentChangeNothing) {
  ExpectSameToTheBit([] { return std::make_unique<LastMomentDevice>(); });
}

TEST(Deadlines, CopiesThatLandMeanwhileChangeNothing) {
  ExpectSameToTheBit(
      [] { return std::make_unique<HostDevice>(HostDeviceOptions{.copy_thread = true}); });
}

}  // namespace
}  // namespace kvrm
