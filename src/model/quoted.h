// SPDX-License-Identifier: Apache-2.0
// Quoted: a name from an untrusted file as it may stand in a one-line message.
//
// At most 64 bytes of it, between single quotes; what is not printable ASCII becomes \xNN.
#pragma once

#include <string>
#include <string_view>

namespace kvrm {

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

}  // namespace kvrm
