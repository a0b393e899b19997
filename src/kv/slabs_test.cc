// SPDX-License-Identifier: Apache-2.0
#include "kv/slabs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

// Memory whose content is lost as soon as it is given back.
class ForgetfulDevice final : public Device {
 public:
  explicit ForgetfulDevice(std::size_t unit) : unit_(unit) {}
  std::span<std::byte> Reserve(std::size_t, const char*) override { return {}; }
  PoolMemory ReservePool(std::size_t, std::size_t, bool, std::size_t) override { return {}; }
  FlightId Submit(std::span<const CopyOp>) noexcept override { return {}; }
  bool Landed(FlightId) noexcept override { return true; }
  void Wait(FlightId) noexcept override {}
  bool Map(std::size_t, std::size_t, std::size_t) noexcept override { return false; }
  std::size_t elastic_unit() const noexcept override { return unit_; }
  void Populate(std::span<std::byte>) noexcept override { ++num_populated; }
  void GiveBack(std::span<std::byte> units) noexcept override {
    std::ranges::fill(units, std::byte{0xa7});
    ++num_given_back;
  }
  std::uint64_t num_populated = 0;
  std::uint64_t num_given_back = 0;

 private:
  const std::size_t unit_;
};

constexpr std::uint32_t kBlockBytes = 24;
constexpr std::uint32_t kBlocks = 203;
constexpr std::uint32_t kSeqs = 6;

// A pager over real bytes. No row runs; steps are empty and only let time pass.
struct World {
  explicit World(std::size_t unit, PlacementPolicy placement = PlacementPolicy::kSoft,
                 SlabPolicy policy = {})
      : device(unit),
        memory(std::size_t{kBlocks} * kBlockBytes),
        pager({.num_blocks = kBlocks,
               .block_tokens = 16,
               .max_seqs = kSeqs,
               .max_blocks_per_seq = 64,
               .crowded_runs = 8,
               .placement = placement,
               .slabs = {.device = &device,
                         .pool = memory,
                         .block_bytes = kBlockBytes,
                         .policy = policy}}) {}

  void Epoch() {
    header.step = pager.next();
    StepView step;
    step.header = &header;
    pager.Committed(step);
    pager.Retired(header.step);
  }
  template <typename Fn>
  void ForEachByte(SeqId seq, Fn fn) {
    for (const Extent& run : pager.runs(seq)) {
      const std::size_t begin = std::size_t{Index(run.start)} * kBlockBytes;
      for (std::size_t i = begin; i < begin + std::size_t{run.num_blocks} * kBlockBytes; ++i)
        fn(memory[i]);
    }
  }
  void Write(SeqId seq) {
    ForEachByte(seq, [&](std::byte& b) { b = static_cast<std::byte>(Index(seq) + 1); });
  }
  void Check(SeqId seq) {
    bool same = true;
    ForEachByte(seq, [&](const std::byte& b) {
      same = same && b == static_cast<std::byte>(Index(seq) + 1);
    });
    ASSERT_TRUE(same) << "a held block has lost its memory";
  }

  ForgetfulDevice device;
  std::vector<std::byte> memory;
  StepHeader header = {};
  Pager pager;
};

void RandomOps(std::uint64_t seed, std::size_t unit, PlacementPolicy placement) {
  Rng rng(seed, "slabs");
  World world(unit, placement);
  Pager& pager = world.pager;
  for (int op = 0; op < 3000; ++op) {
    const SeqId seq{static_cast<std::uint32_t>(rng.Below(kSeqs))};
    const auto tokens = static_cast<std::uint32_t>(rng.Below(16 * 64 + 1));
    if (!pager.is_open(seq)) {
      const std::uint32_t spare = pager.num_spare();
      ASSERT_EQ(pager.Open(seq, tokens), pager.BlocksFor(tokens) <= spare);
    } else if (rng.Below(100) < 60) {
      if (tokens >= pager.target(seq) && pager.Extend(seq, tokens)) world.Write(seq);
    } else if (rng.Below(100) < 50) {
      pager.Truncate(seq, static_cast<std::uint32_t>(rng.Below(pager.target(seq) + 1)));
    } else {
      pager.Release(seq);
    }
    for (std::uint64_t i = rng.Below(40); i > 0; --i)
      world.Epoch();
    if (rng.Below(20) == 0) pager.Rest();
    pager.CheckInvariants();
    for (std::uint32_t s = 0; s < kSeqs; ++s)
      world.Check(SeqId{s});
    ASSERT_LE(pager.slabs().committed_bytes(), world.memory.size());
    ASSERT_GE(pager.slabs().committed_bytes(), std::uint64_t{pager.num_held()} * kBlockBytes);
  }
  EXPECT_GT(world.device.num_given_back, 0u);
  EXPECT_GT(world.device.num_populated, 0u);
}

TEST(Slabs, NoHeldBlockEverLosesItsMemory) {
  // Units of less than a block, of whole blocks, and that cut blocks in two.
  for (const std::size_t unit : {std::size_t{8}, std::size_t{24}, std::size_t{60}, std::size_t{96}})
    for (std::uint64_t seed = 1; seed <= 4; ++seed)
      RandomOps(seed, unit, static_cast<PlacementPolicy>((seed + unit) % 8));
}

TEST(Slabs, StartsWithOneSlab) {
  World world(96);
  EXPECT_EQ(world.pager.slabs().slab_blocks(), 4u);
  EXPECT_EQ(world.pager.slabs().committed_bytes(), 96u);
  EXPECT_EQ(world.pager.num_free(), kBlocks - 1);
  EXPECT_EQ(world.pager.free_runs().num_free(), 3u);
}

