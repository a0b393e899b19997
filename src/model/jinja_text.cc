// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_text.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <vector>

namespace kvrm::jinja {
namespace {

std::uint32_t Byte(std::string_view text, std::size_t pos) {
  return static_cast<unsigned char>(text[pos]);
}

bool IsTrail(std::string_view text, std::size_t pos) {
  return pos < text.size() && (Byte(text, pos) & 0xC0) == 0x80;
}

// Blocks in which capital and small letters alternate, capital first on an even (or odd) code.
bool IsAlternatingCase(std::uint32_t c, bool* capital_is_even) {
  *capital_is_even = true;
  if (c >= 0x100 && c <= 0x137 && c != 0x130 && c != 0x131) return true;
  if (c >= 0x14A && c <= 0x177) return true;
  if (c >= 0x460 && c <= 0x481) return true;
  if (c >= 0x48A && c <= 0x4BF) return true;
  if (c >= 0x4D0 && c <= 0x52F) return true;
  if (c >= 0x1E00 && c <= 0x1E95) return true;
  if (c >= 0x1EA0 && c <= 0x1EFF) return true;
  *capital_is_even = false;
  if (c >= 0x139 && c <= 0x148) return true;
  if (c >= 0x179 && c <= 0x17E) return true;
  return c >= 0x4C1 && c <= 0x4CE;
}

}  // namespace

CodePoint DecodeAt(std::string_view text, std::size_t pos) {
  const std::uint32_t a = Byte(text, pos);
  if (a < 0x80) return {a, 1};
  if (a >= 0xC2 && a <= 0xDF && IsTrail(text, pos + 1)) {
    return {(a & 0x1F) << 6 | (Byte(text, pos + 1) & 0x3F), 2};
  }
  if (a >= 0xE0 && a <= 0xEF && IsTrail(text, pos + 1) && IsTrail(text, pos + 2)) {
    const std::uint32_t value =
        (a & 0x0F) << 12 | (Byte(text, pos + 1) & 0x3F) << 6 | (Byte(text, pos + 2) & 0x3F);
    if (value >= 0x800 && (value < 0xD800 || value > 0xDFFF)) return {value, 3};
  }
  if (a >= 0xF0 && a <= 0xF4 && IsTrail(text, pos + 1) && IsTrail(text, pos + 2) &&
      IsTrail(text, pos + 3)) {
    const std::uint32_t value = (a & 0x07) << 18 | (Byte(text, pos + 1) & 0x3F) << 12 |
                                (Byte(text, pos + 2) & 0x3F) << 6 | (Byte(text, pos + 3) & 0x3F);
    if (value >= 0x10000 && value <= 0x10FFFF) return {value, 4};
  }
  return {a, 1};
}

void AppendUtf8(std::uint32_t value, std::string& out) {
  const auto put = [&out](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xC0 | value >> 6);
    put(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    put(0xE0 | value >> 12);
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  } else {
    put(0xF0 | value >> 18);
    put(0x80 | (value >> 12 & 0x3F));
    put(0x80 | (value >> 6 & 0x3F));
    put(0x80 | (value & 0x3F));
  }
}

bool IsValidUtf8(std::string_view text) {
  for (std::size_t pos = 0; pos < text.size();) {
    const CodePoint c = DecodeAt(text, pos);
    if (c.size == 1 && c.value >= 0x80) return false;
    pos += c.size;
  }
  return true;
}

std::size_t CountCodePoints(std::string_view text) {
  std::size_t count = 0;
  for (const char c : text)
    count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

std::size_t FindText(std::string_view text, std::string_view wanted, std::size_t begin) {
  if (begin > text.size()) return std::string_view::npos;
  if (wanted.empty()) return begin;
  // std::string_view::find is quadratic; memmem is not.
  const void* found =
      memmem(text.data() + begin, text.size() - begin, wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

// Knuth, Morris and Pratt, read backwards.
std::size_t FindLastText(std::string_view text, std::string_view wanted) {
  const std::size_t size = wanted.size();
  if (size == 0) return text.size();
  const auto at = [&](std::size_t i) { return wanted[size - 1 - i]; };
  std::vector<std::size_t> border(size, 0);
  for (std::size_t i = 1, matched = 0; i < size; ++i) {
    while (matched > 0 && at(i) != at(matched))
      matched = border[matched - 1];
    if (at(i) == at(matched)) ++matched;
    border[i] = matched;
  }
  std::size_t matched = 0;
  for (std::size_t pos = text.size(); pos-- > 0;) {
    while (matched > 0 && text[pos] != at(matched))
      matched = border[matched - 1];
    if (text[pos] == at(matched)) ++matched;
    if (matched == size) return pos;
  }
  return std::string_view::npos;
}

bool IsSpace(std::uint32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view StripRight(std::string_view text) {
  while (!text.empty()) {
    std::size_t pos = text.size() - 1;
    while (pos > 0 && text.size() - pos < 4 && (Byte(text, pos) & 0xC0) == 0x80)
      --pos;
    const CodePoint c = DecodeAt(text, pos);
    if (pos + c.size != text.size() || !IsSpace(c.value)) break;
    text.remove_suffix(c.size);
  }
  return text;
}

bool IsAlpha(std::uint32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  if (c < 0xC0) return c == 0xAA || c == 0xB5 || c == 0xBA;
  if (c == 0xD7 || c == 0xF7) return false;
  if (c >= 0x2000 && c <= 0x2BFF) return false;
  if (c >= 0x3000 && c <= 0x3004) return false;
  if (c >= 0x3008 && c <= 0x3030) return false;
  if (c >= 0xFF00 && c <= 0xFF20) return false;
  return c < 0x1F000 || c >= 0x20000;
}

bool IsDecimal(std::uint32_t c) {
  return c >= '0' && c <= '9';
}

bool IsPrintable(std::uint32_t c) {
  if (c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD) return false;
  if ((c >= 0x600 && c <= 0x605) || c == 0x61C || c == 0x6DD || c == 0x70F) return false;
  if (c == 0x1680 || c == 0x180E || (c >= 0x2000 && c <= 0x200F)) return false;
  if ((c >= 0x2028 && c <= 0x202F) || (c >= 0x205F && c <= 0x206F)) return false;
  if (c == 0x3000 || (c >= 0xD800 && c <= 0xF8FF) || c == 0xFEFF) return false;
  if ((c >= 0xFFF0 && c <= 0xFFFB) || (c & 0xFFFE) == 0xFFFE) return false;
  return c < 0xE0000;
}

std::uint32_t ToLower(std::uint32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 32;
  bool capital_is_even = false;
  if (IsAlternatingCase(c, &capital_is_even)) {
    return (c % 2 == 0) == capital_is_even ? c + 1 : c;
  }
  if (c == 0x178) return 0xFF;
  if (c == 0x386) return 0x3AC;
  if (c >= 0x388 && c <= 0x38A) return c + 37;
  if (c == 0x38C) return 0x3CC;
  if (c == 0x38E || c == 0x38F) return c + 63;
  if (c >= 0x391 && c <= 0x3AB && c != 0x3A2) return c + 32;
  if (c >= 0x400 && c <= 0x40F) return c + 80;
  if (c >= 0x410 && c <= 0x42F) return c + 32;
  if (c >= 0xFF21 && c <= 0xFF3A) return c + 32;
  return c;
}

std::uint32_t ToUpper(std::uint32_t c) {
  if (c < 0x80) return c >= 'a' && c <= 'z' ? c - 32 : c;
  if (c == 0xB5) return 0x39C;
  if (c >= 0xE0 && c <= 0xFE && c != 0xF7) return c - 32;
  if (c == 0xFF) return 0x178;
  bool capital_is_even = false;
  if (IsAlternatingCase(c, &capital_is_even)) {
    return (c % 2 == 0) == capital_is_even ? c : c - 1;
  }
  if (c == 0x3AC) return 0x386;
  if (c >= 0x3AD && c <= 0x3AF) return c - 37;
  if (c == 0x3C2) return 0x3A3;
  if (c >= 0x3B1 && c <= 0x3CB) return c - 32;
  if (c == 0x3CC) return 0x38C;
  if (c == 0x3CD || c == 0x3CE) return c - 63;
  if (c >= 0x430 && c <= 0x44F) return c - 32;
  if (c >= 0x450 && c <= 0x45F) return c - 80;
  if (c >= 0xFF41 && c <= 0xFF5A) return c - 32;
  return c;
}

bool IsUpper(std::uint32_t c) {
  return ToLower(c) != c;
}
bool IsLower(std::uint32_t c) {
  return ToUpper(c) != c || c == 0xDF;
}

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<std::size_t>(end.ptr - buffer));
  const std::size_t e = text.find('e');
  std::string out;
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c == '-') out = "-";
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  int exponent = 0;
  std::size_t exponent_begin = e + 1;
  if (text[exponent_begin] == '+') ++exponent_begin;
  std::from_chars(text.data() + exponent_begin, text.data() + text.size(), exponent);
  const int num_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (num_digits > 1) out += "." + digits.substr(1);
    const int magnitude = std::abs(exponent);
    out += exponent < 0 ? "e-" : "e+";
    if (magnitude < 10) out += '0';
    return out + std::to_string(magnitude);
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1) {
    return out + digits + std::string(static_cast<std::size_t>(exponent + 1 - num_digits), '0') +
           ".0";
  }
  const std::size_t whole = static_cast<std::size_t>(exponent + 1);
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace kvrm::jinja
