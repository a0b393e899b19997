// SPDX-License-Identifier: Apache-2.0
// SourceReader: a place in the text of a grammar, and the first thing that is wrong with it. The
// parsers of GBNF and of regular expressions are made from it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace kvrm::grammar {

// -1: not a hexadecimal digit.
inline int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class SourceReader {
 protected:
  explicit SourceReader(std::string_view source) : source_(source) {}

  bool Fails() const { return !error_.empty(); }
  void Fail(std::string what) { FailAt(std::move(what), std::min(pos_, source_.size())); }
  // The first failure counts; behind it there is nothing left to read, so that every loop ends.
  void FailAt(std::string what, std::size_t pos) {
    if (Fails()) return;
    error_ = std::move(what);
    error_pos_ = pos;
    pos_ = source_.size();
  }
  bool AtEnd() const { return pos_ >= source_.size(); }
  char Peek() const { return AtEnd() ? '\0' : source_[pos_]; }
  bool Take(std::string_view text) {
    if (source_.substr(pos_, text.size()) != text) return false;
    pos_ += text.size();
    return true;
  }

  const std::string_view source_;
  std::size_t pos_ = 0;
  std::string error_;
  std::size_t error_pos_ = 0;
};

}  // namespace kvrm::grammar
