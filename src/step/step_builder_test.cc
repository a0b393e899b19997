// SPDX-License-Identifier: Apache-2.0
#include "step/step_builder.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/rng.h"

namespace kvrm {
namespace {

constexpr StepLimits kLimits = {.max_rows = 4,
                                .max_tokens = 40,
                                .max_runs = 3,
                                .max_groups = 4,
                                .max_samples = 4,
                                .block_tokens = 16};

constexpr Extent Blocks(std::uint32_t start, std::uint32_t num_blocks) {
  return {BlockId{start}, num_blocks};
}

constexpr TransferGroup Group(std::uint32_t source, std::uint32_t target, std::uint32_t num_blocks,
                              std::uint16_t before_layer = 0) {
  return {.source = BlockId{source},
          .target = BlockId{target},
          .num_blocks = num_blocks,
          .before_layer = before_layer,
          .num_layers = static_cast<std::uint16_t>(before_layer == 0 ? 0 : 1)};
}

// One decode row at `position` whose history is one run from `block`.
void AddDecodeRow(StepBuilder& builder, std::uint32_t seq, std::uint32_t position,
                  std::uint32_t block) {
  const std::array<std::int32_t, 1> tokens = {static_cast<std::int32_t>(position)};
  const std::array<Extent, 1> runs = {Blocks(block, position / 16 + 1)};
  builder.AddRow({.seq = SeqId{seq},
                  .first_position = position,
                  .tokens = tokens,
                  .runs = runs,
                  .num_samples = 1});
}

TEST(StepBuilder, WritesSlotsAlongTheRuns) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 20> tokens = {7, 8, 9};
  const std::array<Extent, 3> runs = {Blocks(5, 1), Blocks(9, 1), Blocks(2, 1)};
  builder.AddRow({.seq = SeqId{3}, .first_position = 14, .tokens = tokens, .runs = runs});
  const StepView view = builder.Commit(1, 3);

  EXPECT_EQ(view.header->step, StepId{1});
  EXPECT_EQ(view.header->num_rows, 1u);
  EXPECT_EQ(view.header->num_tokens, 20u);
  EXPECT_EQ(view.header->num_samples, 0u);
  EXPECT_EQ(view.row_seq[0], SeqId{3});
  EXPECT_EQ(view.row_start[1], 20u);
  EXPECT_EQ(view.slots[0], SlotId{5 * 16 + 14});
  EXPECT_EQ(view.slots[1], SlotId{5 * 16 + 15});
  EXPECT_EQ(view.slots[2], SlotId{9 * 16});
  EXPECT_EQ(view.slots[18], SlotId{2 * 16});
  EXPECT_EQ(view.positions[19], 33);
  EXPECT_EQ(view.token_ids[1], 8);
  EXPECT_EQ(view.RowRuns(0).size(), 3u);
  // Padding names the sentinel and nothing else.
  for (const std::uint32_t row : {1u, 2u}) {
    ASSERT_EQ(view.RowRuns(row).size(), 1u);
    EXPECT_EQ(view.RowRuns(row)[0], (Extent{kSentinelBlock, 1}));
  }
  EXPECT_EQ(view.header->checksum, StepBuilder::Checksum(view));
}

TEST(StepBuilder, SamplesPointAtTheLastTokenOfTheirRow) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 5> tokens = {1, 2, 3, 4, 5};
  const std::array<Extent, 1> runs = {Blocks(1, 1)};
  builder.AddRow({.seq = SeqId{0}, .tokens = tokens, .runs = runs});
  AddDecodeRow(builder, 1, 0, 2);
  AddDecodeRow(builder, 2, 3, 3);
  const StepView view = builder.Commit(0, 3);
  ASSERT_EQ(view.sample_token.size(), 2u);
  EXPECT_EQ(view.sample_token[0], 5u);
  EXPECT_EQ(view.sample_token[1], 6u);
}

