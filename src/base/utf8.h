// SPDX-License-Identifier: Apache-2.0
// UTF-8, strictly: what a byte sequence is, and how to make any bytes valid.
//
// Overlong forms, surrogates and code points past U+10FFFF are invalid. An invalid stretch is cut
// into maximal subparts (Unicode 3.9, "U+FFFD substitution of maximal subparts"), so that replacing
// byte by byte as they arrive and replacing the whole at once give the same text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm {

enum class Utf8State : std::uint8_t {
  kValid,
  kInvalid,    // No continuation can make it valid.
  kTruncated,  // The text ends inside a sequence that was valid so far.
};

struct Utf8Char {
  char32_t code_point = 0xFFFD;  // U+FFFD unless kValid.
  std::uint32_t size = 1;        // Bytes consumed; of the maximal subpart unless kValid.
  Utf8State state = Utf8State::kInvalid;
};

// Requires: pos < text.size().
inline Utf8Char DecodeUtf8(std::string_view text, std::size_t pos) {
  const auto byte_at = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const std::uint32_t lead = byte_at(pos);
  if (lead < 0x80) return {lead, 1, Utf8State::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const std::uint32_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what lies past U+10FFFF.
  std::uint32_t low = 0x80;
  std::uint32_t high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  std::uint32_t code_point = lead & (0x7Fu >> size);
  for (std::uint32_t i = 1; i < size; ++i) {
    if (pos + i >= text.size()) return {0xFFFD, i, Utf8State::kTruncated};
    const std::uint32_t byte = byte_at(pos + i);
    if (byte < low || byte > high) return {0xFFFD, i, Utf8State::kInvalid};
    code_point = code_point << 6 | (byte & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, size, Utf8State::kValid};
}

inline bool IsValidUtf8(std::string_view text) {
  for (std::size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.state != Utf8State::kValid) return false;
    pos += c.size;
  }
  return true;
}

// Requires: a code point up to U+10FFFF that is no surrogate.
inline void AppendUtf8(std::string& out, char32_t code_point) {
  const auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

// Appends `text` with every maximal subpart of an invalid stretch replaced by U+FFFD.
inline void AppendValidUtf8(std::string& out, std::string_view text) {
  std::size_t copied = 0;  // [copied, pos) is valid and not yet appended.
  std::size_t pos = 0;
  while (pos < text.size()) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (c.state != Utf8State::kValid) {
      out.append(text, copied, pos - copied);
      out.append("\xEF\xBF\xBD");
      copied = pos + c.size;
    }
    pos += c.size;
  }
  out.append(text, copied, pos - copied);
}

// How many bytes at the end of `text` are the beginning of a sequence that more bytes can complete:
// 0 to 3.
inline std::size_t TruncatedUtf8Tail(std::string_view text) {
  const std::size_t window = text.size() < 3 ? text.size() : 3;
  for (std::size_t tail = window; tail > 0; --tail) {
    const Utf8Char c = DecodeUtf8(text, text.size() - tail);
    if (c.state == Utf8State::kTruncated) return tail;
  }
  return 0;
}

}  // namespace kvrm
