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

Transport::Transport(const TransportOptions& options, std::span<std::byte> memory,
                     std::span<std::byte> host, Device& device, Pager& pager)
    : options_(options),
      max_group_blocks_(AsCount(std::max<std::uint64_t>(1, kMaxGroupBytes / options.block_bytes))),
      max_blocks_(AsCount(options.max_move_bytes_per_step / options.block_bytes)),
      memory_(memory),
      host_(host),
      device_(device),
      pager_(pager),
      moves_(options.max_groups),
      asked_(options.max_groups),
      copies_(options.max_groups) {
  PlanLayerRanges();
}

void Transport::PlanLayerRanges() {
  const std::uint32_t num_layers = options_.num_layers;
  CHECK(num_layers >= 1 && num_layers <= std::numeric_limits<std::uint16_t>::max());
  CHECK(options_.block_bytes % num_layers == 0);
  if (num_layers == 1 || options_.layered_bytes == ~std::uint64_t{0}) return;
  const std::uint64_t layer_bytes = options_.block_bytes / num_layers;
  std::uint32_t first = 0;
  for (const std::uint32_t end :
       {std::max(1u, num_layers / 8), num_layers / 4, num_layers / 2, num_layers}) {
    if (end <= first) continue;
    ranges_[num_ranges_++] = {.first = static_cast<std::uint16_t>(first),
                              .num_layers = static_cast<std::uint16_t>(end - first),
                              .max_blocks = AsCount(std::max<std::uint64_t>(
                                  1, kMaxGroupBytes / (layer_bytes * (end - first))))};
    first = end;
  }
}

std::uint32_t Transport::GroupsFor(std::uint32_t num_blocks) const noexcept {
  return num_blocks / max_group_blocks_ + (num_blocks % max_group_blocks_ != 0 ? 1 : 0);
}

void Transport::Add(const Extent& source, const Extent& target, MovePriority priority) noexcept {
  CHECK(source.num_blocks == target.num_blocks);
  AddMove({.source = source.start,
           .target = target.start,
           .num_blocks = source.num_blocks,
           .priority = priority});
}

void Transport::AddPark(const Extent& pool, const Extent& host) noexcept {
  CHECK(pool.num_blocks == host.num_blocks);
  AddMove({.source = pool.start,
           .target = host.start,
           .num_blocks = pool.num_blocks,
           .target_tier = 1,
           .priority = MovePriority::kPark});
}

void Transport::AddResume(const Extent& host, const Extent& pool) noexcept {
  CHECK(pool.num_blocks == host.num_blocks);
  AddMove({.source = host.start,
           .target = pool.start,
           .num_blocks = pool.num_blocks,
           .source_tier = 1,
           .priority = MovePriority::kResume});
}

void Transport::AddMove(Move move) noexcept {
  CHECK(move.num_blocks > 0 && move.num_blocks <= num_blocks_left());
  CHECK(GroupsFor(move.num_blocks) <= num_groups_left());
  move.source_generation = Generation(move.source, move.source_tier);
  move.target_generation = Generation(move.target, move.target_tier);
  moves_[num_moves_++] = move;
  num_groups_ += GroupsFor(move.num_blocks);
  num_planned_blocks_ += move.num_blocks;
  auto& [source, target] = asked_[num_asked_++];
  source = {move.source, move.source_tier == 0 ? move.num_blocks : 0};
  target = {move.target, move.target_tier == 0 ? move.num_blocks : 0};
  pager_.SetPlanned(source, true);
  pager_.SetPlanned(target, true);
}

