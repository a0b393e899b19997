// SPDX-License-Identifier: Apache-2.0
// Views: what a row of the descriptor shows of a sequence's home, and how windows are kept true.
//
//   extents         the home itself, at most max_runs runs
//   paged           the home, cut into runs of one block
//   static...       the lane: one run; padded ones all of it
//   staged          the sequence's window: rows write it as well (mirrors), what they did not write
//                   is copied in by Plan: after OpenCached and Fork, nothing in steady state
//   staged-layers   the sequence's part of the layer buffers, gathered anew for every layer
//   mapped          the sequence's window, addresses that show the home's blocks
//
// Windows of the sequence (lane) s are the blocks [num_pool_blocks + s * max_blocks_per_seq, ...);
// those of the layer buffers begin at 1 + s * max_blocks_per_seq, for 0 means the sentinel.
//
// Invariants:
//   V1  staged: the window holds positions [0, staged) as the home does, and a row is added only
//       when staged == length. Movement and copy-on-write change the home's place, never its
//       content, so nothing that happens to the home makes a window stale but Truncate.
//   V2  A window is not filled or mirrored into, and what it shows is not exchanged, while a step
//   in flight may read
//       it: for what its last holder has read, the epoch seen at Open must have retired; for what
//       its own rows have read, their last epoch.
//   V3  mapped: shown[i] is what the device shows at window block i, whoever holds the lane;
//   told[i]
//       says whether a committed descriptor has said so. What a given-up step told is told again
//       and not mapped again: a step in flight may be reading it.
//   V4  A copy into a window does not read a block that the same step writes (D7): the row whose
//       last, half-filled block is copied in a step is not part of that step.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"
#include "kv/kv_cache.h"
#include "kv/pager.h"
#include "kv/transport.h"
#include "step/step_builder.h"

namespace kvrm {

class Views {
 public:
  Views(const KvCacheOptions& options, Device& device);

  static bool HasWindows(KvView view);
  static bool IsStatic(KvView view);
  // Whether the number of runs of a home matters, so that compaction must hold it down.
  static bool NeedsFewRuns(KvView view);

  void Opened(SeqId seq, const Pager& pager) noexcept;
  void Truncated(SeqId seq, std::uint32_t num_tokens) noexcept;
  // Copies what windows lack, as far as the transport's budget goes.
  void Plan(Pager& pager, Transport& transport) noexcept;
  // Fills in what the row shows, and adds the view's own groups. False: the row must wait.
  bool FillRow(Pager& pager, StepBuilder& builder, StepRow& row) noexcept;
  // Rows of a committed step have written their windows.
  void Committed(const StepView& step) noexcept;
  void Abandoned(Pager& pager) noexcept;

  std::uint64_t num_maps() const noexcept { return num_maps_; }
  std::uint64_t num_gathered_blocks() const noexcept { return num_gathered_blocks_; }
  std::uint64_t reserved_bytes() const noexcept;
  std::uint64_t StateHash(const Pager& pager) const;  // As in KvCache.

 private:
  // Runs of a window for the sequence's first `num_blocks` blocks; empty when more than max_runs.
  std::span<const Extent> WindowRuns(SeqId seq, const Pager& pager, std::uint32_t first_block,
                                     std::uint32_t num_blocks) noexcept;
  bool FillPaged(const Pager& pager, StepRow& row) noexcept;
  bool FillStatic(const Pager& pager, StepBuilder& builder, StepRow& row) noexcept;
  bool FillStaged(const Pager& pager, StepRow& row) noexcept;
  bool FillLayers(const Pager& pager, StepBuilder& builder, StepRow& row) noexcept;
  bool FillMapped(Pager& pager, StepBuilder& builder, StepRow& row) noexcept;
  bool ShowHome(Pager& pager, StepBuilder& builder, SeqId seq, std::uint32_t end) noexcept;
  std::uint32_t AlikeFrom(const Pager& pager, SeqId seq, const Extent& blocks,
                          std::uint32_t number) const noexcept;
  bool ShowPiece(const Pager& pager, StepBuilder& builder, SeqId seq, const Extent& piece,
                 std::uint32_t* number) noexcept;
  std::uint32_t Lane(SeqId seq) const noexcept { return Index(seq) * options_.max_blocks_per_seq; }

  const KvCacheOptions options_;
  Device& device_;
  std::vector<Extent> scratch_;              // [max_blocks_per_seq] runs of a row
  std::vector<std::uint64_t> holder_epoch_;  // [max_seqs] last epoch of the lane's last holder
  std::vector<std::uint32_t> staged_;        // [max_seqs] V1
  std::vector<std::uint64_t> tail_epoch_;    // [max_seqs] V4: the step that copies the tail in
  std::vector<std::uint32_t> num_read_;      // [max_seqs] V2: window blocks that its rows may read
  std::vector<BlockId> shown_;               // [max_seqs * max_blocks_per_seq] V3
  std::vector<bool> told_;                   // as shown_
  std::vector<SeqId> mapping_;               // identities with mappings in the step being built
  std::uint64_t num_maps_ = 0;
  std::uint64_t num_gathered_blocks_ = 0;
};

}  // namespace kvrm
