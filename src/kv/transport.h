// SPDX-License-Identifier: Apache-2.0
// Transport: the only thing that moves KV.
//
// It collects the moves of the step under construction, in the order of their priority and within a
// budget of bytes and edits, and turns them into few large transfer groups:
//
//   1 sort     by the layer before which they must land, then by source
//   2 merge    moves whose sources and targets are both adjacent
//   3 bridge   a small gap that is the same at both ends: its bytes travel along and are ignored.
//              Only into a window's hole, which nobody reads, and only from blocks in limbo, which
//              nobody writes in this step (D7); never over live rows
//   4 cut      where the device has deadlines, what is larger than layered_bytes, into at most four
//              ranges of layers, each to land before its first one: an eighth of the layers, as
//              many again, a quarter, half. The first one is what the step waits for, and each is
//              copied while as many layers run as it has itself. Edits that nobody else asked for
//              pay for it: a move that finds none left stays whole
//   5 split    at kMaxGroupBytes, so that what is needed early is not stuck behind one huge piece
//
//     Add      Flush            Launch                 Land(deadline), Land
//    ----> planned ----> in the descriptor ----> in flight ----> landed
//
//     planned            the mapping has switched, nothing is copied yet
//     in the descriptor  the same, and the executor will be told; stays planned until Launch, so
//                        that an abandoned step loses nothing: the next Flush emits it again
//     in flight          the device copies; sources and targets stay untouched (P9)
//     landed             visible to the executor. A step starts when its copies of deadline 0 have
//                        landed, and retires when all have; an executor that runs meanwhile waits
//                        for each layer's (Device::WaitLayer)
//
// Blocks of the pool and of its windows, and of the host tier (kv/host_tier.h).
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "device/device.h"
#include "kv/kv_cache.h"
#include "step/step.h"
#include "step/step_builder.h"

namespace kvrm {

class Pager;

// 4 MiB: long enough that the cost of one copy (2.3 us for a device copy, less for memcpy) is
// under a thousandth of it, short enough that a copy that must land early is not stuck behind one
// huge piece.
inline constexpr std::uint64_t kMaxGroupBytes = 4 * 1024 * 1024;

// Why something moves, the most urgent first. What does not fit this step's budget waits; the order
// in which KvCache plans is this one.
enum class MovePriority : std::uint8_t {
  kCopyOnWrite,  // a row waits to write
  kStage,        // a row waits for its window
  kStuck,        // a row has more runs than a descriptor shows
  kPark,         // rows wait for the blocks that become free
  kResume,       // a row waits for its history, and others ran meanwhile
  kCompact,      // a row may soon have
};

// A gap of at most so many bytes costs less to copy than a second copy costs to start: 64 KiB are
// about 4 us of memcpy, or 2.3 us of a link at 28 GB/s.
inline constexpr std::uint64_t kMaxBridgeBytes = 64 * 1024;

inline constexpr std::uint32_t kMaxLayerRanges = 4;

struct TransportOptions {
  std::uint64_t block_bytes = 0;
  std::uint32_t num_pool_blocks = ~std::uint32_t{0};  // blocks from here on are windows
  std::uint32_t lane_blocks = 1;                      // of one window
  std::uint32_t max_groups = 0;
  std::uint64_t max_move_bytes_per_step = 0;
  // Moves of more bytes than `layered_bytes` are cut by layers: `num_layers` equal parts of a
  // block.
  std::uint32_t num_layers = 1;
  std::uint64_t layered_bytes = ~std::uint64_t{0};
};

class Transport {
 public:
  // `memory` is the pool, which starts with the sentinel, and its windows; `host` the second tier,
  // whose first block has number 1; `device` and `pager` outlive the transport.
  Transport(const TransportOptions& options, std::span<std::byte> memory, std::span<std::byte> host,
            Device& device, Pager& pager);

  // What this step's budget still allows.
  std::uint32_t num_blocks_left() const noexcept { return max_blocks_ - num_planned_blocks_; }
  std::uint32_t max_blocks() const noexcept { return max_blocks_; }
  std::uint32_t num_groups_left() const noexcept { return options_.max_groups - num_groups_; }
  // Groups that a move of so many blocks costs at most.
  std::uint32_t GroupsFor(std::uint32_t num_blocks) const noexcept;
  std::uint32_t max_group_blocks() const noexcept { return max_group_blocks_; }
  bool has_planned() const noexcept { return num_moves_ > 0; }

