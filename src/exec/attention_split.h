// SPDX-License-Identifier: Apache-2.0
// AttentionSplit: who computes which part of a step's attention.
//
// The work is a list of items, (token, kv head), token by token; an item is a list of units of
// kAttentionUnit absolute positions. Each worker takes a stretch of it that reads about as much of
// the cache as the others', and stretches begin and end between units, so that one long row alone
// keeps all workers busy. An item that several workers share is divided: each writes its units'
// partial results to the item's slot, and the one who is last merges them, in the order of the
// units. A unit's partial result and the order of merging are the same for every division
// (docs/decisions/0012), and so is the output.
//
// Threading: Plan before the workers start; Share and Finish by the workers at once. Memory: sized
// at construction.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace kvrm {

struct AttentionPiece {
  std::uint32_t item;        // token * num_kv_heads + kv head
  std::uint32_t unit_begin;  // absolute indices of units
  std::uint32_t unit_end;
  std::uint32_t slot;  // of a divided item; kWholeItem: all of the item's units are in this piece
};
inline constexpr std::uint32_t kWholeItem = 0xffffffff;

class AttentionSplit {
 public:
  struct Options {
    std::uint32_t num_workers = 1;
    std::uint32_t num_kv_heads = 1;
    std::uint32_t sliding_window = 0;  // 0: none
    std::uint32_t max_units = 1;       // a slot holds; items with more are not divided
  };
  explicit AttentionSplit(const Options& options);

  // Slots that a step may need: an item is divided only where one worker's stretch ends.
  std::uint32_t num_slots() const noexcept { return options_.num_workers - 1; }

  // `positions` of the step's tokens. With padding an item is whole: its padding is.
  void Plan(std::span<const std::int32_t> positions, std::uint32_t padded_tokens) noexcept;

  // First attended position of the token at `position`.
  std::uint32_t Begin(std::int32_t position) const noexcept;

  // Piece `i` of `worker`, false when there are no more.
  bool Piece(std::uint32_t worker, std::uint32_t i, AttentionPiece* piece) const noexcept;

  // Told by a worker when its piece of a divided item is written. True for the last of the item's
  // pieces: all others are visible then, and the slot is ready for the next layer.
  bool Finish(std::uint32_t slot) noexcept;

 private:
  // Where a worker's stretch begins.
  struct Cut {
    std::uint32_t item = 0;
    std::uint32_t unit = 0;  // within the item
    std::uint32_t slot = kWholeItem;
  };

  std::uint64_t Cost(std::int32_t position) const noexcept;
  std::uint32_t FirstUnit(std::int32_t position) const noexcept;
  std::uint32_t NumUnits(std::int32_t position) const noexcept;
  // Units of `item` before the first that starts at `cost` or later; all of it for an item that is
  // not to be divided.
  std::uint32_t UnitsBefore(std::int32_t position, std::uint64_t cost) const noexcept;
  void NumberSlots() noexcept;

  const Options options_;
  std::vector<Cut> cuts_;                              // [num_workers + 1]
  std::vector<std::uint32_t> num_pieces_;              // of each slot
  std::vector<std::atomic<std::uint32_t>> remaining_;  // of each slot, in the layer at hand
  std::span<const std::int32_t> positions_;
  std::uint32_t padded_tokens_ = 0;
};

}  // namespace kvrm