TEST(Slabs, MemoryComesAtAdmissionAndNotAtExtend) {
  World world(96);
  ASSERT_TRUE(world.pager.Open(SeqId{0}, 16 * 30));
  ASSERT_TRUE(world.pager.Open(SeqId{1}, 16 * 20));
  const std::uint64_t populated = world.device.num_populated;
  EXPECT_GE(world.pager.slabs().committed_bytes(), 50u * kBlockBytes);
  for (std::uint32_t tokens = 1; tokens <= 16 * 20; ++tokens) {
    ASSERT_TRUE(world.pager.Extend(SeqId{0}, tokens));
    ASSERT_TRUE(world.pager.Extend(SeqId{1}, tokens));
  }
  EXPECT_EQ(world.device.num_populated, populated);
}

TEST(Slabs, AnAdmissionWaitsForFewUnits) {
  World world(96);
  const std::uint64_t populated = world.device.num_populated;
  ASSERT_TRUE(world.pager.Open(SeqId{0}, 16 * 64));
  EXPECT_GE(world.pager.slabs().committed_bytes(), 64u * kBlockBytes);
  EXPECT_EQ(world.device.num_populated - populated, 4u);
}

TEST(Slabs, LowAddressesFirst) {
  World world(96);
  ASSERT_TRUE(world.pager.Open(SeqId{0}, 16 * 40));
  ASSERT_TRUE(world.pager.Extend(SeqId{0}, 16 * 40));
  for (const Extent& run : world.pager.runs(SeqId{0}))
    EXPECT_LE(Index(run.start) + run.num_blocks, 48u);
}

TEST(Slabs, GoneWhenNothingNeedsThem) {
  World world(96);
  ASSERT_TRUE(world.pager.Open(SeqId{0}, 16 * 64));
  ASSERT_TRUE(world.pager.Extend(SeqId{0}, 16 * 64));
  const std::uint64_t most = world.pager.slabs().committed_bytes();
  world.pager.Release(SeqId{0});
  world.Epoch();
  EXPECT_EQ(world.pager.slabs().committed_bytes(), most) << "not at once";
  for (int i = 0; i < 100; ++i)
    world.Epoch();
  EXPECT_LE(world.pager.slabs().committed_bytes(), 2 * 96u);
  world.pager.CheckInvariants();
}

// 120 blocks are held, and 40 of the others may go.
std::uint64_t CommittedAround120(const SlabPolicy& policy) {
  World world(96, PlacementPolicy::kSoft, policy);
  for (std::uint32_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(world.pager.Open(SeqId{s}, 16 * 40));
    EXPECT_TRUE(world.pager.Extend(SeqId{s}, 16 * 40));
  }
  world.pager.Release(SeqId{3});
  for (int i = 0; i < 100; ++i)
    world.Epoch();
  world.pager.CheckInvariants();
  EXPECT_EQ(world.pager.num_held(), 120u);
  return world.pager.slabs().committed_bytes() / kBlockBytes;
}

TEST(Slabs, PoliciesSayHowMuchStandsFree) {
  // Beside what is held and its share: a slab kept, one that sleeping would cut into, the sentinel
  // and the rest of a slab.
  constexpr std::uint32_t kRest = 3 * 4;
  const SlabPolicy on = {};
  EXPECT_GE(CommittedAround120(on), 120u + 120 / on.spare_share);
  EXPECT_LE(CommittedAround120(on), 120u + 120 / on.spare_share + kRest);
  EXPECT_LE(CommittedAround120(kTightSlabs), 120u + 120 / kTightSlabs.spare_share + kRest);
}

TEST(Slabs, APromptOfManyPiecesGetsAPlaceOfItsOwn) {
  World world(96, PlacementPolicy::kBestFit);
  for (std::uint32_t s = 0; s < 3; ++s)
    ASSERT_TRUE(world.pager.Open(SeqId{s}, 0));
  for (std::uint32_t tokens = 16; tokens <= 16 * 20; tokens += 16) {
    ASSERT_TRUE(world.pager.Extend(SeqId{0}, tokens));
    ASSERT_TRUE(world.pager.Extend(SeqId{1}, tokens));
  }
  world.pager.Release(SeqId{1});
  // Single free blocks between those of a sequence, enough for a prompt, and the rest asleep.
  ASSERT_LE(world.pager.free_runs().Longest().num_blocks, 4u);
  ASSERT_GE(world.pager.free_runs().num_free(), 16u);
  const std::uint32_t end = world.pager.slabs().awake_end();
  ASSERT_TRUE(world.pager.Extend(SeqId{2}, 16 * 16));
  EXPECT_EQ(world.pager.num_runs(SeqId{2}), 1u);
  EXPECT_GE(Index(world.pager.runs(SeqId{2})[0].start) + 4, end);
  world.pager.CheckInvariants();
}

TEST(Slabs, TheLastResortHasOneHole) {
  World world(96);
  world.pager.SetTogether(true);
  EXPECT_EQ(world.pager.free_runs().Longest().num_blocks, kBlocks - 1);
  ASSERT_TRUE(world.pager.Open(SeqId{0}, 16 * 64));
  ASSERT_TRUE(world.pager.Extend(SeqId{0}, 16 * 64));
  EXPECT_EQ(world.pager.num_runs(SeqId{0}), 1u);
}

TEST(Slabs, WithoutADeviceNothingSleeps) {
  Pager pager({.num_blocks = 20, .block_tokens = 16, .max_seqs = 1, .max_blocks_per_seq = 8});
  EXPECT_FALSE(pager.slabs().is_elastic());
  EXPECT_EQ(pager.slabs().num_asleep(), 0u);
  EXPECT_EQ(pager.free_runs().num_free(), 19u);
}

}  // namespace
}  // namespace kvrm
