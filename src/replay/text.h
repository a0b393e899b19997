// SPDX-License-Identifier: Apache-2.0
// Text of reports: numbers as printf writes them, and text in markup. Threading: pure functions.
#pragma once

#include <cstdio>
#include <string>

namespace kvrm {

// At most 511 bytes.
template <typename... Values>
std::string Format(const char* format, Values... values) {
  char text[512];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

// As the content of an element or of an attribute in double quotes.
inline std::string EscapedHtml(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else if (c == '"') {
      escaped += "&quot;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace kvrm
