// SPDX-License-Identifier: Apache-2.0
// Text as the template language sees it: UTF-8 handled by code point, with Python's ideas of space,
// case and printability. Letters beyond Latin, Greek and Cyrillic have no case here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kvrm::jinja {

struct CodePoint {
  std::uint32_t value = 0;
  std::uint32_t size = 1;  // Bytes it takes.
};

// Requires: pos < text.size(). Invalid bytes come back one by one, as themselves.
CodePoint DecodeAt(std::string_view text, std::size_t pos);
void AppendUtf8(std::uint32_t value, std::string& out);
bool IsValidUtf8(std::string_view text);
std::size_t CountCodePoints(std::string_view text);

// The first (last) place of `wanted` at or after `begin`, npos: none. In linear time whatever the
// two texts are: both may be hostile.
std::size_t FindText(std::string_view text, std::string_view wanted, std::size_t begin = 0);
std::size_t FindLastText(std::string_view text, std::string_view wanted);

bool IsSpace(std::uint32_t c);  // str.isspace
std::string_view StripRight(std::string_view text);

bool IsAlpha(std::uint32_t c);
bool IsDecimal(std::uint32_t c);
bool IsPrintable(std::uint32_t c);  // What repr() shows as itself.
std::uint32_t ToLower(std::uint32_t c);
std::uint32_t ToUpper(std::uint32_t c);  // One to one; U+00DF is left alone.
bool IsUpper(std::uint32_t c);
bool IsLower(std::uint32_t c);

// Python's repr of a float: the shortest digits that read back, "1e+16" from 16 digits on.
std::string FloatRepr(double value);

}  // namespace kvrm::jinja
