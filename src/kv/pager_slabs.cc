// SPDX-License-Identifier: Apache-2.0
// Pager's memory: which slabs are awake, and how much may be cached.
#include <algorithm>

#include "base/check.h"
#include "kv/pager.h"

namespace kvrm {

void Pager::Wake(std::uint32_t slab, bool populate) noexcept {
  slabs_.Wake(slab, populate);
  Free(slabs_.BlocksOf(slab));
  last_wake_ = retired_;
}

// Until so many blocks are free and awake, or none sleeps: first what lies from `next_block` on.
// HAZARD: memory that the system must find first takes up to 7 ms a unit, and everybody waits. So a
// long prompt has its first slabs populated, and touches the rest itself, chunk by chunk.
void Pager::WakeFor(std::uint32_t num_free, std::uint32_t next_block) noexcept {
  std::uint32_t num_woken = 0;
  while (free_runs_.num_free() < num_free && slabs_.num_asleep() > 0) {
    const std::uint32_t slab = slabs_.NextToWake(next_block);
    Wake(slab, /*populate=*/num_woken++ < kMaxPopulated);
    next_block = (slab + 1) * slabs_.slab_blocks();
  }
}

// Memory comes where a sequence is admitted, and not one block at a time where it runs.
void Pager::WakeForCredit() noexcept {
  if (slabs_.num_asleep() > 0) WakeFor(num_credit_, options_.num_blocks);
}

// Behind all that is awake, and where that does not suffice wherever slabs sleep, for what would
// fill small holes and be moved together later: rows that wait for such moves sit out a step (ADR
// 0025). Below two slabs a sequence grows as always.
void Pager::WakeForPrompt(std::uint32_t want) noexcept {
  if (want < 2 * slabs_.slab_blocks()) return;
  const std::uint32_t longest = free_runs_.Longest().num_blocks;
  if (std::uint64_t{longest} * slabs_.policy().piece_share >= want) return;
  const std::uint32_t end = slabs_.awake_end();
  WakeFor(free_runs_.num_free() + want - free_runs_.LengthBefore(end, want), end);
}

bool Pager::WakeMore(std::uint32_t num_blocks) noexcept {
  if (slabs_.num_asleep() == 0) return false;
  WakeFor(free_runs_.num_free() + num_blocks, options_.num_blocks);
  return true;
}

// The last resort is that a sequence alone has one run, and one hole for it there is only when all
// is awake. Memory then comes as it is touched: the whole pool's would take seconds.
void Pager::SetTogether(bool together) noexcept {
  placement_.SetTogether(together);
  while (together && slabs_.num_asleep() > 0)
    Wake(slabs_.NextToWake(options_.num_blocks), /*populate=*/false);
  if (together) last_wake_ = retired_;
}

// False when nothing may.
bool Pager::SleepOne() noexcept {
  const std::uint64_t wanted =
      std::uint64_t{num_credit_} + num_held_ / slabs_.policy().spare_share + slabs_.slab_blocks();
  if (free_runs_.num_free() < wanted + slabs_.slab_blocks() || placement_.is_together())
    return false;
  const std::uint32_t slab = slabs_.NextToSleep();
  if (slab == 0) return false;
  const Extent blocks = slabs_.BlocksOf(slab);
  free_runs_.Take(blocks);  // P3
  if (vacant_runs_) vacant_runs_->Take(blocks);
  placement_.Taken(blocks);
  slabs_.Sleep(slab);
  return true;
}

void Pager::SleepSome() noexcept {
  if (!slabs_.is_elastic() || retired_ - last_wake_ < slabs_.policy().drowsy_epochs) return;
  for (std::uint32_t i = 0; i < slabs_.policy().most_sleeps && SleepOne(); ++i) {
  }
}

void Pager::Rest() noexcept {
  if (!slabs_.is_elastic()) return;
  while (SleepOne()) {
  }
}

// What is cached beyond its share goes, the oldest first.
void Pager::EvictBeyond() noexcept {
  const auto most = [this] {
    return options_.max_cached == kCachedAsHeld ? cache_worth_.Bound(most_held_)
                                                : options_.max_cached;
  };
  while (num_cached() > most())
    EvictOne(index_.Oldest(), /*beyond=*/true);
}

}  // namespace kvrm
