// SPDX-License-Identifier: Apache-2.0
#include "kv/transport.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "kv/pager.h"

namespace kvrm {
namespace {

std::uint32_t AsCount(std::uint64_t value) {
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>(value, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace

Transport::Transport(const TransportOptions& options, std::span<std::byte> pool, Device& device,
                     Pager& pager)
    : options_(options),
      max_group_blocks_(AsCount(std::max<std::uint64_t>(1, kMaxGroupBytes / options.block_bytes))),
      max_blocks_(AsCount(options.max_move_bytes_per_step / options.block_bytes)),
      pool_(pool),
      device_(device),
      pager_(pager),
      moves_(options.max_groups),
      copies_(options.max_groups) {}

std::uint32_t Transport::GroupsFor(std::uint32_t num_blocks) const noexcept {
  return num_blocks / max_group_blocks_ + (num_blocks % max_group_blocks_ != 0 ? 1 : 0);
}

void Transport::Add(const Extent& source, const Extent& target) noexcept {
  CHECK(source.num_blocks == target.num_blocks && source.num_blocks > 0);
  CHECK(source.num_blocks <= num_blocks_left());
  CHECK(GroupsFor(source.num_blocks) <= num_groups_left());
  moves_[num_moves_++] = {.source = source.start,
                          .target = target.start,
                          .num_blocks = source.num_blocks,
                          .before_layer = 0,
                          .source_generation = pager_.generation(source.start),
                          .target_generation = pager_.generation(target.start)};
  num_groups_ += GroupsFor(source.num_blocks);
  num_planned_blocks_ += source.num_blocks;
  pager_.SetPlanned(source, true);
  pager_.SetPlanned(target, true);
}

void Transport::Flush(StepBuilder& builder) noexcept {
  if (num_moves_ == 0) return;
  MergeAdjacent();
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    const Move& move = moves_[m];
    for (std::uint32_t done = 0; done < move.num_blocks; done += max_group_blocks_) {
      builder.AddGroup({.source = BlockId{Index(move.source) + done},
                        .target = BlockId{Index(move.target) + done},
                        .num_blocks = std::min(max_group_blocks_, move.num_blocks - done),
                        .source_tier = 0,
                        .target_tier = 0,
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
    if (last.before_layer == move.before_layer &&
        Index(last.source) + last.num_blocks == Index(move.source) &&
        Index(last.target) + last.num_blocks == Index(move.target)) {
      last.num_blocks += move.num_blocks;
    } else {
      moves_[++kept] = move;
    }
  }
  num_moves_ = kept + 1;
}

void Transport::Launch(const StepView& step) noexcept {
  Land();  // A copy may read what the copies before it have written.
  std::uint32_t num_blocks = 0;
  for (std::uint32_t m = 0; m < num_moves_; ++m) {
    const Move& move = moves_[m];
    if (options_.planted_fault == KvFault::kNone) {
      // K5: between plan and commit neither end was handed to anybody else.
      CHECK(pager_.generation(move.source) == move.source_generation);
      CHECK(pager_.generation(move.target) == move.target_generation);
    }
    pager_.SetPlanned({move.source, move.num_blocks}, false);
    pager_.SetPlanned({move.target, move.num_blocks}, false);
    num_blocks += move.num_blocks;
  }
  num_moves_ = 0;
  num_groups_ = 0;
  num_planned_blocks_ = 0;
  std::uint32_t num_copies = 0;
  for (const TransferGroup& group : step.groups) {
    copies_[num_copies++] = {.source = pool_.data() + Index(group.source) * options_.block_bytes,
                             .target = pool_.data() + Index(group.target) * options_.block_bytes,
                             .bytes = group.num_blocks * options_.block_bytes};
    num_blocks -= group.num_blocks;
  }
  CHECK(num_blocks == 0);  // The descriptor moves what was planned, no more and no less.
  if (options_.planted_fault == KvFault::kLoseCopy && num_copies > 0) --num_copies;
  if (num_copies == 0) return;
  flight_ = device_.Submit({copies_.data(), num_copies});
  flying_ = step.header->step;
  for (const TransferGroup& group : step.groups)
    num_moved_blocks_ += group.num_blocks;
  num_launched_groups_ += step.groups.size();
}

void Transport::Land() noexcept {
  if (flying_ == StepId{}) return;
  device_.Wait(flight_);
  flying_ = StepId{};
}

}  // namespace kvrm
