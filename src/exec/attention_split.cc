// SPDX-License-Identifier: Apache-2.0
#include "exec/attention_split.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/cpu_kernels.h"

namespace kvrm {
namespace {

// For the query, the output and the overhead of an item, in positions.
constexpr std::uint64_t kFixedCost = 64;

}  // namespace

AttentionSplit::AttentionSplit(const Options& options)
    : options_(options),
      cuts_(options.num_workers + 1),
      num_pieces_(options.num_workers),
      remaining_(options.num_workers) {}

std::uint32_t AttentionSplit::Begin(std::int32_t position) const noexcept {
  const std::uint32_t end = static_cast<std::uint32_t>(position) + 1;
  const std::uint32_t window = options_.sliding_window;
  return window != 0 && end > window ? end - window : 0;
}

std::uint32_t AttentionSplit::FirstUnit(std::int32_t position) const noexcept {
  return Begin(position) / kAttentionUnit;
}

std::uint32_t AttentionSplit::NumUnits(std::int32_t position) const noexcept {
  return static_cast<std::uint32_t>(position) / kAttentionUnit + 1 - FirstUnit(position);
}

std::uint64_t AttentionSplit::Cost(std::int32_t position) const noexcept {
  const std::uint64_t context = static_cast<std::uint64_t>(position) + 1 - Begin(position);
  return std::max<std::uint64_t>(context, padded_tokens_) + kFixedCost;
}

std::uint32_t AttentionSplit::UnitsBefore(std::int32_t position,
                                          std::uint64_t cost) const noexcept {
  const std::uint32_t num_units = NumUnits(position);
  if (cost == 0) return 0;
  if (padded_tokens_ != 0 || num_units > options_.max_units) return num_units;
  const std::uint64_t at = cost + Begin(position) % kAttentionUnit;
  return static_cast<std::uint32_t>(
      std::min<std::uint64_t>((at + kAttentionUnit / 2) / kAttentionUnit, num_units));
}

void AttentionSplit::Plan(std::span<const std::int32_t> positions,
                          std::uint32_t padded_tokens) noexcept {
  positions_ = positions;
  padded_tokens_ = padded_tokens;
  const std::uint32_t heads = options_.num_kv_heads;
  const std::uint32_t num_workers = options_.num_workers;
  std::uint64_t total = 0;
  for (const std::int32_t position : positions)
    total += Cost(position) * heads;
  const auto num_items = static_cast<std::uint32_t>(positions.size()) * heads;
  std::uint32_t worker = 1;
  std::uint64_t passed = 0;
  for (std::uint32_t item = 0; item < num_items && worker < num_workers; ++item) {
    const std::int32_t position = positions[item / heads];
    const std::uint64_t cost = Cost(position);
    for (; worker < num_workers && total * worker < (passed + cost) * num_workers; ++worker) {
      const std::uint64_t goal = total * worker / num_workers;
      const std::uint32_t units = UnitsBefore(position, goal > passed ? goal - passed : 0);
      const bool whole = units >= NumUnits(position);
      cuts_[worker] = {.item = whole ? item + 1 : item, .unit = whole ? 0 : units};
    }
    passed += cost;
  }
  for (; worker <= num_workers; ++worker)
    cuts_[worker] = {.item = num_items};
  NumberSlots();
}

void AttentionSplit::NumberSlots() noexcept {
  std::uint32_t num_slots = 0;
  for (std::uint32_t w = 1; w < options_.num_workers; ++w) {
    Cut& cut = cuts_[w];
    const Cut& before = cuts_[w - 1];
    cut.slot = kWholeItem;
    if (cut.unit == 0) continue;
    const bool goes_on = before.item == cut.item && before.unit != 0;
    if (!goes_on) num_pieces_[num_slots++] = 1;  // The piece before the cut.
    cut.slot = num_slots - 1;
    // The piece behind the cut, unless the next cut is the same.
    const Cut& next = cuts_[w + 1];
    if (next.item != cut.item || next.unit != cut.unit) ++num_pieces_[cut.slot];
  }
  for (std::uint32_t slot = 0; slot < num_slots; ++slot)
    remaining_[slot].store(num_pieces_[slot], std::memory_order_relaxed);
}

bool AttentionSplit::Piece(std::uint32_t worker, std::uint32_t i,
                           AttentionPiece* piece) const noexcept {
  const Cut& begin = cuts_[worker];
  const Cut& end = cuts_[worker + 1];
  const std::uint32_t item = begin.item + i;
  if (item > end.item || (item == end.item && end.unit == 0)) return false;
  const std::int32_t position = positions_[item / options_.num_kv_heads];
  const std::uint32_t num_units = NumUnits(position);
  const std::uint32_t from = i == 0 ? begin.unit : 0;
  const std::uint32_t to = item == end.item ? end.unit : num_units;
  if (from == to) return false;  // Two cuts at one place; nothing lies behind them.
  const std::uint32_t first = FirstUnit(position);
  *piece = {.item = item,
            .unit_begin = first + from,
            .unit_end = first + to,
            .slot = from > 0         ? begin.slot
                    : to < num_units ? end.slot
                                     : kWholeItem};
  return true;
}

bool AttentionSplit::Finish(std::uint32_t slot) noexcept {
  if (remaining_[slot].fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
  remaining_[slot].store(num_pieces_[slot], std::memory_order_relaxed);
  return true;
}

}  // namespace kvrm
