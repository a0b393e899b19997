// SPDX-License-Identifier: Apache-2.0
// Slabs: which parts of the pool have memory.
//
// The pool is a range of addresses of its full size. Its blocks are divided into slabs of equal
// length, and a slab is awake or asleep. The blocks of a sleeping slab are free and in no index, so
// nothing can choose them; the pager wakes a slab before it takes a block of it.
//
// Memory comes and goes in the device's units (huge pages, where the kernel grants them). A block
// need not be a whole number of units: a unit is there as long as any slab that touches it is
// awake.
//
// Invariants (checked by Pager::CheckInvariants and CheckInvariants):
//   E1  A block of a sleeping slab is kFree and in no index of free runs. So whatever a row or a
//       copy can name, held, cached or in limbo, lies in memory that is there.
//   E2  A unit is committed if and only if a slab that touches it is awake.
//   E3  A slab falls asleep only when all of its blocks are kFree: no epoch in flight may touch
//       them (P4), no planned copy reads or fills them (P9).
//   E4  The slab of the sentinel never sleeps.
//
// Threading: engine thread only. Memory: reserved by the constructor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"
#include "step/step.h"

namespace kvrm {

// How much stands free, and how fast it goes. docs/decisions/0025 has the frontier.
struct SlabPolicy {
  std::uint32_t spare_share = 8;    // the part of held blocks that may stand free
  std::uint32_t piece_share = 2;    // no piece of a prompt's blocks need be a smaller part of them
  std::uint32_t drowsy_epochs = 8;  // without a wake, after which slabs may fall asleep
  std::uint32_t most_sleeps = 2;    // slabs, after each epoch
  bool at_ends = false;             // PlacementOptions::at_ends
};
inline constexpr SlabPolicy kTightSlabs = {
    .spare_share = 256, .piece_share = 6, .drowsy_epochs = 1, .most_sleeps = 64, .at_ends = true};

struct SlabOptions {
  Device* device = nullptr;  // null: every slab is awake for good
  std::span<std::byte> pool = {};
  std::uint64_t block_bytes = 0;
  SlabPolicy policy = {};
};

class Slabs {
 public:
  Slabs(const SlabOptions& options, std::uint32_t num_blocks);

  bool is_elastic() const noexcept { return !is_awake_.empty(); }
  const SlabPolicy& policy() const noexcept { return options_.policy; }
  std::uint32_t slab_blocks() const noexcept { return slab_blocks_; }
  std::uint32_t num_slabs() const noexcept { return static_cast<std::uint32_t>(num_free_.size()); }
  // Blocks without memory.
  std::uint32_t num_asleep() const noexcept { return num_asleep_; }
  bool IsAsleep(std::uint32_t block) const noexcept {
    return is_elastic() && !is_awake_[block / slab_blocks_];
  }
  // The sleeping slab that has `block`, else the first that sleeps. Requires: num_asleep() > 0.
  std::uint32_t NextToWake(std::uint32_t block) const noexcept;
  // Blocks from here on all sleep.
  std::uint32_t awake_end() const noexcept {
    return std::min(num_blocks_, awake_end_ * slab_blocks_);
  }
  // The last slab whose blocks are all free and awake; 0: there is none.
  std::uint32_t NextToSleep() const noexcept;
  // The slab's blocks, the sentinel left out.
  Extent BlocksOf(std::uint32_t slab) const noexcept;

  // Its blocks may be used from now on. With `populate` its memory is there when this returns (0.25
  // to 7 ms for a huge page); without, it comes as it is touched.
  void Wake(std::uint32_t slab, bool populate) noexcept;
  // Gives its memory back. Requires: NextToSleep, not 0.
  void Sleep(std::uint32_t slab) noexcept;
  // Every block that ceases to be free, or is free again, while its slab is awake.
  void Taken(const Extent& blocks) noexcept { Count(blocks, -1); }
  void Freed(const Extent& blocks) noexcept { Count(blocks, 1); }

  // Of the pool: all of it where nothing sleeps.
  std::uint64_t committed_bytes() const noexcept { return committed_bytes_; }
  std::uint64_t num_wakes() const noexcept { return num_wakes_; }
  std::uint64_t num_sleeps() const noexcept { return num_sleeps_; }
  std::uint64_t reserved_bytes() const noexcept;
  void CheckInvariants() const;

 private:
  void Count(const Extent& blocks, int sign) noexcept;
  bool IsEmpty(std::uint32_t slab) const noexcept {
    return slab > 0 && is_awake_[slab] && num_free_[slab] == BlocksOf(slab).num_blocks;
  }
  // Units that the slab touches: [first, end).
  std::uint64_t FirstUnit(std::uint32_t slab) const noexcept;
  std::uint64_t EndUnit(std::uint32_t slab) const noexcept;
  std::span<std::byte> Unit(std::uint64_t unit) const noexcept;

  const SlabOptions options_;
  const std::uint32_t num_blocks_;
  std::uint64_t unit_bytes_ = 0;
  std::uint32_t slab_blocks_ = 0;
  std::vector<bool> is_awake_;            // [num_slabs]; empty: not elastic
  std::vector<std::uint32_t> num_free_;   // [num_slabs], blocks that are free
  std::vector<std::uint32_t> num_users_;  // [units], awake slabs that touch it
  std::uint32_t num_asleep_ = 0;
  std::uint32_t num_empty_ = 0;  // slabs that are awake and wholly free, without that of E4
  std::uint32_t awake_end_ = 0;  // of slabs: from here on all sleep
  std::uint64_t committed_bytes_ = 0;
  std::uint64_t num_wakes_ = 0;
  std::uint64_t num_sleeps_ = 0;
};

}  // namespace kvrm