  // Requires: both of one length, within the budget.
  void Add(const Extent& source, const Extent& target, MovePriority priority) noexcept;
  // From the pool to the host tier, and back. As Add.
  void AddPark(const Extent& pool, const Extent& host) noexcept;
  void AddResume(const Extent& host, const Extent& pool) noexcept;
  // Merges, cuts, splits and puts everything planned into the step under construction.
  void Flush(StepBuilder& builder) noexcept;
  // The step is committed: submits its groups. Waits first for those of the step before.
  void Launch(const StepView& step) noexcept;
  // Returns when those with a before_layer of at most `deadline` have landed; all: by default.
  void Land(std::uint32_t deadline = kAllDeadlines) noexcept;

  // Epoch of the copies in flight; 0 when all have landed.
  StepId flying() const noexcept { return flying_; }
  std::uint64_t num_moved_blocks() const noexcept { return num_moved_blocks_; }
  std::uint64_t num_launched_groups() const noexcept { return num_launched_groups_; }
  std::uint64_t num_staged_blocks() const noexcept { return num_staged_blocks_; }
  std::uint64_t num_parked_blocks() const noexcept { return num_parked_blocks_; }
  std::uint64_t num_resumed_blocks() const noexcept { return num_resumed_blocks_; }
  std::uint64_t reserved_bytes() const noexcept {
    return moves_.size() * sizeof(Move) + copies_.size() * sizeof(CopyOp);
  }

 private:
  struct Move {
    BlockId source{};
    BlockId target{};
    std::uint32_t num_blocks = 0;
    std::uint32_t num_bridged = 0;  // of them: blocks that nobody asked for
    bool layered = false;           // cut by layers
    std::uint8_t source_tier = 0;
    std::uint8_t target_tier = 0;
    MovePriority priority{};
    std::uint32_t source_generation = 0;  // of the first block, when planned
    std::uint32_t target_generation = 0;
  };
  // Layers [first, first + num_layers) and how many blocks of them are a group.
  struct LayerRange {
    std::uint16_t first = 0;
    std::uint16_t num_layers = 0;
    std::uint32_t max_blocks = 0;
  };
  void AddMove(Move move) noexcept;
  void PlanLayerRanges();
  void ChooseLayered() noexcept;
  void AddGroups(StepBuilder& builder, const Move& move, const LayerRange& range) const noexcept;
  CopyOp CopyOf(const TransferGroup& group) const noexcept;
  std::uint64_t CountLayers(const TransferGroup& group) const noexcept;
  void MergeAdjacent() noexcept;
  bool CanBridge(const Move& first, const Move& second) const noexcept;
  std::uint32_t Generation(BlockId block, std::uint8_t tier) const noexcept;
  std::byte* Address(BlockId block, std::uint8_t tier) const noexcept;
  bool IsWindow(BlockId block) const noexcept { return Index(block) >= options_.num_pool_blocks; }

  const TransportOptions options_;
  const std::uint32_t max_group_blocks_;
  const std::uint32_t max_blocks_;  // per step
  std::array<LayerRange, kMaxLayerRanges> ranges_ = {};
  std::uint32_t num_ranges_ = 0;  // 0: nothing is cut
  const std::span<std::byte> memory_;
  const std::span<std::byte> host_;
  Device& device_;
  Pager& pager_;
  std::vector<Move> moves_;  // [max_groups], the first num_moves_ are planned
  // As asked for, before anything was merged: what is marked as planned, none for the host's end.
  std::vector<std::pair<Extent, Extent>> asked_;
  std::uint32_t num_asked_ = 0;
  std::uint32_t num_moves_ = 0;
  std::uint32_t num_groups_ = 0;  // that the planned moves cost at most
  std::uint32_t num_planned_blocks_ = 0;
  std::vector<CopyOp> copies_;  // [max_groups]
  StepId flushed_for_{};
  StepId flying_{};
  FlightId flight_{};
  std::uint32_t last_deadline_ = 0;  // of the copies in flight
  std::uint64_t num_moved_blocks_ = 0;
  std::uint64_t num_launched_groups_ = 0;
  std::uint64_t num_staged_blocks_ = 0;
  std::uint64_t num_parked_blocks_ = 0;
  std::uint64_t num_resumed_blocks_ = 0;
};

}  // namespace kvrm