TEST(StepBuilder, RefusesWhenEveryEntryIsCommittedAndNotRetired) {
  StepBuilder builder(kLimits, 2);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(builder.Begin());
    AddDecodeRow(builder, 0, 0, 1);
    builder.Commit(0, 1);
  }
  EXPECT_FALSE(builder.Begin());
  ASSERT_NE(builder.Latch().header, nullptr);
  EXPECT_FALSE(builder.Begin());
  EXPECT_EQ(builder.Retire(), StepId{1});
  EXPECT_TRUE(builder.Begin());
  EXPECT_EQ(builder.building(), StepId{3});
}

TEST(StepBuilder, AbandonedStepLeavesNoTraceAndNoGapInTheEpochs) {
  StepBuilder builder(kLimits, 1);
  ASSERT_TRUE(builder.Begin());
  AddDecodeRow(builder, 0, 5, 1);
  builder.AddGroup(Group(2, 3, 1));
  builder.Abandon();
  EXPECT_EQ(builder.Latch().header, nullptr);
  ASSERT_TRUE(builder.Begin());
  EXPECT_EQ(builder.num_rows(), 0u);
  EXPECT_EQ(builder.num_tokens(), 0u);
  EXPECT_EQ(builder.num_groups(), 0u);
  const StepView view = builder.Commit(0, 0);
  EXPECT_EQ(view.header->step, StepId{1});
  EXPECT_EQ(builder.Latch().header, view.header);
  EXPECT_EQ(builder.Retire(), StepId{1});
}

TEST(StepBuilder, SameRowsGiveTheSameBytesInEveryEntryButTheEpoch) {
  StepBuilder builder(kLimits, 3);
  std::vector<StepView> views;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(builder.Begin());
    AddDecodeRow(builder, 1, 17, 4);
    builder.AddGroup(Group(8, 9, 1));
    views.push_back(builder.Commit(2, 4));
  }
  for (const StepView& view : views) {
    StepHeader header = *view.header;
    header.step = views[0].header->step;
    header.checksum = views[0].header->checksum;
    EXPECT_EQ(std::memcmp(&header, views[0].header, sizeof header), 0);
    EXPECT_TRUE(std::equal(view.slots.begin(), view.slots.end(), views[0].slots.begin()));
  }
  EXPECT_NE(views[0].header->checksum, views[1].header->checksum);
}

TEST(StepBuilderDeathTest, OrderIsEnforced) {
  StepBuilder builder(kLimits, 2);
  EXPECT_DEATH(builder.Commit(0, 1), "building");
  EXPECT_DEATH(builder.Abandon(), "building");
  EXPECT_DEATH(builder.Retire(), "latched");
  ASSERT_TRUE(builder.Begin());
  EXPECT_DEATH(builder.Begin(), "building");
  AddDecodeRow(builder, 0, 0, 1);
  builder.Commit(0, 1);
  EXPECT_DEATH(AddDecodeRow(builder, 0, 0, 1), "building");
  EXPECT_DEATH(builder.Retire(), "latched");  // Committed, not yet latched.
}

TEST(StepBuilderDeathTest, RowsMustFitTheirRunsAndTheLimits) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  EXPECT_DEATH(AddDecodeRow(builder, 0, 0, 0), "kSentinelBlock");  // D4
  const std::array<std::int32_t, 17> tokens = {};
  const std::array<Extent, 4> runs = {Blocks(1, 1), Blocks(3, 1), Blocks(5, 1), Blocks(7, 1)};
  EXPECT_DEATH(builder.AddRow({.tokens = tokens, .runs = std::span(runs).first(1)}),
               "covers");                                                      // D5
  EXPECT_DEATH(builder.AddRow({.tokens = tokens, .runs = runs}), "max_runs");  // D5
  EXPECT_DEATH(builder.AddRow({.tokens = {}, .runs = std::span(runs).first(1)}), "tokens");
}

TEST(StepBuilderDeathTest, TwoRowsNeverWriteOneBlock) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  AddDecodeRow(builder, 0, 20, 4);  // Writes block 5.
  AddDecodeRow(builder, 1, 3, 5);
  EXPECT_DEATH(builder.Commit(0, 2), "AnyOverlap");  // D3
}