void Transport::Flush(StepBuilder& builder) noexcept {
  if (num_moves_ == 0) return;
  MergeAdjacent();
  if (IsMutant(Mutant::kForgetAbandoned) && flushed_for_ == builder.building()) return;
  flushed_for_ = builder.building();
  ChooseLayered();
  const LayerRange whole = {.max_blocks = max_group_blocks_};
  for (std::uint32_t m = 0; m < num_moves_; ++m)
    AddGroups(builder, moves_[m], moves_[m].layered ? ranges_[0] : whole);
  for (std::uint32_t r = 1; r < num_ranges_; ++r) {
    if (IsMutant(Mutant::kLoseLastLayers) && r == num_ranges_ - 1) break;
    for (std::uint32_t m = 0; m < num_moves_; ++m) {
      if (moves_[m].layered) AddGroups(builder, moves_[m], ranges_[r]);
    }
  }
}

// From the edits that whole moves leave over, as long as there are some.
void Transport::ChooseLayered() noexcept {
  std::uint32_t num_whole = 0;
  for (std::uint32_t m = 0; m < num_moves_; ++m)
    num_whole += GroupsFor(moves_[m].num_blocks);
  std::uint32_t num_spare = options_.max_groups - num_whole;
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    Move& move = moves_[m];
    move.layered = false;
    // Nobody waits for a layer of what leaves.
    if (num_ranges_ == 0 || move.target_tier != 0 ||
        move.num_blocks * options_.block_bytes <= options_.layered_bytes) {
      continue;
    }
    std::uint32_t num_groups = 0;
    for (std::uint32_t r = 0; r < num_ranges_; ++r)
      num_groups += (move.num_blocks - 1) / ranges_[r].max_blocks + 1;
    const std::uint32_t num_allowed = GroupsFor(move.num_blocks) + num_spare;
    if (num_groups > num_allowed) continue;
    move.layered = true;
    num_spare = num_allowed - num_groups;
  }
}

void Transport::AddGroups(StepBuilder& builder, const Move& move,
                          const LayerRange& range) const noexcept {
  for (std::uint32_t done = 0; done < move.num_blocks; done += range.max_blocks) {
    builder.AddGroup({.source = BlockId{Index(move.source) + done},
                      .target = BlockId{Index(move.target) + done},
                      .num_blocks = std::min(range.max_blocks, move.num_blocks - done),
                      .kind = GroupKind::kBlocks,
                      .source_tier = move.source_tier,
                      .target_tier = move.target_tier,
                      .priority = static_cast<std::uint8_t>(move.priority),
                      .before_layer = range.first,
                      .num_layers = range.num_layers});
  }
}

// Merging never costs groups: two moves of a and b blocks need at least as many as one of a + b.
void Transport::MergeAdjacent() noexcept {
  std::sort(moves_.begin(), moves_.begin() + num_moves_, [](const Move& a, const Move& b) {
    return a.source_tier != b.source_tier ? a.source_tier < b.source_tier : a.source < b.source;
  });
  std::uint32_t kept = 0;
  for (std::uint32_t m = 1; m < num_moves_; ++m) {
    Move& last = moves_[kept];
    const Move& move = moves_[m];
    const bool same_tiers =
        last.source_tier == move.source_tier && last.target_tier == move.target_tier;
    const bool at_source = Index(last.source) + last.num_blocks == Index(move.source);
    const bool at_target = Index(last.target) + last.num_blocks == Index(move.target) ||
                           IsMutant(Mutant::kMergeAcrossGap);
    if (same_tiers && at_source && at_target) {
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
      if (IsMutant(Mutant::kTargetTwice)) moves_[kept].target = last.target;
    }
  }
  num_moves_ = kept + 1;
}

