// SPDX-License-Identifier: Apache-2.0
// SpecialScanner: finds special tokens written out in text, leftmost first, the longest of those
// that begin at one place.
//
// Linear in the text for a given vocabulary: at each position at most kMaxSpecialBytes bytes are
// looked at, and most positions end at their first byte. Immutable, safe to use from many threads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "model/vocabulary.h"

namespace kvrm {

class SpecialScanner {
 public:
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
    std::int32_t id = -1;
  };

  // Takes no reference to `vocabulary`.
  explicit SpecialScanner(const Vocabulary& vocabulary);

  // The first match that begins in [from, end); id -1: none. Control tokens are found only when
  // `trusted`, and then end at `end` at the latest; user-defined ones may reach past it.
  // `names` are those of the vocabulary given to the constructor.
  Match Find(const PieceTable& names, std::string_view text, std::size_t from, std::size_t end,
             bool trusted) const;

 private:
  struct Entry {
    std::int32_t id = -1;
    bool control = false;
  };
  // The longest token at `pos`.
  Match Longest(const PieceTable& names, std::string_view text, std::size_t pos,
                std::size_t trusted_end) const;

  std::vector<Entry> entries_;  // By spelling, ascending.
  std::array<std::uint32_t, 257>
      first_{};  // Entries that begin with byte b: [first_[b], first_[b + 1]).
  std::array<bool, 256> begins_anywhere_{};  // Some user-defined token begins with byte b.
};

}  // namespace kvrm