TEST(StepBuilder, RowsMayReadWhatAnotherRowReads) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 2> a = {Blocks(1, 2), Blocks(7, 1)};
  const std::array<Extent, 2> b = {Blocks(1, 2), Blocks(9, 1)};
  builder.AddRow({.seq = SeqId{0}, .first_position = 32, .tokens = tokens, .runs = a});
  builder.AddRow({.seq = SeqId{1}, .first_position = 32, .tokens = tokens, .runs = b});
  EXPECT_EQ(builder.Commit(0, 2).header->num_rows, 2u);
}

TEST(StepBuilderDeathTest, GroupsNeverOverlapWhatOthersReadOrWrite) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  builder.AddGroup(Group(10, 20, 4, 1));
  EXPECT_DEATH(builder.AddGroup(Group(1, 2, 1, 0)), "last_deadline");
  EXPECT_DEATH(builder.AddGroup(Group(0, 2, 1, 1)), "kSentinelBlock");
  const auto commit_with = [&](const TransferGroup& group) {
    builder.AddGroup(group);
    builder.Commit(0, 1);
  };
  EXPECT_DEATH(commit_with(Group(30, 23, 2, 1)), "to");        // Two targets.
  EXPECT_DEATH(commit_with(Group(30, 9, 2, 1)), "from, to");   // A target over a source.
  EXPECT_DEATH(commit_with(Group(23, 30, 2, 1)), "from, to");  // A source over a target.
  EXPECT_DEATH(
      {
        AddDecodeRow(builder, 0, 0, 12);  // D7
        builder.Commit(0, 1);
      },
      "writes");
  AddDecodeRow(builder, 0, 0, 22);  // Into a target: the copy lands first.
  EXPECT_EQ(builder.Commit(0, 1).header->num_groups, 1u);
}

TEST(StepBuilderDeathTest, LayersAreCopiedByTheirOwnDeadlines) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const auto layers = [](std::uint32_t target, std::uint16_t first, std::uint16_t num_layers) {
    TransferGroup group = Group(10, target, 4);
    group.before_layer = first;
    group.num_layers = num_layers;
    return group;
  };
  EXPECT_DEATH(builder.AddGroup(layers(20, 1, 0)), "num_layers");
  TransferGroup slices = layers(20, 0, 1);
  slices.kind = GroupKind::kLayerSlices;
  EXPECT_DEATH(builder.AddGroup(slices), "kBlocks");
  builder.AddGroup(Group(5, 30, 2));
  builder.AddGroup(layers(20, 0, 1));
  const auto commit_with = [&](const TransferGroup& group) {
    builder.AddGroup(group);
    builder.Commit(0, 1);
  };
  EXPECT_DEATH(commit_with(layers(20, 0, 1)), "to");         // One layer twice.
  EXPECT_DEATH(commit_with(layers(24, 0, 2)), "end_layer");  // As many for one deadline.
  builder.AddGroup(layers(20, 1, 2));
  EXPECT_DEATH(commit_with(layers(24, 2, 2)), "end_layer");
  EXPECT_DEATH(commit_with(layers(28, 1, 2)), "to");       // Whole blocks have layer 1, too.
  EXPECT_DEATH(commit_with(layers(8, 1, 2)), "from, to");  // A target over a source.
  builder.AddGroup(layers(20, 3, 1));
  EXPECT_EQ(builder.Commit(0, 1).header->num_groups, 4u);
}

constexpr StepLimits kMirroredLimits = {.max_rows = 4,
                                        .max_tokens = 40,
                                        .max_runs = 3,
                                        .max_groups = 4,
                                        .max_samples = 4,
                                        .block_tokens = 16,
                                        .mirrored = true};