// The gap is short and the same at both ends, lies in one window's hole, and nobody can write its
// source.
bool Transport::CanBridge(const Move& first, const Move& second) const noexcept {
  const std::uint32_t source_end = Index(first.source) + first.num_blocks;
  const std::uint32_t target_end = Index(first.target) + first.num_blocks;
  if (first.source_tier + first.target_tier + second.source_tier + second.target_tier > 0)
    return false;
  if (!IsWindow(first.target)) return false;
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

// How often the block has been handed out; windows and host blocks are not.
std::uint32_t Transport::Generation(BlockId block, std::uint8_t tier) const noexcept {
  return tier != 0 || IsWindow(block) ? 0 : pager_.generation(block);
}

std::byte* Transport::Address(BlockId block, std::uint8_t tier) const noexcept {
  const std::size_t block_bytes = options_.block_bytes;
  if (tier == 0) return memory_.data() + Index(block) * block_bytes;
  return host_.data() + (Index(block) - 1) * block_bytes;
}

std::uint64_t Transport::CountLayers(const TransferGroup& group) const noexcept {
  return std::uint64_t{group.num_blocks} *
         (group.num_layers == 0 ? options_.num_layers : group.num_layers);
}

CopyOp Transport::CopyOf(const TransferGroup& group) const noexcept {
  const std::size_t block_bytes = options_.block_bytes;
  CopyOp copy = {.source = Address(group.source, group.source_tier),
                 .target = Address(group.target, group.target_tier),
                 .bytes = group.num_blocks * block_bytes};
  if (IsMutant(Mutant::kWrongTier) && group.source_tier == 1)
    copy.source = Address(group.target, 0);
  if (group.num_layers == 0) return copy;
  const std::size_t layer_bytes = block_bytes / options_.num_layers;
  copy.source += group.before_layer * layer_bytes;
  copy.target += group.before_layer * layer_bytes;
  copy.bytes = group.num_layers * layer_bytes;
  copy.num_pieces = group.num_blocks;
  copy.before_layer = group.before_layer;
  copy.source_stride = copy.target_stride = block_bytes;
  if (IsMutant(Mutant::kLateDeadline) && copy.before_layer > 0) ++copy.before_layer;
  return copy;
}

void Transport::Launch(const StepView& step) noexcept {
  Land();                        // A copy may read what the copies before it have written.
  std::uint64_t num_layers = 0;  // of blocks, that are to be copied
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    const Move& move = moves_[m];
    // K5: between plan and commit neither end was handed to anybody else.
    CHECK(Generation(move.source, move.source_tier) == move.source_generation);
    CHECK(Generation(move.target, move.target_tier) == move.target_generation);
    num_layers += std::uint64_t{move.num_blocks} * options_.num_layers;
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
  for (const TransferGroup& group : step.groups) {
    if (group.kind != GroupKind::kBlocks) continue;
    copies_[num_copies++] = CopyOf(group);
    num_layers -= CountLayers(group);
    if (group.before_layer > 0) continue;  // Its blocks are counted with their first layers.
    num_moved_blocks_ += group.num_blocks;
    if (group.target_tier != 0)
      num_parked_blocks_ += group.num_blocks;
    else if (group.source_tier != 0)
      num_resumed_blocks_ += group.num_blocks;
    else
      num_staged_blocks_ += IsWindow(group.target) ? group.num_blocks : 0;
  }
  // The descriptor moves what was planned, no more and no less.
  CHECK(num_layers == 0 || IsMutant(Mutant::kForgetAbandoned) || IsMutant(Mutant::kLoseLastLayers));
  num_launched_groups_ += num_copies;
  if (IsMutant(Mutant::kLoseCopy) && num_copies > 0) --num_copies;
  if (IsMutant(Mutant::kSplitOffByOne) && num_copies > 0 && copies_[0].bytes > options_.block_bytes)
    copies_[0].bytes -= options_.block_bytes;
  if (num_copies == 0) return;
  last_deadline_ = copies_[num_copies - 1].before_layer;
  flight_ = device_.Submit({copies_.data(), num_copies});
  flying_ = step.header->step;
}

void Transport::Land(std::uint32_t deadline) noexcept {
  if (flying_ == StepId{}) return;
  if (deadline < last_deadline_) return device_.WaitLayer(deadline);
  device_.Wait(flight_);
  flying_ = StepId{};
}

}  // namespace kvrm
