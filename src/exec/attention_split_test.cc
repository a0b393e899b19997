// SPDX-License-Identifier: Apache-2.0
#include "exec/attention_split.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

struct Step {
  AttentionSplit::Options options;
  std::vector<std::int32_t> positions;
  std::uint32_t padded_tokens = 0;
};

// What each worker is to do, checked: every unit of every item exactly once, in order, and every
// item whole or its pieces in one slot, which the last of them finds to be the last, in each of two
// layers. Returns the greatest number of positions of a worker.
std::uint64_t CheckPlan(const Step& step) {
  AttentionSplit split(step.options);
  split.Plan(step.positions, step.padded_tokens);
  const auto num_items =
      static_cast<std::uint32_t>(step.positions.size()) * step.options.num_kv_heads;
  std::vector<std::uint32_t> next_unit(num_items, 0xffffffff);
  std::map<std::uint32_t, std::vector<std::uint32_t>> items_of_slots;
  std::uint32_t last_item = 0;
  std::uint64_t most = 0;
  for (std::uint32_t w = 0; w < step.options.num_workers; ++w) {
    AttentionPiece piece;
    std::uint64_t positions = 0;
    for (std::uint32_t i = 0; split.Piece(w, i, &piece); ++i) {
      EXPECT_LT(piece.item, num_items);
      EXPECT_GE(piece.item, last_item);
      last_item = piece.item;
      const std::int32_t position = step.positions[piece.item / step.options.num_kv_heads];
      const std::uint32_t first = split.Begin(position) / kAttentionUnit;
      const std::uint32_t end = static_cast<std::uint32_t>(position) / kAttentionUnit + 1;
      std::uint32_t& next = next_unit[piece.item];
      if (next == 0xffffffff) next = first;
      EXPECT_EQ(piece.unit_begin, next);
      EXPECT_LT(piece.unit_begin, piece.unit_end);
      next = piece.unit_end;
      EXPECT_EQ(piece.slot == kWholeItem, piece.unit_begin == first && piece.unit_end == end);
      if (piece.slot != kWholeItem) {
        EXPECT_LT(piece.slot, split.num_slots());
        items_of_slots[piece.slot].push_back(piece.item);
      }
      positions += std::min(std::uint64_t{piece.unit_end - piece.unit_begin} * kAttentionUnit,
                            std::uint64_t{static_cast<std::uint32_t>(position)} + 1);
    }
    most = std::max(most, positions);
  }
  for (std::uint32_t item = 0; item < num_items; ++item) {
    const std::int32_t position = step.positions[item / step.options.num_kv_heads];
    EXPECT_EQ(next_unit[item], static_cast<std::uint32_t>(position) / kAttentionUnit + 1);
  }
  for (const auto& [slot, items] : items_of_slots) {
    EXPECT_GE(items.size(), 2u);
    EXPECT_EQ(std::count(items.begin(), items.end(), items[0]),
              static_cast<std::ptrdiff_t>(items.size()));
    for (int layer = 0; layer < 2; ++layer) {
      for (std::size_t i = 0; i < items.size(); ++i)
        EXPECT_EQ(split.Finish(slot), i + 1 == items.size());
    }
  }
  return most;
}

TEST(AttentionSplit, TakesEveryUnitOfRandomStepsOnce) {
  Rng rng(3, "attention split");
  for (int n = 0; n < 2000; ++n) {
    Step step;
    step.options.num_workers = static_cast<std::uint32_t>(rng.Between(1, 9));
    step.options.num_kv_heads = static_cast<std::uint32_t>(rng.Between(1, 4));
    if (rng.Below(3) == 0)
      step.options.sliding_window = static_cast<std::uint32_t>(rng.Between(1, 3000));
    step.options.max_units = rng.Below(4) == 0 ? 3 : 1000;
    if (rng.Below(5) == 0) step.padded_tokens = static_cast<std::uint32_t>(rng.Between(1, 9000));
    const std::uint64_t longest = rng.Below(2) == 0 ? 300 : 9000;
    const std::uint64_t num_tokens = 1 + rng.Below(1 + rng.Below(20));
    for (std::uint64_t t = 0; t < num_tokens; ++t)
      step.positions.push_back(static_cast<std::int32_t>(rng.Below(longest)));
    CheckPlan(step);
    if (HasFailure()) FAIL() << "step " << n;
  }
}

TEST(AttentionSplit, OneLongRowKeepsAllWorkersBusy) {
  for (const std::uint32_t workers : {2u, 3u, 4u, 7u}) {
    const Step step = {{.num_workers = workers, .num_kv_heads = 1, .max_units = 64}, {32767}};
    // Its share, and half a unit at each end.
    EXPECT_LE(CheckPlan(step), 32768 / workers + kAttentionUnit);
  }
}

TEST(AttentionSplit, RowsWithinAUnitStayWhole) {
  AttentionSplit split({.num_workers = 4, .num_kv_heads = 3, .max_units = 8});
  const std::vector<std::int32_t> positions = {5, 300, 511, 17, 80};
  split.Plan(positions, 0);
  for (std::uint32_t w = 0; w < 4; ++w) {
    AttentionPiece piece;
    for (std::uint32_t i = 0; split.Piece(w, i, &piece); ++i)
      EXPECT_EQ(piece.slot, kWholeItem);
  }
}

}  // namespace
}  // namespace kvrm