TEST(StepBuilder, HolesAreReadAndNeverWritten) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 2> tokens = {1, 2};
  const std::array<Extent, 3> runs = {Blocks(4, 1), Blocks(0, 2), Blocks(9, 1)};
  builder.AddRow({.seq = SeqId{1}, .first_position = 50, .tokens = tokens, .runs = runs});
  const StepView view = builder.Commit(0, 1);
  EXPECT_EQ(view.RowRuns(0)[1], Blocks(0, 2));
  EXPECT_EQ(view.slots[0], SlotId{9 * 16 + 2});
}

TEST(StepBuilderDeathTest, WritesIntoAHoleAreRefused) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 2> tokens = {1, 2};
  const std::array<Extent, 3> runs = {Blocks(4, 1), Blocks(0, 2), Blocks(9, 1)};
  // The first token is the last of the hole.
  EXPECT_DEATH(
      builder.AddRow({.seq = SeqId{1}, .first_position = 47, .tokens = tokens, .runs = runs}),
      "kSentinelBlock");  // D3, D4
}

TEST(StepBuilder, TokensGoHomeWhileTheRowReadsElsewhere) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 3> tokens = {1, 2, 3};
  const std::array<Extent, 1> window = {Blocks(100, 2)};
  const std::array<Extent, 2> home = {Blocks(7, 1), Blocks(3, 1)};
  builder.AddRow(
      {.seq = SeqId{1}, .first_position = 15, .tokens = tokens, .runs = window, .home = home});
  const StepView view = builder.Commit(0, 1);
  EXPECT_EQ(view.header->flags, 0u);
  EXPECT_TRUE(view.mirrors.empty());
  EXPECT_EQ(view.slots[0], SlotId{7 * 16 + 15});
  EXPECT_EQ(view.slots[1], SlotId{3 * 16});
  EXPECT_EQ(view.RowRuns(0)[0], Blocks(100, 2));
}

TEST(StepBuilder, MirrorsAreTheSamePositionsOfTheWindow) {
  StepBuilder builder(kMirroredLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 3> tokens = {1, 2, 3};
  const std::array<Extent, 1> window = {Blocks(100, 2)};
  const std::array<Extent, 2> home = {Blocks(7, 1), Blocks(3, 1)};
  builder.AddRow({.seq = SeqId{1},
                  .first_position = 15,
                  .tokens = tokens,
                  .runs = window,
                  .home = home,
                  .mirror = true});
  const StepView view = builder.Commit(0, 1);
  EXPECT_EQ(view.header->flags, kStepMirrored);
  ASSERT_EQ(view.mirrors.size(), 3u);
  EXPECT_EQ(view.mirrors[0], SlotId{100 * 16 + 15});
  EXPECT_EQ(view.mirrors[2], SlotId{101 * 16 + 1});
  EXPECT_EQ(view.header->checksum, StepBuilder::Checksum(view));
}

TEST(StepBuilderDeathTest, MirrorsNeedRoomAHomeAndEveryRow) {
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 1> window = {Blocks(100, 1)};
  const std::array<Extent, 1> home = {Blocks(7, 1)};
  StepBuilder without(kLimits, 1);
  ASSERT_TRUE(without.Begin());
  EXPECT_DEATH(without.AddRow({.tokens = tokens, .runs = window, .home = home, .mirror = true}),
               "limits.mirrored");
  StepBuilder builder(kMirroredLimits, 1);
  ASSERT_TRUE(builder.Begin());
  EXPECT_DEATH(builder.AddRow({.tokens = tokens, .runs = window, .mirror = true}), "home");
  builder.AddRow({.tokens = tokens, .runs = window, .home = home, .mirror = true});
  EXPECT_DEATH(AddDecodeRow(builder, 1, 3, 5), "mirror");
}

TEST(StepBuilderDeathTest, MirrorsOfTwoRowsNeverShareABlock) {
  StepBuilder builder(kMirroredLimits, 1);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 1> window = {Blocks(100, 1)};
  for (const std::uint32_t block : {7u, 8u}) {
    const std::array<Extent, 1> home = {Blocks(block, 1)};
    builder.AddRow({.tokens = tokens, .runs = window, .home = home, .mirror = true});
  }
  EXPECT_DEATH(builder.Commit(0, 2), "AnyOverlap");  // D3
}

TEST(StepBuilder, PaddingIsTheMostThatAnyRowAskedFor) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 1> lane = {Blocks(1, 4)};
  builder.AddRow({.tokens = tokens, .runs = lane});
  builder.Pad(64);
  builder.Pad(32);
  EXPECT_EQ(builder.Commit(0, 1).header->padded_tokens, 64u);
}

