// SPDX-License-Identifier: Apache-2.0
// Names and numbers from untrusted files as they may stand in a one-line message.
#pragma once

#include <charconv>
#include <string>
#include <string_view>
#include <type_traits>

namespace kvrm {

// At most 64 bytes, between single quotes; what is not printable ASCII becomes \xNN.
inline std::string Quoted(std::string_view text) {
  static constexpr std::size_t kMaxBytes = 64;
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  if (text.size() > kMaxBytes) out += "...";
  return out + "'";
}

// The shortest text that reads back as the same number.
template <typename T>
std::string NumberText(T value) {
  static_assert(std::is_floating_point_v<T>);
  char text[32];
  const auto [end, code] = std::to_chars(text, text + sizeof(text), value);
  return std::string(text, end);
}

}  // namespace kvrm
