// SPDX-License-Identifier: Apache-2.0
// PieceTable: strings by id, and ids by string. MergeTable: what two tokens merge into.
//
// Both are open-addressing tables over flat memory: a vocabulary of 280,000 merges is built in a
// tenth of a second and looked up without chasing pointers. Immutable once built, then safe to read
// from many threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "model/merge.h"

namespace kvrm {

class PieceTable {
 public:
  void Reserve(std::size_t num_pieces, std::size_t num_bytes) {
    ends_.reserve(num_pieces);
    arena_.reserve(num_bytes);
  }

  // The piece gets the next id, from 0.
  // Requires: fewer than 4 GiB in all.
  void Append(std::string_view piece) {
    arena_.append(piece);
    CHECK(arena_.size() < 0xFFFFFFFFu);
    ends_.push_back(static_cast<std::uint32_t>(arena_.size()));
  }

  std::size_t size() const { return ends_.size(); }

  // Requires: 0 <= id < size().
  std::string_view operator[](std::int32_t id) const {
    const std::size_t idx = static_cast<std::size_t>(id);
    DCHECK(id >= 0 && idx < ends_.size());
    const std::uint32_t begin = idx == 0 ? 0 : ends_[idx - 1];
    return std::string_view(arena_).substr(begin, ends_[idx] - begin);
  }

  // Makes Find work. Returns the id of the first piece that repeats an earlier one, which stays
  // unfindable, or -1. Empty pieces are never found.
  std::int32_t BuildIndex() {
    std::size_t num_slots = 16;
    while (num_slots < ends_.size() * 2)
      num_slots *= 2;
    slots_.assign(num_slots, {});
    std::int32_t repeated = -1;
    for (std::int32_t id = 0; id < static_cast<std::int32_t>(ends_.size()); ++id) {
      const std::string_view piece = (*this)[id];
      if (piece.empty()) continue;
      Slot& slot = slots_[FindSlot(piece)];
      if (slot.id < 0) {
        slot = {id, Tag(Hash(piece))};
      } else if (repeated < 0) {
        repeated = id;
      }
    }
    return repeated;
  }

  // The piece's id, or -1.
  // Requires: BuildIndex() since the last Append.
  std::int32_t Find(std::string_view piece) const {
    return slots_.empty() ? -1 : slots_[FindSlot(piece)].id;
  }

 private:
  struct Slot {
    std::int32_t id = -1;
    std::uint32_t tag = 0;  // Upper half of the hash: spares most comparisons of strings.
  };

  static std::size_t Hash(std::string_view piece) { return std::hash<std::string_view>()(piece); }
  static std::uint32_t Tag(std::size_t hash) { return static_cast<std::uint32_t>(hash >> 32); }

  std::size_t FindSlot(std::string_view piece) const {
    const std::size_t hash = Hash(piece);
    const std::uint32_t tag = Tag(hash);
    std::size_t idx = hash & (slots_.size() - 1);
    while (slots_[idx].id >= 0 && (slots_[idx].tag != tag || (*this)[slots_[idx].id] != piece)) {
      idx = (idx + 1) & (slots_.size() - 1);
    }
    return idx;
  }

  std::string arena_;
  std::vector<std::uint32_t> ends_;  // Piece i is [ends_[i - 1], ends_[i]) of arena_.
  std::vector<Slot> slots_;          // At most half full, a power of two.
};

class MergeTable {
 public:
  void Reserve(std::size_t num_merges) {
    std::size_t num_slots = 16;
    while (num_slots < num_merges * 2)
      num_slots *= 2;
    slots_.assign(num_slots, {});
  }

  // The first rule for a pair stands; a repeated one is ignored.
  // Requires: at most as many calls as reserved.
  void Add(std::int32_t left, std::int32_t right, PairMerge merge) {
    Slot& slot = slots_[FindSlot(Key(left, right))];
    if (slot.merge.rank != kNoRank) return;
    slot = {Key(left, right), merge};
  }

  PairMerge Find(std::int32_t left, std::int32_t right) const {
    if (left < 0 || right < 0 || slots_.empty()) return {};
    return slots_[FindSlot(Key(left, right))].merge;
  }

 private:
  struct Slot {
    std::uint64_t key = 0;
    PairMerge merge;
  };

  static std::uint64_t Key(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 |
           static_cast<std::uint32_t>(right);
  }

  std::size_t FindSlot(std::uint64_t key) const {
    // A multiplication spreads neighbouring ids; the high bits are the well mixed ones.
    std::uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    std::size_t idx = hash & (slots_.size() - 1);
    while (slots_[idx].merge.rank != kNoRank && slots_[idx].key != key) {
      idx = (idx + 1) & (slots_.size() - 1);
    }
    return idx;
  }

  std::vector<Slot> slots_;  // At most half full, a power of two.
};

}  // namespace kvrm