TEST(StepBuilderDeathTest, RunsCoverThePadding) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 1> lane = {Blocks(1, 4)};
  builder.AddRow({.tokens = tokens, .runs = lane});
  builder.Pad(65);
  EXPECT_DEATH(builder.Commit(0, 1), "padded_tokens");  // D5
}

TEST(StepBuilder, LayerSlicesAndMappingsMayReadWhatTheStepWrites) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  const std::array<std::int32_t, 1> tokens = {1};
  const std::array<Extent, 1> buffer = {Blocks(5, 1)};
  const std::array<Extent, 1> home = {Blocks(7, 1)};
  builder.SetLayerWindows();
  builder.AddRow({.tokens = tokens, .runs = buffer, .home = home});
  TransferGroup slices = Group(7, 5, 1);
  slices.kind = GroupKind::kLayerSlices;
  builder.AddGroup(slices);
  // A window block of the same number is another block than one of the layer buffers.
  TransferGroup map = Group(7, 5, 1);
  map.kind = GroupKind::kMap;
  builder.AddGroup(map);
  const StepView view = builder.Commit(0, 1);
  EXPECT_EQ(view.header->flags, kStepLayerWindows);
  EXPECT_EQ(view.groups[0].kind, GroupKind::kLayerSlices);
  EXPECT_EQ(view.groups[1].kind, GroupKind::kMap);
  EXPECT_EQ(view.header->checksum, StepBuilder::Checksum(view));
}

TEST(StepBuilderDeathTest, NothingIsShownTwiceAndTargetsStayInTheirTier) {
  StepBuilder builder(kLimits, 2);
  ASSERT_TRUE(builder.Begin());
  TransferGroup map = Group(7, 40, 2);
  map.kind = GroupKind::kMap;
  builder.AddGroup(map);
  EXPECT_DEATH(
      {
        builder.AddGroup(Group(3, 41, 1));
        builder.Commit(0, 1);
      },
      "AnyOverlap");  // D6
  TransferGroup to_host = Group(3, 41, 1);
  to_host.target_tier = 1;
  builder.AddGroup(to_host);
  EXPECT_EQ(builder.Commit(0, 1).header->num_groups, 2u);
}

// Every byte of a committed descriptor that an executor may read, as 32-bit words.
std::vector<std::uint32_t*> UsedWords(const StepView& view) {
  std::vector<std::uint32_t*> words;
  const auto add = [&words](const void* data, std::size_t bytes) {
    auto* const first = static_cast<std::uint32_t*>(const_cast<void*>(data));
    for (std::size_t i = 0; i < bytes / 4; ++i)
      words.push_back(first + i);
  };
  add(view.header, sizeof(StepHeader));
  add(view.token_ids.data(), view.token_ids.size_bytes());
  add(view.positions.data(), view.positions.size_bytes());
  add(view.slots.data(), view.slots.size_bytes());
  add(view.mirrors.data(), view.mirrors.size_bytes());
  add(view.row_start.data(), view.row_start.size_bytes());
  add(view.row_seq.data(), view.row_seq.size_bytes());
  add(view.num_runs.data(), view.num_runs.size_bytes());
  for (std::uint32_t row = 0; row < view.num_runs.size(); ++row)
    add(view.RowRuns(row).data(), view.RowRuns(row).size_bytes());
  add(view.sample_token.data(), view.sample_token.size_bytes());
  add(view.groups.data(), view.groups.size_bytes());
  return words;
}

