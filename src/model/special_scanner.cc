// SPDX-License-Identifier: Apache-2.0
#include "model/special_scanner.h"

#include <algorithm>

namespace kvrm {

namespace {

std::size_t ByteAt(std::string_view text, std::size_t pos) {
  return static_cast<unsigned char>(text[pos]);
}

}  // namespace

SpecialScanner::SpecialScanner(const Vocabulary& vocabulary) {
  const PieceTable& names = vocabulary.names;
  for (std::int32_t id = 0; id < vocabulary.num_tokens(); ++id) {
    const TokenType type = vocabulary.types[static_cast<std::size_t>(id)];
    const bool control = type == TokenType::kControl || type == TokenType::kUnknown;
    if ((control || type == TokenType::kUserDefined) && !names[id].empty()) {
      entries_.push_back({id, control});
    }
  }
  std::sort(entries_.begin(), entries_.end(),
            [&](const Entry& a, const Entry& b) { return names[a.id] < names[b.id]; });
  for (const Entry& entry : entries_) {
    const std::size_t byte = ByteAt(names[entry.id], 0);
    ++first_[byte + 1];
    if (!entry.control) begins_anywhere_[byte] = true;
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    first_[byte + 1] += first_[byte];
  }
}

SpecialScanner::Match SpecialScanner::Find(const PieceTable& names, std::string_view text,
                                           std::size_t from, std::size_t end, bool trusted) const {
  for (std::size_t pos = from; pos < end; ++pos) {
    const std::size_t byte = ByteAt(text, pos);
    const bool possible = trusted ? first_[byte] != first_[byte + 1] : begins_anywhere_[byte];
    if (!possible) continue;
    const Match match = Longest(names, text, pos, trusted ? end : 0);
    if (match.id >= 0) return match;
  }
  return {};
}

SpecialScanner::Match SpecialScanner::Longest(const PieceTable& names, std::string_view text,
                                              std::size_t pos, std::size_t trusted_end) const {
  const std::size_t first_byte = ByteAt(text, pos);
  // [low, high) are the entries that agree with the text in their first `depth` bytes.
  auto low = entries_.begin() + first_[first_byte];
  auto high = entries_.begin() + first_[first_byte + 1];
  Match longest;
  for (std::size_t depth = 1; low != high; ++depth) {
    // Entries are sorted, so the one that ends here comes first.
    if (names[low->id].size() == depth) {
      if (!low->control || pos + depth <= trusted_end) longest = {pos, pos + depth, low->id};
      ++low;
    }
    if (low == high || pos + depth >= text.size()) break;
    const std::size_t byte = ByteAt(text, pos + depth);
    const auto next_byte = [&](const Entry& entry) { return ByteAt(names[entry.id], depth); };
    if (next_byte(*low) == byte && next_byte(*(high - 1)) == byte) continue;
    low = std::partition_point(low, high, [&](const Entry& e) { return next_byte(e) < byte; });
    high = std::partition_point(low, high, [&](const Entry& e) { return next_byte(e) == byte; });
  }
  return longest;
}

}  // namespace kvrm
