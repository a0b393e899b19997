// SPDX-License-Identifier: Apache-2.0
#include "kv/transport.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/mutant.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

std::uint32_t AsCount(std::uint64_t value) {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(value, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

Transport::Transport(const TransportOptions& options, std::span<std::byte> memory, Device& device,
                     Pager& pager)
    : options_(options),
      max_group_blocks_(AsCount(std::max<std::uint64_t>(1, kMaxGroupBytes / options.block_bytes))),
      max_blocks_(AsCount(options.max_move_bytes_per_step / options.block_bytes)),
      memory_(memory),
      device_(device),
      pager_(pager),
      moves_(options.max_groups),
      asked_(options.max_groups),
      copies_(options.max_groups) {}

std::uint32_t Transport::GroupsFor(std::uint32_t num_blocks) const noexcept {
  return num_blocks / max_group_blocks_ + (num_blocks % max_group_blocks_ != 0 ? 1 : 0);
}

void Transport::Add(const Extent& source, const Extent& target, MovePriority priority) noexcept {
  CHECK(source.num_blocks == target.num_blocks && source.num_blocks > 0);
  CHECK(source.num_blocks <= num_blocks_left());
  CHECK(GroupsFor(source.num_blocks) <= num_groups_left());
  moves_[num_moves_++] = {.source = source.start,
                          .target = target.start,
                          .num_blocks = source.num_blocks,
                          .num_bridged = 0,
                          .before_layer = 0,
                          .priority = priority,
                          .source_generation = Generation(source.start),
                          .target_generation = Generation(target.start)};
  num_groups_ += GroupsFor(source.num_blocks);
  num_planned_blocks_ += source.num_blocks;
  asked_[num_asked_++] = {source, target};
  pager_.SetPlanned(source, true);
  pager_.SetPlanned(target, true);
}

void Transport::Flush(StepBuilder& builder) noexcept {
  if (num_moves_ == 0) return;
  MergeAdjacent();
  if (IsMutant(Mutant::kForgetAbandoned) && flushed_for_ == builder.building()) return;
  flushed_for_ = builder.building();
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    const Move& move = moves_[m];
    for (std::uint32_t done = 0; done < move.num_blocks; done += max_group_blocks_) {
      builder.AddGroup({.source = BlockId{Index(move.source) + done},
                        .target = BlockId{Index(move.target) + done},
                        .num_blocks = std::min(max_group_blocks_, move.num_blocks - done),
                        .kind = GroupKind::kBlocks,
                        .priority = static_cast<std::uint8_t>(move.priority),
                        .before_layer = move.before_layer});
    }
  }
}

// Merging never costs groups: two moves of a and b blocks need at least as many as one of a + b.
void Transport::MergeAdjacent() noexcept {
  std::sort(moves_.begin(), moves_.begin() + num_moves_, [](const Move& a, const Move& b) {
    if (a.before_layer != b.before_layer) return a.before_layer < b.before_layer;
    return a.source < b.source;
  });
  std::uint32_t kept = 0;
  for (std::uint32_t m = 1; m < num_moves_; ++m) {
    Move& last = moves_[kept];
    const Move& move = moves_[m];
    const bool at_source = Index(last.source) + last.num_blocks == Index(move.source);
    const bool at_target = Index(last.target) + last.num_blocks == Index(move.target) ||
                           IsMutant(Mutant::kMergeAcrossGap);
    if (last.before_layer == move.before_layer && at_source && at_target) {
      last.num_blocks += move.num_blocks;
      last.num_bridged += move.num_bridged;
      last.priority = std::min(last.priority, move.priority);
    } else if (CanBridge(last, move)) {
      const std::uint32_t gap = Index(move.source) - Index(last.source) - last.num_blocks;
      num_planned_blocks_ += gap;
      last.num_blocks += gap + move.num_blocks;
      last.num_bridged += gap + move.num_bridged;
      last.priority = std::min(last.priority, move.priority);
    } else {
      moves_[++kept] = move;
    }
  }
  num_moves_ = kept + 1;
}

// The gap is short and the same at both ends, lies in one window's hole, and nobody can write its
// source.
bool Transport::CanBridge(const Move& first, const Move& second) const noexcept {
  const std::uint32_t source_end = Index(first.source) + first.num_blocks;
  const std::uint32_t target_end = Index(first.target) + first.num_blocks;
  if (first.before_layer != second.before_layer || !IsWindow(first.target)) return false;
  if (Index(second.source) <= source_end || Index(second.target) <= target_end) return false;
  const std::uint32_t gap = Index(second.source) - source_end;
  if (Index(second.target) - target_end != gap) return false;
  if (gap * options_.block_bytes > kMaxBridgeBytes || gap > num_blocks_left()) return false;
  // The budget of edits was counted without it.
  if (GroupsFor(first.num_blocks + gap + second.num_blocks) >
      GroupsFor(first.num_blocks) + GroupsFor(second.num_blocks)) {
    return false;
  }
  const auto lane = [this](std::uint32_t block) {
    return (block - options_.num_pool_blocks) / options_.lane_blocks;
  };
  if (lane(target_end - 1) != lane(Index(second.target))) return false;
  if (!pager_.is_still({BlockId{source_end}, gap})) return false;
  // In the gap of the window lies what another move brings there, unless it is a hole.
  for (std::uint32_t a = 0; a < num_asked_; ++a) {
    const Extent& other = asked_[a].second;
    if (Index(other.start) < target_end + gap && Index(other.start) + other.num_blocks > target_end)
      return false;
  }
  return true;
}

// How often the block has been handed out; windows are not.
std::uint32_t Transport::Generation(BlockId block) const noexcept {
  return IsWindow(block) ? 0 : pager_.generation(block);
}

void Transport::Launch(const StepView& step) noexcept {
  Land();  // A copy may read what the copies before it have written.
  std::uint32_t num_blocks = 0;
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    const Move& move = moves_[m];
    // K5: between plan and commit neither end was handed to anybody else.
    CHECK(Generation(move.source) == move.source_generation);
    CHECK(Generation(move.target) == move.target_generation);
    num_blocks += move.num_blocks;
  }
  for (std::uint32_t a = 0; a < num_asked_; ++a) {
    pager_.SetPlanned(asked_[a].first, false);
    pager_.SetPlanned(asked_[a].second, false);
  }
  num_asked_ = 0;
  num_moves_ = 0;
  num_groups_ = 0;
  num_planned_blocks_ = 0;
  std::uint32_t num_copies = 0;
  std::uint32_t num_staged = 0;
  for (const TransferGroup& group : step.groups) {
    if (group.kind != GroupKind::kBlocks) continue;
    copies_[num_copies++] = {.source = memory_.data() + Index(group.source) * options_.block_bytes,
                             .target = memory_.data() + Index(group.target) * options_.block_bytes,
                             .bytes = group.num_blocks * options_.block_bytes};
    num_blocks -= group.num_blocks;
    num_moved_blocks_ += group.num_blocks;
    num_staged += IsWindow(group.target) ? group.num_blocks : 0;
  }
  // The descriptor moves what was planned, no more and no less.
  CHECK(num_blocks == 0 || IsMutant(Mutant::kForgetAbandoned));
  num_launched_groups_ += num_copies;
  num_staged_blocks_ += num_staged;
  if (IsMutant(Mutant::kLoseCopy) && num_copies > 0) --num_copies;
  if (IsMutant(Mutant::kSplitOffByOne) && num_copies > 0 && copies_[0].bytes > options_.block_bytes)
    copies_[0].bytes -= options_.block_bytes;
  if (num_copies == 0) return;
  flight_ = device_.Submit({copies_.data(), num_copies});
  flying_ = step.header->step;
}

void Transport::Land() noexcept {
  if (flying_ == StepId{}) return;
  device_.Wait(flight_);
  flying_ = StepId{};
}

}  // namespace kvrm