StepView CommitMixedStep(StepBuilder& builder) {
  CHECK(builder.Begin());
  const std::array<std::int32_t, 3> tokens = {11, 12, 13};
  const std::array<Extent, 2> runs = {Blocks(3, 1), Blocks(6, 1)};
  builder.AddRow({.seq = SeqId{2}, .first_position = 15, .tokens = tokens, .runs = runs});
  AddDecodeRow(builder, 1, 40, 10);
  builder.AddGroup(Group(20, 30, 2));
  return builder.Commit(1, 4);
}

TEST(StepBuilder, EveryUsedWordIsUnderTheChecksum) {
  StepBuilder builder(kLimits, 1);
  const StepView view = CommitMixedStep(builder);
  const std::uint64_t sealed = view.header->checksum;
  Rng rng(7);
  for (std::uint32_t* const word : UsedWords(view)) {
    const auto* const checksum = reinterpret_cast<const std::uint32_t*>(&view.header->checksum);
    if (word == checksum || word == checksum + 1) continue;
    // The counts of the header and the run counts say how much to read: Retire guards them itself.
    const auto* const header = reinterpret_cast<const std::uint32_t*>(view.header);
    const bool is_count = word >= header + 4 && word < header + 10;
    const auto* const num_runs = view.num_runs.data();
    if (is_count || (word >= num_runs && word < num_runs + view.num_runs.size())) continue;
    const std::uint32_t before = *word;
    *word ^= 1u << rng.Below(32);
    EXPECT_NE(StepBuilder::Checksum(view), sealed);
    *word = before;
    EXPECT_EQ(StepBuilder::Checksum(view), sealed);
  }
}

TEST(StepBuilderDeathTest, TornDescriptorIsDetectedByRetire) {
  StepBuilder builder(kLimits, 1);
  const StepView view = CommitMixedStep(builder);
  builder.Latch();
  Rng rng(8);
  int num_torn = 0;
  for (std::uint32_t* const word : UsedWords(view)) {
    const std::uint32_t before = *word;
    *word ^= 1u << rng.Below(32);
    EXPECT_DEATH(builder.Retire(), "check failed");  // D2
    *word = before;
    ++num_torn;
  }
  EXPECT_GT(num_torn, 40);
  EXPECT_EQ(builder.Retire(), StepId{1});
}

// Two threads, one publishing and one reading: under ThreadSanitizer this proves that one release
// store and one acquire load carry the whole descriptor.
TEST(StepBuilder, PublishesToAnotherThread) {
  constexpr std::uint32_t kSteps = 20000;
  StepBuilder builder(kLimits, 3);
  std::atomic<std::uint32_t> num_done{0};
  std::atomic<std::uint32_t> num_wrong{0};
  std::thread executor([&] {
    for (std::uint32_t step = 1; step <= kSteps; ++step) {
      StepView view = builder.Latch();
      while (view.header == nullptr) {
        std::this_thread::yield();
        view = builder.Latch();
      }
      const bool right = view.header->step == StepId{step} &&
                         view.token_ids[0] == static_cast<std::int32_t>(step % 48) &&
                         StepBuilder::Checksum(view) == view.header->checksum;
      if (!right) num_wrong.fetch_add(1, std::memory_order_relaxed);
      num_done.store(step, std::memory_order_release);
    }
  });
  std::uint32_t num_retired = 0;
  for (std::uint32_t step = 1; step <= kSteps;) {
    if (builder.Begin()) {
      AddDecodeRow(builder, 0, step % 48, 1 + step % 5);
      builder.Commit(0, 4);
      ++step;
    } else {
      std::this_thread::yield();
    }
    while (num_retired < num_done.load(std::memory_order_acquire))
      EXPECT_EQ(builder.Retire(), StepId{++num_retired});
  }
  executor.join();
  EXPECT_EQ(num_wrong.load(), 0u);
}

}  // namespace
}  // namespace kvrm
