// SPDX-License-Identifier: Apache-2.0
#include "kv/slabs.h"

#include <algorithm>

#include "base/check.h"
#include "base/mutant.h"

namespace kvrm {

Slabs::Slabs(const SlabOptions& options, std::uint32_t num_blocks)
    : options_(options), num_blocks_(num_blocks), committed_bytes_(options.pool.size()) {
  unit_bytes_ = options.device == nullptr ? 0 : options.device->elastic_unit();
  if (unit_bytes_ == 0) return;
  slab_blocks_ = static_cast<std::uint32_t>(
      std::max<std::uint64_t>(1, (unit_bytes_ + options.block_bytes - 1) / options.block_bytes));
  const std::uint32_t num_slabs = (num_blocks + slab_blocks_ - 1) / slab_blocks_;
  is_awake_.assign(num_slabs, false);
  num_free_.assign(num_slabs, 0);
  num_users_.assign((options.pool.size() + unit_bytes_ - 1) / unit_bytes_, 0);
  committed_bytes_ = 0;
  num_asleep_ = num_blocks - 1;
  Wake(0, /*populate=*/false);  // E4
}

std::uint64_t Slabs::FirstUnit(std::uint32_t slab) const noexcept {
  return std::uint64_t{slab} * slab_blocks_ * options_.block_bytes / unit_bytes_;
}

std::uint64_t Slabs::EndUnit(std::uint32_t slab) const noexcept {
  const std::uint64_t end = std::min<std::uint64_t>(
      (std::uint64_t{slab} + 1) * slab_blocks_ * options_.block_bytes, options_.pool.size());
  return (end + unit_bytes_ - 1) / unit_bytes_;
}

std::span<std::byte> Slabs::Unit(std::uint64_t unit) const noexcept {
  const std::uint64_t begin = unit * unit_bytes_;
  return options_.pool.subspan(begin, std::min(unit_bytes_, options_.pool.size() - begin));
}

Extent Slabs::BlocksOf(std::uint32_t slab) const noexcept {
  const std::uint32_t begin = std::max(1u, slab * slab_blocks_);
  const std::uint32_t end = std::min(num_blocks_, (slab + 1) * slab_blocks_);
  return {BlockId{begin}, end - begin};
}

std::uint32_t Slabs::NextToWake(std::uint32_t block) const noexcept {
  CHECK(num_asleep_ > 0);
  if (block < num_blocks_ && IsAsleep(block)) return block / slab_blocks_;
  const auto first = std::find(is_awake_.begin(), is_awake_.end(), false);
  return static_cast<std::uint32_t>(first - is_awake_.begin());
}

std::uint32_t Slabs::NextToSleep() const noexcept {
  std::uint32_t slab = num_empty_ > 0 ? awake_end_ - 1 : 0;
  while (slab > 0 && !IsEmpty(slab))
    --slab;
  return slab;
}

void Slabs::Wake(std::uint32_t slab, bool populate) noexcept {
  CHECK(!is_awake_[slab]);
  is_awake_[slab] = true;
  awake_end_ = std::max(awake_end_, slab + 1);
  num_free_[slab] = 0;
  num_asleep_ -= BlocksOf(slab).num_blocks;
  ++num_wakes_;
  for (std::uint64_t unit = FirstUnit(slab); unit < EndUnit(slab); ++unit) {
    if (++num_users_[unit] > 1) continue;
    committed_bytes_ += Unit(unit).size();
    if (populate) options_.device->Populate(Unit(unit));
  }
}

void Slabs::Sleep(std::uint32_t slab) noexcept {
  CHECK(IsEmpty(slab));  // E3
  is_awake_[slab] = false;
  --num_empty_;
  while (!is_awake_[awake_end_ - 1])  // E4
    --awake_end_;
  num_free_[slab] = 0;
  num_asleep_ += BlocksOf(slab).num_blocks;
  ++num_sleeps_;
  for (std::uint64_t unit = FirstUnit(slab); unit < EndUnit(slab); ++unit) {
    const bool is_last = --num_users_[unit] == 0;
    if (is_last) committed_bytes_ -= Unit(unit).size();
    if (is_last || IsMutant(Mutant::kGiveBackShared)) options_.device->GiveBack(Unit(unit));
  }
}

void Slabs::Count(const Extent& blocks, int sign) noexcept {
  if (!is_elastic()) return;
  std::uint32_t block = Index(blocks.start);
  const std::uint32_t end = block + blocks.num_blocks;
  while (block < end) {
    const std::uint32_t slab = block / slab_blocks_;
    const std::uint32_t next = std::min(end, (slab + 1) * slab_blocks_);
    CHECK(is_awake_[slab]);  // E1
    num_empty_ -= IsEmpty(slab) ? 1u : 0u;
    num_free_[slab] += sign > 0 ? next - block : block - next;
    num_empty_ += IsEmpty(slab) ? 1u : 0u;
    block = next;
  }
}

std::uint64_t Slabs::reserved_bytes() const noexcept {
  return is_awake_.size() / 8 + num_free_.size() * sizeof(num_free_[0]) +
         num_users_.size() * sizeof(num_users_[0]);
}

void Slabs::CheckInvariants() const {
  if (!is_elastic()) return;
  std::vector<std::uint32_t> users(num_users_.size(), 0);
  std::uint32_t num_asleep = 0;
  std::uint32_t num_empty = 0;
  for (std::uint32_t slab = 0; slab < num_slabs(); ++slab) {
    num_empty += IsEmpty(slab) ? 1u : 0u;
    if (!is_awake_[slab]) num_asleep += BlocksOf(slab).num_blocks;
    for (std::uint64_t unit = FirstUnit(slab); is_awake_[slab] && unit < EndUnit(slab); ++unit)
      ++users[unit];
  }
  CHECK(awake_end_ > 0 && is_awake_[awake_end_ - 1]);
  CHECK(std::find(is_awake_.begin() + awake_end_, is_awake_.end(), true) == is_awake_.end());
  std::uint64_t committed = 0;
  for (std::uint64_t unit = 0; unit < users.size(); ++unit)
    committed += users[unit] > 0 ? Unit(unit).size() : 0;
  CHECK(is_awake_[0]);                                          // E4
  CHECK(users == num_users_ && committed == committed_bytes_);  // E2
  CHECK(num_asleep == num_asleep_ && num_empty == num_empty_);
}

}  // namespace kvrm
