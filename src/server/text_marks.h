// SPDX-License-Identifier: Apache-2.0
// Texts that are searched for marks while they come. Pure functions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace kvrm {

inline bool IsSpace(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

inline std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && IsSpace(text.front()))
    text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back()))
    text.remove_suffix(1);
  return text;
}

// The longest end of `text` that is a beginning of `mark`, the whole left out.
inline std::size_t HeldBytes(std::string_view text, std::string_view mark) {
  if (mark.empty()) return 0;
  for (std::size_t length = std::min(mark.size() - 1, text.size()); length > 0; --length) {
    if (text.ends_with(mark.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace kvrm
